//! `dx = g · W`: the same packed weight, read with rows and columns exchanged.
//!
//! The reduction now runs over the rows of `W`, so a word must pair two *rows* of one column
//! where the packed weight pairs two columns of one row. A piece of 32 × 32 values is turned in
//! registers; the result looks like a panel of `Wᵀ`, and the ordinary tile takes it from there.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{BLOCK, Chunk, PANEL, Panels};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;

/// Sixteen pairs, two lines each: 32 rows by 32 columns.
type Piece = [Line; 32];

/// Pieces ahead of the one being turned: they lie apart by a panel, where the hardware sees no stream.
const AHEAD: usize = 4;

/// A weight whose outputs and reduction have changed places.
pub(crate) struct Transposed<W>(pub W);

impl<W: Panels> Panels for Transposed<W> {
    fn shape(&self) -> (usize, usize) {
        let (n, k) = self.0.shape();
        (k, n)
    }

    fn chunk<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        rows: Range<usize>,
        scratch: &'a mut [Line],
    ) -> Chunk<'a> {
        let columns = panel * BLOCK..self.shape().0.min((panel + 1) * BLOCK);
        let panels = rows.start / PANEL..rows.end.div_ceil(PANEL);
        let (turned, inner) = scratch.split_at_mut(32 * panels.len());
        let (turned, _) = turned.as_chunks_mut::<32>();
        for (turned, panel) in turned.iter_mut().zip(panels.clone()) {
            if panel + AHEAD < panels.end {
                self.0.ask(panel + AHEAD, columns.clone());
            }
            match self.0.chunk(cpu, panel, columns.clone(), inner) {
                Chunk::Bf16(lines) => turn(cpu, lines, turned),
                _ => unreachable!("a transposed weight is read as bf16"),
            }
        }
        Chunk::Bf16(turned.as_flattened())
    }
}

/// Transposes up to 32 columns of 32 rows; columns past the end of the weight become zeros.
fn turn(cpu: Cpu, lines: &[Line], turned: &mut Piece) {
    let Ok(piece) = <&Piece>::try_from(lines) else {
        let mut padded = [Line::ZERO; 32];
        padded[..lines.len()].copy_from_slice(lines);
        return turn(cpu, &padded, turned);
    };
    #[cfg(target_arch = "x86_64")]
    if cpu.bf16 {
        // SAFETY: `bf16` says that AVX-512 F and BW were detected.
        return unsafe { avx512::turn(piece, turned) };
    }
    let _ = cpu;
    scalar::turn(piece, turned);
}

mod scalar {
    use super::*;

    /// The specification: row `r`, column `c` goes from pair `c / 2` to pair `r / 2`.
    pub fn turn(piece: &Piece, turned: &mut Piece) {
        *turned = [Line::ZERO; 32];
        for (row, column) in (0..32).flat_map(|r| (0..32).map(move |c| (r, c))) {
            let value = piece[column / 2 * 2 + row / 16].bf16(row % 16, column % 2);
            turned[row / 2 * 2 + column / 16].set_bf16(column % 16, row % 2, value);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernels::simd::{load_line, store_line};
    use std::arch::x86_64::*;

    /// Four quarters of sixteen rows by sixteen columns: eight lines in, eight lines out.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn turn(piece: &Piece, turned: &mut Piece) {
        for (rows, columns) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut lines = [_mm512_setzero_si512(); 8];
            for i in 0..8 {
                lines[i] = load_line(&piece[(columns * 8 + i) * 2 + rows]);
            }
            let lines = turn_quarter(lines);
            for i in 0..8 {
                store_line(&mut turned[(rows * 8 + i) * 2 + columns], lines[i]);
            }
        }
    }

    /// Before: line `c3 c2 c1` holds at 16-bit position `r3 r2 r1 r0 c0` the value of row `r`,
    /// column `c`. The two lowest bits change places within each pair of words; then pairs go from
    /// position `r3 r2 r1` of line `c3 c2 c1` to position `c3 c2 c1` of line `r3 r2 r1`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn turn_quarter(mut lines: [__m512i; 8]) -> [__m512i; 8] {
        let swapped = load_line(&SWAPPED);
        for line in &mut lines {
            *line = _mm512_shuffle_epi8(*line, swapped);
        }
        let lines = exchange(lines, 1, &EXCHANGE[0]);
        let lines = exchange(lines, 2, &EXCHANGE[1]);
        exchange(lines, 4, &EXCHANGE[2])
    }

    /// Exchanges the line bit of weight `step` with the position bit that `index` was built for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn exchange(mut lines: [__m512i; 8], step: usize, index: &[Line; 2]) -> [__m512i; 8] {
        let (clear, set) = (load_line(&index[0]), load_line(&index[1]));
        for a in 0..8 {
            if a & step == 0 {
                let (x, y) = (lines[a], lines[a + step]);
                lines[a] = _mm512_permutex2var_epi64(x, clear, y);
                lines[a + step] = _mm512_permutex2var_epi64(x, set, y);
            }
        }
        lines
    }

    /// The bytes of each half of sixteen: in both pairs of words, the inner values exchanged.
    static SWAPPED: Line = {
        let (pairs, mut words, mut word) = ([0x0504_0100, 0x0706_0302], [0; 16], 0);
        while word < 16 {
            words[word] = pairs[word % 2] + 0x0808_0808 * (word as u32 / 2 % 2);
            word += 1;
        }
        Line(words)
    };

    /// Selectors of the three exchanges, for the line whose bit is clear and the one set.
    static EXCHANGE: [[Line; 2]; 3] = [
        [selector(0, false), selector(0, true)],
        [selector(1, false), selector(1, true)],
        [selector(2, false), selector(2, true)],
    ];

    /// Position `e` of the new line takes its position bit from the line (bit 3 of a selector picks
    /// the second), and the new line's own bit becomes the old position bit.
    const fn selector(bit: u32, line_bit: bool) -> Line {
        let (mut words, mut e) = ([0; 16], 0);
        while e < 8 {
            let second_line = (e >> bit & 1) << 3;
            words[2 * e as usize] = second_line | e & !(1 << bit) | (line_bit as u32) << bit;
            e += 1;
        }
        Line(words)
    }
}
