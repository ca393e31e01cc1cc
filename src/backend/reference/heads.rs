//! One row's raw projection into q, k and v: clip, split, q/k norm, RoPE; and back.

use std::borrow::Cow;

use super::{Matrix, norm};
use crate::backend::{HeadsSpec, Norm, Places, Rope};

/// What turns the heads of one row.
pub(super) struct Turn<'a> {
    position: u32,
    frequencies: Cow<'a, [f32]>,
    scale: f32,
}

impl<'a> Turn<'a> {
    pub fn new(rope: &'a Rope, places: &Places, row: usize) -> Self {
        let (position, frequencies) = (places.positions[row], rope.at(places.lengths[row]));
        Self { position, frequencies, scale: rope.scale }
    }

    /// Half rotation in place: with `x = [x1, x2]`, `[x1 cos − x2 sin, x2 cos + x1 sin]`;
    /// `direction` −1 turns back. Su et al. 2021, "RoFormer", section 3.4.2.
    fn rotate(&self, x: &mut [f32], direction: f32) {
        let pairs = self.frequencies.len();
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (self.position as f32 * frequency).sin_cos();
            let (sin, cos) = (direction * sin * self.scale, cos * self.scale);
            let (x1, x2) = (x[i], x[i + pairs]);
            x[i] = x1 * cos - x2 * sin;
            x[i + pairs] = x2 * cos + x1 * sin;
        }
    }
}

pub(super) fn forward(
    qkv: &[f32],
    spec: &HeadsSpec<Matrix>,
    turn: &Turn<'_>,
    q: &mut [f32],
    k: &mut [f32],
    v: &mut [f32],
) {
    let clipped = clip(qkv, spec.clip);
    let (hd, h, kv) = (spec.head_dim, spec.heads, spec.kv_heads);
    let (x_q, x_k) = clipped[..(h + kv) * hd].split_at(h * hd);
    for (x, y, norm) in [(x_q, q, &spec.q_norm), (x_k, k, &spec.k_norm)] {
        let group = group(norm.as_ref(), hd);
        for (x, y) in x.chunks_exact(group).zip(y.chunks_exact_mut(group)) {
            match norm {
                Some(norm) => norm::forward(x, norm, y),
                None => y.copy_from_slice(x),
            }
        }
        y.chunks_exact_mut(hd).for_each(|y| turn.rotate(y, 1.0));
    }
    v.copy_from_slice(&clipped[(h + kv) * hd..]);
}

/// Top down: RoPE turned back, the norm at the clipped values, zero where the clip cut.
pub(super) fn backward(
    [dq, dk, dv]: [&[f32]; 3],
    qkv: &[f32],
    spec: &HeadsSpec<Matrix>,
    turn: &Turn<'_>,
    dqkv: &mut [f32],
) {
    let clipped = clip(qkv, spec.clip);
    let (hd, h, kv) = (spec.head_dim, spec.heads, spec.kv_heads);
    for (dy, at, norm) in [(dq, 0, &spec.q_norm), (dk, h * hd, &spec.k_norm)] {
        let mut dy = dy.to_vec();
        dy.chunks_exact_mut(hd).for_each(|dy| turn.rotate(dy, -1.0));
        let group = group(norm.as_ref(), hd);
        for (i, dy) in dy.chunks_exact(group).enumerate() {
            let range = at + i * group..at + (i + 1) * group;
            norm_backward(dy, &clipped[range.clone()], norm.as_ref(), &mut dqkv[range]);
        }
    }
    dqkv[(h + kv) * hd..].copy_from_slice(dv);
    if let Some(limit) = spec.clip {
        for (d, x) in dqkv.iter_mut().zip(qkv) {
            *d = if x.abs() <= limit { *d } else { 0.0 };
        }
    }
}

/// Values that are normed together: a head, or all of them.
fn group(norm: Option<&Norm<Matrix>>, head_dim: usize) -> usize {
    norm.map_or(head_dim, |norm| norm.weight.values.len())
}

fn clip(x: &[f32], limit: Option<f32>) -> Vec<f32> {
    x.iter().map(|&x| limit.map_or(x, |limit| x.clamp(-limit, limit))).collect()
}

fn norm_backward(dy: &[f32], x: &[f32], norm: Option<&Norm<Matrix>>, dx: &mut [f32]) {
    match norm {
        Some(norm) => {
            dx.fill(0.0);
            norm::backward(dy, x, norm, dx, None);
        }
        None => dx.copy_from_slice(dy),
    }
}
