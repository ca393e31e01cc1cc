//! The absmax of every block: as `f32`, or quantised once more to 8 bits ("double quantisation").
//!
//! QLoRA, section 3. Double quantisation saves 0.37 of 4.5 bits per weight. bitsandbytes stores
//! `absmax = map[q] · second[i / 256] + offset`, where `i` counts blocks in row-major order.
#![allow(unsafe_code)]

use std::ops::Range;

use super::BLOCK;
use crate::kernels::cpu::Cpu;
use crate::kernels::dynamic::{self, Map};
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};

/// Absmax values that share one second-level absmax.
const NESTED_BLOCK: usize = dynamic::BLOCK;

/// One absmax per block of weights, in row-major order, as a checkpoint holds them.
#[derive(Clone, Debug)]
pub enum Absmax {
    /// Plain values.
    F32(Vec<f32>),
    /// Quantised values, see the module.
    Double {
        /// One index into `map` per block.
        codes: Vec<u8>,
        /// `nested_quant_map`; bitsandbytes writes [`dynamic::SIGNED`].
        map: Box<[f32; 256]>,
        /// `nested_absmax`: one per 256 blocks.
        second: Vec<f32>,
        /// `nested_offset`: the mean that was taken off before quantising.
        offset: f32,
    },
}

impl Absmax {
    /// Quantises plain values as bitsandbytes does, on the threads of `pool`; already quantised ones
    /// stay as they are.
    pub fn double_quantize(self, pool: &Pool) -> Self {
        let Self::F32(mut values) = self else { return self };
        let map: &Map = &dynamic::SIGNED;
        let offset = mean(pool, &values);
        let mut codes = vec![0; values.len()];
        let mut second = vec![0.0; values.len().div_ceil(NESTED_BLOCK)];
        let blocks = second.len();
        let parts = (PerItem::new(&mut codes, NESTED_BLOCK), PerItem::new(&mut second, 1));
        let out = (PerItem::new(&mut values, NESTED_BLOCK), parts);
        split(pool, blocks, NESTED_BLOCK, out, |_, (values, (codes, second))| {
            values.iter_mut().for_each(|value| *value -= offset);
            let blocks = values.chunks(NESTED_BLOCK).zip(codes.chunks_mut(NESTED_BLOCK));
            for ((values, codes), second) in blocks.zip(second) {
                *second = map.encode(values, codes);
            }
        });
        let map = Box::new(map.levels);
        Self::Double { codes, map, second, offset }
    }

