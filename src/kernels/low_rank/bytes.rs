//! Lines of bf16 values held as int8: half of the bytes, 32 values to a scale.
//!
//! Beside weights of 8 and 4 bits, an adapter in bf16 is exact where its base is not, and a batch of
//! many adapters is bound by reading them. A value `q · scale`, rounded to bf16, is within a
//! hundredth of the largest of its line. It is the same wherever it is widened: in registers for a
//! few rows, or once for all rows of a prompt.
#![allow(unsafe_code)]

use std::array;
use std::ops::Range;

use crate::kernels::bf16::{PANEL, round};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};

/// Values of a line.
const VALUES: usize = 32;

/// The values of one line, in its order.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(32))]
pub struct Bytes([i8; VALUES]);

/// Lines as int8.
#[derive(Debug, Default)]
pub struct ByteLines {
    bytes: Vec<Bytes>,
    /// What one step is worth, line by line.
    scales: Vec<f32>,
}

/// Some of them, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    pub bytes: &'a [Bytes],
    pub scales: &'a [f32],
}

impl ByteLines {
    /// Lines of bf16 values to the nearest steps of `max|x| / 127`.
    pub fn of(pool: &Pool, lines: &[Line]) -> Self {
        let mut bytes = vec![Bytes([0; VALUES]); lines.len()];
        let mut scales = vec![0.0; lines.len()];
        let out = (PerItem::new(&mut bytes, 1), PerItem::new(&mut scales, 1));
        split(pool, lines.len(), VALUES, out, |which, (bytes, scales)| {
            for ((line, bytes), scale) in lines[which].iter().zip(bytes).zip(scales) {
                (*bytes, *scale) = quantize(line);
            }
        });
        Self { bytes, scales }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes they take.
    pub fn size_bytes(&self) -> usize {
        size_of_val(&self.bytes[..]) + size_of_val(&self.scales[..])
    }

    /// The lines `which`.
    pub fn stretch(&self, which: Range<usize>) -> Stretch<'_> {
        Stretch { bytes: &self.bytes[which.clone()], scales: &self.scales[which] }
    }
}

fn quantize(line: &Line) -> (Bytes, f32) {
    let values: [f32; VALUES] = std::array::from_fn(|i| line.bf16(i / 2, i % 2));
    let max = values.iter().fold(0f32, |max, value| max.max(value.abs()));
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    (Bytes(values.map(|value| (value * inverse).round_ties_even() as i8)), max / 127.0)
}

