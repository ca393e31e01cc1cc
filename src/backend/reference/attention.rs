//! Attention, one query row at a time.

use std::ops::Range;

use super::{Matrix, matrix};
use crate::backend::AttentionSpec;

/// What the backward needs of the forward.
pub(super) struct Saved<'a> {
    pub q: &'a Matrix,
    pub k: &'a Matrix,
    pub v: &'a Matrix,
    pub o: &'a Matrix,
    pub lse: &'a Matrix,
}

/// `o = softmax(scores) v` for the query at `position`; returns per head the log of the sum of
/// `exp(scores)`.
pub(super) fn forward<'a>(
    q: &[f32],
    position: usize,
    key: impl Fn(usize) -> &'a [f32],
    value: impl Fn(usize) -> &'a [f32],
    spec: &AttentionSpec,
    o: &mut [f32],
) -> Vec<f32> {
    let hd = spec.head_dim;
    (0..spec.heads)
        .map(|head| {
            let group = kv_range(head, spec);
            let seen = visible(position, spec.window);
            let scores: Vec<f64> = seen
                .clone()
                .map(|j| {
                    let q = &q[head * hd..][..hd];
                    score(q, &key(j)[group.clone()], position - j, head, spec).0
                })
                .collect();
            let lse = log_sum_exp(&scores);
            let mut sums = vec![0.0; hd];
            for (j, score) in seen.zip(&scores) {
                let p = (score - lse).exp();
                for (sum, &v) in sums.iter_mut().zip(&value(j)[group.clone()]) {
                    *sum += p * f64::from(v);
                }
            }
            o[head * hd..][..hd].iter_mut().zip(&sums).for_each(|(o, &sum)| *o = sum as f32);
            lse as f32
        })
        .collect()
}

/// With `P = exp(S − lse)` and `delta = Σ do · o`: `dv += P do`, `dS = P (do · v − delta)`,
/// `dq += scale dS k`, `dk += scale dS q`; under a soft cap `dS` is first multiplied by
/// `1 − (S / cap)²`. Dao et al. 2022, "FlashAttention", algorithm 4.
pub(super) fn backward(
    d_o: &Matrix,
    saved: &Saved<'_>,
    span: Range<usize>,
    spec: &AttentionSpec,
    dq: &mut Matrix,
    dk: &mut Matrix,
    dv: &mut Matrix,
) {
    let hd = spec.head_dim;
    for i in span.clone() {
        for head in 0..spec.heads {
            let (mine, group) = (head * hd..(head + 1) * hd, kv_range(head, spec));
            let (q, d_o) = (&saved.q.row(i)[mine.clone()], &d_o.row(i)[mine.clone()]);
            let delta = matrix::dot(d_o, &saved.o.row(i)[mine.clone()]);
            for j in visible(i - span.start, spec.window).map(|j| j + span.start) {
                let (k, v) = (&saved.k.row(j)[group.clone()], &saved.v.row(j)[group.clone()]);
                let (s, slope) = score(q, k, i - j, head, spec);
                let p = (s - f64::from(saved.lse.row(i)[head])).exp();
                let ds = p * (matrix::dot(d_o, v) - delta) * slope;
                for c in 0..hd {
                    dv.row_mut(j)[group.start + c] += (p * f64::from(d_o[c])) as f32;
                    dq.row_mut(i)[mine.start + c] += (ds * f64::from(k[c])) as f32;
                    dk.row_mut(j)[group.start + c] += (ds * f64::from(q[c])) as f32;
                }
            }
        }
    }
}

/// The columns of the key-value head that query head `head` reads.
fn kv_range(head: usize, spec: &AttentionSpec) -> Range<usize> {
    let kv_head = head / (spec.heads / spec.kv_heads);
    kv_head * spec.head_dim..(kv_head + 1) * spec.head_dim
}

/// The positions a query at `position` sees.
fn visible(position: usize, window: Option<usize>) -> Range<usize> {
    window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
}

/// The score, and its derivative by `q · k`.
fn score(q: &[f32], k: &[f32], distance: usize, head: usize, spec: &AttentionSpec) -> (f64, f64) {
    let scale = f64::from(spec.scale);
    let (mut score, mut slope) = (matrix::dot(q, k) * scale, scale);
    if let Some(cap) = spec.softcap.map(f64::from) {
        let th = (score / cap).tanh();
        (score, slope) = (cap * th, scale * (1.0 - th * th));
    }
    if let Some(slopes) = &spec.alibi {
        score -= f64::from(slopes[head]) * distance as f64;
    }
    (score, slope)
}

fn log_sum_exp(scores: &[f64]) -> f64 {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln()
}
