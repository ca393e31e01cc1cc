//! 4-bit weights with offsets: GGUF's Q4_K, kept as its codes in our order.
//!
//! A block is 256 values in eight parts of 32; `w = d · scale · code − dmin · min`, with `scale` and
//! `min` of 6 bits per part and `d`, `dmin` in f16 per block: 4.5 bits per weight. Reference:
//! `block_q4_K` and `get_scale_min_k4` in ggml's `ggml-quants.c`.
//!
//! `y[i, r] = Σ over blocks: x_scale · (d · Σ over parts: scale · Σ q_x · code − dmin · Σ min · Σ q_x)`. Sums
//! of integers are exact, and all versions add parts and blocks in the same order with fused multiply-adds.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::borrow::Cow;
use std::ops::Range;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;

use crate::kernels::activations::{BLOCK, Q8Block};
use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{PANEL, Panels};
use crate::kernels::lanes::kernel;
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::pool::Pool;
#[cfg(target_arch = "x86_64")]
use crate::kernels::quantized::spread::Spread;
use crate::kernels::quantized::{IntegerWeight, TILE};
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;

/// Values of one block.
pub const SUPER: usize = 256;
/// Parts of one block.
const PARTS: usize = SUPER / BLOCK;
/// The first of two parts, the next but one being the second, whose minima are multiplied at once.
pub(super) const PAIRS: [usize; 4] = [0, 1, 4, 5];
/// Bytes of one GGUF block: `d`, `dmin`, twelve bytes of scales and minima, the nibbles.
const GGUF_BYTES: usize = 144;
/// Lines of codes of one part of sixteen rows.
const PART_LINES: usize = 4;
/// Lines of scales of one block of sixteen rows: GGUF's three words, then `d` and `dmin`.
const SCALE_LINES: usize = 4;

/// A frozen weight `(n, k)` in Q4_K; `k` must be a multiple of 256.
///
/// Layout: tiles of 16 rows (`n` padded with zeros), then blocks of 256 columns. Codes lie as in
/// [`crate::kernels::quantized::PackedQ`], four lines per part; word `r` of a line of scales holds
/// what GGUF has in that word for row `r`.
#[derive(Debug)]
pub struct PackedQ4K {
    n: usize,
    k: usize,
    codes: Lines,
    scales: Lines,
}

/// Some blocks of one tile.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    codes: &'a [Line],
    scales: &'a [Line],
}

/// Blocks of Q4_K for `values`, rows of whole blocks, as GGUF holds them.
///
/// # Panics
/// If the values are no whole blocks.
pub fn quantize(pool: &Pool, values: Values<'_>) -> Vec<u8> {
    assert_eq!(values.len() % SUPER, 0, "values must be whole blocks");
    let blocks = values.len() / SUPER;
    let mut bytes = vec![0; blocks * GGUF_BYTES];
    let out = PerItem::new(&mut bytes, GGUF_BYTES);
    // Choosing scales and minima takes about so many operations per value.
    split(pool, blocks, 100 * SUPER, out, |range, bytes| {
        for (block, bytes) in range.zip(bytes.chunks_exact_mut(GGUF_BYTES)) {
            bytes.copy_from_slice(&quantize_block(&values.block::<SUPER>(block * SUPER)));
        }
    });
    bytes
}

fn quantize_block(values: &[f32]) -> Vec<u8> {
    let quantize = || {
        let values = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
        QTensor::quantize(&values, GgmlDType::Q4K)?.data().map(Cow::into_owned)
    };
    quantize().expect("whole blocks can be quantised on the CPU")
}

impl PackedQ4K {
    /// Quantises `weights (n, k)`, row-major.
    ///
    /// # Panics
    /// If `k` is not a multiple of 256 or the slice has another length.
    pub fn quantize(pool: &Pool, weights: Values<'_>, n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "weights must hold n · k values");
        Self::from_gguf(pool, &quantize(pool, weights), n, k)
    }

    /// Repacks the Q4_K tensor `(n, k)` of a GGUF file; no value changes.
    ///
    /// # Panics
    /// If `k` is not a multiple of 256 or `bytes` has another length than `n · k / 256` blocks.
    pub fn from_gguf(pool: &Pool, bytes: &[u8], n: usize, k: usize) -> Self {
        assert_eq!(k % SUPER, 0, "k must be a multiple of {SUPER}");
        assert_eq!(bytes.len(), n * k / SUPER * GGUF_BYTES, "bytes must hold n · k / 256 blocks");
        let (count, blocks) = (n.div_ceil(TILE), k / SUPER);
        let (code_lines, scale_lines) = (blocks * PARTS * PART_LINES, blocks * SCALE_LINES);
        let mut codes = line::resident(count * code_lines);
        let mut scales = line::resident(count * scale_lines);
        let source = bytes.as_chunks::<GGUF_BYTES>().0;
        let out = (PerItem::new(&mut codes, code_lines), PerItem::new(&mut scales, scale_lines));
        split(pool, count, TILE * k, out, |tiles, (codes, scales)| {
            let parts =
                codes.chunks_exact_mut(code_lines).zip(scales.chunks_exact_mut(scale_lines));
            for (tile, (codes, scales)) in tiles.zip(parts) {
                let rows = tile * TILE..n.min((tile + 1) * TILE);
                let rows: Vec<_> =
                    rows.map(|row| &source[row * blocks..(row + 1) * blocks]).collect();
                put_tile(&rows, codes, scales);
            }
        });
        Self { n, k, codes, scales }
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes a product reads.
    pub fn size_bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + size_of_val(&self.scales[..])
    }

