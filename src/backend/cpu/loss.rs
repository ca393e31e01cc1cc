//! Cross-entropy of chunks of logits.

use super::{CpuBackend, CpuRows};
use crate::backend::LossSum;
use crate::domain::IGNORE_INDEX;
use crate::kernels::loss::{self, RowLoss};
use crate::kernels::split::{PerItem, split};

impl CpuBackend {
    /// See [`Backend::cross_entropy`](crate::backend::Backend::cross_entropy).
    pub(super) fn loss_and_gradient(
        &mut self,
        z: &mut CpuRows,
        labels: &[i32],
        weight: f32,
    ) -> LossSum {
        let (width, cpu) = (z.width, self.cpu);
        assert_eq!(labels.len(), z.rows, "one label per row");
        let losses = &mut self.work.losses;
        losses.clear();
        losses.resize(labels.len(), RowLoss::default());
        let out = (PerItem::new(z.values_mut(), width), PerItem::new(losses, 1));
        split(&self.pool, labels.len(), 2 * width, out, |rows, (z, losses)| {
            let rows = labels[rows].iter().zip(z.chunks_exact_mut(width)).zip(losses);
            for ((&label, z), row) in rows {
                match label {
                    IGNORE_INDEX => z.fill(0.0),
                    label => *row = loss::cross_entropy(cpu, z, label as usize, weight),
                }
            }
        });
        let tokens = labels.iter().filter(|&&label| label != IGNORE_INDEX).count();
        let losses = &self.work.losses;
        LossSum {
            loss: losses.iter().map(|row| row.loss).sum(),
            tokens,
            correct: losses.iter().filter(|row| row.correct).count(),
        }
    }
}
