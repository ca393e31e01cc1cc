//! `f32` to the bytes of a file, on every core.

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use half::{bf16, f16};

use crate::gguf::TensorType;
use crate::model::checkpoint::candle_type;

/// Values that one thread encodes at a time: whole blocks of every type.
const PIECE: usize = 1 << 16;

/// The type that holds rows of `width` values in the place of `kind`.
pub(super) fn or_fallback(kind: TensorType, width: usize) -> TensorType {
    let fits = |kind: &TensorType| width.is_multiple_of(kind.block());
    [kind, TensorType::Q8_0].into_iter().find(fits).unwrap_or(TensorType::F16)
}

/// The bytes of `values`, rows of whole blocks.
///
/// # Errors
/// If a value cannot be encoded.
pub(super) fn encode(kind: TensorType, values: &[f32]) -> Result<Vec<u8>, String> {
    let pieces: Vec<&[f32]> = values.chunks(PIECE).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = pieces.len().div_ceil(threads).max(1);
    let parts: Vec<Result<Vec<u8>, String>> = std::thread::scope(|scope| {
        let encode_share = |pieces: &[&[f32]]| {
            let mut bytes = Vec::new();
            pieces.iter().try_for_each(|values| piece(kind, values, &mut bytes))?;
            Ok(bytes)
        };
        let running: Vec<_> =
            pieces.chunks(share).map(|pieces| scope.spawn(move || encode_share(pieces))).collect();
        let joined = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("a block could not be encoded".to_owned()))
        };
        running.into_iter().map(joined).collect()
    });
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend(part?);
    }
    Ok(bytes)
}

fn piece(kind: TensorType, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), String> {
    match kind {
        TensorType::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        TensorType::F16 => {
            bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()));
        }
        TensorType::BF16 => {
            bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()));
        }
        _ => bytes.extend(blocks(kind, values).map_err(|error| error.to_string())?),
    }
    Ok(())
}

fn blocks(kind: TensorType, values: &[f32]) -> candle_core::Result<Vec<u8>> {
    let values = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
    Ok(QTensor::quantize(&values, candle_type(kind))?.data()?.into_owned())
}
