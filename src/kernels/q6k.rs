//! 6-bit weights of GGUF, Q6_K, to be read: what Q4_K_M holds a part of its matrices in.
//!
//! A block is 256 values in sixteen parts of 16; `w = d · scale · (code − 32)`, with `scale` of 8
//! bits per part and `d` in f16 per block. Reference: `block_q6_K` and `dequantize_row_q6_K` in
//! ggml's `ggml-quants.c`.

use half::f16;

/// Values of one block.
pub const BLOCK: usize = 256;
/// Bytes of one block: 128 of low nibbles, 64 of high pairs of bits, 16 scales, `d`.
pub const BYTES: usize = 210;

/// Half a block: its values share a run of nibbles and one of pairs.
const HALF: usize = 128;

/// `d` of a block.
pub fn scale(block: &[u8; BYTES]) -> f16 {
    f16::from_le_bytes([block[208], block[209]])
}

/// Writes the values from `at` on to `to`; both begin and end with a run of 32 values.
///
/// # Panics
/// If they do not, or the blocks hold fewer.
pub fn read(blocks: &[[u8; BYTES]], at: usize, to: &mut [f32]) {
    assert!(at.is_multiple_of(32), "values are read by whole runs of 32");
    let (runs, rest) = to.as_chunks_mut();
    assert!(rest.is_empty(), "values are read by whole runs of 32");
    for (run, to) in (at / 32..).zip(runs) {
        read_run(&blocks[run / 8], run % 8, to);
    }
}

/// The values `32 · run ..` of a block: in each half, four runs share 32 bytes of pairs, and two
/// share 32 bytes of nibbles.
fn read_run(block: &[u8; BYTES], run: usize, to: &mut [f32; 32]) {
    let (half, quarter) = (run / 4, run % 4);
    let low: &[u8; 32] = part(block, half * HALF / 2 + quarter % 2 * 32);
    let high: &[u8; 32] = part(block, 128 + half * 32);
    let d = scale(block).to_f32();
    let scales = [0, 1].map(|part| d * f32::from(block[192 + 2 * run + part] as i8));
    for i in 0..32 {
        let code = low[i] >> (4 * (quarter / 2)) & 15 | (high[i] >> (2 * quarter) & 3) << 4;
        to[i] = scales[i / 16] * f32::from((code as i8).wrapping_sub(32));
    }
}

fn part(block: &[u8; BYTES], at: usize) -> &[u8; 32] {
    block[at..].first_chunk().expect("every run lies within the block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::Seeded;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    #[test]
    fn values_are_those_of_candle() {
        let values = Seeded(5).values(4 * BLOCK);
        let tensor = Tensor::from_slice(&values, values.len(), &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::Q6K).unwrap();
        let expected = tensor.dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
        let bytes = tensor.data().unwrap();
        let (blocks, _) = bytes.as_chunks();
        let mut found = vec![0.0; values.len()];
        read(blocks, 0, &mut found);
        assert_eq!(found, expected);
        let mut run = [0.0; 64];
        read(blocks, 480, &mut run);
        assert_eq!(run, expected[480..544]);
    }
}
