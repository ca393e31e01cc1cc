//! Trained as served: the finished adapter's logits on held-out rows, once through the training
//! graph and once as requests will meet it, freshly attached, its keys and values cached, a prompt
//! and then token by token.

use super::sight::Sight;
use super::{TrainError, TrainRequest};
use crate::backend::{BLOCK_TOKENS, Backend, SequenceRows};
use crate::domain::{AdapterWeights, Example, ServedCheck};
use crate::model::{
    AdapterRows, Model, ModelError, PictureRows, SeenPicture, Step, TrainBatch, Trainee,
};

/// Rows compared, and tokens of each at most, besides those of a first picture.
const ROWS: usize = 4;
const TOKENS: usize = 32;
/// Tokens of a row that are served one by one.
const DECODED: usize = 8;

/// A difference beyond this share of the largest logit deserves a word: products in bf16 and int8
/// round each row alike however it comes, so that what is left is the order of sums in attention.
const ALLOWED: f64 = 1e-3;

/// A comparison under way, one row per unit.
pub struct Comparison {
    rows: std::vec::IntoIter<TrainBatch>,
    check: ServedCheck,
    agreed: usize,
    largest: f64,
}

impl Comparison {
    /// Takes rows of the validation data, or the last of the training data where there is none.
    pub fn new(request: &TrainRequest) -> Self {
        let examples = match request.validation.is_empty() {
            true => &request.examples,
            false => &request.validation,
        };
        let rows: Vec<TrainBatch> = examples.iter().rev().take(ROWS).map(row).collect();
        let check = ServedCheck { tokens: 0, max_abs_logit_difference: 0.0, top1_agreement: 1.0 };
        Self { rows: rows.into_iter(), check, agreed: 0, largest: 0.0 }
    }

    /// Compares one row; what was found when there is none left.
    ///
    /// # Errors
    /// If the adapter cannot be attached, or a picture not be read.
    pub fn advance<B: Backend>(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        (trainee, adapter): (&mut Trainee<B>, &AdapterWeights),
        sight: &mut Sight<B>,
    ) -> Result<Option<ServedCheck>, TrainError> {
        let Some(row) = self.rows.as_slice().first() else { return Ok(Some(self.check)) };
        let Some(seen) = sight.see(b, model, row)? else { return Ok(None) };
        let ids = self.rows.next().map(|row| row.ids).unwrap_or_default();
        if ids.is_empty() {
            return Ok(None);
        }
        let pictures: Vec<PictureRows<'_>> = seen.iter().map(SeenPicture::rows).collect();
        let trained = trainee.logits(b, model, &ids, &pictures);
        let served = served(b, model, adapter, &ids, &pictures)?;
        let width = model.info.vocab_size;
        for (x, y) in trained.chunks_exact(width).zip(served.chunks_exact(width)) {
            self.compare(x, y);
        }
        Ok(None)
    }

    /// Whether the difference is more than rounding explains.
    pub fn is_suspicious(&self) -> bool {
        let off = self.check.max_abs_logit_difference;
        // Not a number is suspicious too.
        off.is_nan() || off > ALLOWED * self.largest.max(1.0)
    }

    fn compare(&mut self, x: &[f32], y: &[f32]) {
        let check = &mut self.check;
        for (x, y) in x.iter().zip(y) {
            let off = f64::from((x - y).abs());
            if off > check.max_abs_logit_difference || off.is_nan() {
                check.max_abs_logit_difference = off;
            }
            self.largest = self.largest.max(f64::from(x.abs()));
        }
        check.tokens += 1;
        self.agreed += usize::from(likeliest(x) == likeliest(y));
        check.top1_agreement = self.agreed as f64 / check.tokens as f64;
    }
}

/// The beginning of an example, with its first picture whole.
fn row(example: &Example) -> TrainBatch {
    let seen = example.pictures.first().map_or(0, |picture| picture.tokens.end);
    TrainBatch::new([&example.beginning(seen + TOKENS)])
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j]))
}

/// Logits of every token of `ids`, as the server forms them.
fn served<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    weights: &AdapterWeights,
    ids: &[u32],
    pictures: &[PictureRows<'_>],
) -> Result<Vec<f32>, ModelError> {
    let adapter = model.attach(b, weights)?;
    let blocks = ids.len().div_ceil(BLOCK_TOKENS);
    let mut cache = model.cache(b, blocks);
    let prompt = ids.len().saturating_sub(DECODED).max(1);
    let chunks = std::iter::once(0..prompt).chain((prompt..ids.len()).map(|at| at..at + 1));
    let mut logits = Vec::new();
    for chunk in chunks {
        let n = chunk.len();
        let sequence = SequenceRows {
            rows: 0..n,
            start: chunk.start,
            read: ids.len(),
            blocks: (0..blocks as u32).collect(),
        };
        let worn = [AdapterRows { rows: 0..n, adapter: &adapter, scale: 1.0 }];
        let width = model.info.vision.map_or(1, |vision| vision.feature_width);
        let shown = pictures.iter().filter_map(|picture| picture.within(&chunk, width));
        let step = Step {
            pictures: &shown.collect::<Vec<_>>(),
            tokens: &ids[chunk],
            sequences: &[sequence],
            adapters: &worn,
            logits: &(0..n).collect::<Vec<_>>(),
        };
        let z = model.forward(b, &mut cache, &step);
        logits.extend(b.download(&z));
        b.recycle(z);
    }
    model.detach(b, adapter);
    Ok(logits)
}
