//! Bytes of a file to `f32`, on every core.

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};

use crate::backend::WeightFormat;
use crate::gguf::TensorType;

/// Values that one thread decodes at a time.
const PIECE: usize = 1 << 16;

/// The format that holds blocks of `kind` as they are, in rows of `width`.
pub fn resident(kind: TensorType, width: usize) -> Option<WeightFormat> {
    let format = match kind {
        TensorType::Q8_0 | TensorType::Q5_0 => WeightFormat::Q8_0,
        TensorType::Q4_0 => WeightFormat::Q4_0,
        TensorType::Q4_K => WeightFormat::Q4K,
        _ => return None,
    };
    format.fits(1, width).then_some(format)
}

/// The format that loses least of values stored as `kind`: the same for dense ones; 8 bits with a
/// scale per 32 for the block types that have no form of their own.
pub fn nearest(kind: TensorType, width: usize) -> WeightFormat {
    match kind {
        TensorType::F32 => WeightFormat::F32,
        TensorType::F16 => WeightFormat::F16,
        TensorType::BF16 => WeightFormat::Bf16,
        _ if WeightFormat::Q8_0.fits(1, width) => WeightFormat::Q8_0,
        _ => WeightFormat::Bf16,
    }
}

/// Blocks of a type that has a form of its own, or fits into that of another without a loss: codes
/// of 5 bits are codes of 8 bits too.
pub fn resident_blocks(kind: TensorType, bytes: Vec<u8>) -> Vec<u8> {
    if kind != TensorType::Q5_0 {
        return bytes;
    }
    let mut wide = Vec::with_capacity(bytes.len() / 22 * 34);
    for block in bytes.as_chunks::<22>().0 {
        let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        wide.extend_from_slice(&block[..2]);
        wide.extend((0..32).map(|i| {
            let low = block[6 + i % 16] >> (4 * (i / 16)) & 15;
            (low | ((high >> i & 1) as u8) << 4).wrapping_sub(16)
        }));
    }
    wide
}

/// Whether no block of a resident type has a scale that is no finite number.
pub fn scales_are_finite(kind: TensorType, bytes: &[u8]) -> bool {
    let scale =
        |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).is_finite();
    let two = kind == TensorType::Q4_K;
    bytes.chunks_exact(kind.block_bytes()).all(|block| scale(block, 0) && (!two || scale(block, 2)))
}

/// The `count` values of `bytes`.
///
/// # Errors
/// If the blocks cannot be decoded.
pub fn values(kind: TensorType, bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let mut values = vec![0.0; count];
    let piece_bytes = PIECE / kind.block() * kind.block_bytes();
    let pieces: Vec<_> = bytes.chunks(piece_bytes).zip(values.chunks_mut(PIECE)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = pieces.len().div_ceil(threads).max(1);
    let mut pieces = pieces.into_iter();
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        loop {
            let mine: Vec<_> = pieces.by_ref().take(share).collect();
            if mine.is_empty() {
                break;
            }
            running.push(scope.spawn(move || {
                mine.into_iter().try_for_each(|(bytes, values)| decode(kind, bytes, values))
            }));
        }
        let joined = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("a block could not be decoded".to_owned()))
        };
        running.into_iter().try_for_each(joined)
    })?;
    Ok(values)
}

fn decode(kind: TensorType, bytes: &[u8], values: &mut [f32]) -> Result<(), String> {
    match kind {
        TensorType::F32 => each(bytes, values, f32::from_le_bytes),
        TensorType::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
        TensorType::BF16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
        _ => blocks(kind, bytes, values).map_err(|error| error.to_string())?,
    }
    Ok(())
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = read(*bytes);
    }
}

fn blocks(kind: TensorType, bytes: &[u8], values: &mut [f32]) -> candle_core::Result<()> {
    let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, candle_type(kind))?;
    let tensor = QTensor::new(storage, values.len())?.dequantize(&Device::Cpu)?;
    values.copy_from_slice(&tensor.to_vec1::<f32>()?);
    Ok(())
}

/// candle's name for a type.
pub fn candle_type(kind: TensorType) -> GgmlDType {
    match kind {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::BF16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2_K => GgmlDType::Q2K,
        TensorType::Q3_K => GgmlDType::Q3K,
        TensorType::Q4_K => GgmlDType::Q4K,
        TensorType::Q5_K => GgmlDType::Q5K,
        TensorType::Q6_K => GgmlDType::Q6K,
    }
}

/// Values of twice the width as `f32`.
pub fn narrowed(bytes: &[u8]) -> Vec<u8> {
    let values = bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32);
    values.flat_map(f32::to_le_bytes).collect()
}

/// Values stored `(in, out)` as `(out, in)`.
pub fn turned(values: &[f32], (out, inner): (usize, usize)) -> Vec<f32> {
    let mut turned = Vec::with_capacity(values.len());
    for o in 0..out {
        turned.extend((0..inner).map(|i| values[i * out + o]));
    }
    turned
}
