//! Tensors of a safetensors checkpoint, read one at a time: from one file, from shards, or from
//! memory.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::ModelError;
use super::source::ModelSource;
use super::tensors::TensorSpec;

/// Longest header that is read: room for a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// An opened checkpoint.
pub struct Checkpoint {
    family: String,
    files: Vec<TensorFile>,
    /// File and description of each tensor, by name; read ones are taken out.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    digest: Sha256,
}

struct TensorFile {
    name: String,
    data: Data,
    /// Where the tensors begin.
    start: u64,
}

enum Data {
    File(File),
    Bytes(Cow<'static, [u8]>),
}

/// The bytes of a file of `source`'s folder, or `None` if it is not there.
///
/// # Errors
/// If it is there and cannot be read.
pub fn read_file(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModelError::Read { path, source }),
    }
}

impl Checkpoint {
    /// Opens the weights of `source`, reading headers alone. `config` begins the fingerprint.
    ///
    /// # Errors
    /// If there are none, or a header cannot be read.
    pub fn open(source: &ModelSource, config: &[u8], family: &str) -> Result<Self, ModelError> {
        let mut checkpoint = Self {
            family: family.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            digest: Sha256::new_with_prefix(config),
        };
        match source {
            ModelSource::Embedded { tensors, .. } => {
                checkpoint.add("model.safetensors", Data::Bytes(tensors.clone()))?;
            }
            ModelSource::Folder(folder) => checkpoint.open_folder(folder)?,
        }
        Ok(checkpoint)
    }

    fn open_folder(&mut self, folder: &Path) -> Result<(), ModelError> {
        const INDEX: &str = "model.safetensors.index.json";
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return self.add("model.safetensors", open_file(&single)?);
        }
        let Some(index) = read_file(folder, INDEX)? else {
            return Err(ModelError::NoWeights(folder.to_owned()));
        };
        let map = weight_map(&index).map_err(|reason| bad_file(INDEX, reason))?;
        let mut shards: Vec<&String> = map.values().collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            self.add(shard, open_file(&folder.join(shard))?)?;
        }
        match map.keys().find(|tensor| !self.tensors.contains_key(*tensor)) {
            Some(tensor) => Err(ModelError::MissingTensor {
                tensor: tensor.clone(),
                place: format!("the shard {} that {INDEX} names", map[tensor]),
            }),
            None => Ok(()),
        }
    }

    fn add(&mut self, name: &str, mut data: Data) -> Result<(), ModelError> {
        let (metadata, start) = read_header(&mut data).map_err(|reason| bad_file(name, reason))?;
        for (tensor, info) in metadata.tensors() {
            let entry = (self.files.len(), info.clone());
            if self.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(bad_file(name, format!("the tensor {tensor} is in another file too")));
            }
        }
        self.files.push(TensorFile { name: name.to_owned(), data, start });
        Ok(())
    }

    /// Calls every tensor by another name.
    pub fn rename(&mut self, name: impl Fn(&str) -> String) {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(old, entry)| (name(&old), entry)).collect();
    }

    /// Whether there is a tensor of that name still unread.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The values of a tensor as `f32`, row-major in our orientation.
    ///
    /// # Errors
    /// If it is missing, misshapen, of a type that is not read, or not finite.
    pub fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, ModelError> {
        let Some((index, info)) = self.tensors.remove(&spec.stored) else {
            return Err(ModelError::MissingTensor {
                tensor: spec.stored.clone(),
                place: "the checkpoint".to_owned(),
            });
        };
        let file = &mut self.files[index];
        let expected = spec.stored_shape();
        if info.shape != expected {
            let (file, tensor) = (file.name.clone(), spec.stored.clone());
            return Err(ModelError::Misshapen { file, tensor, expected, found: info.shape });
        }
        let bytes = file.read(&info)?;
        self.digest.update(spec.name.as_bytes());
        self.digest.update(format!("{:?}{:?}", info.dtype, info.shape));
        self.digest.update(&bytes);
        file.decode(spec, &info, &bytes)
    }

    /// The digest over configuration and every tensor read so far, in the order of reading.
    pub fn fingerprint(&self) -> String {
        hex::encode(self.digest.clone().finalize())
    }

    /// Refuses tensors nobody has read, other than those that `ignored` knows.
    ///
    /// # Errors
    /// [`ModelError::SuperfluousTensor`] for the first of them.
    pub fn finish(&self, ignored: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        match self.tensors.iter().find(|(tensor, _)| !ignored(tensor)) {
            Some((tensor, (file, _))) => Err(ModelError::SuperfluousTensor {
                file: self.files[*file].name.clone(),
                tensor: tensor.clone(),
                family: self.family.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl TensorFile {
    fn read(&mut self, info: &TensorInfo) -> Result<Vec<u8>, ModelError> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let offset = self.start + start as u64;
        self.data.read_at(offset, &mut bytes).map_err(|error| bad_file(&self.name, error))?;
        Ok(bytes)
    }

    /// The tensor as `f32`, in our orientation.
    fn decode(
        &self,
        spec: &TensorSpec,
        info: &TensorInfo,
        bytes: &[u8],
    ) -> Result<Vec<f32>, ModelError> {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => {
                let dtype = format!("{other:?}").to_lowercase();
                let (file, tensor) = (self.name.clone(), spec.stored.clone());
                return Err(ModelError::TensorType { file, tensor, dtype });
            }
        };
        let values = to_f32(bytes, dtype, &info.shape, spec.transposed)
            .map_err(|error| bad_file(&self.name, error))?;
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err(ModelError::NotFinite { file: self.name.clone(), tensor: spec.stored.clone() })
    }
}

fn to_f32(
    bytes: &[u8],
    dtype: DType,
    shape: &[usize],
    transposed: bool,
) -> candle_core::Result<Vec<f32>> {
    let tensor =
        Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?.to_dtype(DType::F32)?;
    let tensor = if transposed { tensor.t()? } else { tensor };
    tensor.flatten_all()?.to_vec1()
}

impl Data {
    fn len(&self) -> std::io::Result<u64> {
        match self {
            Data::File(file) => Ok(file.metadata()?.len()),
            Data::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        match self {
            Data::File(file) => {
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(into)
            }
            Data::Bytes(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                from.unwrap_or_default().read_exact(into)
            }
        }
    }
}

fn open_file(path: &Path) -> Result<Data, ModelError> {
    let file = File::open(path);
    file.map(Data::File).map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

/// The header, and where the data begins; the data must be as long as the header says.
fn read_header(data: &mut Data) -> Result<(Metadata, u64), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut length = [0; 8];
    data.read_at(0, &mut length).map_err(text)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"));
    }
    let mut header = vec![0; length as usize];
    data.read_at(8, &mut header).map_err(text)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| error.to_string())?;
    let (start, found) = (8 + length, data.len().map_err(text)?);
    let expected = start + metadata.data_len() as u64;
    if found != expected {
        return Err(format!("{found} bytes where its header promises {expected}; is it whole?"));
    }
    Ok((metadata, start))
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

fn bad_file(file: &str, reason: impl ToString) -> ModelError {
    ModelError::BadFile { file: file.to_owned(), reason: reason.to_string() }
}
