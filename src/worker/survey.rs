//! What the device has for a training run: room, and pace.

use std::time::Instant;

use crate::backend::Backend;
use crate::domain::{BaseInfo, Survey};
use crate::model::Model;

/// Tokens of the trial: enough that products run as they do in training.
const TRIED_ROWS: usize = 128;

/// Looks at the room there is, and with a `trial` at the pace of one layer of the base model.
/// `memory` bounds what a run keeps of activations, `picture_bytes` what of pictures.
pub(super) fn survey<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    (memory, picture_bytes): (Option<usize>, usize),
    trial: bool,
) -> Survey {
    Survey {
        resident_bytes: b.resident_bytes(),
        available_bytes: b.available_bytes(),
        kept_bytes: memory,
        picture_bytes,
        forward_rate: trial.then(|| forward_rate(b, model)),
    }
}

fn forward_rate<B: Backend>(b: &mut B, model: &Model<B>) -> f64 {
    let mut trial = || {
        let started = Instant::now();
        model.try_layer(b, TRIED_ROWS);
        started.elapsed().as_secs_f64()
    };
    trial(); // the first finds cold caches
    let seconds = trial().min(trial());
    2.0 * layer_weights(&model.info) * TRIED_ROWS as f64 / seconds.max(1e-9)
}

/// Weights of the first layer's linear modules.
fn layer_weights(base: &BaseInfo) -> f64 {
    let first = base.modules.iter().filter(|module| module.layer == Some(0));
    first.map(|module| (module.in_features * module.out_features) as f64).sum()
}
