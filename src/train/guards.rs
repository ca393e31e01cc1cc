//! What ends a run that would only waste time: numbers that are not numbers, and modules that
//! never learn.

use crate::domain::TrainMetrics;

/// Steps after which every trained module must have met a gradient. The first step of a warm-up
/// has rate 0, so a fresh adapter's `A` meets its first one in the third step at the earliest.
const PATIENCE_STEPS: usize = 10;

/// Watches the gradients of a run.
#[derive(Debug)]
pub struct Guards {
    /// Names of the tensors whose gradient has been exactly zero so far; emptied at the check.
    silent: Vec<(usize, String)>,
    names: Vec<String>,
    steps: usize,
}

impl Guards {
    /// Watches the tensors of these names, in order. Of an adapter only the `B`s are watched: as
    /// long as `B` is zero, the gradient of `A` is zero by right. Modules trained whole are not: a
    /// projector's gradient is zero until a picture comes.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let watched = |name: &String| name.contains(".lora_") && !name.ends_with("lora_A.weight");
        let names: Vec<String> = names.into_iter().collect();
        let silent = names.iter().cloned().enumerate().filter(|(_, name)| watched(name)).collect();
        Self { silent, names, steps: 0 }
    }

    /// Looks at one step: its loss and the squared norm of every gradient.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&mut self, metrics: &TrainMetrics, squares: &[f64]) -> Result<(), String> {
        finite(metrics, self.first_not_finite(squares))?;
        self.steps += 1;
        self.silent.retain(|&(at, _)| squares[at] == 0.0);
        let due = self.steps == PATIENCE_STEPS || metrics.step == metrics.total_steps;
        match self.silent.first() {
            Some((_, name)) if due => Err(format!(
                "{} of the trained tensors got no gradient in {} steps, the first of them {name}: \
                 this module takes no part in the answer; leave it out of `target_modules`",
                self.silent.len(),
                self.steps,
            )),
            _ => Ok(()),
        }
    }

    fn first_not_finite(&self, squares: &[f64]) -> Option<&str> {
        let named = self.names.iter().zip(squares);
        named.filter(|(_, square)| !square.is_finite()).map(|(name, _)| name.as_str()).next()
    }
}

fn finite(metrics: &TrainMetrics, tensor: Option<&str>) -> Result<(), String> {
    let (name, value) = if !metrics.train_loss.is_finite() {
        ("loss", metrics.train_loss)
    } else if !metrics.grad_norm.is_finite() {
        ("gradient norm", metrics.grad_norm)
    } else {
        return Ok(());
    };
    let place = tensor.map_or_else(String::new, |tensor| format!(", first at {tensor}"));
    Err(format!(
        "the {name} of step {} is {value}{place}: training has diverged; lower `learning_rate` (it was \
         {:e}), add `warmup_steps`, or set `max_grad_norm` to 1",
        metrics.step, metrics.learning_rate,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: usize, loss: f64, norm: f64) -> TrainMetrics {
        TrainMetrics {
            step,
            total_steps: 50,
            train_loss: loss,
            train_mean_token_accuracy: 0.5,
            learning_rate: 1e-3,
            grad_norm: norm,
            tokens_per_second: 1.0,
            trained_tokens: 1,
        }
    }

    #[test]
    fn a_number_that_is_none_ends_the_run_with_its_step() {
        let mut guards = Guards::new(["w".to_owned()]);
        let told = guards.check(&metrics(7, f64::NAN, 1.0), &[1.0]).expect_err("refused");
        assert!(told.contains("loss of step 7") && told.contains("learning_rate"), "{told}");
        let infinite = guards.check(&metrics(8, 1.0, f64::INFINITY), &[f64::INFINITY]);
        let told = infinite.expect_err("refused");
        assert!(told.contains("gradient norm of step 8") && told.contains("first at w"), "{told}");
    }

    #[test]
    fn a_module_without_gradient_ends_the_run_after_ten_steps() {
        let names = ["q.lora_A.weight", "q.lora_B.weight", "k.lora_A.weight", "k.lora_B.weight"];
        let mut guards = Guards::new(names.map(str::to_owned));
        for step in 1..10 {
            assert_eq!(guards.check(&metrics(step, 1.0, 1.0), &[0.0, 1.0, 0.0, 0.0]), Ok(()));
        }
        let told = guards.check(&metrics(10, 1.0, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        assert!(told.expect_err("refused").contains("k.lora_B.weight"));
    }
}
