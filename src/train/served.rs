//! Trained as served: the finished adapter's logits on held-out rows, once through the training
//! graph and once as requests will meet it, freshly attached, its keys and values cached, a prompt
//! and then token by token.

use super::TrainRequest;
use crate::backend::{BLOCK_TOKENS, Backend, SequenceRows};
use crate::domain::{AdapterWeights, Example, ServedCheck};
use crate::model::{AdapterRows, Model, ModelError, Step, Trainee};

/// Rows compared, and tokens of each at most.
const ROWS: usize = 4;
const TOKENS: usize = 32;
/// Tokens of a row that are served one by one.
const DECODED: usize = 8;

/// A difference beyond this share of the largest logit deserves a word: products in bf16 and int8
/// round each row alike however it comes, so that what is left is the order of sums in attention.
const ALLOWED: f64 = 1e-3;

/// A comparison under way, one row per unit.
pub struct Comparison {
    rows: std::vec::IntoIter<Vec<u32>>,
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
        let cut = |example: &Example| example.ids[..example.ids.len().min(TOKENS)].to_vec();
        let rows: Vec<Vec<u32>> = examples.iter().rev().take(ROWS).map(cut).collect();
        let check = ServedCheck { tokens: 0, max_abs_logit_difference: 0.0, top1_agreement: 1.0 };
        Self { rows: rows.into_iter(), check, agreed: 0, largest: 0.0 }
    }

    /// Compares one row; what was found when there is none left.
    ///
    /// # Errors
    /// If the adapter cannot be attached.
    pub fn advance<B: Backend>(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        adapter: &AdapterWeights,
    ) -> Result<Option<ServedCheck>, ModelError> {
        let Some(ids) = self.rows.next() else { return Ok(Some(self.check)) };
        if ids.is_empty() {
            return Ok(None);
        }
        let trained = trainee.logits(b, model, &ids);
        let served = served(b, model, adapter, &ids)?;
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

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j]))
}

/// Logits of every token of `ids`, as the server forms them.
fn served<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    weights: &AdapterWeights,
    ids: &[u32],
) -> Result<Vec<f32>, ModelError> {
    let adapter = model.attach(b, weights)?;
    let blocks = ids.len().div_ceil(BLOCK_TOKENS);
    let mut cache = model.cache(b, blocks);
    let prompt = ids.len().saturating_sub(DECODED).max(1);
    let chunks = std::iter::once(0..prompt).chain((prompt..ids.len()).map(|at| at..at + 1));
    let mut logits = Vec::new();
    for chunk in chunks {
        let n = chunk.len();
        let sequence =
            SequenceRows { rows: 0..n, start: chunk.start, blocks: (0..blocks as u32).collect() };
        let worn = [AdapterRows { rows: 0..n, adapter: &adapter, scale: 1.0 }];
        let step = Step {
            pictures: &[],
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
