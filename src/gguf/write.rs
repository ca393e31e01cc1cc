//! Writing a file: the header first, then the tensors, one at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{ALIGNMENT, GgufError, MAGIC, Metadata, TensorType, VERSION, Value};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTensor {
    pub name: String,
    /// The longest stride first.
    pub shape: Vec<usize>,
    pub kind: TensorType,
}

/// A file whose header is written and whose tensors follow in the order of the header.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Writer {
    /// Writes the header of a file with these tensors.
    ///
    /// # Errors
    /// [`GgufError::Write`], or [`GgufError::Malformed`] for a tensor of broken blocks.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: &[NewTensor],
    ) -> Result<Self, GgufError> {
        let header = header(metadata, tensors)?;
        let failed = |source| GgufError::Write { path: path.to_owned(), source };
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
        file.write_all(&header).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// [`GgufError::Write`].
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        let padding = bytes.len().next_multiple_of(ALIGNMENT as usize) - bytes.len();
        let written = self.file.write_all(bytes);
        written
            .and_then(|()| self.file.write_all(&[0; ALIGNMENT as usize][..padding]))
            .map_err(|source| GgufError::Write { path: self.path.clone(), source })
    }

    /// Makes sure that everything is on disk.
    ///
    /// # Errors
    /// [`GgufError::Write`].
    pub fn finish(mut self) -> Result<(), GgufError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|source| GgufError::Write { path: self.path, source })
    }
}

/// The bytes before the first tensor.
fn header(metadata: &Metadata, tensors: &[NewTensor]) -> Result<Vec<u8>, GgufError> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.values.len() as u64).to_le_bytes());
    for (key, value) in &metadata.values {
        text(&mut out, key);
        put(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        let (width, outer) = tensor.shape.split_last().expect("at least one dimension");
        let bytes = tensor.kind.bytes(outer.iter().product(), *width);
        let bytes = bytes.ok_or_else(|| GgufError::Malformed {
            file: metadata.file.clone(),
            place: format!("the tensor {}", tensor.name),
            reason: format!("rows of {width} are no whole {} blocks", tensor.kind.name()),
        })?;
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(tensor.kind.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (bytes as u64).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A value with its type. Counts are `u32`, as other readers insist; negative numbers `i32`.
fn put(out: &mut Vec<u8>, value: &Value) {
    let kind = |kind: u32| kind.to_le_bytes();
    let list = |out: &mut Vec<u8>, element: u32, count: usize| {
        out.extend(kind(9));
        out.extend(kind(element));
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Bool(flag) => out.extend(kind(7).into_iter().chain([u8::from(*flag)])),
        Value::Int(n) => match u32::try_from(*n) {
            Ok(n) => out.extend(kind(4).into_iter().chain(n.to_le_bytes())),
            Err(_) => out.extend(kind(11).into_iter().chain(n.to_le_bytes())),
        },
        Value::Float(x) => out.extend(kind(6).into_iter().chain(x.to_le_bytes())),
        Value::Text(value) => {
            out.extend(kind(8));
            text(out, value);
        }
        Value::Bools(flags) => {
            list(out, 7, flags.len());
            out.extend(flags.iter().map(|&flag| u8::from(flag)));
        }
        Value::Ints(values) => {
            list(out, 5, values.len());
            values.iter().for_each(|&n| out.extend((n as i32).to_le_bytes()));
        }
        Value::Floats(values) => {
            list(out, 6, values.len());
            values.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::Texts(values) => {
            list(out, 8, values.len());
            values.iter().for_each(|value| text(out, value));
        }
    }
}
