//! The plain twin of the Q4_K kernels, and their specification.

use super::{PART_LINES, PARTS, SCALE_LINES, Weights, factors, place, scale_and_min};
use crate::kernels::activations::{BLOCK, Q8Block};
use crate::kernels::line::Line;

/// `MR` rows by 16 columns; see [`super::IntegerWeight::tile`].
pub fn tile<const MR: usize>(w: Weights<'_>, x: &[Q8Block], mut y: [&mut [f32]; MR], add: bool) {
    for (i, y) in y.iter_mut().enumerate() {
        for (lane, y) in y.iter_mut().enumerate() {
            let mut sum = if add { *y } else { 0.0 };
            let blocks = w.codes.chunks_exact(PARTS * PART_LINES);
            for ((codes, scales), x) in
                blocks.zip(w.scales.chunks_exact(SCALE_LINES)).zip(x.chunks_exact(PARTS * MR))
            {
                let (mut inner, mut offset) = (0f32, 0);
                for (part, codes) in codes.chunks_exact(PART_LINES).enumerate() {
                    let (x, (scale, min)) = (&x[part * MR + i], scale_and_min(scales, part, lane));
                    inner = (dot(codes, lane, x) as f32).mul_add(scale as f32, inner);
                    offset += min * x.minus_sum;
                }
                let (d, dmin) = factors(scales, lane);
                let inner = inner.mul_add(d, offset as f32 * dmin);
                sum = inner.mul_add(x[i].scale, sum);
            }
            *y = sum;
        }
    }
}

/// `Σ q_x · code` over one part of row `lane`.
fn dot(codes: &[Line], lane: usize, x: &Q8Block) -> i32 {
    let term = |i: usize| {
        let (line, shift) = place(i);
        let q = (x.words[i / 4] >> (8 * (i % 4))) as u8 as i8;
        (codes[line].0[lane] >> shift & 15) as i32 * i32::from(q)
    };
    (0..BLOCK).map(term).sum()
}
