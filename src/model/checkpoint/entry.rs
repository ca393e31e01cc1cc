//! Where the bytes of a tensor lie, and what they are.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::ModelError;
use crate::gguf::TensorType;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Index among the checkpoint's files.
    pub file: usize,
    pub encoding: Encoding,
    pub shape: Vec<usize>,
    /// From the start of the file.
    pub start: u64,
    pub bytes: usize,
}

/// What the bytes of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Encoding {
    /// Numbers, or blocks of them.
    Known(TensorType),
    Double,
    Bytes,
    Other(safetensors::Dtype),
}

impl Encoding {
    pub fn name(self) -> String {
        match self {
            Self::Known(kind) => kind.name().to_owned(),
            Self::Double => "f64".to_owned(),
            Self::Bytes => "u8".to_owned(),
            Self::Other(dtype) => format!("{dtype:?}").to_lowercase(),
        }
    }
}

/// A file of tensors.
pub struct TensorFile {
    pub name: String,
    pub data: Data,
}

pub enum Data {
    File(File),
    Bytes(Cow<'static, [u8]>),
}

impl TensorFile {
    /// `bytes` bytes from `start` on.
    pub fn read(&self, start: u64, bytes: usize) -> std::io::Result<Vec<u8>> {
        let mut into = vec![0; bytes];
        self.data.read_at(start, &mut into)?;
        Ok(into)
    }
}

impl Data {
    pub fn len(&self) -> std::io::Result<u64> {
        match self {
            Data::File(file) => Ok(file.metadata()?.len()),
            Data::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        match self {
            Data::File(file) => file.read_exact_at(into, offset),
            Data::Bytes(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                from.unwrap_or_default().read_exact(into)
            }
        }
    }
}

pub fn open(path: &Path) -> Result<Data, ModelError> {
    let file = File::open(path);
    file.map(Data::File).map_err(|source| ModelError::Read { path: path.to_owned(), source })
}
