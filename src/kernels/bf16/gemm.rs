//! The loop nest around the register tile: work items, then chunks of `k`, then row groups.
#![allow(unsafe_code)]

use std::ops::Range;

use super::rows::LARGEST_TILED_GROUP;
use super::{Bf16Rows, PANEL, multiply};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;
use crate::kernels::nf4::Code;
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::rows::{asked_for, piece, pieces};
use crate::kernels::scratch::with_lines;

/// Columns of the reduction per pass. A bf16 panel chunk takes 64 KiB and streams from L2 with the
/// row groups, 24 KiB each. Shorter passes would keep it in L1 but load and store the outputs more
/// often, which costs more: 512 columns gave 421 GFLOP/s at 256 rows, 1024 gave 448.
const K_PER_PASS: usize = 1024;

/// The same with matrix tiles, which multiply so fast that outputs on their way in and out count:
/// 1024 columns gave 1.8 Top/s on two cores, 2048 gave 2.2.
const K_PER_TILED_PASS: usize = 2048;

/// Row groups per work item: 44 × 12 rows × 1024 columns are a little more than an L2 of 1 MiB, but 512
/// rows share what is turned or looked up of a weight. With 24 groups `g · W` was a tenth slower.
const GROUPS_PER_ITEM: usize = 44;

/// The same with matrix tiles, at most.
const GROUPS_PER_TILED_ITEM: usize = 24;

/// Values of a pass of the rows of an item with matrix tiles: half of a 2 MiB L2, as every panel reads
/// them all.
const VALUES_PER_TILED_ITEM: usize = 512 << 10;

/// Lines for one chunk: the levels of its codes, and what a source may write, its pairs, and the absmax of its blocks or, where it turns
/// pieces of 32 columns, one of them with its absmax.
const SCRATCH: usize = 2 * K_PER_TILED_PASS + 2 * K_PER_TILED_PASS / 64 + 2;

/// A weight seen as panels of 32 outputs, each a run of columns to reduce over.
pub(crate) trait Panels: Sync {
    /// Outputs and reduction length.
    fn shape(&self) -> (usize, usize);

    /// Columns `k` of one panel, ready for the tile. `k` starts at a multiple of 32.
    fn chunk<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        scratch: &'a mut [Line],
    ) -> Chunk<'a>;

    /// Asks for what [`Panels::chunk`] will read, if it can tell.
    fn ask(&self, panel: usize, k: Range<usize>) {
        let _ = (panel, k);
    }
}

impl<W: Panels> Panels for &W {
    fn shape(&self) -> (usize, usize) {
        (**self).shape()
    }

    fn chunk<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        scratch: &'a mut [Line],
    ) -> Chunk<'a> {
        (**self).chunk(cpu, panel, k, scratch)
    }

    fn ask(&self, panel: usize, k: Range<usize>) {
        (**self).ask(panel, k);
    }
}

/// What the register tile multiplies by.
pub(crate) enum Chunk<'a> {
    /// Two lines per pair of columns, see [`super::PackedBf16`].
    Bf16(&'a [Line]),
    /// Two lines of codes per eight columns and two of absmax per 64, see [`crate::kernels::nf4`].
    Nf4 { code: Code, codes: &'a [Line], absmax: &'a [Line] },
    /// The same with the codes looked up, for matrix tiles: two lines per pair of columns.
    Levels { levels: &'a [Line], absmax: &'a [Line] },
}

/// One product of a sum: rows `(m, k)` and a weight `(n, k)`.
pub(crate) type Term<'a> = (&'a Bf16Rows, &'a dyn Panels);

/// `y = x · Wᵀ`, or `y += x · Wᵀ` if the output says so.
pub(crate) fn gemm(cpu: Cpu, pool: &Pool, x: &Bf16Rows, w: &dyn Panels, y: &Output<'_>) {
    gemm_sum(cpu, pool, &[(x, w)], y);
}

