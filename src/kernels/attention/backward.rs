//! The backward of attention, tile by tile.
//!
//! Dao et al. 2022, "FlashAttention", algorithm 4. With `delta = Σ dO · O` of each row:
//! ```text
//! P = exp(S − lse)   dV += Pᵀ dO   dP = dO Vᵀ   dS = scale · P (dP − delta)
//! dQ += dS K         dK += dSᵀ Q
//! ```
//! `dS` is multiplied by `1 − (S / cap)²` under a soft cap. Work that shares no output: a span and
//! a key-value head. Inside it the order of tiles is fixed.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Attention, distances, scores, visible};
use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{Block, PANEL, multiply, turn_rows};
use crate::kernels::lanes::{LANES, kernel};
use crate::kernels::math::{dot, exp};
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::scratch::with_values;

/// Queries per tile; keys per tile are a panel.
const QUERIES: usize = 64;

/// What the forward saw and what comes back from above: `q`, `o`, `d_o` are `(t, h · hd)`, `k` and
/// `v` `(t, kv · hd)`, `lse (t, h)`.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    pub d_o: &'a [f32],
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub o: &'a [f32],
    pub lse: &'a [f32],
}

/// `dq`, `dk` and `dv` are overwritten; rows of no span become zero.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    cpu: Cpu,
    pool: &Pool,
    saved: &Saved<'_>,
    spans: &[Range<usize>],
    spec: &Attention<'_>,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    assert!(spec.causal, "only causal attention is trained");
    let (qw, kw) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let rows = spans.iter().map(|span| span.end).max().unwrap_or(0);
    for (x, width) in [(saved.q, qw), (saved.o, qw), (saved.d_o, qw), (saved.k, kw), (saved.v, kw)]
    {
        assert!(x.len() >= rows * width, "spans leave the matrix");
    }
    for x in [&mut *dq, &mut *dk, &mut *dv] {
        x.fill(0.0);
    }
    let out = [Output::new(dq, qw, 0), Output::new(dk, kw, 0), Output::new(dv, kw, 0)];
    pool.run(spans.len() * spec.kv_heads, &|item| {
        let (span, kv_head) = (spans[item / spec.kv_heads].clone(), item % spec.kv_heads);
        if !span.is_empty() {
            let work = Work { cpu, saved, span, spec, kv_head, out: &out };
            // SAFETY: items differ in their rows or in their heads, hence in their outputs.
            unsafe { work.run() };
        }
    });
}

/// One span and one key-value head.
struct Work<'a> {
    cpu: Cpu,
    saved: &'a Saved<'a>,
    span: Range<usize>,
    spec: &'a Attention<'a>,
    kv_head: usize,
    out: &'a [Output<'a>; 3],
}

/// One tile: query rows, key rows (both of the batch), and the query head.
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
    head: usize,
}

/// Scratch of one work item: a panel of keys and of values, `P` and `dS` of a tile, `delta`.
struct Scratch<'a> {
    keys: &'a mut [f32],
    values: &'a mut [f32],
    p: &'a mut [f32],
    ds: &'a mut [f32],
    delta: &'a mut [f32],
}

