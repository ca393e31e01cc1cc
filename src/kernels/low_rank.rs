//! Many adapters over one ragged batch: `y += scale · (x Aᵀ) Bᵀ`, each row its own pair.
//!
//! Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1; batched over
//! adapters as in Chen et al. 2023, "Punica". Both factors are small, so the two halves differ:
//! - `h = x Aᵀ` has few outputs and a long sum. Lanes run along `k`, sums are folded at the end,
//!   and no rank is padded to a panel.
//! - `h Bᵀ` has many outputs and a short sum: the ordinary bf16 tile, added to `y`.
//!
//! `A`, `B` and `x` are rounded to bf16, as the products beside them are; `h` is scaled in `f32`
//! and then rounded. Beside integer weights `A` and `B` are held as int8 ([`bytes`]) and widened as
//! they are read. A row costs by its own adapter's rank, and its numbers are its own.
#![allow(unsafe_code)]

mod bytes;
mod dots;
mod factor;
#[cfg(target_arch = "x86_64")]
mod tiled;

use std::ops::Range;

use crate::kernels::bf16::{Bf16Rows, Chunk, LARGEST_TILED_GROUP, PANEL, multiply, round};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::rows::{RowGroups, piece};
use crate::kernels::shared::SharedSlice;
use dots::dots;
use factor::Source;
pub use factor::{LowRankFormat, PackedLowRank};

/// Rows per group: 6 rows × 4 ranks are 24 sums, which leaves registers for the loads.
const LARGEST_GROUP: usize = 6;

/// Ranks whose dot products are taken together.
const RANKS: usize = 4;

/// Outputs ahead of those that are added to; of a prompt they are no longer near.
const AHEAD: usize = 4 * PANEL;

/// Ranks per line of `h`.
const RANKS_PER_LINE: usize = 32;

/// Rows of one adapter from which on it is widened once for all of them.
const MANY_ROWS: usize = 8 * LARGEST_GROUP;

/// Lines that one thread widens at a time.
const WIDENED: usize = 1024;

/// Rows of the batch that wear one adapter, at one of the products that share an input.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    pub rows: Range<usize>,
    pub weights: &'a PackedLowRank,
    pub scale: f32,
    /// First column of the product in `y`.
    pub at: usize,
}

/// Memory that [`add`] reuses from call to call.
#[derive(Debug, Default)]
pub struct LowRankWork {
    x: Bf16Rows,
    /// `scale · x Aᵀ` as bf16, task by task: for each 32 ranks, one line per row.
    h: Lines,
    tasks: Vec<Task>,
    /// What is widened for many rows, segment by segment; none of what is not.
    wide: Lines,
    wide_of: Vec<Range<usize>>,
}

/// One row group of one segment.
#[derive(Clone, Debug)]
struct Task {
    segment: usize,
    rows: Range<usize>,
    /// Where its lines of `h` begin.
    h: usize,
}

