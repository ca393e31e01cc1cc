//! What a run will take, told before it starts: memory at its peak, and time.
//!
//! Memory follows from shapes and from what the device has resident already. Time is operations over
//! a rate: that of the last steps trained on the same base, or else of one layer tried just now.

use std::collections::HashSet;

use serde::Serialize;

use crate::domain::{BaseInfo, Example, Hyperparameters, Survey};
use crate::worker::WorkerHandle;

/// Bytes per trained number: value and gradient in `f32`.
const TRAINED: usize = 4 + 4;
/// Bytes per trained number of a checkpoint on its way out: value and moments, beside the adapter.
const CHECKPOINT: usize = 12 + 4;
/// Rows of a micro-batch up to which it is looked for what fits.
const MOST_ROWS: usize = 256;
/// Share of a layer's forward rate that training reaches, before it was measured.
const USUAL_SHARE: f64 = 0.72;

/// What is to be trained, and on what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    pub base: &'a BaseInfo,
    pub hyperparameters: &'a Hyperparameters,
    /// Numbers trained.
    pub parameters: usize,
    pub examples: &'a [Example],
    pub validation: &'a [Example],
}

/// What a run takes of memory, and whether it is there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Room {
    /// Bytes the run adds: what is trained with its optimiser, activations, checkpoints.
    pub memory_bytes: usize,
    /// Bytes there are for it; `None` where that is not known.
    pub available_bytes: Option<usize>,
    /// Whether it fits.
    pub fits: bool,
    /// The most rows of a micro-batch that would fit, of those that were tried.
    pub largest_micro_batch: Option<usize>,
}

/// What a run is expected to take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Bytes the whole process takes at the run's peak; `None` where its size is not known.
    pub peak_memory_bytes: Option<usize>,
    #[serde(flatten)]
    pub room: Room,
    pub seconds: f64,
    /// Whether the rate was measured in training on this base since the server started.
    pub measured: bool,
}

impl Room {
    /// The sentence for a run that cannot be.
    pub fn refusal(&self, micro_batch_size: usize) -> String {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let advice = match self.largest_micro_batch {
            Some(rows) if rows > 0 => format!(
                "a micro-batch of {rows} would fit: set `micro_batch_size` or shorten \
                 `max_seq_length`"
            ),
            _ => "a smaller `r`, an optimizer in 8 bits or a smaller base model would need less"
                .to_owned(),
        };
        format!(
            "The run needs {} MiB with micro-batches of {micro_batch_size}, and {} MiB are \
             available; {advice}.",
            mib(self.memory_bytes),
            mib(self.available_bytes.unwrap_or(0)),
        )
    }
}

/// The forecast on the device as it is now; `None` if the device thread does not say what there is.
pub(super) async fn forecast(worker: &WorkerHandle, load: &Load<'_>) -> Option<Forecast> {
    let base = &*load.base.name;
    let rate = worker.stats().training_rate(base);
    let survey = worker.survey(base, rate.is_none()).await?;
    Some(load.forecast(&survey, rate))
}

/// The memory a run takes on the device as it is now, and operations per token; `None` as in
/// [`forecast`]. Nothing is tried, so that nobody who is served waits.
pub(super) async fn room(worker: &WorkerHandle, load: &Load<'_>) -> Option<(Room, f64)> {
    let survey = worker.survey(&load.base.name, false).await?;
    let by_rows = load.tokens_by_rows();
    let epoch = load.epoch(load.kept_layers(load.micro_batch_tokens(&by_rows), &survey));
    Some((load.room(&by_rows, &survey), epoch / load.tokens(load.examples).max(1) as f64))
}

