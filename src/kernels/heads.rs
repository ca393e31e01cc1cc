//! A raw projection becomes q, k and v: clip, split, q/k norm, RoPE; and the way back.

use std::ops::Range;

use super::lanes::{LANES, Simd, kernel};
use super::norm::{NormRow, denormalise, normalise};

/// Cosines and sines of rows, `(t, pairs)` each.
///
/// Su et al. 2021, "RoFormer"; half rotation as in Hugging Face: value `i` turns with value
/// `i + pairs`, by `position · frequency[i]` in `f32`.
#[derive(Debug)]
pub struct RopeRows {
    pairs: usize,
    scale: f32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeRows {
    /// No rows yet; `scale` multiplies cosines and sines.
    pub fn new(pairs: usize, scale: f32) -> Self {
        Self { pairs, scale, cos: Vec::new(), sin: Vec::new() }
    }

    /// Adds the row at `position`.
    pub fn push(&mut self, position: u32, frequencies: &[f32]) {
        debug_assert_eq!(frequencies.len(), self.pairs);
        for frequency in frequencies {
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            self.cos.push(cos * self.scale);
            self.sin.push(sin * self.scale);
        }
    }

    fn at(&self, row: usize) -> (&[f32], &[f32]) {
        let start = row * self.pairs;
        (&self.cos[start..start + self.pairs], &self.sin[start..start + self.pairs])
    }
}

/// What the heads of a layer share; see [`crate::backend::HeadsSpec`].
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub clip: Option<f32>,
    pub q_norm: Option<NormRow<'a>>,
    pub k_norm: Option<NormRow<'a>>,
    /// Of every row, if there is RoPE.
    pub rope: Option<&'a RopeRows>,
}

impl Heads<'_> {
    /// Values that both directions need room for.
    pub fn spare(&self) -> usize {
        let [q, k] = [&self.q_norm, &self.k_norm].map(|n| group(n.as_ref(), self.head_dim));
        2 * q.max(k)
    }
}

/// Values that are normed together: a head, or all of them.
fn group(norm: Option<&NormRow<'_>>, head_dim: usize) -> usize {
    norm.map_or(head_dim, |norm| norm.weight.len())
}

/// Copies `x` cut to ±`clip`.
#[inline(always)]
fn clipped<S: Simd>(s: S, x: &[f32], clip: Option<f32>, y: &mut [f32]) {
    let Some(clip) = clip else { return y.copy_from_slice(x) };
    for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
        let cut = s.max(s.splat(-clip), s.min(s.splat(clip), s.load_part(x)));
        s.store_part(y, cut);
    }
}

/// Turns one head in place; `sign` −1 turns it back.
#[inline(always)]
fn rotate<S: Simd>(s: S, x: &mut [f32], (cos, sin): (&[f32], &[f32]), sign: f32) {
    let (first, second) = x.split_at_mut(cos.len());
    let halves = first.chunks_mut(LANES).zip(second[..cos.len()].chunks_mut(LANES));
    for ((a, b), (cos, sin)) in halves.zip(cos.chunks(LANES).zip(sin.chunks(LANES))) {
        let (cos, sin) = (s.load_part(cos), s.mul(s.splat(sign), s.load_part(sin)));
        let (x, y) = (s.load_part(a), s.load_part(b));
        s.store_part(a, s.sub(s.mul(x, cos), s.mul(y, sin)));
        s.store_part(b, s.add(s.mul(y, cos), s.mul(x, sin)));
    }
}

kernel! {
    /// Rows `rows` of a batch: those of `qkv` into those of `q`, `k` and `v`. `spare` holds [`Heads::spare`] values.
    pub fn forward(
        s,
        qkv: &[f32],
        spec: &Heads<'_>,
        rows: Range<usize>,
        q: &mut [f32],
        k: &mut [f32],
        v: &mut [f32],
        spare: &mut [f32],
    ) {
        let (qw, kw, hd) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.head_dim);
        for (row, place) in rows.enumerate() {
            let x = &qkv[row * (qw + 2 * kw)..][..qw + 2 * kw];
            let q = &mut q[row * qw..][..qw];
            let k = &mut k[row * kw..][..kw];
            for (x, to, norm) in [(&x[..qw], q, spec.q_norm), (&x[qw..qw + kw], k, spec.k_norm)] {
                let group = group(norm.as_ref(), hd);
                for (x, to) in x.chunks_exact(group).zip(to.chunks_exact_mut(group)) {
                    match norm {
                        Some(norm) => {
                            clipped(s, x, spec.clip, &mut spare[..group]);
                            normalise(s, &spare[..group], &norm, to);
                        }
                        None => clipped(s, x, spec.clip, to),
                    }
                    if let Some(rope) = spec.rope {
                        to.chunks_exact_mut(hd).for_each(|to| rotate(s, to, rope.at(place), 1.0));
                    }
                }
            }
            clipped(s, &x[qw + kw..], spec.clip, &mut v[row * kw..][..kw]);
        }
    }
}

kernel! {
    /// The way back for rows `rows` of a batch: `dqkv` is overwritten. `spare` holds [`Heads::spare`] values.
    pub fn backward(
        s,
        dq: &[f32],
        dk: &[f32],
        dv: &[f32],
        qkv: &[f32],
        spec: &Heads<'_>,
        rows: Range<usize>,
        dqkv: &mut [f32],
        spare: &mut [f32],
    ) {
        let (qw, kw, hd) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.head_dim);
        let (turned, before) = spare.split_at_mut(spare.len() / 2);
        for (row, place) in rows.enumerate() {
            let x = &qkv[row * (qw + 2 * kw)..][..qw + 2 * kw];
            let dx = &mut dqkv[row * (qw + 2 * kw)..][..qw + 2 * kw];
            let (q_part, rest) = dx.split_at_mut(qw);
            let (k_part, v_part) = rest.split_at_mut(kw);
            let parts = [
                (&dq[row * qw..][..qw], &x[..qw], q_part, spec.q_norm),
                (&dk[row * kw..][..kw], &x[qw..qw + kw], k_part, spec.k_norm),
            ];
            for (dy, x, dx, norm) in parts {
                let group = group(norm.as_ref(), hd);
                let (turned, before) = (&mut turned[..group], &mut before[..group]);
                let groups = dy.chunks_exact(group).zip(x.chunks_exact(group));
                for ((dy, x), dx) in groups.zip(dx.chunks_exact_mut(group)) {
                    turned.copy_from_slice(dy);
                    if let Some(rope) = spec.rope {
                        let turn = |x: &mut [f32]| rotate(s, x, rope.at(place), -1.0);
                        turned.chunks_exact_mut(hd).for_each(turn);
                    }
                    match norm {
                        Some(norm) => {
                            clipped(s, x, spec.clip, before);
                            dx.fill(0.0);
                            denormalise(s, turned, before, &norm, dx);
                        }
                        None => dx.copy_from_slice(turned),
                    }
                }
            }
            v_part.copy_from_slice(&dv[row * kw..][..kw]);
            if let Some(clip) = spec.clip {
                for (dx, x) in dx.iter_mut().zip(x) {
                    *dx = if x.abs() <= clip { *dx } else { 0.0 };
                }
            }
        }
    }
}
