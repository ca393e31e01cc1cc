//! Reading `tests/golden`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tandem::backend::{Backend, LossSum};
use tandem::domain::{AdapterWeights, Example};
use tandem::model::{
    LoadOptions, MicroBatch, MicroBatchOptions, Model, ModelSource, TrainBatch, Trainee,
};
use tandem::peft::{self, AdapterFiles, Fingerprints};

/// `tests/golden/<path>`.
pub fn path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A number of `case.json`.
pub fn number(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap_or_else(|| panic!("case.json has the number {key}"))
}

/// The tensors of a file: shape and values; whole numbers come as `f32` too.
pub fn tensors(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let values = match view.dtype() {
            Dtype::F32 => bytes_to(view.data(), f32::from_le_bytes),
            Dtype::U8 => view.data().iter().map(|&byte| f32::from(byte)).collect(),
            Dtype::I64 => bytes_to(view.data(), |b: [u8; 8]| i64::from_le_bytes(b) as f32),
            other => panic!("unexpected type {other:?}"),
        };
        (name.to_owned(), (view.shape().to_vec(), values))
    };
    file.iter().map(read).collect()
}

fn bytes_to<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.chunks_exact(N).map(|chunk| read(chunk.try_into().unwrap())).collect()
}

/// The rows of an integer tensor `(b, s)`.
pub fn ids(tensor: &(Vec<usize>, Vec<f32>)) -> Vec<Vec<u32>> {
    tensor.1.chunks(tensor.0[1]).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
}

pub fn load<B: Backend>(b: &mut B, name: &str) -> Model<B> {
    load_from(b, &ModelSource::Folder(path(&format!("models/{name}/model"))))
}

pub fn load_from<B: Backend>(b: &mut B, source: &ModelSource) -> Model<B> {
    let options = LoadOptions { name: "golden".to_owned(), format: None };
    Model::load(b, source, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// The adapter of a LoRA case, read as an upload is.
pub fn adapter<B: Backend>(name: &str, model: &Model<B>) -> AdapterWeights {
    adapter_in(&path(&format!("lora/{name}")), model)
}

/// The adapter in a case's folder.
pub fn adapter_in<B: Backend>(folder: &Path, model: &Model<B>) -> AdapterWeights {
    let files = AdapterFiles::from_dir(&folder.join("adapter")).unwrap();
    let unknown = Fingerprints { base: String::new(), tokenizer: String::new(), template: None };
    peft::read(&files, &model.info, &unknown).unwrap_or_else(|error| panic!("{error}")).weights
}

/// The examples of a LoRA case.
pub fn examples(name: &str) -> Vec<Example> {
    examples_in(&path(&format!("lora/{name}")))
}

/// The examples in a case's folder.
pub fn examples_in(folder: &Path) -> Vec<Example> {
    let io = tensors(&folder.join("io.safetensors"));
    let labels = io["labels"].1.chunks(io["labels"].0[1]);
    let rows = ids(&io["input_ids"]).into_iter().zip(labels);
    rows.map(|(ids, labels)| Example::new(ids, labels.iter().map(|&l| l as i32).collect()))
        .collect()
}

/// A micro-batch from start to end.
pub fn run<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    trainee: &mut Trainee<B>,
    batch: &TrainBatch,
    options: MicroBatchOptions,
) -> LossSum {
    let mut micro_batch = MicroBatch::start(batch.clone(), options);
    for _ in 0..micro_batch.units(model) {
        if let Some(sum) = micro_batch.advance(b, model, trainee) {
            return sum;
        }
    }
    panic!("a micro-batch ends within its units");
}

/// Largest absolute difference.
pub fn max_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().zip(expected).map(|(x, y)| f64::from((x - y).abs()));
    // NaN must not vanish in the maximum.
    errors.fold(0.0, |max, error| if error > max || error.is_nan() { error } else { max })
}

/// `‖found − expected‖ / ‖expected‖`.
pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(x, y)| square(x - y)).sum();
    (error / expected.iter().map(|&y| square(y)).sum::<f64>()).sqrt()
}

/// `‖x‖`.
pub fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}
