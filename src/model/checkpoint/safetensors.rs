//! safetensors: the header of a file, and the shards of a folder.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::entry::{Encoding, Entry, TensorFile, open};
use super::{Checkpoint, ModelError, bad_file, read_file};
use crate::gguf::TensorType;

/// Longest header that is read: room for a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;

impl Checkpoint {
    pub(super) fn open_folder(&mut self, folder: &Path) -> Result<(), ModelError> {
        const INDEX: &str = "model.safetensors.index.json";
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return self.add("model.safetensors", open(&single)?);
        }
        let Some(index) = read_file(folder, INDEX)? else {
            return Err(ModelError::NoWeights(folder.to_owned()));
        };
        let map = weight_map(&index).map_err(|reason| bad_file(INDEX, reason))?;
        let mut shards: Vec<&String> = map.values().collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            self.add(shard, open(&folder.join(shard))?)?;
        }
        match map.keys().find(|tensor| !self.tensors.contains_key(*tensor)) {
            Some(tensor) => Err(ModelError::MissingTensor {
                tensor: tensor.clone(),
                place: format!("the shard {} that {INDEX} names", map[tensor]),
            }),
            None => Ok(()),
        }
    }
}

/// The tensors of a file, whose data must be as long as the header says.
pub fn entries(file: &TensorFile, index: usize) -> Result<Vec<(String, Entry)>, String> {
    let text = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it ends inside its header; is it whole?".to_owned(),
        _ => error.to_string(),
    };
    let mut length = [0; 8];
    file.data.read_at(0, &mut length).map_err(|_| "it has no header; is it whole?".to_owned())?;
    // What a clone without Git LFS leaves in place of the weights begins like this.
    if &length == b"version " {
        return Err("it is a pointer of Git LFS; fetch the weights with `git lfs pull`".to_owned());
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"));
    }
    let header = file.read(8, length as usize).map_err(text)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| error.to_string())?;
    let (start, found) = (8 + length, file.data.len().map_err(text)?);
    let expected = start + metadata.data_len() as u64;
    if found != expected {
        return Err(format!("{found} bytes where its header promises {expected}; is it whole?"));
    }
    let entry = |info: &TensorInfo| Entry {
        file: index,
        encoding: encoding(info.dtype),
        shape: info.shape.clone(),
        start: start + info.data_offsets.0 as u64,
        bytes: info.data_offsets.1 - info.data_offsets.0,
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
}

fn encoding(dtype: Dtype) -> Encoding {
    match dtype {
        Dtype::F32 => Encoding::Known(TensorType::F32),
        Dtype::F16 => Encoding::Known(TensorType::F16),
        Dtype::BF16 => Encoding::Known(TensorType::BF16),
        Dtype::F64 => Encoding::Double,
        Dtype::U8 => Encoding::Bytes,
        other => Encoding::Other(other),
    }
}

/// The shard of each tensor. Shards lie beside the index, nowhere else.
fn weight_map(index: &[u8]) -> Result<HashMap<String, String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let beside = |shard: &&String| Path::new(shard).file_name() != Some(shard.as_ref());
    match index.weight_map.values().find(beside) {
        Some(shard) => Err(format!("the shard {shard} is not a plain file name")),
        None => Ok(index.weight_map),
    }
}