/// `y = Σ x · Wᵀ` over `terms`, one after the other for each panel, so that `y` stays near. All
/// have the same rows and the same outputs.
pub(crate) fn gemm_sum(cpu: Cpu, pool: &Pool, terms: &[Term<'_>], y: &Output<'_>) {
    let Some(&(first, w)) = terms.first() else { return };
    let (n, _) = w.shape();
    for (x, w) in terms {
        assert_eq!((x.rows(), w.shape()), (first.rows(), (n, x.k())), "terms must fit");
    }
    y.check(first.rows(), n);
    if n == 0 {
        return;
    }
    let (panels, groups) = (n.div_ceil(PANEL), first.groups());
    if panels == 0 || groups.is_empty() {
        return;
    }
    let grain = pool.grain(panels, 4);
    let columns = panels.div_ceil(grain);
    let largest = largest_item(cpu, terms.iter().map(|(x, _)| x.k()).max().unwrap_or(0));
    let share = groups_per_item(pool, columns, groups.len(), largest);
    pool.run(columns * groups.len().div_ceil(share), &|item| {
        let panels = piece(panels, grain, item % columns);
        let groups = &groups[piece(groups.len(), share, item / columns)];
        // SAFETY: items differ in their panels or in their row groups, so no two share outputs.
        unsafe { work_item(cpu, terms, panels, groups, y) };
    });
}

/// [`gemm`] with several weights of one input, in one region: `(W, y)` of each.
pub(crate) fn gemms<W: Panels>(cpu: Cpu, pool: &Pool, x: &Bf16Rows, parts: &[(&W, &Output<'_>)]) {
    let panels = |w: &W| w.shape().0.div_ceil(PANEL);
    let share = largest_item(cpu, x.k());
    let grain = pool.grain(parts.iter().map(|(w, _)| panels(w)).sum(), 4);
    let counts = parts.iter().map(|(w, y)| {
        let (n, k) = w.shape();
        assert_eq!(x.k(), k, "x and W must agree on k");
        y.check(x.rows(), n);
        panels(w).div_ceil(grain) * x.groups().len().div_ceil(share)
    });
    pool.run_all(&counts.collect::<Vec<_>>(), &|part, item| {
        let (w, y) = parts[part];
        let columns = panels(w).div_ceil(grain);
        let panels = piece(panels(w), grain, item % columns);
        let groups = &x.groups()[piece(x.groups().len(), share, item / columns)];
        // SAFETY: items of one part differ in their panels or in their row groups, and parts write
        // to columns of their own, so no two share outputs.
        unsafe { work_item(cpu, &[(x, w as &dyn Panels)], panels, groups, y) };
    });
}

/// Row groups per work item, at most, for sums over `k` columns.
fn largest_item(cpu: Cpu, k: usize) -> usize {
    if cpu.amx {
        let values = LARGEST_TILED_GROUP * k.clamp(1, K_PER_TILED_PASS);
        (VALUES_PER_TILED_ITEM / values).clamp(2, GROUPS_PER_TILED_ITEM)
    } else {
        GROUPS_PER_ITEM
    }
}

/// Where a few panels are all there is, the rows are cut finer, until every thread has work.
fn groups_per_item(pool: &Pool, columns: usize, groups: usize, largest: usize) -> usize {
    let wanted = (4 * pool.threads()).div_ceil(columns);
    groups.div_ceil(wanted).clamp(1, largest)
}

/// Fills the outputs of `panels` × `groups`.
///
/// # Safety
/// No other thread may touch those outputs meanwhile.
unsafe fn work_item(
    cpu: Cpu,
    terms: &[Term<'_>],
    panels: Range<usize>,
    groups: &[Range<usize>],
    y: &Output<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    let _session = crate::kernels::amx::Session::new();
    let per_pass = if cpu.amx { K_PER_TILED_PASS } else { K_PER_PASS };
    let passes = || {
        let all = terms
            .iter()
            .flat_map(|&(x, w)| pieces(0..w.shape().1, per_pass).map(move |pass| ((x, w), pass)));
        all.enumerate().map(|(i, (term, pass))| (term, pass, y.add || i > 0))
    };
    with_lines(SCRATCH, |scratch| {
        let mut fill = |panel, (term, pass, add): (Term<'_>, Range<usize>, bool)| {
            // SAFETY: by this function's contract.
            unsafe { fill(cpu, term, (panel, pass), groups, (y, add), scratch) };
        };
        if cpu.amx && groups.len() > 1 {
            // The rows of a pass stay near, and the outputs of all panels beside them.
            passes().for_each(|pass| panels.clone().for_each(|panel| fill(panel, pass.clone())));
        } else {
            panels.for_each(|panel| passes().for_each(|pass| fill(panel, pass)));
        }
    });
}

/// Adds one pass of one term to one panel's outputs, or begins them with it unless `add`.
///
/// # Safety
/// As in [`work_item`].
unsafe fn fill(
    cpu: Cpu,
    (x, w): Term<'_>,
    (panel, pass): (usize, Range<usize>),
    groups: &[Range<usize>],
    (y, add): (&Output<'_>, bool),
    scratch: &mut [Line],
) {
    let columns = panel * PANEL..w.shape().0.min((panel + 1) * PANEL);
    let (levels, scratch) = scratch.split_at_mut(K_PER_TILED_PASS);
    let chunk = w.chunk(cpu, panel, pass.clone(), scratch);
    let chunk = looked_up(cpu, chunk, groups, levels);
    for (i, group) in groups.iter().enumerate() {
        if !cpu.amx {
            let asked = &groups[asked_for(i, groups.len())];
            asked.iter().for_each(|group| y.ask(group.clone(), columns.clone()));
        }
        let row_of = |i: usize| {
            // SAFETY: by this function's contract, and each row is taken once.
            unsafe { y.row(group.start + i, columns.clone()) }
        };
        multiply(cpu, &chunk, x.chunk(group, &pass), group.len(), row_of, add);
    }
}

/// With matrix tiles, codes that more than a few rows are multiplied by, looked up once for all.
#[cfg(target_arch = "x86_64")]
fn looked_up<'a>(
    cpu: Cpu,
    chunk: Chunk<'a>,
    groups: &[Range<usize>],
    levels: &'a mut [Line],
) -> Chunk<'a> {
    match chunk {
        Chunk::Nf4 { code, codes, absmax }
            if cpu.amx && groups.iter().any(|group| group.len() > super::amx::FEW_ROWS) =>
        {
            let levels = &mut levels[..4 * codes.len()];
            crate::kernels::nf4::fused::look_up(cpu, code, codes, levels);
            Chunk::Levels { levels, absmax }
        }
        chunk => chunk,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn looked_up<'a>(_: Cpu, chunk: Chunk<'a>, _: &[Range<usize>], _: &'a mut [Line]) -> Chunk<'a> {
    chunk
}
