//! What the bytes of a file are: values, or blocks that can be held as they are.

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use crate::backend::{HostThreads, HostValues, WeightFormat};
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

/// Codes of 5 bits as codes of 8 bits, without a loss: blocks of Q5_0 as blocks of Q8_0.
pub fn widened(bytes: &[u8]) -> Vec<u8> {
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
pub fn scales_are_finite(threads: &HostThreads, kind: TensorType, bytes: &[u8]) -> bool {
    let size = kind.block_bytes();
    let mut pieces: Vec<_> = bytes.chunks(PIECE * size).map(|piece| (piece, false)).collect();
    threads.for_each(&mut pieces, |(piece, finite)| {
        *finite = match kind {
            TensorType::Q4_0 => finite_at::<18>(piece, 0),
            TensorType::Q5_0 => finite_at::<22>(piece, 0),
            TensorType::Q8_0 => finite_at::<34>(piece, 0),
            TensorType::Q4_K => finite_at::<144>(piece, 0) && finite_at::<144>(piece, 2),
            _ => unreachable!("{} has no resident form", kind.name()),
        };
    });
    pieces.iter().all(|(_, finite)| *finite)
}

/// Whether the half at byte `at` of every block is finite; looks on to the end, which takes no branch.
fn finite_at<const SIZE: usize>(bytes: &[u8], at: usize) -> bool {
    let infinite = |block: &[u8; SIZE]| block[at + 1] & 0x7c == 0x7c;
    bytes.as_chunks().0.iter().fold(true, |finite, block| finite & !infinite(block))
}

/// The values of `bytes` as they are, or decoded to `room` if nobody reads their type as it is.
///
/// # Errors
/// If the blocks cannot be decoded.
pub fn values<'a>(
    threads: &HostThreads,
    kind: TensorType,
    bytes: &'a [u8],
    room: &'a mut Vec<f32>,
) -> Result<HostValues<'a>, String> {
    Ok(match kind {
        TensorType::F32 => HostValues::F32Bytes(bytes.as_chunks().0),
        TensorType::F16 => HostValues::F16(bytes.as_chunks().0),
        TensorType::BF16 => HostValues::Bf16(bytes.as_chunks().0),
        TensorType::Q6_K => HostValues::Q6K(bytes.as_chunks().0),
        _ => {
            *room = vec![0.0; bytes.len() / kind.block_bytes() * kind.block()];
            blocks(threads, kind, bytes, room)?;
            HostValues::F32(room)
        }
    })
}

fn blocks(
    threads: &HostThreads,
    kind: TensorType,
    bytes: &[u8],
    values: &mut [f32],
) -> Result<(), String> {
    let piece = PIECE / kind.block();
    let pieces = bytes.chunks(piece * kind.block_bytes()).zip(values.chunks_mut(PIECE));
    let mut pieces: Vec<_> = pieces.map(|piece| (piece, Ok(()))).collect();
    threads.for_each(&mut pieces, |((bytes, values), done)| *done = decode(kind, bytes, values));
    let done = pieces.into_iter().try_for_each(|(_, done)| done);
    done.map_err(|error| error.to_string())
}

fn decode(kind: TensorType, bytes: &[u8], values: &mut [f32]) -> candle_core::Result<()> {
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
