//! 4-bit weights in NF4 or FP4: the frozen base of QLoRA, forward and backward.
//!
//! Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3. A weight is
//! `level[q] · absmax`, with one absmax per 64, 128 or 256 consecutive values. Codes, order of
//! nibbles and double quantisation are those of bitsandbytes, so its checkpoints load without a
//! change.
//!
//! Three products read the same packed bytes:
//! - [`matmuls`], fused, for serving: looks codes up as bf16 and applies absmax to the sums of 64
//!   columns. Reads 4.5 bits per weight, and gives a row the same bits alone or in a batch.
//! - `Dequantized`, for training's forward: panels written out as bf16 once for many rows.
//! - [`matmul_transposed`]: `dx = g · W` for the backward, through such panels turned in registers.

mod absmax;
mod blocks;
pub(crate) mod fused;
mod panel;
mod quantize;
mod widened;

pub use absmax::Absmax;
pub use blocks::{Blocks, Code};

use std::ops::Range;

use crate::kernels::bf16::{Bf16Rows, Chunk, Panels, Transposed, gemm, gemms};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;
use absmax::PackedAbsmax;
pub(crate) use panel::Dequantized;
pub use widened::Widened;

/// Values that share one absmax in a product, and at least in a tensor.
pub const BLOCK: usize = 64;

/// A frozen weight `(n, k)` in NF4 or FP4; `k` must be a multiple of 64.
///
/// Layout: panels of 32 rows (`n` padded with zeros), then eights of columns. An eight is two
/// lines; word `r` of line `h` belongs to row `16h + r` and holds eight nibbles: nibble `p` of its
/// low half is column `2p`, nibble `p` of its high half column `2p + 1`. Shifting both halves right
/// by `4p` puts one pair of columns where `vpermw` looks for its index.
#[derive(Debug)]
pub struct PackedNf4 {
    n: usize,
    k: usize,
    code: Code,
    codes: Lines,
    absmax: PackedAbsmax,
    exact: bool,
}

impl PackedNf4 {
    /// Quantises `weights (n, k)`, row-major, as bitsandbytes does, in blocks of 64.
    ///
    /// # Panics
    /// If `k` is not a multiple of 64 or the slice has another length.
    pub fn quantize(
        pool: &Pool,
        weights: Values<'_>,
        (n, k): (usize, usize),
        code: Code,
        double: bool,
    ) -> Self {
        assert_eq!(weights.len(), n * k, "weights must hold n · k values");
        Self::pack(pool, Blocks::quantize(pool, weights, code, BLOCK, double), n, k)
    }

    /// Packs a tensor `(n, k)`; no value changes.
    ///
    /// # Panics
    /// If `k` is not a multiple of 64, blocks are not of whole 64s, or a length does not fit.
    pub fn pack(pool: &Pool, tensor: Blocks, n: usize, k: usize) -> Self {
        assert_eq!(tensor.bytes.len(), n * k / 2, "bytes must hold n · k nibbles");
        assert_eq!(k % BLOCK, 0, "k must be a multiple of {BLOCK}");
        let (panels, eights) = (n.div_ceil(32), k / 8);
        let bytes = tensor.bytes.as_chunks().0;
        let padding = u32::from(tensor.code.zero()) * 0x1111_1111;
        let mut codes = line::resident(panels * eights * 2);
        let out = PerItem::new(&mut codes, eights * 2);
        split(pool, panels, 32 * k, out, |panels, lines| {
            for (panel, lines) in panels.zip(lines.chunks_exact_mut((eights * 2).max(1))) {
                let rows = panel * 32..n.min((panel + 1) * 32);
                let rows: Vec<_> =
                    rows.map(|row| &bytes[row * eights..(row + 1) * eights]).collect();
                put_panel(&rows, padding, lines);
            }
        });
        let absmax = PackedAbsmax::new(pool, tensor.absmax, tensor.block, n, k);
        Self { n, k, code: tensor.code, codes, absmax, exact: tensor.exact }
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether products are to take it in `f32`, through [`Widened`], instead of in bf16.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Bytes a product reads.
    pub fn size_bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + self.absmax.size_bytes()
    }

    /// The weight at `row`, `column` in `f32`.
    pub fn weight(&self, row: usize, column: usize) -> f32 {
        let (line, shift) = place(self.k, row, column);
        let code = self.codes[line].0[row % 16] >> shift & 15;
        self.code.levels()[code as usize] * self.absmax.get(row, column / BLOCK)
    }