/// `y[rows, at ..] += scale · (x[rows] Aᵀ) Bᵀ` for every segment.
///
/// Shapes: `x (m, k)`, rows of `y` have `stride` values; per segment `A (r, k)`, `B (n, r)`, any
/// `r`. Segments of equal rows follow each other, and rows ascend from one to the next.
///
/// # Panics
/// If the shapes do not fit.
pub fn add(
    cpu: Cpu,
    pool: &Pool,
    x: &[f32],
    segments: &[Segment<'_>],
    work: &mut LowRankWork,
    (y, stride): (&mut [f32], usize),
) {
    let Some(k) = segments.first().map(|segment| segment.weights.k) else { return };
    let m = y.len() / stride;
    assert!(segments.iter().all(|s| s.weights.k == k && s.at + s.weights.n <= stride));
    work.prepare(cpu, pool, x, (m, k), segments);
    down(cpu, pool, segments, work);
    up(cpu, pool, segments, work, &Output::new(y, stride, 0));
}

impl LowRankWork {
    /// Groups the rows within their segments, rounds `x` once per stretch of rows, makes room for
    /// `h`.
    fn prepare(
        &mut self,
        cpu: Cpu,
        pool: &Pool,
        x: &[f32],
        (m, k): (usize, usize),
        segments: &[Segment<'_>],
    ) {
        let mut lines = 0;
        self.tasks.clear();
        let groups = |rows: &Range<usize>| groups(cpu, rows);
        for (index, segment) in segments.iter().enumerate() {
            for rows in groups(&segment.rows) {
                let h = lines;
                lines += rows.len() * segment.weights.lines_of_h();
                self.tasks.push(Task { segment: index, rows, h });
            }
        }
        if self.h.len() < lines {
            self.h = line::zeroed(lines);
        }
        let stretches = segments.chunk_by(|a, b| a.rows == b.rows).map(|same| &same[0].rows);
        self.x.pack_groups(cpu, pool, x, (m, k), (k, 0), stretches.flat_map(groups));
        self.widen(cpu, pool, segments);
    }

    /// Widens the adapters that many rows wear.
    fn widen(&mut self, cpu: Cpu, pool: &Pool, segments: &[Segment<'_>]) {
        let mut end = 0;
        self.wide_of.clear();
        self.wide_of.extend(segments.iter().map(|Segment { rows, weights, .. }| {
            let lines = if rows.len() < MANY_ROWS { 0 } else { weights.lines_to_widen() };
            end += lines;
            end - lines..end
        }));
        if self.wide.len() < end {
            self.wide = line::zeroed(end);
        }
        let (ends, target) = (&self.wide_of, SharedSlice::new(&mut self.wide));
        pool.run(end.div_ceil(WIDENED), &|item| {
            let lines = piece(end, WIDENED, item);
            for (segment, wide) in segments.iter().zip(ends) {
                let own = lines.start.max(wide.start)..lines.end.min(wide.end);
                if !own.is_empty() {
                    // SAFETY: items differ in their lines.
                    let to = unsafe { target.part(own.clone()) };
                    let which = own.start - wide.start..own.end - wide.start;
                    segment.weights.widen(cpu, which, to);
                }
            }
        });
    }

    /// The matrices of a task, as they are to be read.
    fn source<'a>(&'a self, task: &Task, segments: &'a [Segment<'_>]) -> Source<'a> {
        let wide = self.wide_of[task.segment].clone();
        Source {
            weights: segments[task.segment].weights,
            wide: (!wide.is_empty()).then(|| &self.wide[wide]),
        }
    }
}

/// The row groups of a stretch of rows.
fn groups(cpu: Cpu, rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let (start, largest) = (rows.start, if cpu.amx { LARGEST_TILED_GROUP } else { LARGEST_GROUP });
    let groups = RowGroups::new(rows.len(), largest).iter();
    groups.map(move |group| start + group.start..start + group.end)
}