    /// The absmax of block `index`.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Double { codes, map, second, offset } => {
                // Two roundings, as torch has them.
                map[usize::from(codes[index])] * second[index / NESTED_BLOCK] + offset
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

/// The mean, summed in `f64` over stretches of one length, so that threads change nothing.
fn mean(pool: &Pool, values: &[f32]) -> f32 {
    const STRETCH: usize = 1 << 12;
    let mut sums = vec![0f64; values.len().div_ceil(STRETCH)];
    let stretches = sums.len();
    split(pool, stretches, STRETCH, PerItem::new(&mut sums, 1), |stretches, sums| {
        for (values, sum) in values[stretches.start * STRETCH..].chunks(STRETCH).zip(sums) {
            *sum = values.iter().map(|&value| f64::from(value)).sum();
        }
    });
    (sums.iter().sum::<f64>() / values.len().max(1) as f64) as f32
}

/// [`Absmax`] in the order of the panels: per panel and block, the 32 values of its rows.
#[derive(Debug)]
pub(super) struct PackedAbsmax {
    /// Blocks of 64 per row.
    blocks: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    /// Two lines per panel and block.
    F32(Lines),
    Double {
        codes: Vec<[u8; 32]>,
        map: Box<[f32; 256]>,
        second: Vec<f32>,
        offset: f32,
        /// Blocks of 64 that share one entry of `second`, as a power of two.
        nested: u32,
    },
}

impl PackedAbsmax {
    /// Reorders the absmax of a weight `(n, k)`, given per `block` values; a block of several 64s is
    /// said again for each.
    pub fn new(pool: &Pool, absmax: Absmax, block: usize, n: usize, k: usize) -> Self {
        let blocks = k / BLOCK;
        assert!(
            block.is_power_of_two() && block >= BLOCK,
            "blocks of {BLOCK} or twice that or more"
        );
        let repeat = (block / BLOCK).ilog2();
        let count = (n * blocks).div_ceil(1 << repeat);
        assert_eq!(absmax.len(), count, "one absmax per block of {block}");
        let values = match absmax {
            Absmax::F32(values) => {
                let mut lines = line::resident(n.div_ceil(32) * blocks * 2);
                let to = bytemuck::cast_slice_mut::<_, [f32; 32]>(&mut lines);
                by_panels(pool, (n, blocks), to, |at| values[at >> repeat]);
                Values::F32(lines)
            }
            Absmax::Double { codes, map, second, offset } => {
                let mut packed = vec![[0; 32]; n.div_ceil(32) * blocks];
                by_panels(pool, (n, blocks), &mut packed, |at| codes[at >> repeat]);
                let nested = NESTED_BLOCK.ilog2() + repeat;
                Values::Double { codes: packed, map, second, offset, nested }
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
            Values::Double { codes, map, second, offset, nested } => {
                // Rows of padding have no second absmax; whatever is read meets zero codes.
                let nested = ((row * self.blocks + b) >> nested).min(second.len() - 1);
                map[usize::from(codes[at][row % 32])] * second[nested] + offset
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
        if let (true, Values::Double { codes, map, second, offset, nested }) =
            (cpu.bf16, &self.values)
        {
            let codes = &codes[row / 32 * self.blocks + b].as_chunks().0[row % 32 / 16];
            let first = (row * self.blocks + b, self.blocks);
            // SAFETY: `bf16` says that AVX-512 F was detected.
            return unsafe { avx512::decode(codes, map, second, *offset, *nested, first) };
        }
        let _ = cpu;
        let mut line = Line::ZERO;
        (0..16).for_each(|lane| line.set_f32(lane, self.get(row + lane, b)));
        line
    }
}

/// Writes what `of` gives for each block of each row, counted in row-major order, by panels: `to` has
/// the 32 rows of a panel side by side for every block. Rows that are missing keep what is there.
fn by_panels<T: Copy + Send>(
    pool: &Pool,
    (n, blocks): (usize, usize),
    to: &mut [[T; 32]],
    of: impl Fn(usize) -> T + Sync,
) {
    let out = PerItem::new(to, blocks);
    split(pool, n.div_ceil(32), 32 * blocks, out, |panels, to| {
        for (panel, to) in panels.zip(to.chunks_exact_mut(blocks.max(1))) {
            for (lane, row) in (panel * 32..n.min((panel + 1) * 32)).enumerate() {
                to.iter_mut().enumerate().for_each(|(b, to)| to[lane] = of(row * blocks + b));
            }
        }
    });
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use crate::kernels::line::Line;
    use crate::kernels::simd::store_line;
    use std::arch::x86_64::*;

    /// [`super::PackedAbsmax::get`] for sixteen rows at once: the first's number of the block, and
    /// how many blocks a row has.
    #[target_feature(enable = "avx512f")]
    pub fn decode(
        codes: &[u8; 16],
        map: &[f32; 256],
        second: &[f32],
        offset: f32,
        nested: u32,
        (first, blocks): (usize, usize),
    ) -> Line {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let behind = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(blocks as i32));
        let index = _mm512_add_epi32(behind, _mm512_set1_epi32(first as i32));
        let nested = _mm512_srl_epi32(index, _mm_cvtsi32_si128(nested as i32));
        let nested = _mm512_min_epi32(nested, _mm512_set1_epi32(second.len() as i32 - 1));
        // SAFETY: `codes` is 16 readable bytes; a byte cannot leave the 256 entries of `map`, and
        // `nested` is cut to the last entry of `second`, which a weight with blocks always has.
        let (value, scale) = unsafe {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let value = _mm512_i32gather_ps::<4>(codes, map.as_ptr());
            (value, _mm512_i32gather_ps::<4>(nested, second.as_ptr()))
        };
        let absmax = _mm512_add_ps(_mm512_mul_ps(value, scale), _mm512_set1_ps(offset));
        let mut line = Line::ZERO;
        store_line(&mut line, _mm512_castps_si512(absmax));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_quantisation_stays_close() {
        let values: Vec<f32> = (0..1000).map(|i| 0.05 + 0.01 * (i as f32).sin()).collect();
        let double = Absmax::F32(values.clone()).double_quantize(&Pool::new(2));
        let worst = values.iter().enumerate().map(|(i, v)| (double.get(i) - v).abs());
        assert!(worst.fold(0f32, f32::max) < 1e-4);
    }
}
