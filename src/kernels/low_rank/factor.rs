//! The matrices of an adapter, as they are held and as they are read.
#![allow(unsafe_code)]

use std::array;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::bytes::avx512;
use super::bytes::{ByteLines, Stretch};
use super::{RANKS, RANKS_PER_LINE};
use crate::kernels::bf16::{BLOCK, Bf16Rows, PANEL, PackedBf16};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::pool::Pool;
use crate::kernels::rows::RowGroups;
use crate::kernels::scratch::with_lines;

/// How the values of an adapter are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowRankFormat {
    Bf16,
    /// As int8, 32 values to a scale.
    Int8,
}

/// The matrices of one adapter at one linear layer.
#[derive(Debug)]
pub struct PackedLowRank {
    pub(super) r: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    /// `A` in groups of [`RANKS`] rows, the last filled up with zeros; with matrix tiles as
    /// `tiled` has it.
    a: Factor,
    /// `B` in panels.
    b: Factor,
}

/// The lines of one matrix, in the order in which they are read.
#[derive(Debug)]
enum Factor {
    Bf16(Lines),
    Int8(ByteLines),
}

/// Some lines of a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    Bf16(&'a [Line]),
    Int8(Stretch<'a>),
}

/// The matrices of an adapter; `wide` are the lines of both where they were widened before.
pub(super) struct Source<'a> {
    pub weights: &'a PackedLowRank,
    pub wide: Option<&'a [Line]>,
}

impl PackedLowRank {
    /// Rounds `a (r, k)` and `b (n, r)`, row-major as in a PEFT file.
    ///
    /// # Panics
    /// If `r` is zero or a length does not fit.
    pub fn pack(
        cpu: Cpu,
        pool: &Pool,
        (a, b): (&[f32], &[f32]),
        (r, k, n): (usize, usize, usize),
        format: LowRankFormat,
    ) -> Self {
        assert!(r > 0 && a.len() == r * k, "A must hold r · k values");
        let held = |lines: Lines| match format {
            LowRankFormat::Bf16 => Factor::Bf16(lines),
            LowRankFormat::Int8 => Factor::Int8(ByteLines::of(pool, &lines)),
        };
        let b = PackedBf16::pack(pool, b.into(), (n, r), line::zeroed);
        Self { r, k, n, a: held(grouped(cpu, pool, a, (r, k))), b: held(b.into_lines()) }
    }

    /// Bytes a product reads.
    pub fn size_bytes(&self) -> usize {
        self.a.size_bytes() + self.b.size_bytes()
    }

    /// Multiply-adds per row.
    pub fn values(&self) -> usize {
        self.r * (self.k + self.n)
    }

    /// Lines of `h` per row.
    pub(super) fn lines_of_h(&self) -> usize {
        self.r.div_ceil(RANKS_PER_LINE)
    }

    /// Lines of a panel of `B`: two per pair of ranks.
    pub(super) fn lines_of_panel(&self) -> usize {
        PANEL / 16 * self.r.div_ceil(2)
    }

    /// Lines that [`PackedLowRank::widen`] writes; none if they are wide.
    pub(super) fn lines_to_widen(&self) -> usize {
        match (&self.a, &self.b) {
            (Factor::Int8(a), Factor::Int8(b)) => a.len() + b.len(),
            _ => 0,
        }
    }

    /// Widens the lines `which` of `A` and `B`, one after the other, for a [`Source`].
    pub(super) fn widen(&self, cpu: Cpu, which: Range<usize>, to: &mut [Line]) {
        let (Factor::Int8(a), Factor::Int8(b)) = (&self.a, &self.b) else { return };
        let of_a = which.start.min(a.len())..which.end.min(a.len());
        let of_b = which.start.max(a.len()) - a.len()..which.end.max(a.len()) - a.len();
        let (to_a, to_b) = to.split_at_mut(of_a.len());
        a.stretch(of_a).widen(cpu, to_a);
        b.stretch(of_b).widen(cpu, to_b);
    }
}

