//! Reading a header, with a bound on everything it claims.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{ALIGNMENT, GgufError, MAGIC, Metadata, TensorType, Value};

/// Longest header that is read. The largest vocabularies take 20 MB.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Most elements of one list: room for any vocabulary.
const MAX_LIST: u64 = 1 << 21;
const MAX_KEY_BYTES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 17;
const MAX_PAIRS: u64 = 1 << 16;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// What the header of a file says.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
}

/// One tensor: what it is and where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// The longest stride first, as everywhere else here; the file has it the other way round.
    pub shape: Vec<usize>,
    pub kind: TensorType,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: usize,
}

impl Gguf {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// [`GgufError`] naming the place: a key, a tensor, or a count of the header.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let unreadable = |source| GgufError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        Self::read(&name, BufReader::with_capacity(1 << 16, file), length)
    }

    /// Reads a header from `source`, of `length` bytes in all; `file` is what errors call it.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn read(file: &str, source: impl Read, length: u64) -> Result<Self, GgufError> {
        let mut reader = Reader { source, at: 0, length };
        let mut gguf = Self {
            metadata: Metadata { file: file.to_owned(), ..Metadata::default() },
            tensors: Vec::new(),
        };
        gguf.fill(&mut reader).map_err(|Problem { place, reason }| GgufError::Malformed {
            file: file.to_owned(),
            place,
            reason,
        })?;
        Ok(gguf)
    }

    fn fill(&mut self, reader: &mut Reader<impl Read>) -> Result<(), Problem> {
        let (tensors, pairs) = reader.counts().map_err(at("the header"))?;
        for index in 0..pairs {
            let key = reader.text(MAX_KEY_BYTES).map_err(at(format!("metadata key {index}")))?;
            let value = reader.value().map_err(at(format!("the metadata value `{key}`")))?;
            if self.metadata.values.insert(key.clone(), value).is_some() {
                return Err(at(format!("the metadata key `{key}`"))("it is there twice".into()));
            }
        }
        let alignment = self.alignment().map_err(at("`general.alignment`"))?;
        for index in 0..tensors {
            let name = reader.text(MAX_KEY_BYTES).map_err(at(format!("tensor name {index}")))?;
            let info = reader.tensor(name.clone()).map_err(at(format!("the tensor {name}")))?;
            self.tensors.push(info);
        }
        let start = reader.at.next_multiple_of(alignment);
        for tensor in &mut self.tensors {
            tensor.place(start, alignment, reader.length).map_err(at(tensor.described()))?;
        }
        self.no_name_twice()
    }

    fn alignment(&self) -> Result<u64, String> {
        match self.metadata.get("general.alignment") {
            None => Ok(ALIGNMENT),
            Some(Value::Int(n)) if *n > 0 && n % 8 == 0 && *n as u64 <= MAX_ALIGNMENT => {
                Ok(*n as u64)
            }
            Some(other) => Err(format!("{other:?} is no positive multiple of 8")),
        }
    }

    fn no_name_twice(&self) -> Result<(), Problem> {
        let mut names: Vec<&str> = self.tensors.iter().map(|tensor| &*tensor.name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(at(format!("the tensor {}", pair[0]))("it is there twice".into())),
            None => Ok(()),
        }
    }
}

impl TensorInfo {
    fn described(&self) -> String {
        format!("the tensor {}", self.name)
    }

    /// Checks the offset, which counts from `start`, and makes it count from the file's own start.
    fn place(&mut self, start: u64, alignment: u64, length: u64) -> Result<(), String> {
        if !self.offset.is_multiple_of(alignment) {
            return Err(format!("its offset {} is not a multiple of {alignment}", self.offset));
        }
        let from = start.checked_add(self.offset);
        let end = from.and_then(|from| from.checked_add(self.bytes as u64));
        match (from, end) {
            (Some(from), Some(end)) if end <= length => self.offset = from,
            _ => {
                return Err(format!(
                    "its {} bytes lie beyond the end of the file, which has {length}; is it whole?",
                    self.bytes
                ));
            }
        }
        Ok(())
    }
}

/// A place and what is wrong there.
struct Problem {
    place: String,
    reason: String,
}

