//! The absmax of every block: as `f32`, or quantised once more to 8 bits ("double quantisation").
//!
//! QLoRA, section 3. Double quantisation saves 0.37 of 4.5 bits per weight. bitsandbytes stores
//! `absmax = map[q] · second[i / 256] + offset`, where `i` counts blocks in row-major order.
#![allow(unsafe_code)]

use std::ops::Range;

use super::BLOCK;
use crate::kernels::cpu::Cpu;
use crate::kernels::line::{self, Line};

/// Absmax values that share one second-level absmax.
const NESTED_BLOCK: usize = 256;

/// One absmax per block of 64 weights, in row-major order, as a checkpoint holds them.
#[derive(Clone, Debug)]
pub enum Absmax {
    /// Plain values.
    F32(Vec<f32>),
    /// Quantised values, see the module.
    Double {
        /// One index into `map` per block.
        codes: Vec<u8>,
        /// `nested_quant_map`; bitsandbytes writes [`dynamic_map`].
        map: Box<[f32; 256]>,
        /// `nested_absmax`: one per 256 blocks.
        second: Vec<f32>,
        /// `nested_offset`: the mean that was taken off before quantising.
        offset: f32,
    },
}

impl Absmax {
    /// Quantises plain values as bitsandbytes does; already quantised ones stay as they are.
    pub fn double_quantize(self) -> Self {
        let Self::F32(values) = self else { return self };
        let map = Box::new(dynamic_map());
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64;
        let offset = mean as f32;
        let (mut codes, mut second) = (Vec::with_capacity(values.len()), Vec::new());
        for block in values.chunks(NESTED_BLOCK) {
            let largest = block.iter().fold(0f32, |max, v| max.max((v - offset).abs()));
            let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
            codes.extend(block.iter().map(|v| nearest(&map, (v - offset) * inverse)));
            second.push(largest);
        }
        Self::Double { codes, map, second, offset }
    }

    /// The absmax of block `index`.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Double { codes, map, second, offset } => {
                map[usize::from(codes[index])].mul_add(second[index / NESTED_BLOCK], *offset)
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Double { codes, .. } => codes.len(),
        }
    }
}

/// The signed 8-bit dynamic map of bitsandbytes (`create_dynamic_map`): seven decades, each with
/// twice the points of the one below.
///
/// To the bit: torch's `linspace` counts up from 0.1 in its lower half and down from 1 in the
/// upper one, with one rounding to `f32` per point.
pub fn dynamic_map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7 {
        let parts = 1 << decade;
        let step = f64::from((0.9 / f64::from(parts)) as f32);
        let edge = |i: i32| match i < (parts + 1) / 2 {
            true => (f64::from(0.1f32) + step * f64::from(i)) as f32,
            false => (1.0 - step * f64::from(parts - i)) as f32,
        };
        let size = 10f64.powi(decade - 6) as f32;
        for i in 0..parts {
            let value = (edge(i) + edge(i + 1)) / 2.0 * size;
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("two ends and twice 127 midpoints")
}

/// The index of the value nearest to `x`, the lower one of two.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    let above = map.partition_point(|&value| value < x).clamp(1, 255);
    (above - usize::from(x - map[above - 1] <= map[above] - x)) as u8
}

/// [`Absmax`] in the order of the panels: per panel and block, the 32 values of its rows.
#[derive(Debug)]
pub(super) struct PackedAbsmax {
    /// Blocks per row.
    blocks: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    /// Two lines per panel and block.
    F32(Vec<Line>),
    Double {
        codes: Vec<[u8; 32]>,
        map: Box<[f32; 256]>,
        second: Vec<f32>,
        offset: f32,
    },
}

impl PackedAbsmax {
    /// Reorders the absmax of a weight `(n, k)`.
    pub fn new(absmax: Absmax, n: usize, k: usize) -> Self {
        let (panels, blocks) = (n.div_ceil(32), k / BLOCK);
        assert_eq!(absmax.len(), n * blocks, "one absmax per block of {BLOCK}");
        let places = (0..n).flat_map(|row| (0..blocks).map(move |b| (row, b)));
        let values = match absmax {
            Absmax::F32(values) => {
                let mut lines = line::zeroed(panels * blocks * 2);
                for ((row, b), value) in places.zip(values) {
                    let line = (row / 32 * blocks + b) * 2 + row % 32 / 16;
                    lines[line].set_f32(row % 16, value);
                }
                Values::F32(lines)
            }
            Absmax::Double { codes, map, second, offset } => {
                let mut packed = vec![[0; 32]; panels * blocks];
                for ((row, b), code) in places.zip(codes) {
                    packed[row / 32 * blocks + b][row % 32] = code;
                }
                Values::Double { codes: packed, map, second, offset }
            }
        };
        Self { blocks, values }
    }