impl Work<'_> {
    /// # Safety
    /// No other thread may touch these rows and heads of the outputs meanwhile.
    unsafe fn run(&self) {
        let (hd, group, len) = (self.spec.head_dim, self.spec.group(), self.span.len());
        let (panel, tile) = (hd * PANEL, QUERIES * PANEL);
        with_values(2 * panel + 2 * tile + group * len, |all| {
            let (keys, rest) = all.split_at_mut(panel);
            let (values, rest) = rest.split_at_mut(panel);
            let (p, rest) = rest.split_at_mut(tile);
            let (ds, delta) = rest.split_at_mut(tile);
            let mut scratch = Scratch { keys, values, p, ds, delta };
            self.fill_delta(scratch.delta);
            for first in self.span.clone().step_by(PANEL) {
                let keys = first..self.span.end.min(first + PANEL);
                self.turn(self.saved.k, &keys, scratch.keys);
                self.turn(self.saved.v, &keys, scratch.values);
                for g in 0..group {
                    for queries in self.query_tiles(&keys) {
                        let tile =
                            Tile { queries, keys: keys.clone(), head: self.kv_head * group + g };
                        // SAFETY: by this function's contract.
                        unsafe { self.tile(&tile, g, &mut scratch) };
                    }
                }
            }
        });
    }

    /// `delta (group, len)`.
    fn fill_delta(&self, delta: &mut [f32]) {
        let (hd, group, len) = (self.spec.head_dim, self.spec.group(), self.span.len());
        for (i, delta) in delta.iter_mut().enumerate() {
            let (row, head) = (self.span.start + i % len, self.kv_head * group + i / len);
            let at = (row * self.spec.heads + head) * hd;
            *delta = row_dot(self.cpu, &self.saved.d_o[at..at + hd], &self.saved.o[at..at + hd]);
        }
    }

    /// The rows `keys` of this head of `x (t, kv · hd)` as a panel `(hd, 32)`.
    fn turn(&self, x: &[f32], keys: &Range<usize>, to: &mut [f32]) {
        let (hd, stride) = (self.spec.head_dim, self.spec.kv_heads * self.spec.head_dim);
        for half in 0..2 {
            let first = keys.start + half * LANES;
            if first < keys.end {
                let from = &x[first * stride + self.kv_head * hd..];
                let rows = (keys.end - first).min(LANES);
                turn_rows(self.cpu, from, stride, rows, 0..hd, &mut to[half * LANES..]);
            }
        }
    }

    /// The query rows that see one of `keys`, in tiles.
    fn query_tiles(&self, keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let reach = self.spec.window.map_or(self.span.end, |window| keys.end - 1 + window);
        let end = self.span.end.min(reach);
        (keys.start..end).step_by(QUERIES).map(move |first| first..end.min(first + QUERIES))
    }

    /// # Safety
    /// As for [`Work::run`].
    unsafe fn tile(&self, tile: &Tile, g: usize, scratch: &mut Scratch<'_>) {
        let (spec, hd) = (self.spec, self.spec.head_dim);
        let (qw, kw) = (spec.heads * hd, spec.kv_heads * hd);
        let (nq, nk) = (tile.queries.len(), tile.keys.len());
        let q_at = tile.queries.start * qw + tile.head * hd;
        let k_at = tile.keys.start * kw + self.kv_head * hd;
        let (q, d_o) = (&self.saved.q[q_at..], &self.saved.d_o[q_at..]);

        let rows = |a: &[f32], b: &[f32], c: &mut [f32]| Block {
            a: a.as_ptr(),
            a_row: qw,
            a_step: 1,
            b: b.as_ptr(),
            b_row: PANEL,
            k: hd,
            c: c.as_mut_ptr(),
            c_row: PANEL,
            rows: nq,
            columns: nk,
            add: false,
        };
        let (scores, d_p) =
            (rows(q, scratch.keys, scratch.p), rows(d_o, scratch.values, scratch.ds));
        // SAFETY: `backward` checked the rows of `q` and `d_o`; the panels hold `hd` rows of 32 and
        // the tiles `QUERIES`.
        unsafe {
            multiply(self.cpu, &scores);
            multiply(self.cpu, &d_p);
        }
        let start = self.span.start;
        let position = tile.queries.start - start;
        let delta = &scratch.delta[g * self.span.len() + position..][..nq];
        let lse = &self.saved.lse[tile.queries.start * spec.heads + tile.head..];
        let places = (position, tile.keys.start - start, nk);
        to_gradient(self.cpu, spec, tile.head, places, delta, lse, scratch.p, scratch.ds);

        let head = tile.head * hd..(tile.head + 1) * hd;
        let kv = self.kv_head * hd..(self.kv_head + 1) * hd;
        let (dq, dq_row) = self.out[0].block(tile.queries.clone(), head);
        let (dk, dk_row) = self.out[1].block(tile.keys.clone(), kv.clone());
        let (dv, dv_row) = self.out[2].block(tile.keys.clone(), kv);
        let turned = |a: &[f32], b: &[f32], c: *mut f32, c_row: usize| Block {
            a: a.as_ptr(),
            a_row: 1,
            a_step: PANEL,
            b: b.as_ptr(),
            b_row: qw,
            k: nq,
            c,
            c_row,
            rows: nk,
            columns: hd,
            add: true,
        };
        let to_q = Block {
            a: scratch.ds.as_ptr(),
            a_row: PANEL,
            a_step: 1,
            b: self.saved.k[k_at..].as_ptr(),
            b_row: kw,
            k: nk,
            c: dq,
            c_row: dq_row,
            rows: nq,
            columns: hd,
            add: true,
        };
        // SAFETY: inputs as above; the outputs were checked by `block` and are this item's own.
        unsafe {
            multiply(self.cpu, &turned(scratch.p, d_o, dv, dv_row));
            multiply(self.cpu, &to_q);
            multiply(self.cpu, &turned(scratch.ds, q, dk, dk_row));
        }
    }
}

kernel! {
    fn row_dot(s, x: &[f32], y: &[f32]) -> f32 {
        dot(s, x, y)
    }
}

kernel! {
    /// Over a tile of dots `q · k` and of `dP`: `P` and `scale · dS`. `places` are the positions of
    /// the first query and key, and the number of keys; `lse` steps by the number of heads.
    fn to_gradient(
        s,
        spec: &Attention<'_>,
        head: usize,
        places: (usize, usize, usize),
        delta: &[f32],
        lse: &[f32],
        p: &mut [f32],
        ds: &mut [f32],
    ) {
        let (position, first_key, keys) = places;
        let slope = spec.slope(head);
        let rows = p.chunks_exact_mut(PANEL).zip(ds.chunks_exact_mut(PANEL));
        for (i, (p, ds)) in rows.take(delta.len()).enumerate() {
            let lse = s.splat(lse[i * spec.heads]);
            let mut at = 0;
            while at < keys {
                let distance = distances(s, position + i, first_key + at);
                let capped = scores(s, spec, s.load_part(&p[at..at + LANES]));
                let mut score = capped;
                if slope != 0.0 {
                    score = s.sub(score, s.mul(s.splat(slope), distance));
                }
                let weight = exp(s, s.sub(score, lse));
                let weight = visible(s, spec, distance, weight, 0.0);
                let change = s.sub(s.load_part(&ds[at..at + LANES]), s.splat(delta[i]));
                let mut grad = s.mul(s.mul(weight, change), s.splat(spec.scale));
                if let Some(cap) = spec.softcap {
                    let part = s.div(capped, s.splat(cap));
                    grad = s.mul(grad, s.sub(s.splat(1.0), s.mul(part, part)));
                }
                grad = visible(s, spec, distance, grad, 0.0);
                s.store_part(&mut p[at..at + LANES], weight);
                s.store_part(&mut ds[at..at + LANES], grad);
                at += LANES;
            }
        }
    }
}
