//! Reading `tests/golden`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tandem::backend::Backend;
use tandem::domain::{AdapterSite, AdapterWeights};
use tandem::model::{LoadOptions, Model, ModelSource};

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

/// The adapter of a LoRA case.
pub fn adapter(name: &str) -> AdapterWeights {
    let folder = path(&format!("lora/{name}/adapter"));
    let config = json(&folder.join("adapter_config.json"));
    let tensors = tensors(&folder.join("adapter_model.safetensors"));
    let alpha = number(&config, "lora_alpha") as f32;
    let mut sites: Vec<AdapterSite> = Vec::new();
    for (name, (shape, a)) in &tensors {
        let Some(path) = name.strip_suffix(".lora_A.weight") else { continue };
        let b = tensors[&format!("{path}.lora_B.weight")].1.clone();
        let rank = shape[0] as f32;
        let rslora = config["use_rslora"] == true;
        sites.push(AdapterSite {
            module: path.strip_prefix("base_model.model.").unwrap().to_owned(),
            r: shape[0],
            scaling: alpha / if rslora { rank.sqrt() } else { rank },
            a: a.clone(),
            b,
        });
    }
    AdapterWeights { key: name.to_owned(), sites, dropout: 0.0 }
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