    pub fn size_bytes(&self) -> usize {
        match &self.values {
            Values::F32(lines) => size_of_val(&lines[..]),
            Values::Double { codes, second, .. } => {
                size_of_val(&codes[..]) + size_of_val(&second[..])
            }
        }
    }

    /// The absmax of block `b` of `row`.
    pub fn get(&self, row: usize, b: usize) -> f32 {
        let at = row / 32 * self.blocks + b;
        match &self.values {
            Values::F32(lines) => lines[at * 2 + row % 32 / 16].f32(row % 16),
            Values::Double { codes, map, second, offset } => {
                // Rows of padding have no second absmax; whatever is read meets zero codes.
                let nested = ((row * self.blocks + b) / NESTED_BLOCK).min(second.len() - 1);
                map[usize::from(codes[at][row % 32])].mul_add(second[nested], *offset)
            }
        }
    }

    /// The blocks `blocks` of one panel, two lines each, decoded into `scratch` where need be.
    pub fn lines<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        blocks: Range<usize>,
        scratch: &'a mut [Line],
    ) -> &'a [Line] {
        if let Values::F32(lines) = &self.values {
            let start = panel * self.blocks;
            return &lines[(start + blocks.start) * 2..(start + blocks.end) * 2];
        }
        let scratch = &mut scratch[..blocks.len() * 2];
        for (pair, b) in scratch.chunks_exact_mut(2).zip(blocks) {
            for (half, line) in pair.iter_mut().enumerate() {
                *line = self.decode(cpu, panel * 32 + half * 16, b);
            }
        }
        scratch
    }

    /// The absmax of block `b` of sixteen rows from `row` on.
    fn decode(&self, cpu: Cpu, row: usize, b: usize) -> Line {
        #[cfg(target_arch = "x86_64")]
        if let (true, Values::Double { codes, map, second, offset }) = (cpu.bf16, &self.values) {
            let codes = &codes[row / 32 * self.blocks + b].as_chunks().0[row % 32 / 16];
            // SAFETY: `bf16` says that AVX-512 F was detected.
            return unsafe { avx512::decode(codes, map, second, *offset, row, self.blocks, b) };
        }
        let _ = cpu;
        let mut line = Line::ZERO;
        (0..16).for_each(|lane| line.set_f32(lane, self.get(row + lane, b)));
        line
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::NESTED_BLOCK;
    use crate::kernels::line::Line;
    use crate::kernels::simd::store_line;
    use std::arch::x86_64::*;

    /// [`super::PackedAbsmax::get`] for sixteen rows at once.
    #[target_feature(enable = "avx512f")]
    pub fn decode(
        codes: &[u8; 16],
        map: &[f32; 256],
        second: &[f32],
        offset: f32,
        row: usize,
        blocks: usize,
        b: usize,
    ) -> Line {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let rows = _mm512_add_epi32(lanes, _mm512_set1_epi32(row as i32));
        let first = _mm512_mullo_epi32(rows, _mm512_set1_epi32(blocks as i32));
        let index = _mm512_add_epi32(first, _mm512_set1_epi32(b as i32));
        let nested = _mm512_srli_epi32::<{ NESTED_BLOCK.ilog2() }>(index);
        let nested = _mm512_min_epi32(nested, _mm512_set1_epi32(second.len() as i32 - 1));
        // SAFETY: `codes` is 16 readable bytes; a byte cannot leave the 256 entries of `map`, and
        // `nested` is cut to the last entry of `second`, which a weight with blocks always has.
        let (value, scale) = unsafe {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let value = _mm512_i32gather_ps::<4>(codes, map.as_ptr());
            (value, _mm512_i32gather_ps::<4>(nested, second.as_ptr()))
        };
        let absmax = _mm512_fmadd_ps(value, scale, _mm512_set1_ps(offset));
        let mut line = Line::ZERO;
        store_line(&mut line, _mm512_castps_si512(absmax));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_is_that_of_bitsandbytes() {
        let map = dynamic_map();
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        assert!((map[0] + 0.992_968_75).abs() < 1e-7 && (map[128] - 5.5e-7).abs() < 1e-12);
        let sum = |power: i32| map.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>();
        assert!((sum(1) - 1.0).abs() < 1e-6 && (sum(2) - 48.595_837_5).abs() < 1e-5);
    }

    #[test]
    fn double_quantisation_stays_close() {
        let values: Vec<f32> = (0..1000).map(|i| 0.05 + 0.01 * (i as f32).sin()).collect();
        let double = Absmax::F32(values.clone()).double_quantize();
        let worst = values.iter().enumerate().map(|(i, v)| (double.get(i) - v).abs());
        assert!(worst.fold(0f32, f32::max) < 1e-4);
    }
}
