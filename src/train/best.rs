//! The best validation of a run, and when to stop waiting for a better one.

use serde::{Deserialize, Serialize};

use crate::domain::EarlyStopping;

/// The lowest validation loss so far; kept in checkpoints, so that a resumed run judges alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step it was found after.
    pub step: usize,
    /// The loss's bits: JSON's decimals would have to be read back to the last bit.
    loss_bits: u64,
    /// Validations since then.
    waited: usize,
}

/// What a validation means for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The best so far.
    Better,
    GoOn,
    /// Patience is over.
    Stop,
}

impl Best {
    pub fn loss(&self) -> f64 {
        f64::from_bits(self.loss_bits)
    }

    /// Judges the loss after `step` against the best before it.
    pub fn judge(
        best: &mut Option<Self>,
        step: usize,
        loss: f64,
        stopping: Option<EarlyStopping>,
    ) -> Verdict {
        let margin = stopping.map_or(0.0, |stopping| stopping.min_delta);
        let fresh = Self { step, loss_bits: loss.to_bits(), waited: 0 };
        let Some(known) = best else {
            *best = Some(fresh);
            return Verdict::Better;
        };
        if loss < known.loss() - margin {
            *known = fresh;
            return Verdict::Better;
        }
        known.waited += 1;
        match stopping {
            Some(stopping) if known.waited >= stopping.patience => Verdict::Stop,
            _ => Verdict::GoOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_validations_without_a_better_loss() {
        let stopping = Some(EarlyStopping { patience: 2, min_delta: 0.1 });
        let mut best = None;
        let losses = [3.0, 2.0, 1.95, 1.8, 1.9, 1.75];
        let verdicts: Vec<Verdict> = losses
            .iter()
            .enumerate()
            .map(|(at, &loss)| Best::judge(&mut best, at + 1, loss, stopping))
            .collect();
        use Verdict::{Better, GoOn, Stop};
        assert_eq!(verdicts, [Better, Better, GoOn, Better, GoOn, Stop]);
        let best = best.expect("there were validations");
        assert_eq!((best.step, best.loss()), (4, 1.8));
    }
}