fn at(place: impl Into<String>) -> impl FnOnce(String) -> Problem {
    let place = place.into();
    |reason| Problem { place, reason }
}

/// A cursor that cannot leave the file or the longest header.
struct Reader<R> {
    source: R,
    at: u64,
    length: u64,
}

impl<R: Read> Reader<R> {
    /// Tensors and key-value pairs.
    fn counts(&mut self) -> Result<(u64, u64), String> {
        if self.array()? != MAGIC {
            return Err("it does not begin with `GGUF`".to_owned());
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("it has version {version}; 2 and 3 are read"));
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        if tensors > MAX_TENSORS || pairs > MAX_PAIRS {
            return Err(format!("it claims {tensors} tensors and {pairs} metadata values"));
        }
        Ok((tensors, pairs))
    }

    fn tensor(&mut self, name: String) -> Result<TensorInfo, String> {
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("it has {dimensions} dimensions; 1 to 4 are read"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(usize::try_from(self.u64()?).map_err(|error| error.to_string())?);
        }
        shape.reverse();
        let number = self.u32()?;
        let kind = TensorType::from_number(number)
            .ok_or_else(|| format!("its type {number} is not read"))?;
        let offset = self.u64()?;
        let (width, outer) = shape.split_last().expect("at least one dimension");
        let rows = outer.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        let bytes = rows.and_then(|rows| kind.bytes(rows, *width));
        match bytes {
            Some(bytes) if bytes as u64 <= self.length && !shape.contains(&0) => {
                Ok(TensorInfo { name, shape, kind, offset, bytes })
            }
            _ => Err(format!("the shape {shape:?} cannot be {} in this file", kind.name())),
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.u32()? {
            9 => self.list(),
            kind => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            8 => Value::Text(self.text(MAX_HEADER_BYTES)?),
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            _ => Value::Int(self.int(kind)?),
        })
    }

    fn list(&mut self) -> Result<Value, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        // Every element takes at least a byte, so a false count ends here and takes no memory.
        if count > MAX_LIST || count > self.length - self.at {
            return Err(format!("a list of {count} elements; at most {MAX_LIST} are read"));
        }
        let all = 0..count;
        Ok(match kind {
            9 => return Err("a list of lists, which no key is known to hold".to_owned()),
            8 => Value::Texts(all.map(|_| self.text(MAX_HEADER_BYTES)).collect::<Result<_, _>>()?),
            6 | 12 => Value::Floats(all.map(|_| self.float(kind)).collect::<Result<_, _>>()?),
            7 => {
                let bytes: Vec<[u8; 1]> = all.map(|_| self.array()).collect::<Result<_, _>>()?;
                Value::Bools(bytes.iter().map(|[byte]| *byte != 0).collect())
            }
            _ => Value::Ints(all.map(|_| self.int(kind)).collect::<Result<_, _>>()?),
        })
    }

    fn int(&mut self, kind: u32) -> Result<i64, String> {
        Ok(match kind {
            0 => i64::from(u8::from_le_bytes(self.array()?)),
            1 => i64::from(i8::from_le_bytes(self.array()?)),
            2 => i64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.array()?)),
            10 => i64::try_from(self.u64()?).map_err(|error| error.to_string())?,
            11 => i64::from_le_bytes(self.array()?),
            other => return Err(format!("its type {other} is unknown")),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f32, String> {
        Ok(match kind {
            6 => f32::from_le_bytes(self.array()?),
            _ => f64::from_le_bytes(self.array()?) as f32,
        })
    }

    fn text(&mut self, longest: u64) -> Result<String, String> {
        let length = self.u64()?;
        if length > longest {
            return Err(format!("a string of {length} bytes; at most {longest} are read"));
        }
        self.claim(length)?;
        let mut bytes = vec![0; length as usize];
        self.source.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Moves on by `bytes`, if the file and the bound on headers have them.
    fn claim(&mut self, bytes: u64) -> Result<(), String> {
        let end = self.at.saturating_add(bytes);
        if end > self.length {
            return Err(format!("the file ends after {} bytes; is it whole?", self.length));
        }
        if end > MAX_HEADER_BYTES {
            return Err(format!("the header is longer than {MAX_HEADER_BYTES} bytes"));
        }
        self.at = end;
        Ok(())
    }
}
