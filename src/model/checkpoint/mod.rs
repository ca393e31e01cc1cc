//! Tensors of a checkpoint, read one at a time: from one file, from shards, or from memory.
//!
//! Whatever the format, a tensor is asked for by the name and in the shape that Hugging Face gives
//! it; [`Layout`] knows what a file calls it and how it lies there.

mod bitsandbytes;
mod decode;
mod entry;
mod layout;
mod reading;
mod room;
mod safetensors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::ModelError;
use super::source::ModelSource;
use super::tensors::{TensorKind, TensorSpec};
use crate::backend::{HostBlocks, HostThreads, HostValues, WeightFormat};
use crate::gguf::{Gguf, TensorType};
pub use decode::candle_type;
use entry::{Data, Encoding, Entry, TensorFile};
pub use layout::Layout;
use room::Room;

/// A vector of frequencies is no longer.
const MAX_VECTOR_BYTES: usize = 1 << 16;

/// An opened checkpoint.
pub struct Checkpoint {
    family: String,
    files: Vec<TensorFile>,
    /// Every tensor that is still unread, by its name in the file.
    tensors: BTreeMap<String, Entry>,
    layout: Layout,
    /// Blocks are handed out as they are, and values with the format nearest to their own.
    as_stored: bool,
    /// Four bits stand for `f32`, and products take them so.
    exact: bool,
    digest: Sha256,
    read_bytes: u64,
    threads: Arc<HostThreads>,
    room: Room,
}

