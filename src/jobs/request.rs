//! The body of a job request, checked as far as it can be without asking anybody.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::{Checked, Fields, InvalidRequest};
use super::hyperparameters::RequestedHyperparameters;
use super::recipe::with_recipe;
use super::spec::RequestedLora;
use crate::catalog::check_suffix;
use crate::domain::FileId;
use crate::store::Metadata;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRequest {
    pub model: String,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    pub suffix: Option<String>,
    pub seed: Option<u64>,
    pub metadata: Option<Metadata>,
    pub hyperparameters: RequestedHyperparameters,
    pub lora: RequestedLora,
    /// The name of an adapter to go on from.
    pub init_adapter: Option<String>,
    pub quantization: Option<String>,
    pub priority: i64,
    /// Check everything and start nothing.
    pub dry_run: bool,
}

impl JobRequest {
    /// Reads the body of `POST /v1/fine_tuning/jobs`.
    ///
    /// # Errors
    /// [`InvalidRequest`] names the first parameter that cannot be; unknown ones are refused.
    pub fn parse(body: Map<String, Value>) -> Result<Self, InvalidRequest> {
        let mut body = Fields::of_body(with_recipe(body)?);
        let none = [json!([])];
        body.refuse("integrations", &none, "are not supported: this server calls nobody")?;
        body.refuse("depends_on", &none, "is not supported by this server")?;
        let (lora, init_adapter) = match body.object("lora")? {
            None => Default::default(),
            Some(mut lora) => {
                let read = RequestedLora::read(&mut lora)?;
                lora.finish()?;
                read
            }
        };
        let request = Self {
            model: body.required_string("model")?,
            training_file: FileId::from(body.required_string("training_file")?),
            validation_file: body.string("validation_file")?.map(FileId::from),
            suffix: suffix(&mut body)?,
            seed: body.whole("seed", 0..=2_147_483_647)?.map(|seed| seed as u64),
            metadata: metadata(&mut body)?,
            hyperparameters: hyperparameters(&mut body)?,
            lora,
            init_adapter,
            quantization: body.string("quantization")?,
            priority: priority(&mut body)?,
            dry_run: body.boolean("dry_run")?.unwrap_or(false),
        };
        body.finish()?;
        request.check_validation()?;
        Ok(request)
    }

    /// What watches the validation loss needs a validation file.
    fn check_validation(&self) -> Result<(), InvalidRequest> {
        let asked = &self.hyperparameters;
        let watching = [
            ("early_stopping", asked.early_stopping.is_some()),
            ("load_best_model_at_end", asked.load_best_model_at_end == Some(true)),
        ];
        match watching.into_iter().find(|&(_, on)| on && self.validation_file.is_none()) {
            None => Ok(()),
            Some((name, _)) => {
                let param = format!("method.supervised.hyperparameters.{name}");
                let reason = format!("`{param}` needs a `validation_file`");
                Err(InvalidRequest::value(param, reason))
            }
        }
    }
}

fn suffix(body: &mut Fields) -> Checked<Option<String>> {
    match body.string("suffix")? {
        Some(suffix) if !check_suffix(&suffix) => {
            Err(body
                .wrong("suffix", "must have 1 to 64 characters: letters, digits, `.`, `_` and `-`"))
        }
        suffix => Ok(suffix),
    }
}

fn priority(body: &mut Fields) -> Checked<i64> {
    match body.take("priority") {
        None => Ok(0),
        Some(value) => match value.as_i64() {
            Some(priority) if (-1000..=1000).contains(&priority) => Ok(priority),
            _ => Err(body.wrong("priority", "must be a whole number from -1000 to 1000")),
        },
    }
}

fn metadata(body: &mut Fields) -> Checked<Option<Metadata>> {
    let Some(value) = body.take("metadata") else { return Ok(None) };
    let wrong = body.wrong(
        "metadata",
        "must be at most 16 pairs of strings, keys up to 64 and values up to 512 characters",
    );
    let Value::Object(pairs) = value else { return Err(wrong) };
    let fits = |text: &str, most: usize| text.chars().count() <= most && !text.contains('\0');
    let pairs: Option<BTreeMap<String, String>> = pairs
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(value) if fits(&key, 64) && fits(&value, 512) => Some((key, value)),
            _ => None,
        })
        .collect();
    pairs.filter(|pairs| pairs.len() <= 16).map(Some).ok_or(wrong)
}

