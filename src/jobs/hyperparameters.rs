//! Hyperparameters as they are asked for, and what becomes of those left to the server.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fields::{Checked, Fields};
use crate::domain::{
    BaseInfo, EarlyStopping, Hyperparameters, LossNormalization, LrScheduler, OptimizerKind,
};
use crate::text::dataset::TrainOn;

/// What a request says; `None` is "auto".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestedHyperparameters {
    pub n_epochs: Option<usize>,
    pub batch_size: Option<usize>,
    pub learning_rate_multiplier: Option<f64>,
    pub learning_rate: Option<f64>,
    pub lr_scheduler: Option<LrScheduler>,
    pub warmup_steps: Option<usize>,
    pub warmup_ratio: Option<f64>,
    pub weight_decay: Option<f64>,
    pub adam_beta1: Option<f64>,
    pub adam_beta2: Option<f64>,
    pub adam_epsilon: Option<f64>,
    pub max_grad_norm: Option<f64>,
    pub micro_batch_size: Option<usize>,
    pub gradient_accumulation_steps: Option<usize>,
    pub max_steps: Option<usize>,
    pub max_seq_length: Option<usize>,
    pub loss_normalization: Option<LossNormalization>,
    pub packing: Option<bool>,
    pub shuffle: Option<bool>,
    pub neftune_alpha: Option<f64>,
    pub eval_steps: Option<usize>,
    pub checkpoint_steps: Option<usize>,
    pub optimizer: Option<OptimizerKind>,
    pub optimizer_memory_bytes: Option<u64>,
    pub loraplus_lr_ratio: Option<f64>,
    pub modules_to_save_lr_ratio: Option<f64>,
    pub early_stopping: Option<EarlyStopping>,
    pub load_best_model_at_end: Option<bool>,
    /// Loss on prompts too.
    pub train_on_all: bool,
}

const MOST_STEPS: u64 = 10_000_000;

impl RequestedHyperparameters {
    /// Reads OpenAI's three and this server's own.
    pub(super) fn read(fields: &mut Fields) -> Checked<Self> {
        let requested = Self {
            n_epochs: fields.whole("n_epochs", 1..=50)?,
            batch_size: fields.whole("batch_size", 1..=256)?,
            learning_rate_multiplier: fields.positive("learning_rate_multiplier", 1000.0)?,
            learning_rate: fields.positive("learning_rate", 1.0)?,
            lr_scheduler: scheduler(fields)?,
            warmup_steps: fields.whole("warmup_steps", 0..=MOST_STEPS)?,
            warmup_ratio: fields.number("warmup_ratio", 0.0..=1.0)?,
            weight_decay: fields.number("weight_decay", 0.0..=1.0)?,
            adam_beta1: fields.number("adam_beta1", 0.0..=0.9999)?,
            adam_beta2: fields.number("adam_beta2", 0.0..=0.999999)?,
            adam_epsilon: fields.positive("adam_epsilon", 1.0)?,
            max_grad_norm: fields.number("max_grad_norm", 0.0..=1e6)?,
            micro_batch_size: fields.whole("micro_batch_size", 1..=256)?,
            gradient_accumulation_steps: fields.whole("gradient_accumulation_steps", 1..=256)?,
            max_steps: fields.whole("max_steps", 1..=MOST_STEPS)?,
            max_seq_length: fields.whole("max_seq_length", 2..=1 << 24)?,
            loss_normalization: loss_normalization(fields)?,
            packing: fields.boolean("packing")?,
            shuffle: fields.boolean("shuffle")?,
            neftune_alpha: fields.number("neftune_alpha", 0.0..=1000.0)?,
            eval_steps: fields.whole("eval_steps", 1..=MOST_STEPS)?,
            checkpoint_steps: fields.whole("checkpoint_steps", 1..=MOST_STEPS)?,
            optimizer: optimizer(fields)?,
            optimizer_memory_bytes: fields
                .whole("optimizer_memory_bytes", 0..=1 << 50)?
                .map(|bytes| bytes as u64),
            loraplus_lr_ratio: fields.positive("loraplus_lr_ratio", 1000.0)?,
            modules_to_save_lr_ratio: fields.positive("modules_to_save_lr_ratio", 1000.0)?,
            early_stopping: early_stopping(fields)?,
            load_best_model_at_end: fields.boolean("load_best_model_at_end")?,
            train_on_all: train_on_all(fields)?,
        };
        requested.check_together(fields)?;
        Ok(requested)
    }

