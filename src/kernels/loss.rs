//! Cross-entropy of one row of logits, and over them its gradient.

use super::lanes::{LANES, kernel};
use super::math::exp;

/// What one labelled row contributes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowLoss {
    /// `−log p(label)`.
    pub loss: f64,
    /// Whether the label is the likeliest token, the first of several.
    pub correct: bool,
}

kernel! {
    /// `−log softmax(z)[label]`; `z` becomes `weight · (softmax(z) − onehot(label))`.
    pub fn cross_entropy(s, z: &mut [f32], label: usize, weight: f32) -> RowLoss {
        let mut max = s.splat(f32::NEG_INFINITY);
        let (full, rest) = z.as_chunks::<LANES>();
        for z in full {
            max = s.max(s.load(z), max);
        }
        let max = rest.iter().fold(s.largest(max), |max, &z| if z > max { z } else { max });
        let at_label = z[label];
        let correct = at_label == max && !z[..label].contains(&max);

        let mut total = s.splat(0.0);
        for z in z.chunks_mut(LANES) {
            let e = exp(s, s.sub(s.load_part(z), s.splat(max)));
            s.store_part(z, e);
            total = s.add(total, s.load_part(z)); // lanes past the row are zero again
        }
        let total = s.sum(total);
        let factor = s.splat(weight / total);
        for z in z.chunks_mut(LANES) {
            let value = s.mul(s.load_part(z), factor);
            s.store_part(z, value);
        }
        z[label] -= weight;
        RowLoss { loss: f64::from(total.ln()) + f64::from(max) - f64::from(at_label), correct }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Seeded, every_cpu};

    #[test]
    fn loss_and_gradient_follow_the_softmax() {
        let logits: Vec<f32> = Seeded(6).values(77).iter().map(|z| 6.0 * z).collect();
        let total: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        let likeliest = (0..77).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
        for cpu in every_cpu() {
            for label in [0, 76, likeliest] {
                let mut z = logits.clone();
                let row = cross_entropy(cpu, &mut z, label, 0.5);
                assert!((row.loss - (total.ln() - f64::from(logits[label]))).abs() < 1e-5);
                assert_eq!(row.correct, label == likeliest);
                for (i, z) in z.iter().enumerate() {
                    let p = f64::from(logits[i]).exp() / total - f64::from(u8::from(i == label));
                    assert!((f64::from(*z) - 0.5 * p).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn the_first_of_equal_maxima_is_the_likeliest() {
        let mut z = [2.0, 5.0, 5.0];
        assert!(cross_entropy(every_cpu()[0], &mut z, 1, 1.0).correct);
        let mut z = [2.0, 5.0, 5.0];
        assert!(!cross_entropy(every_cpu()[0], &mut z, 2, 1.0).correct);
    }
}