/// The lines of `A`.
fn grouped(cpu: Cpu, pool: &Pool, a: &[f32], (r, k): (usize, usize)) -> Lines {
    #[cfg(target_arch = "x86_64")]
    if cpu.amx {
        return super::tiled::pack(cpu, pool, a, (r, k)).into_lines();
    }
    let padded = r.next_multiple_of(RANKS);
    let mut filled = a.to_vec();
    filled.resize(padded * k, 0.0);
    let mut rows = Bf16Rows::new();
    let groups = RowGroups::new(padded, RANKS).iter();
    rows.pack_groups(cpu, pool, &filled, (padded, k), (k, 0), groups);
    rows.into_lines()
}

impl Factor {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Bf16(lines) => size_of_val(&lines[..]),
            Self::Int8(bytes) => bytes.size_bytes(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Bf16(lines) => lines.len(),
            Self::Int8(bytes) => bytes.len(),
        }
    }

    fn part(&self, which: Range<usize>) -> Part<'_> {
        match self {
            Self::Bf16(lines) => Part::Bf16(&lines[which]),
            Self::Int8(bytes) => Part::Int8(bytes.stretch(which)),
        }
    }
}

impl Source<'_> {
    /// `A` of a group of ranks: per block of 32 columns, one line for each.
    pub fn a(&self, ranks: &Range<usize>) -> Part<'_> {
        let blocks = self.weights.k.div_ceil(BLOCK);
        let which = ranks.start * blocks..ranks.end * blocks;
        match self.wide {
            Some(lines) => Part::Bf16(&lines[which]),
            None => self.weights.a.part(which),
        }
    }

    /// `B` of some panels of outputs: [`PackedLowRank::lines_of_panel`] for each.
    pub fn b(&self, panels: Range<usize>) -> Part<'_> {
        let lines = self.weights.lines_of_panel();
        let which = panels.start * lines..panels.end * lines;
        match self.wide {
            Some(wide) => Part::Bf16(&wide[self.weights.a.len()..][which]),
            None => self.weights.b.part(which),
        }
    }
}

impl Part<'_> {
    /// `y += h Bᵀ` for whole panels of outputs and a group of rows; false, and nothing done, if no
    /// kernel takes several panels at a time.
    #[cfg(target_arch = "x86_64")]
    pub fn add<'y>(
        self,
        cpu: Cpu,
        lines: usize,
        h: &[Line],
        rows: usize,
        row_of: impl Fn(usize) -> &'y mut [f32],
    ) -> bool {
        let Self::Int8(b) = self else { return false };
        if !cpu.bf16 || cpu.amx {
            return false;
        }
        // SAFETY: `bf16` says that AVX-512 F and BF16 were detected.
        unsafe {
            match rows {
                1 => avx512::tiles::<1, 4>(b, lines, h, array::from_fn(row_of)),
                2 => avx512::tiles::<2, 2>(b, lines, h, array::from_fn(row_of)),
                3 => avx512::tiles::<3, 2>(b, lines, h, array::from_fn(row_of)),
                4 => avx512::tiles::<4, 1>(b, lines, h, array::from_fn(row_of)),
                5 => avx512::tiles::<5, 1>(b, lines, h, array::from_fn(row_of)),
                6 => avx512::tiles::<6, 1>(b, lines, h, array::from_fn(row_of)),
                _ => unreachable!("a group has one to six rows"),
            }
        }
        true
    }

    /// Calls `work` with the lines in bf16.
    pub fn with(self, cpu: Cpu, work: impl FnOnce(&[Line])) {
        match self {
            Self::Bf16(lines) => work(lines),
            Self::Int8(bytes) => with_lines(bytes.bytes.len(), |lines| {
                bytes.widen(cpu, lines);
                work(lines);
            }),
        }
    }
}