    /// Pairs that say the same thing twice must agree.
    fn check_together(&self, fields: &Fields) -> Checked<()> {
        if self.learning_rate.is_some() && self.learning_rate_multiplier.is_some() {
            let reason = "and `learning_rate_multiplier` exclude each other; give one of them";
            return Err(fields.wrong("learning_rate", reason));
        }
        if self.warmup_steps.is_some() && self.warmup_ratio.is_some() {
            let reason = "and `warmup_ratio` exclude each other; give one of them";
            return Err(fields.wrong("warmup_steps", reason));
        }
        if self.optimizer_memory_bytes.is_some() && !self.optimizer.is_some_and(|o| o.is_paged()) {
            let reason = "is for paged optimizers; set `optimizer` to \"paged_adamw\" or \
                          \"paged_adamw_8bit\"";
            return Err(fields.wrong("optimizer_memory_bytes", reason));
        }
        match (self.batch_size, self.micro_batch_size, self.gradient_accumulation_steps) {
            (Some(batch), Some(micro), Some(steps)) if micro * steps != batch => Err(fields.wrong(
                "batch_size",
                "must be `micro_batch_size` times `gradient_accumulation_steps`",
            )),
            (Some(batch), Some(part), None) if batch % part != 0 => {
                Err(fields.wrong("micro_batch_size", "must divide `batch_size`"))
            }
            (Some(batch), None, Some(part)) if batch % part != 0 => {
                Err(fields.wrong("gradient_accumulation_steps", "must divide `batch_size`"))
            }
            _ => Ok(()),
        }
    }

    pub fn train_on(&self) -> TrainOn {
        if self.train_on_all { TrainOn::All } else { TrainOn::Completion }
    }

    /// The length examples are cut to.
    pub fn max_seq_length(&self, base: &BaseInfo) -> usize {
        self.max_seq_length.unwrap_or(2048).min(base.context_length)
    }

    /// Settles everything for `examples` examples, the longest of `longest` tokens after the cut.
    pub fn resolve(&self, base: &BaseInfo, examples: usize, longest: usize) -> Hyperparameters {
        let (micro_batch_size, gradient_accumulation_steps) = self.batch(examples, longest);
        let batch_size = micro_batch_size * gradient_accumulation_steps;
        let steps_per_epoch = examples.div_ceil(batch_size).max(1);
        let n_epochs = self.n_epochs.unwrap_or_else(|| epochs_for(steps_per_epoch));
        let total_steps = self.max_steps.unwrap_or(steps_per_epoch * n_epochs);
        let usual = usual_learning_rate(base);
        let learning_rate_multiplier = match self.learning_rate {
            Some(rate) => rate / usual,
            None => self.learning_rate_multiplier.unwrap_or(1.0),
        };
        Hyperparameters {
            n_epochs,
            batch_size,
            micro_batch_size,
            gradient_accumulation_steps,
            learning_rate: self.learning_rate.unwrap_or(usual * learning_rate_multiplier),
            learning_rate_multiplier,
            lr_scheduler: self.lr_scheduler.unwrap_or(LrScheduler::Linear),
            warmup_steps: self.warmup_steps.unwrap_or_else(|| {
                (total_steps as f64 * self.warmup_ratio.unwrap_or(0.03)).ceil() as usize
            }),
            weight_decay: self.weight_decay.unwrap_or(0.0),
            adam_beta1: self.adam_beta1.unwrap_or(0.9),
            adam_beta2: self.adam_beta2.unwrap_or(0.999),
            adam_epsilon: self.adam_epsilon.unwrap_or(1e-8),
            max_grad_norm: self.max_grad_norm.unwrap_or(1.0),
            max_steps: self.max_steps,
            max_seq_length: self.max_seq_length(base),
            loss_normalization: self.loss_normalization.unwrap_or_default(),
            packing: self.packing.unwrap_or(false),
            shuffle: self.shuffle.unwrap_or(true),
            neftune_alpha: self.neftune_alpha.unwrap_or(0.0),
            eval_steps: self.eval_steps,
            checkpoint_steps: self
                .checkpoint_steps
                .or_else(|| checkpoints_for(steps_per_epoch, n_epochs)),
            optimizer: self.optimizer.unwrap_or_default(),
            optimizer_memory_bytes: self
                .optimizer
                .filter(|optimizer| optimizer.is_paged())
                .map(|_| self.optimizer_memory_bytes.unwrap_or(PAGED_BYTES)),
            loraplus_lr_ratio: self.loraplus_lr_ratio,
            modules_to_save_lr_ratio: self.modules_to_save_lr_ratio,
            early_stopping: self.early_stopping,
            load_best_model_at_end: self.load_best_model_at_end.unwrap_or(false),
        }
    }