/// A tensor, in our orientation, in memory that the next one takes over.
#[derive(Debug)]
pub enum Stored<'a> {
    /// `held`: the format nearest to what the file holds, where that is asked for.
    Values { values: HostValues<'a>, held: Option<WeightFormat>, stored: &'static str },
    /// A matrix in blocks that can be held as they are.
    Blocks(HostBlocks<'a>),
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
    /// Opens the weights of `source`, reading headers alone; tensors are read on `threads`. `config`
    /// begins the fingerprint.
    ///
    /// # Errors
    /// If there are none, or a header cannot be read.
    pub fn open(
        source: &ModelSource,
        config: &[u8],
        family: &str,
        threads: Arc<HostThreads>,
    ) -> Result<Self, ModelError> {
        let mut checkpoint = Self {
            family: family.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            layout: Layout::HuggingFace,
            as_stored: false,
            exact: false,
            digest: Sha256::new_with_prefix(config),
            read_bytes: 0,
            threads,
            room: Room::default(),
        };
        match source {
            ModelSource::Embedded { tensors, .. } => {
                checkpoint.add("model.safetensors", Data::Bytes(tensors.clone()))?;
            }
            ModelSource::Folder(folder) => checkpoint.open_folder(folder)?,
            ModelSource::Gguf(path) => checkpoint.add_gguf(path)?,
        }
        Ok(checkpoint)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.bytes as u64).sum()
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Hands out what is stored as it is stored; 4-bit blocks `exact` if they stand for `f32`.
    pub fn keep_formats(&mut self, exact: bool) {
        (self.as_stored, self.exact) = (true, exact);
    }

    /// Whether 4-bit blocks are computed with in `f32`.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Whether it does.
    pub fn keeps_formats(&self) -> bool {
        self.as_stored
    }

    /// Reads tensors as `layout` says.
    pub fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
    }

    /// Calls every tensor by another name.
    pub fn rename(&mut self, name: impl Fn(&str) -> String) {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(old, entry)| (name(&old), entry)).collect();
    }

    fn add(&mut self, name: &str, data: Data) -> Result<(), ModelError> {
        let file = TensorFile { name: name.to_owned(), data };
        let entries = safetensors::entries(&file, self.files.len())
            .map_err(|reason| bad_file(name, reason))?;
        for (tensor, entry) in entries {
            if self.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(bad_file(name, format!("the tensor {tensor} is in another file too")));
            }
        }
        self.files.push(file);
        Ok(())
    }

    fn add_gguf(&mut self, path: &Path) -> Result<(), ModelError> {
        let gguf = Gguf::open(path)?;
        for tensor in gguf.tensors {
            let encoding = Encoding::Known(tensor.kind);
            let (file, start, bytes) = (self.files.len(), tensor.offset, tensor.bytes);
            let entry = Entry { file, encoding, shape: tensor.shape, start, bytes };
            self.tensors.insert(tensor.name, entry);
        }
        self.files.push(TensorFile { name: gguf.metadata.file, data: entry::open(path)? });
        Ok(())
    }

    /// The values of a one-dimensional f32 tensor of a GGUF file, if there is one of that name.
    ///
    /// # Errors
    /// If it cannot be read, or is of another type.
    pub fn vector(path: &Path, gguf: &Gguf, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(info) = gguf.tensors.iter().find(|info| info.name == name) else {
            return Ok(None);
        };
        let file = gguf.metadata.file.as_str();
        if info.kind != TensorType::F32 || info.bytes > MAX_VECTOR_BYTES {
            return Err(bad_file(file, format!("the tensor {name} must be a few f32 values")));
        }
        let data = TensorFile { name: file.to_owned(), data: entry::open(path)? };
        let bytes = data.read(info.offset, info.bytes).map_err(|error| bad_file(file, error))?;
        let values = HostValues::F32Bytes(bytes.as_chunks().0);
        Ok(Some(values.to_vec(&HostThreads::new(1))))
    }

    /// Whether there is a tensor of that name still unread.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&self.layout.stored_name(name))
    }

    /// Whether the tensors `one` and `other` are both there and not the same to the bit.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn differ(&self, one: &str, other: &str) -> Result<bool, ModelError> {
        const PIECE: usize = 1 << 20;
        let entry = |name: &str| self.tensors.get(&self.layout.stored_name(name));
        let (Some(one), Some(other)) = (entry(one), entry(other)) else { return Ok(false) };
        if (one.encoding, one.bytes) != (other.encoding, other.bytes) {
            return Ok(true);
        }
        let piece = |entry: &Entry, at: usize| {
            let (file, bytes) = (&self.files[entry.file], PIECE.min(entry.bytes - at));
            file.read(entry.start + at as u64, bytes).map_err(|error| bad_file(&file.name, error))
        };
        for at in (0..one.bytes).step_by(PIECE) {
            if piece(one, at)? != piece(other, at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The tensor that `spec` describes, row-major in our orientation.
    ///
    /// # Errors
    /// If it is missing, misshapen, of a type that is not read, or not finite.
    pub fn read(&mut self, spec: &TensorSpec) -> Result<Stored<'_>, ModelError> {
        let name = self.layout.stored_name(&spec.stored);
        let Some(entry) = self.tensors.remove(&name) else {
            let place = match &self.files[..] {
                [file] => file.name.clone(),
                _ => "the checkpoint".to_owned(),
            };
            return Err(ModelError::MissingTensor { tensor: name, place });
        };
        if let Some(kind) = self.bitsandbytes_kind(&name) {
            return self.bitsandbytes(spec, &name, &entry, kind);
        }
        let expected = self.layout.stored_shape(spec);
        if entry.shape != expected {
            let file = self.files[entry.file].name.clone();
            let found = entry.shape;
            return Err(ModelError::Misshapen { file, tensor: name, expected, found });
        }
        let kind = match entry.encoding {
            Encoding::Known(kind) => kind,
            Encoding::Double => TensorType::F32,
            other => {
                let (file, dtype) = (self.files[entry.file].name.clone(), other.name());
                return Err(ModelError::TensorType { file, tensor: name, dtype });
            }
        };
        self.bytes(&name, spec, &entry)?;
        if entry.encoding == Encoding::Double {
            self.room.put_bytes(decode::narrowed(self.room.bytes()));
        }
        if let Some(heads) = self.layout.interleaved_heads(&name) {
            self.room.split_halves(&self.threads, expected[0], heads);
        }
        self.decoded(spec, &name, entry.file, kind)
    }

    /// What the bytes that were read are.
    fn decoded(
        &mut self,
        spec: &TensorSpec,
        name: &str,
        file: usize,
        kind: TensorType,
    ) -> Result<Stored<'_>, ModelError> {
        let (file, threads) = (self.files[file].name.as_str(), &*self.threads);
        let refused = || ModelError::NotFinite { file: file.to_owned(), tensor: name.to_owned() };
        let (_, width) = spec.shape;
        let matrix = matches!(spec.kind, TensorKind::Weight(_));
        let turned = self.layout.is_turned(spec);
        if let (true, true, false, Some(format)) =
            (self.as_stored, matrix, turned, decode::resident(kind, width))
        {
            if !decode::scales_are_finite(threads, kind, self.room.bytes()) {
                return Err(refused());
            }
            if kind == TensorType::Q5_0 {
                self.room.put_bytes(decode::widened(self.room.bytes()));
            }
            return Ok(Stored::Blocks(HostBlocks::Gguf { format, bytes: self.room.bytes() }));
        }
        let wrong = |reason: String| bad_file(file, format!("{name}: {reason}"));
        let (bytes, room) = self.room.parts();
        let added = self.layout.has_added(name);
        let values = if turned || added {
            let stored = decode::values(threads, kind, bytes, room).map_err(wrong)?;
            let ours = stored.to_vec(threads);
            *room = if turned { decode::turned(&ours, spec.shape) } else { ours };
            if added {
                room.iter_mut().for_each(|value| *value -= 1.0);
            }
            HostValues::F32(room)
        } else {
            decode::values(threads, kind, bytes, room).map_err(wrong)?
        };
        if values.len() != spec.parameters() {
            return Err(wrong("its bytes do not fit its shape".to_owned()));
        }
        if !values.are_finite(threads) {
            return Err(refused());
        }
        let held = self.as_stored.then(|| decode::nearest(kind, width));
        Ok(Stored::Values { values, held, stored: kind.name() })
    }

    /// Reads the bytes of a tensor, which the fingerprint takes in.
    fn bytes(&mut self, name: &str, spec: &TensorSpec, entry: &Entry) -> Result<(), ModelError> {
        let file = &self.files[entry.file];
        let into = self.room.bytes_mut(entry.bytes);
        let read = reading::read(&self.threads, file, entry.start, into);
        let digest = read.map_err(|error| bad_file(&file.name, format!("{name}: {error}")))?;
        self.read_bytes += entry.bytes as u64;
        self.digest.update(spec.name.as_bytes());
        self.digest.update(format!("{}{:?}", entry.encoding.name(), entry.shape));
        self.digest.update(digest.as_bytes());
        Ok(())
    }

    /// Takes what belongs to the model, and is no tensor, into the fingerprint.
    pub fn mark(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
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
            Some((tensor, entry)) => Err(ModelError::SuperfluousTensor {
                file: self.files[entry.file].name.clone(),
                tensor: tensor.clone(),
                family: self.family.clone(),
            }),
            None => Ok(()),
        }
    }
}

fn bad_file(file: &str, reason: impl ToString) -> ModelError {
    ModelError::BadFile { file: file.to_owned(), reason: reason.to_string() }
}
