//! A Hugging Face folder: `config.json` and one `model.safetensors`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{ModelError, TensorType, Weights, Written, encode, turned};
use crate::model::families::hub_name;

pub(super) fn write(
    weights: &mut Weights<'_>,
    folder: &Path,
    kind: TensorType,
) -> Result<Written, ModelError> {
    let dtype = match kind {
        TensorType::F32 => "float32",
        TensorType::F16 => "float16",
        TensorType::BF16 => "bfloat16",
        other => return Err(super::unsupported("the type of a safetensors file", other.name())),
    };
    write_config(weights, folder, dtype)?;
    let path = folder.join("model.safetensors");
    let failed = |source| ModelError::Write { path: path.clone(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed)?);
    let (header, bytes) = header(weights, kind);
    file.write_all(&header).map_err(failed)?;
    let specs = std::mem::take(&mut weights.specs);
    for spec in &specs {
        let mut values = weights.values(spec)?;
        if spec.transposed {
            values = turned(&values, spec.shape).into_owned();
        }
        let bytes = encode::encode(kind, &values)
            .map_err(|reason| super::unsupported(&spec.name, reason))?;
        file.write_all(&bytes).map_err(failed)?;
    }
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)?;
    Ok(Written { tensors: specs.len(), bytes, fallbacks: Vec::new() })
}

/// The length of the header and the header, and the bytes of all tensors.
fn header(weights: &Weights<'_>, kind: TensorType) -> (Vec<u8>, u64) {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for spec in &weights.specs {
        let end = at + spec.parameters() * kind.block_bytes();
        let entry = json!({
            "dtype": kind.name().to_uppercase(),
            "shape": spec.stored_shape(),
            "data_offsets": [at, end],
        });
        let name = match weights.config.vision {
            Some(_) => hub_name(&spec.name),
            None => spec.name.clone(),
        };
        entries.insert(name, entry);
        at = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    (header, at as u64)
}

/// A part that says its own type says the new one.
fn retype(part: &mut Map<String, Value>, dtype: &str) {
    for (_, value) in part.iter_mut().filter(|(key, _)| matches!(&key[..], "dtype" | "torch_dtype"))
    {
        *value = dtype.into();
    }
}

fn untie(config: &mut Map<String, Value>) {
    config.insert("tie_word_embeddings".to_owned(), false.into());
}

/// The configuration without what belongs to the stored form.
fn write_config(weights: &Weights<'_>, folder: &Path, dtype: &str) -> Result<(), ModelError> {
    let mut config = weights.json.clone();
    if let Some(config) = config.as_object_mut() {
        config.remove("quantization_config");
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.to_owned(), dtype.into());
        for part in ["text_config", "vision_config"] {
            let part = config.get_mut(part).and_then(Value::as_object_mut);
            part.into_iter().for_each(|part| retype(part, dtype));
        }
        if !weights.config.tied {
            // What the file holds decides, also for programs that ask the configuration alone.
            let text = config.get_mut("text_config").and_then(Value::as_object_mut);
            text.into_iter().for_each(untie);
            untie(config);
        }
    }
    let path = folder.join("config.json");
    std::fs::write(&path, format!("{config:#}\n"))
        .map_err(|source| ModelError::Write { path, source })
}