impl Load<'_> {
    /// What the run takes on a device as `survey` found it; `rate` is that of training measured.
    fn forecast(&self, survey: &Survey, rate: Option<f64>) -> Forecast {
        let by_rows = self.tokens_by_rows();
        let room = self.room(&by_rows, survey);
        let epoch = self.epoch(self.kept_layers(self.micro_batch_tokens(&by_rows), survey));
        let usual = || USUAL_SHARE * survey.forward_rate.unwrap_or(0.0);
        Forecast {
            peak_memory_bytes: survey.resident_bytes.map(|resident| resident + room.memory_bytes),
            room,
            seconds: self.operations(epoch) / rate.unwrap_or_else(usual).max(1.0),
            measured: rate.is_some(),
        }
    }

    fn room(&self, by_rows: &[usize], survey: &Survey) -> Room {
        let shown = self.pictures_shown();
        let memory_bytes = self.memory_bytes(self.micro_batch_tokens(by_rows), shown, survey);
        let fits = |bytes| survey.available_bytes.is_none_or(|available| bytes <= available);
        let rows = by_rows[1..].iter();
        let largest = rows.take_while(|&&tokens| fits(self.memory_bytes(tokens, shown, survey)));
        Room {
            memory_bytes,
            available_bytes: survey.available_bytes,
            fits: fits(memory_bytes),
            largest_micro_batch: survey.available_bytes.map(|_| largest.count()),
        }
    }

    /// Bytes of a run whose largest micro-batch has so many tokens, and which shows so many pictures.
    fn memory_bytes(&self, tokens: usize, shown: usize, survey: &Survey) -> usize {
        let cost = &self.base.training;
        let kept_layers = self.kept_layers(tokens, survey);
        let recomputed = usize::from(kept_layers < self.base.num_layers);
        let inputs = (self.base.num_layers + 2) * self.base.hidden_size;
        let kept = (kept_layers + recomputed) * cost.kept_values;
        let values = inputs + kept + cost.working_values + cost.rounded_values / 2;
        let head = cost.head_rows.min(tokens) * (self.base.vocab_size + 4 * self.base.hidden_size);
        size_of::<f32>() * (values * tokens + head)
            + self.trained_bytes()
            + self.picture_bytes(tokens, shown, survey)
    }

    /// Different pictures that the run looks at. A short one does not meet every example.
    fn pictures_shown(&self) -> usize {
        let mut known = HashSet::new();
        let mut new = |examples: &[Example]| {
            let pictures = examples.iter().flat_map(|example| &example.pictures);
            pictures.filter(|placed| known.insert(placed.picture.digest())).count()
        };
        let (examples, h) = (self.examples.len().max(1), self.hyperparameters);
        let met = (self.steps() * h.batch_size.max(1)).min(examples);
        (new(self.examples) * met).div_ceil(examples) + new(self.validation)
    }

    /// What is kept of so many pictures; what a micro-batch of so many tokens shows; the tower at
    /// work.
    fn picture_bytes(&self, tokens: usize, shown: usize, survey: &Survey) -> usize {
        let Some(vision) = self.base.vision else { return 0 };
        let at_once = (tokens / vision.tokens_per_image.max(1)).min(shown);
        let room = survey.picture_bytes.max(at_once * vision.feature_bytes());
        let kept = (shown * vision.feature_bytes()).min(room);
        let cost = &self.base.training;
        let work = if shown > 0 { cost.picture_values + cost.projector_values } else { 0 };
        kept + size_of::<f32>() * work
    }

    /// Values, gradients, moments, and a checkpoint of them.
    fn trained_bytes(&self) -> usize {
        let h = self.hyperparameters;
        let moments = if h.optimizer.is_8bit() { 2 } else { 8 } * self.parameters;
        let resident = match h.optimizer_memory_bytes {
            Some(bytes) if h.optimizer.is_paged() => moments.min(bytes as usize),
            _ => moments,
        };
        self.parameters * (TRAINED + CHECKPOINT) + resident
    }

    /// Layers whose activations are kept between forward and backward.
    fn kept_layers(&self, tokens: usize, survey: &Survey) -> usize {
        let half = || survey.available_bytes.map_or(usize::MAX, |bytes| bytes / 2);
        let layer = size_of::<f32>() * self.base.training.kept_values * tokens;
        (survey.kept_bytes.unwrap_or_else(half) / layer.max(1)).min(self.base.num_layers)
    }

    /// Tokens of the largest micro-batch of 0, 1, 2 … rows.
    fn tokens_by_rows(&self) -> Vec<usize> {
        let h = self.hyperparameters;
        let most = MOST_ROWS.max(h.micro_batch_size).min(self.examples.len());
        if h.packing {
            let all = self.tokens(self.examples);
            return (0..=most).map(|rows| (rows * h.max_seq_length).min(all)).collect();
        }
        let mut lengths: Vec<usize> = self.lengths(self.examples).collect();
        lengths.sort_unstable_by(|x, y| y.cmp(x));
        let mut by_rows = vec![0];
        by_rows.extend(lengths.iter().take(most).scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        }));
        by_rows
    }

    /// Tokens of the largest micro-batch as it is asked for.
    fn micro_batch_tokens(&self, by_rows: &[usize]) -> usize {
        by_rows[self.hyperparameters.micro_batch_size.min(by_rows.len() - 1)]
    }

    fn lengths<'a>(&self, examples: &'a [Example]) -> impl Iterator<Item = usize> + use<'a> {
        let most = self.hyperparameters.max_seq_length;
        examples.iter().map(move |example| example.ids.len().min(most))
    }

    fn tokens(&self, examples: &[Example]) -> usize {
        self.lengths(examples).sum()
    }

    fn steps_per_epoch(&self) -> usize {
        self.examples.len().div_ceil(self.hyperparameters.batch_size.max(1)).max(1)
    }

    fn steps(&self) -> usize {
        let h = self.hyperparameters;
        h.max_steps.unwrap_or(self.steps_per_epoch() * h.n_epochs)
    }

    /// Operations of the whole run, validations included.
    fn operations(&self, epoch: f64) -> f64 {
        let h = self.hyperparameters;
        let (per_epoch, steps) = (self.steps_per_epoch(), self.steps());
        let validations = 1 + steps / h.eval_steps.unwrap_or(per_epoch).max(1);
        let forward = self.forward(self.validation) + self.head(self.validation);
        let validated = if self.validation.is_empty() { 0.0 } else { validations as f64 * forward };
        epoch * steps as f64 / per_epoch as f64 + validated
    }

    /// Operations of one pass over the examples; a multiply-add counts as two. Backward, each product
    /// is formed for its input; those of the adapter also for its matrices; attention takes five
    /// products where forward took two.
    fn epoch(&self, kept_layers: usize) -> f64 {
        let examples = self.examples;
        let kept = kept_layers as f64 / self.base.num_layers.max(1) as f64;
        let adapters = 2.0 * self.parameters as f64 * self.tokens(examples) as f64;
        let backward = self.forward(examples) + adapters + 1.5 * self.attention(examples);
        let again = (1.0 - kept) * self.forward(examples);
        self.forward(examples) + again + backward + 2.0 * self.head(examples) + self.tower()
    }

    /// Operations of the tower, as if nothing it saw were kept.
    fn tower(&self) -> f64 {
        let pictures: usize = self.examples.iter().map(|example| example.pictures.len()).sum();
        2.0 * pictures as f64 * self.base.training.picture_products as f64
    }

    /// Operations of the layers, forward, adapters included.
    fn forward(&self, examples: &[Example]) -> f64 {
        let inside = self.base.modules.iter().filter(|module| module.layer.is_some());
        let weights: f64 = inside.map(|m| (m.in_features * m.out_features) as f64).sum();
        let per_token = 2.0 * (weights + self.parameters as f64);
        per_token * self.tokens(examples) as f64 + self.attention(examples)
    }

    /// Operations of causal attention, forward: half of two products of `n × n`.
    fn attention(&self, examples: &[Example]) -> f64 {
        let squares: f64 = self.lengths(examples).map(|n| (n * n) as f64).sum();
        let (layers, width) = (self.base.num_layers, self.base.training.attention_width);
        2.0 * (layers * width) as f64 * squares
    }

    /// Operations of the output head, forward: only rows that bear loss.
    fn head(&self, examples: &[Example]) -> f64 {
        let labels: usize = examples.iter().map(Example::trained_tokens).sum();
        2.0 * (self.base.vocab_size * self.base.hidden_size) as f64 * labels as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TrainingCost;
    use crate::peft::testing::tiny_base;

    #[test]
    fn a_run_that_does_not_fit_is_refused_with_its_numbers() {
        let cost = TrainingCost { kept_values: 4000, working_values: 9000, ..Default::default() };
        let base = BaseInfo { training: cost, ..tiny_base() };
        let hyperparameters = Hyperparameters { micro_batch_size: 8, ..Default::default() };
        let examples = vec![Example::new(vec![1; 1000], vec![1; 1000]); 8];
        let load = Load {
            base: &base,
            hyperparameters: &hyperparameters,
            parameters: 1000,
            examples: &examples,
            validation: &[],
        };
        let room = |available| Survey {
            resident_bytes: Some(1 << 30),
            available_bytes: Some(available),
            kept_bytes: Some(0),
            picture_bytes: 0,
            forward_rate: Some(1e9),
        };
        let roomy = load.forecast(&room(1 << 30), None);
        assert!(roomy.room.fits && roomy.room.memory_bytes > 8000 * 13_000 * 4, "{roomy:?}");
        assert_eq!(roomy.peak_memory_bytes, Some((1 << 30) + roomy.room.memory_bytes));
        let tight = load.forecast(&room(200 << 20), None).room;
        assert!(!tight.fits && tight.largest_micro_batch == Some(4), "{tight:?}");
        let told = tight.refusal(8);
        assert!(told.contains("200 MiB are available; a micro-batch of 4 would fit"), "{told}");
        let twice = load.forecast(&room(1 << 30), Some(0.5 * USUAL_SHARE * 1e9));
        assert!((twice.seconds / roomy.seconds - 2.0).abs() < 1e-9 && twice.measured);
    }
}