    /// The weight at `row`, `column`.
    pub fn weight(&self, row: usize, column: usize) -> f32 {
        let at = row / TILE * (self.k / SUPER) + column / SUPER;
        let (part, lane) = (column % SUPER / BLOCK, row % TILE);
        let (scale, min) = scaled(&self.scales[at * SCALE_LINES..], part, lane);
        let (line, shift) = place(column % BLOCK);
        let code = self.codes[(at * PARTS + part) * PART_LINES + line].0[lane] >> shift & 15;
        scale * code as f32 - min
    }
}

/// Where value `i` of a part lies: the line, and the bit within the row's word.
fn place(i: usize) -> (usize, usize) {
    (i % 16 / 4, 8 * (i % 4) + 4 * (i / 16))
}

/// Writes the rows of one tile, `blocks` blocks each, block after block.
fn put_tile(rows: &[&[[u8; GGUF_BYTES]]], codes: &mut [Line], scales: &mut [Line]) {
    let (codes, _) = codes.as_chunks_mut::<{ PARTS * PART_LINES }>();
    let (scales, _) = scales.as_chunks_mut::<SCALE_LINES>();
    for (b, (codes, scales)) in codes.iter_mut().zip(scales).enumerate() {
        for (lane, row) in rows.iter().enumerate().take(TILE) {
            put_block(&row[b], lane, codes, scales);
        }
    }
}

/// Writes one block of the row in `lane`. In GGUF, two parts share 32 bytes, one in the low nibbles
/// and one in the high ones; a word of ours has the first half of its part low, the second high.
#[inline(always)]
fn put_block(
    block: &[u8; GGUF_BYTES],
    lane: usize,
    codes: &mut [Line; PARTS * PART_LINES],
    scales: &mut [Line; SCALE_LINES],
) {
    const LOW: u32 = 0x0f0f_0f0f;
    let (words, _) = block.as_chunks::<4>();
    let words: [u32; GGUF_BYTES / 4] = std::array::from_fn(|i| u32::from_le_bytes(words[i]));
    for i in 0..SCALE_LINES {
        scales[i].0[lane] = words[(i + 1) % SCALE_LINES];
    }
    for (pair, words) in words[SCALE_LINES..].as_chunks::<{ 2 * PART_LINES }>().0.iter().enumerate()
    {
        for line in 0..PART_LINES {
            let (first, second) = (words[line], words[line + PART_LINES]);
            let at = 2 * pair * PART_LINES + line;
            codes[at].0[lane] = first & LOW | (second & LOW) << 4;
            codes[at + PART_LINES].0[lane] = first >> 4 & LOW | second & !LOW;
        }
    }
}

/// `scale` and `min` of part `part` of the row in `lane`.
fn scale_and_min(scales: &[Line], part: usize, lane: usize) -> (i32, i32) {
    let [a, b, c] = [0, 1, 2].map(|i| scales[i].0[lane]);
    let shift = 8 * (part % 4);
    let (scale, min) = match part {
        0..4 => (a >> shift & 63, b >> shift & 63),
        _ => (
            c >> shift & 15 | (a >> shift & 0xc0) >> 2,
            c >> shift >> 4 & 15 | (b >> shift & 0xc0) >> 2,
        ),
    };
    (scale as i32, min as i32)
}

/// `d` and `dmin` of the row in `lane`.
fn factors(scales: &[Line], lane: usize) -> (f32, f32) {
    let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
    let both = scales[SCALE_LINES - 1].0[lane];
    (half(both), half(both >> 16))
}

/// `d · scale` and `dmin · min` of part `part` of the row in `lane`.
fn scaled(scales: &[Line], part: usize, lane: usize) -> (f32, f32) {
    let ((scale, min), (d, dmin)) = (scale_and_min(scales, part, lane), factors(scales, lane));
    (d * scale as f32, dmin * min as f32)
}

impl IntegerWeight for PackedQ4K {
    type Chunk<'a> = Weights<'a>;

