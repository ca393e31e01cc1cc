//! What can be said of a job on the command line, and the request it becomes.

use clap::Args;
use serde_json::{Map, Value, json};

use super::error::{ClientError, ClientResult};

/// The settings of a fine-tune. What is not named, the server chooses.
#[derive(Args, Clone, Debug, Default)]
pub struct JobSettings {
    /// Take the settings of a well-known fine-tune; see `tandem recipes`.
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
    /// A word for the result's name.
    #[arg(long, value_name = "WORD")]
    pub suffix: Option<String>,
    /// Seed of everything random in the run.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Passes over the file.
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// Examples per step.
    #[arg(long, value_name = "N")]
    pub batch_size: Option<u64>,
    /// Peak learning rate.
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Stop after so many steps.
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// Rank of the adapter.
    #[arg(long, value_name = "R")]
    pub rank: Option<u64>,
    /// Any other field of the request, for instance `lora.dropout=0.1`, `metadata.team=blue` or
    /// `hyperparameters.warmup_steps=5`; repeatable.
    #[arg(long, value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
}

impl JobSettings {
    /// The body of the request.
    ///
    /// # Errors
    /// [`ClientError::Usage`] for a `--set` that is none.
    pub fn body(
        &self,
        model: &str,
        training: &str,
        validation: Option<&str>,
    ) -> ClientResult<Value> {
        let mut body = json!({"model": model, "training_file": training});
        let named = [
            ("validation_file", validation.map(Value::from)),
            ("recipe", self.recipe.clone().map(Value::from)),
            ("suffix", self.suffix.clone().map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("hyperparameters.n_epochs", self.epochs.map(Value::from)),
            ("hyperparameters.batch_size", self.batch_size.map(Value::from)),
            ("hyperparameters.learning_rate", self.learning_rate.map(Value::from)),
            ("hyperparameters.max_steps", self.max_steps.map(Value::from)),
            ("lora.r", self.rank.map(Value::from)),
        ];
        for (field, value) in named {
            if let Some(value) = value {
                put(&mut body, field, value)?;
            }
        }
        for text in &self.set {
            let (field, value) = text.split_once('=').ok_or_else(|| unusable(text))?;
            // What is no JSON is a word.
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            put(&mut body, field, value)?;
        }
        Ok(body)
    }
}

fn unusable(text: &str) -> ClientError {
    ClientError::Usage(format!("`--set {text}` is not of the form FIELD=VALUE, as `lora.r=8`"))
}

/// Sets a field by its dotted path. Hyperparameters lie where the API has them today.
fn put(body: &mut Value, field: &str, value: Value) -> ClientResult<()> {
    let inner = field.strip_prefix("hyperparameters.");
    let path: Vec<&str> = match inner {
        Some(name) => vec!["method", "supervised", "hyperparameters", name],
        None => field.split('.').collect(),
    };
    if inner.is_some() {
        put(body, "method.type", Value::from("supervised"))?;
    }
    let mut at = body;
    for name in path.iter().take(path.len() - 1) {
        let object = at.as_object_mut().ok_or_else(|| unusable(field))?;
        at = object.entry(*name).or_insert_with(|| Map::new().into());
    }
    let object = at.as_object_mut().ok_or_else(|| unusable(field))?;
    object.insert(path[path.len() - 1].to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_lie_where_the_api_has_them() {
        let set = ["lora.dropout=0.1", "metadata.team=blue", "hyperparameters.packing=true"];
        let settings = JobSettings {
            epochs: Some(2),
            rank: Some(8),
            set: set.map(String::from).to_vec(),
            ..Default::default()
        };
        let expected = json!({
            "model": "demo", "training_file": "file-1",
            "method": {"type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "packing": true}}},
            "lora": {"r": 8, "dropout": 0.1}, "metadata": {"team": "blue"},
        });
        assert_eq!(settings.body("demo", "file-1", None).expect("a body"), expected);
    }

    #[test]
    fn what_sets_no_field_is_a_usage_error() {
        for text in ["nonsense", "model.name=x"] {
            let settings = JobSettings { set: vec![text.to_owned()], ..Default::default() };
            let refused = settings.body("demo", "file-1", None).expect_err("must be refused");
            assert!(matches!(refused, ClientError::Usage(_)), "{refused}");
        }
    }
}
