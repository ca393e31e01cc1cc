//! What a job is: stored beside its row as JSON, enough to make the same run again and again.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fields::{Checked, Fields, InvalidRequest};
use super::hyperparameters::RequestedHyperparameters;
use crate::domain::{AdapterId, BaseInfo, Hyperparameters, LoraSpec};
use crate::peft::{LoraRanks, Targets, resolve_saved};
use crate::store::Job;

/// The rank where a request names none.
const USUAL_RANK: usize = 16;

/// Every linear layer but the head, where a request names none: adapters on all of them are what
/// reaches full fine-tuning. Dettmers et al. 2023, "QLoRA", section 4 and figure 2.
fn all_linear() -> Targets {
    Targets::Pattern("all-linear".to_owned())
}

/// The adapter a request asks for; `None` is the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestedLora {
    pub r: Option<usize>,
    pub alpha: Option<f64>,
    pub dropout: Option<f64>,
    pub target_modules: Option<Targets>,
    /// Patterns on module names and the rank there, first match first.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for alpha.
    pub alpha_pattern: Vec<(String, f64)>,
    pub use_rslora: Option<bool>,
    pub use_dora: Option<bool>,
    /// The embedding or the head, by name or the end of it, trained whole.
    pub modules_to_save: Vec<String>,
}

/// Everything about a job that its row does not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// As the request wrote it: a base, or an adapter to go on from.
    pub model: String,
    pub suffix: Option<String>,
    pub seed: u64,
    pub hyperparameters: RequestedHyperparameters,
    pub lora: RequestedLora,
    /// The adapter generation to go on from.
    pub init_adapter: Option<AdapterId>,
    /// What was left open, settled when training began.
    pub settled: Option<Settled>,
}

/// What a run is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    pub hyperparameters: Hyperparameters,
    pub lora: LoraSpec,
}

impl JobSpec {
    /// The spec of a stored job.
    ///
    /// # Errors
    /// Whatever makes it unreadable: it was written by another version.
    pub fn of(job: &Job) -> Result<Self, serde_json::Error> {
        Self::deserialize(&job.spec)
    }

    /// As the store keeps it.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("plain data becomes JSON")
    }
}

impl RequestedLora {
    /// Reads the top-level `lora` object; also the name in `init_adapter`.
    pub(super) fn read(fields: &mut Fields) -> Checked<(Self, Option<String>)> {
        let plain = [json!(true), json!("default")];
        fields.refuse("init_lora_weights", &plain, "can only be true here")?;
        let lora = Self {
            r: fields.whole("r", 1..=256)?,
            alpha: fields.positive("alpha", 1e6)?,
            dropout: dropout(fields)?,
            target_modules: target_modules(fields)?,
            rank_pattern: rank_pattern(fields)?,
            alpha_pattern: alpha_pattern(fields)?,
            use_rslora: fields.boolean("use_rslora")?,
            use_dora: fields.boolean("use_dora")?,
            modules_to_save: modules_to_save(fields)?,
        };
        Ok((lora, fields.string("init_adapter")?))
    }

    /// Whether nothing was asked for that an adapter to go on from has already.
    pub fn leaves_shape_open(&self) -> bool {
        let dropout = self.dropout;
        *self == Self { dropout, ..Self::default() }
    }

    /// The adapter to train on `base`.
    ///
    /// # Errors
    /// [`InvalidRequest`] if the targets match nothing.
    pub fn resolve(&self, base: &BaseInfo) -> Result<LoraSpec, InvalidRequest> {
        let targets = self.target_modules.clone().unwrap_or(all_linear());
        let r = self.r.unwrap_or(USUAL_RANK);
        let alpha = self.alpha.unwrap_or(2.0 * r as f64);
        let chosen = LoraRanks::resolve(
            &targets,
            (r, &self.rank_pattern),
            (alpha, &self.alpha_pattern),
            base,
        )
        .map_err(|error| InvalidRequest::value("lora.target_modules", error.to_string()))?;
        let saved = resolve_saved(&self.modules_to_save, base)
            .map_err(|error| InvalidRequest::value("lora.modules_to_save", error.to_string()))?;
        Ok(LoraSpec {
            r,
            alpha,
            dropout: self.dropout.unwrap_or(0.0),
            modules: chosen.modules,
            ranks: chosen.ranks,
            alphas: chosen.alphas,
            use_rslora: self.use_rslora.unwrap_or(false),
            use_dora: self.use_dora.unwrap_or(false),
            modules_to_save: saved.into_iter().map(|module| module.name.clone()).collect(),
        })
    }