/// From `method`, or from the deprecated top-level `hyperparameters`.
fn hyperparameters(body: &mut Fields) -> Checked<RequestedHyperparameters> {
    let old = body.object("hyperparameters")?;
    let new = method(body)?;
    let mut fields = match (old, new) {
        (Some(_), Some(_)) => {
            let reason = "is the old place for what `method` says; give one of them";
            return Err(body.wrong("hyperparameters", reason));
        }
        (Some(fields), None) | (None, Some(fields)) => fields,
        (None, None) => return Ok(RequestedHyperparameters::default()),
    };
    let read = RequestedHyperparameters::read(&mut fields)?;
    fields.finish().map(|()| read)
}

fn method(body: &mut Fields) -> Checked<Option<Fields>> {
    let Some(mut method) = body.object("method")? else { return Ok(None) };
    let kind = method.required_string("type")?;
    if kind != "supervised" {
        let reason =
            format!("`method.type` \"{kind}\" is not supported; it must be \"supervised\"");
        return Err(InvalidRequest::unsupported("method.type", reason));
    }
    let hyperparameters = match method.object("supervised")? {
        None => None,
        Some(mut supervised) => {
            let hyperparameters = supervised.object("hyperparameters")?;
            supervised.finish()?;
            hyperparameters
        }
    };
    method.finish()?;
    Ok(hyperparameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: Value) -> Result<JobRequest, InvalidRequest> {
        let mut body = json!({"model": "demo", "training_file": "file-1"});
        let body = body.as_object_mut().expect("an object");
        body.extend(more.as_object().expect("an object").clone());
        JobRequest::parse(body.clone())
    }

    #[test]
    fn the_least_request_is_enough() {
        let request = parse(json!({})).expect("a good request");
        assert_eq!((&*request.model, request.priority, request.dry_run), ("demo", 0, false));
        assert_eq!(request.hyperparameters, RequestedHyperparameters::default());
    }

    #[test]
    fn old_and_new_places_of_hyperparameters_mean_the_same() {
        let old = parse(json!({"hyperparameters": {"n_epochs": 2}})).expect("the old place");
        let method = json!({"type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}});
        let new = parse(json!({"method": method})).expect("the new place");
        assert_eq!(old, new);
        let both = json!({"method": method, "hyperparameters": {}});
        assert_eq!(parse(both).expect_err("both").param, "hyperparameters");
    }

    #[test]
    fn each_refusal_names_its_parameter() {
        for (param, more) in [
            ("method.type", json!({"method": {"type": "dpo"}})),
            ("integrations", json!({"integrations": [{"type": "wandb"}]})),
            ("depends_on", json!({"depends_on": ["ftjob-1"]})),
            ("suffix", json!({"suffix": "a:b"})),
            ("suffix", json!({"suffix": ""})),
            ("seed", json!({"seed": -1})),
            ("metadata", json!({"metadata": {"a": 1}})),
            ("lora.use_dora", json!({"lora": {"use_dora": 1}})),
            ("lora.init_lora_weights", json!({"lora": {"init_lora_weights": "pissa"}})),
            ("lora.modules_to_save", json!({"lora": {"modules_to_save": "lm_head"}})),
            ("lora.alpha_pattern", json!({"lora": {"alpha_pattern": {"q_proj": 0}}})),
            (
                "method.supervised.hyperparameters.early_stopping",
                json!({"method": {"type": "supervised",
                    "supervised": {"hyperparameters": {"early_stopping": true}}}}),
            ),
            ("lora.r", json!({"lora": {"r": 0}})),
            ("lora.colour", json!({"lora": {"colour": 0}})),
            ("lora.target_modules", json!({"lora": {"target_modules": []}})),
            ("colour", json!({"colour": 1})),
            (
                "method.supervised.hyperparameters.n_epochs",
                json!({"method": {"type": "supervised",
                    "supervised": {"hyperparameters": {"n_epochs": 0}}}}),
            ),
        ] {
            assert_eq!(parse(more).expect_err(param).param, param);
        }
        let error = JobRequest::parse(Map::new()).expect_err("an empty body");
        assert_eq!(error.param, "model");
    }
}
