//! The plain twin of the integer kernels, and their specification.

use super::packed::{Weights, place, stretch};
use crate::kernels::activations::{BLOCK, Q8Block};

/// `MR` rows by 16 columns; see [`super::tile`].
pub fn tile<const BITS: usize, const MR: usize>(
    w: Weights<'_, BITS>,
    x: &[Q8Block],
    mut y: [&mut [f32]; MR],
    add: bool,
) {
    let stretch = stretch::<BITS>();
    for (i, y) in y.iter_mut().enumerate() {
        for (lane, y) in y.iter_mut().enumerate() {
            let mut sum = if add { *y } else { 0.0 };
            let stretches = w.scales.chunks(stretch).zip(w.codes.chunks(BITS * stretch));
            for ((scales, codes), x) in stretches.zip(x.chunks(MR * stretch)) {
                let mut inner = 0.0;
                for (b, scales) in scales.iter().enumerate() {
                    let dot = dot_block::<BITS>(&codes[b * BITS..], lane, &x[b * MR + i]);
                    inner = (dot as f32).mul_add(scales[lane].to_f32(), inner);
                }
                sum = inner.mul_add(x[i].scale, sum);
            }
            *y = sum;
        }
    }
}

/// `Σ q_x · (code − 2^(BITS−1))` over one block of row `lane`.
fn dot_block<const BITS: usize>(
    codes: &[crate::kernels::line::Line],
    lane: usize,
    x: &Q8Block,
) -> i32 {
    let mut sum = x.minus_sum << (BITS - 1);
    for i in 0..BLOCK {
        let (line, shift) = place::<BITS>(i);
        let code = (codes[line].0[lane] >> shift) & ((1 << BITS) - 1);
        let q = (x.words[i / 4] >> (8 * (i % 4))) as u8 as i8;
        sum += code as i32 * i32::from(q);
    }
    sum
}