impl Stretch<'_> {
    /// Some of them.
    pub fn part(self, which: Range<usize>) -> Self {
        Self { bytes: &self.bytes[which.clone()], scales: &self.scales[which] }
    }

    /// Writes them to as many lines `to`.
    pub fn widen(self, cpu: Cpu, to: &mut [Line]) {
        assert_eq!(self.bytes.len(), to.len(), "a line for each");
        #[cfg(target_arch = "x86_64")]
        if cpu.bf16 {
            // SAFETY: `bf16` says that AVX-512 F, BW and BF16 were detected.
            return unsafe { avx512::widen(self, to) };
        }
        for ((Bytes(bytes), scale), to) in self.bytes.iter().zip(self.scales).zip(to) {
            *to = round(cpu, &bytes.map(|q| f32::from(q) * scale));
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    use super::*;
    use crate::kernels::simd::{as_bf16, as_words, load_ps, prefetch, store_ps};
    use std::arch::x86_64::*;

    /// Lines ahead of the stream that are asked for: 4 KiB.
    const AHEAD: usize = 128;

    /// Outputs ahead of those that are added to.
    const OUTPUTS_AHEAD: usize = 4 * PANEL;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn widen(stretch: Stretch<'_>, to: &mut [Line]) {
        ask(stretch.bytes);
        for ((bytes, scale), to) in stretch.bytes.iter().zip(stretch.scales).zip(to) {
            let line = widened(bytes, *scale);
            // SAFETY: a line is a register, aligned.
            unsafe { _mm512_store_si512(std::ptr::from_mut(to).cast(), as_words(line)) };
        }
    }

    /// Asks for what lies some lines after these.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn ask(bytes: &[Bytes]) {
        bytes.chunks(2).for_each(|pair| prefetch(&pair[0], AHEAD));
    }

    /// `y += h Bᵀ` for `MR` rows and several whole panels of so many lines, `P` at a time: a panel of one
    /// row alone is a chain of sums too long to wait for. The sums of an output are formed in the order
    /// of [`multiply`](crate::kernels::bf16::multiply).
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn tiles<const MR: usize, const P: usize>(
        w: Stretch<'_>,
        lines: usize,
        h: &[Line],
        mut y: [&mut [f32]; MR],
    ) {
        let panels = y[0].len() / PANEL;
        let whole = panels / P * P;
        for first in (0..whole).step_by(P) {
            side_by_side::<MR, P>(w, lines, h, first, &mut y);
        }
        for panel in whole..panels {
            side_by_side::<MR, 1>(w, lines, h, panel, &mut y);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn side_by_side<const MR: usize, const P: usize>(
        w: Stretch<'_>,
        lines: usize,
        h: &[Line],
        first: usize,
        y: &mut [&mut [f32]; MR],
    ) {
        let columns = first * PANEL..(first + P) * PANEL;
        let y: [&mut [f32]; MR] = y.each_mut().map(|y| &mut y[columns.clone()]);
        let w: [Stretch<'_>; P] =
            array::from_fn(|q| w.part((first + q) * lines..(first + q + 1) * lines));
        let mut sums = [[[_mm512_setzero_ps(); 2]; P]; MR];
        for i in 0..MR {
            for (sums, y) in sums[i].as_flattened_mut().iter_mut().zip(y[i].chunks_exact(16)) {
                *sums = load_ps(y);
                prefetch(&y[0], OUTPUTS_AHEAD);
            }
        }
        for p in 0..lines / 2 {
            let h = &h[p / 16 * MR..][..MR];
            for q in 0..P {
                prefetch(&w[q].bytes[2 * p], AHEAD);
                for half in 0..2 {
                    let line = 2 * p + half;
                    let w = widened(&w[q].bytes[line], w[q].scales[line]);
                    for i in 0..MR {
                        let h = as_bf16(_mm512_set1_epi32(h[i].0[p % 16] as i32));
                        sums[i][q][half] = _mm512_dpbf16_ps(sums[i][q][half], h, w);
                    }
                }
            }
        }
        for i in 0..MR {
            for (sums, y) in sums[i].as_flattened().iter().zip(y[i].chunks_exact_mut(16)) {
                store_ps(y, *sums);
            }
        }
    }

    /// A line in a register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn widened(Bytes(bytes): &Bytes, scale: f32) -> __m512bh {
        let scale = _mm512_set1_ps(scale);
        let (low, high) = bytes.split_at(VALUES / 2);
        // SAFETY: sixteen bytes each.
        let [low, high] = [low, high].map(|half| unsafe { _mm_loadu_si128(half.as_ptr().cast()) });
        let low = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)), scale);
        let high = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)), scale);
        _mm512_cvtne2ps_pbh(high, low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Seeded, every_cpu};

    fn lines(count: usize) -> Vec<Line> {
        let values = Seeded(3).values(count * VALUES);
        let mut lines: Vec<Line> =
            values.chunks(VALUES).map(|values| round(Cpu::SCALAR, values)).collect();
        lines[1] = Line::ZERO;
        lines
    }

    #[test]
    fn values_are_within_half_a_step_and_zeros_stay() {
        let lines = lines(9);
        let packed = ByteLines::of(&Pool::new(2), &lines);
        let mut widened = vec![Line::ZERO; 9];
        packed.stretch(0..9).widen(Cpu::detect(), &mut widened);
        for (line, widened) in lines.iter().zip(&widened) {
            let value = |line: &Line, i: usize| line.bf16(i / 2, i % 2);
            let max = (0..VALUES).fold(0f32, |max, i| max.max(value(line, i).abs()));
            for i in 0..VALUES {
                let error = (value(line, i) - value(widened, i)).abs();
                // Half a step, and the rounding to bf16.
                assert!(error <= max * (0.5 / 127.0 + 1.0 / 256.0), "{error} of {max}");
            }
        }
        assert_eq!(widened[1], Line::ZERO);
    }

    #[test]
    fn every_instruction_set_widens_to_the_same_bits() {
        let packed = ByteLines::of(&Pool::new(1), &lines(33));
        let widened = |cpu, which: Range<usize>| {
            let mut to = vec![Line::ZERO; which.len()];
            packed.stretch(which).widen(cpu, &mut to);
            to
        };
        let expected = widened(Cpu::SCALAR, 0..33);
        for cpu in every_cpu() {
            assert_eq!(widened(cpu, 0..33), expected);
            assert_eq!(widened(cpu, 5..12), expected[5..12]);
        }
    }
}