    /// Micro-batch size and accumulation steps.
    fn batch(&self, examples: usize, longest: usize) -> (usize, usize) {
        match (self.batch_size, self.micro_batch_size, self.gradient_accumulation_steps) {
            (_, Some(micro), Some(steps)) => (micro, steps),
            (Some(batch), Some(micro), None) => (micro, batch / micro),
            (Some(batch), None, Some(steps)) => (batch / steps, steps),
            (None, Some(micro), None) => (micro, 1),
            (None, None, Some(steps)) => (1, steps),
            (batch, None, None) => {
                let batch = batch.unwrap_or_else(|| batch_for(examples));
                let micro = (1..=batch)
                    .rev()
                    .find(|micro| batch % micro == 0 && micro * longest <= MICRO_BATCH_TOKENS)
                    .unwrap_or(1);
                (micro, batch / micro)
            }
        }
    }
}

/// Tokens that one micro-batch may hold, padding included, where the request does not say.
const MICRO_BATCH_TOKENS: usize = 2048;

/// Bytes of a paged optimizer's state that stay in memory where the request does not say.
const PAGED_BYTES: u64 = 64 << 20;

/// Small data needs many small steps more than smooth ones.
fn batch_for(examples: usize) -> usize {
    match examples {
        0..=1_000 => 4,
        1_001..=10_000 => 8,
        _ => 16,
    }
}

/// About 150 steps for small data, three passes for large.
fn epochs_for(steps_per_epoch: usize) -> usize {
    150_usize.div_ceil(steps_per_epoch).clamp(3, 25)
}

/// Three checkpoints in a run of many short epochs; `None`, at each epoch's end, in others.
fn checkpoints_for(steps_per_epoch: usize, n_epochs: usize) -> Option<usize> {
    (n_epochs > 3).then(|| steps_per_epoch * n_epochs.div_ceil(3))
}

/// What a multiplier of 1 means: the customary rate for LoRA, and a higher one for toys, whose
/// weights are larger and whose adapters have less to say. Hu et al. 2021, table 11.
fn usual_learning_rate(base: &BaseInfo) -> f64 {
    if base.parameters < 50_000_000 { 3e-3 } else { 2e-4 }
}

fn scheduler(fields: &mut Fields) -> Checked<Option<LrScheduler>> {
    match fields.string("lr_scheduler")?.as_deref() {
        None | Some("auto") => Ok(None),
        Some("constant") => Ok(Some(LrScheduler::Constant)),
        Some("linear") => Ok(Some(LrScheduler::Linear)),
        Some("cosine") => Ok(Some(LrScheduler::Cosine)),
        Some(_) => {
            Err(fields.wrong("lr_scheduler", "must be \"constant\", \"linear\" or \"cosine\""))
        }
    }
}