    const STRETCH: usize = PARTS;
    const HAS_MINS: bool = true;
    const LINES: usize = PART_LINES;

    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn chunk(&self, tile: usize, blocks: &Range<usize>) -> Weights<'_> {
        let start = tile * (self.k / SUPER);
        let blocks = start + blocks.start / PARTS..start + blocks.end / PARTS;
        let lines = PARTS * PART_LINES;
        Weights {
            codes: &self.codes[blocks.start * lines..blocks.end * lines],
            scales: &self.scales[blocks.start * SCALE_LINES..blocks.end * SCALE_LINES],
        }
    }

    fn codes(&self, tile: usize, blocks: &Range<usize>) -> &[Line] {
        self.chunk(tile, blocks).codes
    }

    fn tile<const MR: usize>(
        cpu: Cpu,
        (w, next): (Weights<'_>, &[Line]),
        x: &[Q8Block],
        y: [&mut [f32]; MR],
        add: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        if cpu.vnni {
            // SAFETY: `vnni` says that AVX-512 F, BW, VL and VNNI were detected.
            return unsafe { avx512::tile((w, next), x, y, add) };
        } else if cpu.avx2 {
            // SAFETY: `avx2` says that AVX2, FMA and F16C were detected.
            return unsafe { avx2::tile(w, x, y, add) };
        }
        let _ = (cpu, next);
        scalar::tile(w, x, y, add);
    }

    #[cfg(target_arch = "x86_64")]
    fn spread(w: Weights<'_>, to: &mut Spread<'_>) {
        // SAFETY: there are tiles, and so AVX-512 F, BW and VL.
        unsafe { avx512::spread(w, to) };
    }
}

/// A weight dequantised to `f32` panels on the way, for `g · W`.
impl Panels for PackedQ4K {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn panel<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        to: &'a mut [f32],
    ) -> &'a [f32] {
        let (to, tiles) = (&mut to[..k.len() * PANEL], self.n.div_ceil(TILE));
        for half in 0..PANEL / TILE {
            let tile = (panel * (PANEL / TILE) + half).min(tiles - 1);
            for (part, to) in (k.start / BLOCK..).zip(to.chunks_mut(BLOCK * PANEL)) {
                let at = tile * (self.k / SUPER) + part / PARTS;
                let scales = &self.scales[at * SCALE_LINES..];
                let of = |lane| scaled(scales, part % PARTS, lane);
                let codes = &self.codes[(at * PARTS + part % PARTS) * PART_LINES..][..PART_LINES];
                widen_part(cpu, codes, &std::array::from_fn(of), half * TILE, to);
            }
        }
        to
    }
}

kernel! {
    /// Writes sixteen rows of a part, from its first column on, to the values from `at` on of columns
    /// of 32.
    fn widen_part(s, codes: &[Line], scales: &[(f32, f32); TILE], at: usize, to: &mut [f32]) {
        let _ = s; // the compiler makes vectors of these loops
        let (scale, min) = (scales.map(|(scale, _)| scale), scales.map(|(_, min)| min));
        for (column, to) in to.chunks_exact_mut(PANEL).enumerate() {
            let (line, shift) = place(column);
            let to: &mut [f32; TILE] = to[at..].first_chunk_mut().expect("half a column");
            let codes = &codes[line].0;
            for lane in 0..TILE {
                to[lane] = scale[lane] * (codes[lane] >> shift & 15) as i32 as f32 - min[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Seeded, check_products};

    #[test]
    fn weights_are_those_of_candle() {
        let values = Seeded(3).values(3 * 512);
        let tensor = Tensor::from_slice(&values, (3, 512), &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::Q4K).unwrap();
        let expected = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
        let w = PackedQ4K::from_gguf(&Pool::new(1), &tensor.data().unwrap(), 3, 512);
        let found: Vec<f32> = (0..3 * 512).map(|i| w.weight(i / 512, i % 512)).collect();
        assert_eq!(found, expected.to_vec1::<f32>().unwrap());
        assert_eq!(w.size_bytes(), 16 * 512 * 9 / 16);
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        let (n, k) = (37, 768);
        let w = PackedQ4K::quantize(&Pool::new(1), (&Seeded(8).values(n * k)).into(), n, k);
        for m in [1, 2, 5, 8, 9, 17, 33, 75] {
            check_products(&w, |row, column| w.weight(row, column), m);
        }
    }

    #[test]
    fn a_panel_holds_the_weights_of_its_rows() {
        let w = PackedQ4K::quantize(&Pool::new(1), (&Seeded(8).values(50 * 256)).into(), 50, 256);
        let mut scratch = vec![0.0; 256 * PANEL + 1024];
        for panel in 0..2 {
            let values = w.panel(Cpu::SCALAR, panel, 0..256, &mut scratch);
            for (column, lane) in (0..256).flat_map(|c| (0..PANEL).map(move |lane| (c, lane))) {
                let row = panel * PANEL + lane;
                if row < 50 {
                    assert_eq!(values[column * PANEL + lane], w.weight(row, column));
                }
            }
        }
    }
}