    /// The columns `k` of one panel: two lines of codes per eight columns.
    fn codes(&self, panel: usize, k: Range<usize>) -> &[Line] {
        let start = panel * self.k / 8;
        &self.codes[(start + k.start / 8) * 2..(start + k.end / 8) * 2]
    }
}

/// Where the code of `row`, `column` lies: the line, and the bit within the row's word.
fn place(k: usize, row: usize, column: usize) -> (usize, usize) {
    let line = (row / 32 * (k / 8) + column / 8) * 2 + row % 32 / 16;
    (line, 16 * (column % 2) + 4 * (column % 8 / 2))
}

/// Writes the rows of one panel, eight columns after eight; rows that are missing hold `padding`.
fn put_panel(rows: &[&[[u8; 4]]], padding: u32, lines: &mut [Line]) {
    for (eight, lines) in lines.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        for lane in 0..32 {
            let bytes = rows.get(lane).map(|row| u32::from_le_bytes(row[eight]));
            lines[lane / 16].0[lane % 16] = bytes.unwrap_or(padding);
        }
        lines.iter_mut().for_each(|line| line.0 = line.0.map(word));
    }
}

/// Eight codes, the first of each byte in its high half, in the order of [`PackedNf4`].
fn word(bytes: u32) -> u32 {
    let side_by_side = |nibbles: u32| {
        let pairs = (nibbles | nibbles >> 4) & 0x00ff_00ff;
        (pairs | pairs >> 8) & 0xffff
    };
    side_by_side(bytes >> 4 & 0x0f0f_0f0f) | side_by_side(bytes & 0x0f0f_0f0f) << 16
}

/// `y = x · Wᵀ` of several weights of one input, fused, in one region: `(W, y)` of each. Shapes:
/// `x (m, k)`, `W (n, k)`, `y (m, n)`.
///
/// The 16 codes are rounded to bf16 (relative error at most 2⁻⁹ each); absmax stays `f32`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmuls(cpu: Cpu, pool: &Pool, x: &Bf16Rows, parts: &[(&PackedNf4, &Output<'_>)]) {
    gemms(cpu, pool, x, parts);
}

/// `dx = g · W`, the backward of a frozen NF4 weight. Shapes: `g (m, n)`, `W (n, k)`, `dx (m, k)`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_transposed(cpu: Cpu, pool: &Pool, g: &Bf16Rows, w: &PackedNf4, dx: &Output<'_>) {
    gemm(cpu, pool, g, &Transposed(Dequantized(w)), dx);
}

impl Panels for PackedNf4 {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn chunk<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        scratch: &'a mut [Line],
    ) -> Chunk<'a> {
        let absmax = self.absmax.lines(cpu, panel, k.start / BLOCK..k.end / BLOCK, scratch);
        Chunk::Nf4 { code: self.code, codes: self.codes(panel, k), absmax }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitsandbytes_byte_holds_its_first_code_high() {
        let mut bytes = [0x77; 32];
        bytes[0] = 0xf0;
        let (code, block, absmax) = (Code::Nf4, BLOCK, Absmax::F32(vec![2.0]));
        let tensor = Blocks { code, block, bytes: bytes.to_vec(), absmax, exact: false };
        let w = PackedNf4::pack(&Pool::new(1), tensor, 1, 64);
        assert_eq!([w.weight(0, 0), w.weight(0, 1), w.weight(0, 2)], [2.0, -2.0, 0.0]);
    }

    #[test]
    fn packing_moves_values_and_changes_none() {
        let mut seeded = crate::kernels::testing::Seeded(3);
        let (n, k) = (41, 192);
        let values = seeded.values(n * k);
        for code in [Code::Nf4, Code::Fp4] {
            for (block, double) in [(64, false), (64, true), (128, true), (256, false), (256, true)]
            {
                let pool = Pool::new(2);
                let tensor = Blocks::quantize(&pool, (&values).into(), code, block, double);
                let w = PackedNf4::pack(&pool, tensor.clone(), n, k);
                for i in 0..n * k {
                    assert_eq!(w.weight(i / k, i % k), tensor.value(i), "{code:?} {block} {i}");
                }
            }
        }
    }
}