fn loss_normalization(fields: &mut Fields) -> Checked<Option<LossNormalization>> {
    match fields.string("loss_normalization")?.as_deref() {
        None | Some("auto") => Ok(None),
        Some("window") => Ok(Some(LossNormalization::Window)),
        Some("micro_batch") => Ok(Some(LossNormalization::MicroBatch)),
        Some(_) => Err(fields.wrong("loss_normalization", "must be \"window\" or \"micro_batch\"")),
    }
}

fn optimizer(fields: &mut Fields) -> Checked<Option<OptimizerKind>> {
    let Some(word) = fields.string("optimizer")?.filter(|word| word != "auto") else {
        return Ok(None);
    };
    match OptimizerKind::ALL.iter().find(|(name, _)| *name == word) {
        Some((_, kind)) => Ok(Some(*kind)),
        None => {
            let names = OptimizerKind::ALL.map(|(name, _)| format!("\"{name}\"")).join(", ");
            Err(fields.wrong("optimizer", &format!("must be one of {names}")))
        }
    }
}

/// `{"patience": 3, "min_delta": 0.0}`, or false.
fn early_stopping(fields: &mut Fields) -> Checked<Option<EarlyStopping>> {
    if fields.is("early_stopping", &json!(false)) {
        return Ok(None);
    }
    let Some(mut object) = fields.object("early_stopping")? else { return Ok(None) };
    let stopping = EarlyStopping {
        patience: object.whole("patience", 1..=1000)?.unwrap_or(3),
        min_delta: object.number("min_delta", 0.0..=100.0)?.unwrap_or(0.0),
    };
    object.finish()?;
    Ok(Some(stopping))
}

fn train_on_all(fields: &mut Fields) -> Checked<bool> {
    match fields.string("train_on")?.as_deref() {
        None | Some("completion") => Ok(false),
        Some("all") => Ok(true),
        Some(_) => Err(fields.wrong("train_on", "must be \"completion\" or \"all\"")),
    }
}

/// As the job shows them: settled numbers, or what was asked for and "auto" for the rest.
pub fn shown(requested: &RequestedHyperparameters, settled: Option<&Hyperparameters>) -> Value {
    let mut shown = match settled {
        Some(settled) => serde_json::to_value(settled),
        None => serde_json::to_value(requested),
    }
    .expect("numbers and words become JSON");
    if let Some(shown) = shown.as_object_mut() {
        shown.shift_remove("train_on_all");
        let train_on = if requested.train_on_all { "all" } else { "completion" };
        shown.insert("train_on".to_owned(), json!(train_on));
        if settled.is_none() {
            shown.values_mut().filter(|value| value.is_null()).for_each(|value| {
                *value = json!("auto");
            });
            shown.retain(|key, value| value != "auto" || ALWAYS_SHOWN.contains(&key.as_str()));
        } else {
            shown.retain(|_, value| !value.is_null());
        }
    }
    shown
}