    /// As the job shows it.
    pub fn shown(&self, settled: Option<&LoraSpec>) -> Value {
        let targets = self.target_modules.clone().unwrap_or(all_linear());
        let ranks = self.rank_pattern.iter().map(|(name, r)| (name.clone(), json!(r)));
        let alphas = self.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), json!(alpha)));
        let asked = (self.use_rslora.unwrap_or(false), self.use_dora.unwrap_or(false));
        let (use_rslora, use_dora) = settled.map_or(asked, |lora| (lora.use_rslora, lora.use_dora));
        let saved = settled.map_or(&self.modules_to_save, |lora| &lora.modules_to_save);
        json!({
            "r": settled.map(|lora| lora.r).or(self.r).unwrap_or(USUAL_RANK),
            "alpha": settled.map(|lora| lora.alpha).or(self.alpha)
                .unwrap_or(2.0 * self.r.unwrap_or(USUAL_RANK) as f64),
            "dropout": self.dropout.unwrap_or(0.0),
            "target_modules": targets,
            "rank_pattern": ranks.collect::<Map<_, _>>(),
            "alpha_pattern": alphas.collect::<Map<_, _>>(),
            "use_rslora": use_rslora,
            "use_dora": use_dora,
            "modules_to_save": saved,
        })
    }
}

fn dropout(fields: &mut Fields) -> Checked<Option<f64>> {
    match fields.number("dropout", 0.0..=1.0)? {
        Some(1.0) => Err(fields.wrong("dropout", "must be below 1")),
        dropout => Ok(dropout),
    }
}

fn target_modules(fields: &mut Fields) -> Checked<Option<Targets>> {
    let Some(value) = fields.take("target_modules") else { return Ok(None) };
    match Targets::deserialize(value) {
        Ok(Targets::Names(names)) if names.is_empty() => {
            Err(fields.wrong("target_modules", "must name at least one module"))
        }
        Ok(targets) => Ok(Some(targets)),
        Err(_) => Err(fields.wrong(
            "target_modules",
            "must be a list of module names, a pattern, or \"all-linear\"",
        )),
    }
}

fn modules_to_save(fields: &mut Fields) -> Checked<Vec<String>> {
    let Some(value) = fields.take("modules_to_save") else { return Ok(Vec::new()) };
    Vec::deserialize(value)
        .map_err(|_| fields.wrong("modules_to_save", "must be a list of module names"))
}

fn alpha_pattern(fields: &mut Fields) -> Checked<Vec<(String, f64)>> {
    let wrong = "must map at most 1000 module names to numbers above 0";
    let entries = match fields.take("alpha_pattern") {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) if entries.len() <= 1000 => entries,
        Some(_) => return Err(fields.wrong("alpha_pattern", wrong)),
    };
    entries
        .into_iter()
        .map(|(name, alpha)| match alpha.as_f64() {
            Some(alpha) if alpha > 0.0 && alpha <= 1e6 => Ok((name, alpha)),
            _ => Err(fields.wrong("alpha_pattern", wrong)),
        })
        .collect()
}

fn rank_pattern(fields: &mut Fields) -> Checked<Vec<(String, usize)>> {
    let wrong = "must map at most 1000 module names to ranks from 1 to 256";
    let entries = match fields.take("rank_pattern") {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) if entries.len() <= 1000 => entries,
        Some(_) => return Err(fields.wrong("rank_pattern", wrong)),
    };
    entries
        .into_iter()
        .map(|(name, rank)| match rank.as_u64() {
            Some(rank) if (1..=256).contains(&rank) => Ok((name, rank as usize)),
            _ => Err(fields.wrong("rank_pattern", wrong)),
        })
        .collect()
}
