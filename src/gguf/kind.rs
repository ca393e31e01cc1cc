//! The types a tensor can have, with the size of their blocks.

/// A type of GGUF tensors. The names are ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // as everybody writes them
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Type, number in the file, name, values per block, bytes per block, number in `general.file_type`.
type Row = (TensorType, u32, &'static str, usize, usize, i64);

const TYPES: [Row; 13] = [
    (TensorType::F32, 0, "f32", 1, 4, 0),
    (TensorType::F16, 1, "f16", 1, 2, 1),
    (TensorType::Q4_0, 2, "q4_0", 32, 18, 2),
    (TensorType::Q4_1, 3, "q4_1", 32, 20, 3),
    (TensorType::Q5_0, 6, "q5_0", 32, 22, 8),
    (TensorType::Q5_1, 7, "q5_1", 32, 24, 9),
    (TensorType::Q8_0, 8, "q8_0", 32, 34, 7),
    (TensorType::Q2_K, 10, "q2_k", 256, 84, 10),
    (TensorType::Q3_K, 11, "q3_k", 256, 110, 12),
    (TensorType::Q4_K, 12, "q4_k", 256, 144, 14),
    (TensorType::Q5_K, 13, "q5_k", 256, 176, 16),
    (TensorType::Q6_K, 14, "q6_k", 256, 210, 18),
    (TensorType::BF16, 30, "bf16", 1, 2, 32),
];

impl TensorType {
    /// The type a file calls `number`.
    pub fn from_number(number: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// The type called `name`, in lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// Its number in a file.
    pub fn number(self) -> u32 {
        self.row().1
    }

    /// `q4_k`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values that share a block; a row holds whole blocks.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// What `general.file_type` says of a file that mostly holds this type.
    pub fn file_type(self) -> i64 {
        self.row().5
    }

    /// Bytes of rows of `width` values, `None` if they are no whole blocks or do not fit a `usize`.
    pub fn bytes(self, rows: usize, width: usize) -> Option<usize> {
        let blocks = width.is_multiple_of(self.block()).then_some(width / self.block())?;
        rows.checked_mul(blocks)?.checked_mul(self.block_bytes())
    }

    fn row(self) -> &'static Row {
        TYPES.iter().find(|row| row.0 == self).expect("every type is listed")
    }
}
