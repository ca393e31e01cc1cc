//! What each weight format rounds a weight to: quantised and dequantised again.

use half::{bf16, f16};

use super::eight_bit::{levels, nearest};
use crate::backend::{HostBlocks, KvFormat, WeightFormat};
use crate::kernels::pool::Pool;

/// The 16 levels of NF4. Dettmers et al. 2023, "QLoRA", appendix E.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
/// The levels of FP4: E2M1, over the largest.
const FP4: [f32; 15] = [
    -1.0,
    -8.0 / 12.0,
    -6.0 / 12.0,
    -4.0 / 12.0,
    -3.0 / 12.0,
    -2.0 / 12.0,
    -0.0625 / 12.0,
    0.0,
    0.0625 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    4.0 / 12.0,
    6.0 / 12.0,
    8.0 / 12.0,
    1.0,
];
const NF4_BLOCK: usize = 64;
const ABSMAX_BLOCK: usize = 256;
const GGUF_BLOCK: usize = 32;

/// Keys or values of all heads, as a cache of this format holds them.
pub(super) fn round_kv(values: &mut [f32], head_dim: usize, format: KvFormat) {
    match format {
        KvFormat::F32 => {}
        KvFormat::Bf16 => values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        KvFormat::Int8 => values.chunks_exact_mut(head_dim).for_each(|head| {
            let scale = head.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
            let round =
                |x: f32| if scale > 0.0 { (x / scale).round_ties_even() * scale } else { 0.0 };
            head.iter_mut().for_each(|x| *x = round(*x));
        }),
    }
}

/// `values (out, in)` as `format` holds them. NF4 and FP4 blocks run over the flattened weight, GGUF's
/// within each row.
pub(super) fn round_trip(values: &[f32], in_features: usize, format: WeightFormat) -> Vec<f32> {
    match format {
        WeightFormat::F32 => values.to_vec(),
        WeightFormat::F16 => values.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        WeightFormat::Bf16 => values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        WeightFormat::Nf4 { double } => four_bit(values, &NF4, double),
        WeightFormat::Fp4 { double } => four_bit(values, &FP4, double),
        WeightFormat::Q8_0 => blockwise(values, in_features, q8_0),
        WeightFormat::Q4_0 => blockwise(values, in_features, q4_0),
        WeightFormat::Q4K => {
            gguf_q4_k(&crate::kernels::q4k::quantize(&Pool::new(1), values.into()))
        }
    }
}