/// OpenAI's own, which are there even while unknown.
const ALWAYS_SHOWN: [&str; 3] = ["n_epochs", "batch_size", "learning_rate_multiplier"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::testing::tiny_base;

    fn read(value: Value) -> Checked<RequestedHyperparameters> {
        let mut fields = Fields::of_body(value.as_object().expect("an object").clone());
        let read = RequestedHyperparameters::read(&mut fields)?;
        fields.finish().map(|()| read)
    }

    #[test]
    fn auto_gives_small_data_enough_steps() {
        for (examples, steps) in [(8, 50), (60, 150), (100, 150), (2_000, 750)] {
            let settled = RequestedHyperparameters::default().resolve(&tiny_base(), examples, 32);
            let total = examples.div_ceil(settled.batch_size) * settled.n_epochs;
            assert!(total >= steps && total <= steps + 30, "{examples} examples, {total} steps");
            assert!(settled.warmup_steps >= 1);
        }
    }

    #[test]
    fn a_batch_is_the_product_of_its_parts() {
        for (asked, parts) in [
            (json!({"batch_size": 8, "micro_batch_size": 2}), (2, 4)),
            (json!({"batch_size": 8, "gradient_accumulation_steps": 4}), (2, 4)),
            (json!({"micro_batch_size": 3, "gradient_accumulation_steps": 2}), (3, 2)),
            (json!({"batch_size": 8}), (4, 2)),
        ] {
            let settled = read(asked).expect("a good request").resolve(&tiny_base(), 100, 512);
            assert_eq!((settled.micro_batch_size, settled.gradient_accumulation_steps), parts);
            assert_eq!(settled.batch_size, parts.0 * parts.1);
        }
        let error = read(json!({"batch_size": 8, "micro_batch_size": 3})).expect_err("no divisor");
        assert_eq!(error.param, "micro_batch_size");
    }

    #[test]
    fn what_is_not_built_or_out_of_range_is_named() {
        for (key, value) in [
            ("optimizer", json!("sgd")),
            ("optimizer_memory_bytes", json!(1000)),
            ("loraplus_lr_ratio", json!(0)),
            ("modules_to_save_lr_ratio", json!(-1)),
            ("n_epochs", json!(0)),
            ("n_epochs", json!(51)),
            ("n_epochs", json!("many")),
            ("batch_size", json!(1.5)),
            ("learning_rate", json!(0)),
            ("lr_scheduler", json!("polynomial")),
            ("train_on", json!("prompt")),
            ("colour", json!(1)),
        ] {
            assert_eq!(read(json!({key: value})).expect_err(key).param, key);
        }
    }

    #[test]
    fn a_multiplier_scales_the_usual_rate_and_is_returned() {
        let base = tiny_base();
        let twice = read(json!({"learning_rate_multiplier": 2})).expect("a good request");
        let usual = usual_learning_rate(&base);
        assert_eq!(twice.resolve(&base, 10, 10).learning_rate, 2.0 * usual);
        let given = read(json!({"learning_rate": usual / 4.0})).expect("a good request");
        let settled = given.resolve(&base, 10, 10);
        assert_eq!((settled.learning_rate, settled.learning_rate_multiplier), (usual / 4.0, 0.25));
    }

    #[test]
    fn optimizer_and_stopping_are_returned_as_they_were_settled() {
        let asked = read(json!({"optimizer": "paged_adamw_8bit", "loraplus_lr_ratio": 16,
            "early_stopping": {"patience": 2}, "load_best_model_at_end": true}));
        let asked = asked.expect("a good request");
        let shown = shown(&asked, Some(&asked.resolve(&tiny_base(), 10, 10)));
        assert_eq!(shown["optimizer"], "paged_adamw_8bit");
        assert_eq!(shown["optimizer_memory_bytes"], PAGED_BYTES);
        assert_eq!(shown["early_stopping"], json!({"patience": 2, "min_delta": 0.0}));
        assert_eq!(
            (&shown["loraplus_lr_ratio"], &shown["load_best_model_at_end"]),
            (&json!(16.0), &json!(true))
        );
        let nested = read(json!({"early_stopping": {"patience": 0}})).expect_err("no patience");
        assert_eq!(nested.param, "early_stopping.patience");
    }

    #[test]
    fn openais_three_are_shown_as_auto_until_settled() {
        let asked = read(json!({"n_epochs": 2, "weight_decay": 0.1})).expect("a good request");
        let shown_now = shown(&asked, None);
        assert_eq!(shown_now["batch_size"], "auto");
        assert_eq!((&shown_now["n_epochs"], &shown_now["weight_decay"]), (&json!(2), &json!(0.1)));
        assert!(shown_now.get("warmup_steps").is_none());
        let settled = asked.resolve(&tiny_base(), 10, 10);
        assert_eq!(shown(&asked, Some(&settled))["batch_size"], 4);
    }
}
