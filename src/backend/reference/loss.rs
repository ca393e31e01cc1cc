//! Cross-entropy of one row of logits.

use crate::backend::LossSum;
use crate::domain::IGNORE_INDEX;

/// Adds `−log p(label)` to `sum` and leaves `weight · (softmax(z) − onehot)` in `z`.
pub(super) fn cross_entropy(z: &mut [f32], label: i32, weight: f32, sum: &mut LossSum) {
    if label == IGNORE_INDEX {
        return z.fill(0.0);
    }
    let label = label as usize;
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = z.iter().map(|&z| f64::from(z - max).exp()).sum();
    sum.loss += total.ln() - f64::from(z[label] - max);
    sum.tokens += 1;
    sum.correct += usize::from(z.iter().position(|&z| z == max) == Some(label));
    for (i, z) in z.iter_mut().enumerate() {
        let p = f64::from(*z - max).exp() / total;
        *z = weight * (p - f64::from(u8::from(i == label))) as f32;
    }
}
