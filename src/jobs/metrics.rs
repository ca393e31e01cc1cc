//! The numbers of a run, as events and as the table of the result file.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::domain::TrainMetrics;
use crate::store::{EventKind, JobEvent, NewEvent};

/// The columns of a result file: OpenAI's names, and the keys of the events they come from.
const COLUMNS: [(&str, &str); 5] = [
    ("step", "step"),
    ("train_loss", "train_loss"),
    ("train_accuracy", "train_mean_token_accuracy"),
    ("valid_loss", "valid_loss"),
    ("valid_mean_token_accuracy", "valid_mean_token_accuracy"),
];

/// Loss and token accuracy on the validation file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Validation {
    pub loss: f64,
    pub mean_token_accuracy: f64,
}

/// The event of a step; `validation` if the step ended with one.
pub(super) fn event(metrics: &TrainMetrics, validation: Option<Validation>) -> NewEvent {
    let TrainMetrics { step, total_steps, train_loss, .. } = metrics;
    let mut message = format!("Step {step}/{total_steps}: training loss={train_loss:.2}");
    if let Some(validation) = validation {
        // Writing to a string cannot fail.
        let _ = write!(message, ", validation loss={:.2}", validation.loss);
    }
    NewEvent::metrics(message, Value::Object(data(metrics, validation)))
}

/// The event of the validation that a run begins with: what its adapter starts from.
pub(super) fn before_training(total_steps: Option<i64>, validation: Validation) -> NewEvent {
    let of = total_steps.map(|total| format!("/{total}")).unwrap_or_default();
    let message = format!("Step 0{of}: validation loss={:.2}", validation.loss);
    let data = json!({
        "step": 0,
        "total_steps": total_steps,
        "valid_loss": validation.loss,
        "valid_mean_token_accuracy": validation.mean_token_accuracy,
    });
    NewEvent::metrics(message, data)
}

/// What a checkpoint shows: the same numbers under the same names.
pub(super) fn of_checkpoint(
    step: usize,
    metrics: Option<&TrainMetrics>,
    validation: Option<Validation>,
) -> Value {
    let mut shown = Map::new();
    shown.insert("step".into(), json!(step));
    if let Some(metrics) = metrics {
        shown.insert("train_loss".into(), json!(metrics.train_loss));
        let accuracy = json!(metrics.train_mean_token_accuracy);
        shown.insert("train_mean_token_accuracy".into(), accuracy);
    }
    if let Some(Validation { loss, mean_token_accuracy }) = validation {
        for prefix in ["valid", "full_valid"] {
            shown.insert(format!("{prefix}_loss"), json!(loss));
            shown.insert(format!("{prefix}_mean_token_accuracy"), json!(mean_token_accuracy));
        }
    }
    Value::Object(shown)
}

fn data(metrics: &TrainMetrics, validation: Option<Validation>) -> Map<String, Value> {
    let mut data = Map::new();
    let mut put = |name: &str, value: Value| data.insert(name.to_owned(), value);
    put("step", json!(metrics.step));
    put("total_steps", json!(metrics.total_steps));
    put("train_loss", json!(metrics.train_loss));
    put("train_mean_token_accuracy", json!(metrics.train_mean_token_accuracy));
    if let Some(validation) = validation {
        put("valid_loss", json!(validation.loss));
        put("valid_mean_token_accuracy", json!(validation.mean_token_accuracy));
    }
    put("learning_rate", json!(metrics.learning_rate));
    put("grad_norm", json!(metrics.grad_norm));
    put("tokens_per_second", json!(metrics.tokens_per_second));
    put("trained_tokens", json!(metrics.trained_tokens));
    data
}

/// The table of a whole job, out of its events: steps before a restart are in it, and a step that
/// was done twice is in it once.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<u64, Map<String, Value>>);

impl Table {
    pub fn add(&mut self, event: &JobEvent) {
        let numbers = event.data.as_ref().and_then(Value::as_object);
        let (EventKind::Metrics, Some(numbers)) = (event.kind, numbers) else { return };
        let Some(step) = numbers.get("step").and_then(Value::as_u64) else { return };
        let row = self.0.entry(step).or_default();
        row.extend(numbers.iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    /// One line per step, led by the names; a number that is not known is left out.
    pub fn to_csv(&self) -> String {
        let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
        let mut csv = names.join(",") + "\n";
        for row in self.0.values() {
            let cell = |key: &str| row.get(key).map(Value::to_string).unwrap_or_default();
            let cells: Vec<String> = COLUMNS.iter().map(|(_, key)| cell(key)).collect();
            csv += &(cells.join(",") + "\n");
        }
        csv
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EventId, JobId};
    use crate::store::{EventLevel, Timestamp};

    fn step(step: usize, train_loss: f64) -> TrainMetrics {
        TrainMetrics {
            step,
            total_steps: 10,
            train_loss,
            train_mean_token_accuracy: 0.5,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            tokens_per_second: 100.0,
            trained_tokens: 7,
        }
    }

    fn recorded(new: NewEvent) -> JobEvent {
        JobEvent {
            id: EventId::generate(),
            job: JobId::generate(),
            seq: 1,
            created_at: Timestamp(0),
            level: EventLevel::Info,
            kind: new.kind,
            message: new.message,
            data: new.data,
        }
    }

    #[test]
    fn a_step_is_told_as_openai_tells_it() {
        let validation = Validation { loss: 2.345, mean_token_accuracy: 0.25 };
        assert_eq!(event(&step(3, 1.234), None).message, "Step 3/10: training loss=1.23");
        let told = event(&step(3, 1.234), Some(validation));
        assert_eq!(told.message, "Step 3/10: training loss=1.23, validation loss=2.35");
        assert_eq!(told.data.expect("numbers")["valid_loss"], 2.345);
    }

    #[test]
    fn a_step_done_twice_is_one_line_and_unknown_numbers_are_left_out() {
        let mut table = Table::default();
        table.add(&recorded(event(&step(1, 2.5), None)));
        table.add(&recorded(event(&step(2, 9.0), None)));
        table.add(&recorded(NewEvent::info("no numbers")));
        let validation = Validation { loss: 1.5, mean_token_accuracy: 0.75 };
        table.add(&recorded(event(&step(2, 2.0), Some(validation))));
        let expected = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n\
                        1,2.5,0.5,,\n2,2.0,0.5,1.5,0.75\n";
        assert_eq!(table.to_csv(), expected);
    }
}