/// `h = scale · x Aᵀ`; one work item per task and 32 ranks.
fn down(cpu: Cpu, pool: &Pool, segments: &[Segment<'_>], work: &mut LowRankWork) {
    let lines = segments.iter().map(|segment| segment.weights.lines_of_h()).max().unwrap_or(0);
    let mut h = std::mem::take(&mut work.h);
    let (read, target) = (&*work, SharedSlice::new(&mut h));
    pool.run(read.tasks.len() * lines, &|item| {
        let (task, line) = (&read.tasks[item / lines], item % lines);
        let segment = &segments[task.segment];
        if line >= segment.weights.lines_of_h() {
            return;
        }
        let start = task.h + line * task.rows.len();
        // SAFETY: items differ in task or line, and each owns one line per row of its task.
        let h = unsafe { target.part(start..start + task.rows.len()) };
        let x = read.x.chunk(&task.rows, &(0..read.x.k()));
        down_item(cpu, &read.source(task, segments), segment.scale, x, line, h);
    });
    work.h = h;
}

/// One line of `h` for each row: up to 32 ranks, four at a time.
fn down_item(cpu: Cpu, source: &Source<'_>, scale: f32, x: &[Line], line: usize, h: &mut [Line]) {
    let ranks = piece(source.weights.r, RANKS_PER_LINE, line);
    #[cfg(target_arch = "x86_64")]
    if cpu.amx {
        return tiled::down(cpu, source, ranks, scale, x, h);
    }
    let mut sums = [[0f32; RANKS_PER_LINE]; LARGEST_GROUP];
    for first in ranks.clone().step_by(RANKS) {
        let a = source.a(&(first..first + RANKS));
        let at = first - ranks.start;
        let mut keep = |row: usize, dots: [f32; RANKS]| {
            sums[row][at..at + RANKS].copy_from_slice(&dots.map(|dot| dot * scale));
        };
        match h.len() {
            1 => dots::<1>(cpu, x, a, &mut keep),
            2 => dots::<2>(cpu, x, a, &mut keep),
            3 => dots::<3>(cpu, x, a, &mut keep),
            4 => dots::<4>(cpu, x, a, &mut keep),
            5 => dots::<5>(cpu, x, a, &mut keep),
            6 => dots::<6>(cpu, x, a, &mut keep),
            _ => unreachable!("a group has one to six rows"),
        }
    }
    for (h, sums) in h.iter_mut().zip(&sums) {
        *h = round(cpu, sums);
    }
}

/// `y += h Bᵀ`; a work item is some panels of outputs of one task, in order: rows of `y` that lie far
/// apart are read and written forward, as memory gives them fastest.
fn up(cpu: Cpu, pool: &Pool, segments: &[Segment<'_>], work: &LowRankWork, y: &Output<'_>) {
    let most = segments.iter().map(|segment| segment.weights.n).max().unwrap_or(0);
    let panels = most.div_ceil(PANEL);
    let grain = pool.grain(panels * work.tasks.len(), panels.max(1));
    let pieces = panels.div_ceil(grain);
    pool.run(work.tasks.len() * pieces, &|item| {
        let (task, panels) = (&work.tasks[item / pieces], piece(panels, grain, item % pieces));
        let at = segments[task.segment].at;
        // SAFETY: items differ in their panels or in their tasks; tasks of one product differ in their
        // rows, and products in their columns.
        unsafe { up_item(cpu, &work.source(task, segments), (task, at), panels, &work.h, y) };
    });
}

/// The panels `panels` of one task, as far as there are such.
///
/// # Safety
/// No other thread may touch the outputs meanwhile.
unsafe fn up_item(
    cpu: Cpu,
    source: &Source<'_>,
    (task, at): (&Task, usize),
    panels: Range<usize>,
    h: &[Line],
    y: &Output<'_>,
) {
    let (weights, n) = (source.weights, source.weights.n);
    let h = &h[task.h..][..weights.lines_of_h() * task.rows.len()];
    #[cfg(target_arch = "x86_64")]
    let _session = crate::kernels::amx::Session::new();
    let mut panels = panels.start..panels.end.min(n.div_ceil(PANEL));
    #[cfg(target_arch = "x86_64")]
    if panels.start < n / PANEL {
        let whole = panels.start..panels.end.min(n / PANEL);
        let columns = at + whole.start * PANEL..at + whole.end * PANEL;
        // SAFETY: by this function's contract; the rows are dropped before others are taken.
        let row_of = |i: usize| unsafe { y.row(task.rows.start + i, columns.clone()) };
        let b = source.b(whole.clone());
        if b.add(cpu, weights.lines_of_panel(), h, task.rows.len(), row_of) {
            panels.start = whole.end;
        }
    }
    for panel in panels {
        let columns = at + panel * PANEL..at + n.min((panel + 1) * PANEL);
        let (ahead, end) = (columns.start + AHEAD, at + n);
        y.ask(task.rows.clone(), ahead.min(end)..(ahead + PANEL).min(end));
        // SAFETY: by this function's contract; a row is dropped before the next is taken.
        let row_of = |i: usize| unsafe { y.row(task.rows.start + i, columns.clone()) };
        source.b(panel..panel + 1).with(cpu, |b| {
            multiply(cpu, &Chunk::Bf16(b), h, task.rows.len(), row_of, true);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Seeded, every_cpu};

    const K: usize = 75;
    const N: [usize; 2] = [37, 64];
    const STRIDE: usize = 37 + 64 + 3;

    struct Site {
        packed: PackedLowRank,
        a: Vec<f32>,
        b: Vec<f32>,
        r: usize,
    }

    const FORMATS: [LowRankFormat; 2] = [LowRankFormat::Bf16, LowRankFormat::Int8];

    fn site(cpu: Cpu, seeded: &mut Seeded, r: usize, n: usize, format: LowRankFormat) -> Site {
        let (a, b) = (seeded.values(r * K), seeded.values(n * r));
        let packed = PackedLowRank::pack(cpu, &Pool::new(1), (&a, &b), (r, K, n), format);
        Site { packed, a, b, r }
    }

    /// Rows 0..3 wear one adapter at both products, 3..14 another at the second alone.
    fn segments(sites: &[Site]) -> Vec<Segment<'_>> {
        let segment = |rows, site: usize, scale, at| Segment {
            rows,
            weights: &sites[site].packed,
            scale,
            at,
        };
        vec![segment(0..3, 0, 0.5, 0), segment(0..3, 1, 0.5, N[0]), segment(3..14, 2, 2.0, N[0])]
    }

    fn run(cpu: Cpu, x: &[f32], sites: &[Site]) -> Vec<f32> {
        let mut y = vec![1.0; 15 * STRIDE];
        let mut work = LowRankWork::default();
        add(cpu, &Pool::new(2), x, &segments(sites), &mut work, (&mut y, STRIDE));
        y
    }

    #[test]
    fn rows_get_their_own_adapter_and_the_others_stay() {
        for (cpu, format) in every_cpu().into_iter().flat_map(|cpu| FORMATS.map(|f| (cpu, f))) {
            let mut seeded = Seeded(5);
            let sites = [(4, N[0]), (33, N[1]), (7, N[1])]
                .map(|(r, n)| site(cpu, &mut seeded, r, n, format));
            let x = seeded.values(15 * K);
            let y = run(cpu, &x, &sites);
            let mut expected = vec![1.0; y.len()];
            for (segment, site) in segments(&sites).iter().zip(&sites) {
                for row in segment.rows.clone() {
                    let h: Vec<f64> = (0..site.r)
                        .map(|i| {
                            (0..K).map(|c| f64::from(x[row * K + c] * site.a[i * K + c])).sum()
                        })
                        .collect();
                    for n in 0..segment.weights.n {
                        let dot: f64 =
                            (0..site.r).map(|i| h[i] * f64::from(site.b[n * site.r + i])).sum();
                        expected[row * STRIDE + segment.at + n] += segment.scale * dot as f32;
                    }
                }
            }
            for (i, (y, expected)) in y.iter().zip(&expected).enumerate() {
                // Inner values of about 3 in bf16; an int8 errs by up to 1/254 of the largest of 32
                // values, bf16 by 1/512 of its own.
                let bound = 0.08 + 0.02 * expected.abs();
                let bound = if format == LowRankFormat::Int8 { 3.0 * bound } else { bound };
                assert!((y - expected).abs() < bound, "{i}: {y} instead of {expected}");
                assert!(*expected != 1.0 || *y == 1.0, "a value of no adapter stays");
            }
        }
    }

    #[test]
    fn a_row_alone_has_the_bits_it_has_in_the_batch() {
        FORMATS.into_iter().for_each(assert_a_row_alone_has_the_bits_it_has_in_the_batch);
    }

    fn assert_a_row_alone_has_the_bits_it_has_in_the_batch(format: LowRankFormat) {
        let mut seeded = Seeded(6);
        let site = site(Cpu::detect(), &mut seeded, 19, N[1], format);
        let x = seeded.values(40 * K);
        let all = |rows: Range<usize>, x: &[f32]| {
            let mut y = vec![0.5; x.len() / K * N[1]];
            let segment = Segment { rows, weights: &site.packed, scale: 1.5, at: 0 };
            let mut work = LowRankWork::default();
            add(Cpu::detect(), &Pool::new(2), x, &[segment], &mut work, (&mut y, N[1]));
            y
        };
        let together = all(0..40, &x);
        for row in 0..40 {
            let alone = all(0..1, &x[row * K..(row + 1) * K]);
            assert_eq!(alone, together[row * N[1]..(row + 1) * N[1]], "row {row}");
        }
    }
}