/// The values of a weight that comes in blocks, row-major.
pub(super) fn dequantised(blocks: &HostBlocks<'_>) -> Vec<f32> {
    match blocks {
        HostBlocks::Gguf { format: WeightFormat::Q8_0, bytes } => gguf_q8_0(bytes),
        HostBlocks::Gguf { format: WeightFormat::Q4_0, bytes } => gguf_q4_0(bytes),
        HostBlocks::Gguf { format: WeightFormat::Q4K, bytes } => gguf_q4_k(bytes),
        HostBlocks::Gguf { format, .. } => panic!("GGUF has no blocks of {format:?}"),
        HostBlocks::FourBit(blocks) => {
            (0..2 * blocks.bytes.len()).map(|i| blocks.value(i)).collect()
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `scale · q`.
fn gguf_q8_0(bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.chunks_exact(34);
    blocks.flat_map(|b| b[2..].iter().map(|&q| half_at(b, 0) * f32::from(q as i8))).collect()
}

/// `scale · (q − 8)`; byte `i` holds value `i` low and value `i + 16` high.
fn gguf_q4_0(bytes: &[u8]) -> Vec<f32> {
    let value = |b: &[u8], i: usize| {
        half_at(b, 0) * (f32::from(b[2 + i % 16] >> (4 * (i / 16)) & 15) - 8.0)
    };
    bytes.chunks_exact(18).flat_map(|b| (0..32).map(move |i| value(b, i))).collect()
}

/// `d · scale · q − dmin · min`, eight scales and minima of 6 bits per block of 256.
fn gguf_q4_k(bytes: &[u8]) -> Vec<f32> {
    let six_bits = |b: &[u8], s: usize| match s {
        0..4 => (b[4 + s] & 63, b[8 + s] & 63),
        _ => (b[8 + s] & 15 | b[s] >> 6 << 4, b[8 + s] >> 4 | b[4 + s] >> 6 << 4),
    };
    let value = |b: &[u8], i: usize| {
        let (scale, min) = six_bits(b, i / 32);
        let q = b[16 + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15;
        half_at(b, 0) * f32::from(scale) * f32::from(q) - half_at(b, 2) * f32::from(min)
    };
    bytes.chunks_exact(144).flat_map(|b| (0..256).map(move |i| value(b, i))).collect()
}

/// Bytes `n` weights take in `format`.
pub(super) fn bytes(n: usize, format: WeightFormat) -> usize {
    let blocks = |size: usize| n.div_ceil(size);
    match format {
        WeightFormat::F32 => 4 * n,
        WeightFormat::F16 | WeightFormat::Bf16 => 2 * n,
        WeightFormat::Nf4 { double: false } | WeightFormat::Fp4 { double: false } => {
            n.div_ceil(2) + 4 * blocks(NF4_BLOCK)
        }
        WeightFormat::Nf4 { double: true } | WeightFormat::Fp4 { double: true } => {
            n.div_ceil(2) + blocks(NF4_BLOCK) + 4 * blocks(NF4_BLOCK * ABSMAX_BLOCK) + 4
        }
        WeightFormat::Q8_0 => n + 2 * blocks(GGUF_BLOCK),
        WeightFormat::Q4_0 => n.div_ceil(2) + 2 * blocks(GGUF_BLOCK),
        WeightFormat::Q4K => 144 * blocks(256),
    }
}

fn four_bit(values: &[f32], levels: &[f32], double: bool) -> Vec<f32> {
    let absmax: Vec<f32> = values.chunks(NF4_BLOCK).map(largest).collect();
    let restored = if double { double_quantised(&absmax) } else { absmax.clone() };
    let blocks = values.chunks(NF4_BLOCK).zip(absmax.iter().zip(&restored));
    blocks
        .flat_map(|(block, (&absmax, &restored))| {
            let inverse = 1.0 / absmax.max(1e-38);
            block.iter().map(move |&x| restored * levels[nearest(x * inverse, levels)])
        })
        .collect()
}

/// Absmax itself in 8 bits: less their mean, in blocks of 256, on the signed dynamic map.
/// Dettmers et al. 2023, section 3, "Double Quantization", as bitsandbytes implements it.
fn double_quantised(absmax: &[f32]) -> Vec<f32> {
    let offset =
        (absmax.iter().map(|&x| f64::from(x)).sum::<f64>() / absmax.len().max(1) as f64) as f32;
    let centred: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
    let map = levels(true);
    centred
        .chunks(ABSMAX_BLOCK)
        .flat_map(|block| {
            let scale = largest(block);
            let inverse = 1.0 / scale.max(1e-38);
            let map = &map;
            block.iter().map(move |&x| map[nearest(x * inverse, map)] * scale + offset)
        })
        .collect()
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |max, x| max.max(x.abs()))
}

fn blockwise(values: &[f32], in_features: usize, round: fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
    values
        .chunks(in_features.max(1))
        .flat_map(|row| row.chunks(GGUF_BLOCK))
        .flat_map(round)
        .collect()
}

/// GGUF Q8_0: scale `absmax / 127` in f16, 8-bit integers.
fn q8_0(block: &[f32]) -> Vec<f32> {
    let scale = largest(block) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let held = f16::from_f32(scale).to_f32();
    block.iter().map(|x| (x * inverse).round() * held).collect()
}

/// GGUF Q4_0: scale `extreme / −8` in f16, so that the extreme value itself has a level; 4-bit
/// integers around 8.
fn q4_0(block: &[f32]) -> Vec<f32> {
    let extreme = block.iter().fold(0.0f32, |e, &x| if x.abs() > e.abs() { x } else { e });
    let scale = extreme / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let held = f16::from_f32(scale).to_f32();
    block.iter().map(|x| ((x * inverse + 8.5).floor().clamp(0.0, 15.0) - 8.0) * held).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_each_format_survive_the_round_trip() {
        let nf4_block: Vec<f32> = (0..64).map(|i| 3.0 * NF4[i % 16]).collect();
        assert_eq!(round_trip(&nf4_block, 8, WeightFormat::Nf4 { double: false }), nf4_block);
        let q8: Vec<f32> = (0..32).map(|i| (i as f32 - 127.0) * 0.5).collect();
        assert_eq!(round_trip(&q8, 32, WeightFormat::Q8_0), q8);
        let q4: Vec<f32> = (0..32).map(|i| (i % 16) as f32 - 8.0).collect();
        assert_eq!(round_trip(&q4, 32, WeightFormat::Q4_0), q4);
    }

    #[test]
    fn double_quantisation_keeps_absmax_within_one_percent_of_their_spread() {
        let absmax: Vec<f32> = (0..700).map(|i| 1.0 + (i % 97) as f32 / 97.0).collect();
        for (restored, absmax) in double_quantised(&absmax).iter().zip(&absmax) {
            assert!((restored - absmax).abs() < 0.01);
        }
    }
}
