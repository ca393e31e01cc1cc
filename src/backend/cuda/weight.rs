//! Frozen weights as `weight.cu` reads them.

use half::{bf16, f16};

use super::CudaBackend;
use super::machine::Address;
use super::memory::{CudaRows, Memory};
use super::source::Layout;
use crate::backend::{
    Absmax, Backend, FourBitBlocks, FourBitCode, HostBlocks, HostWeight, WeightFormat,
};
use crate::kernels::{q4, q4k, q8};

/// A frozen weight `(out, in)` on the device.
#[derive(Debug)]
pub struct CudaWeight {
    pub(super) layout: Layout,
    pub(super) n: usize,
    pub(super) k: usize,
    codes: Memory,
    scales: Option<Memory>,
    second: Option<Memory>,
    levels: Option<Memory>,
    /// Values per absmax.
    block: usize,
    offset: f32,
    /// Products take its values in `f32`.
    pub(super) exact: bool,
    pub(super) bytes: usize,
}

/// A weight as the kernels see it: the members of `Weight`.
pub(super) type WeightArgs = [u64; 8];

impl CudaWeight {
    pub(super) fn args(&self) -> WeightArgs {
        let at = |memory: &Option<Memory>| memory.as_ref().map_or(0, |memory| memory.at);
        let (scales, second, levels) = (at(&self.scales), at(&self.second), at(&self.levels));
        let offset = f64::from(self.offset).to_bits();
        let (n, k, block) = (self.n as u64, self.k as u64, self.block as u64);
        [self.codes.at, scales, second, levels, n, k, block, offset]
    }
}

/// Rows of a matrix in the place of a frozen weight in `f32`.
pub(super) fn dense(at: Address, n: usize, k: usize) -> WeightArgs {
    [at, 0, 0, 0, n as u64, k as u64, 1, 0]
}

/// A matrix in the place of a frozen weight.
pub(super) fn matrix(x: &CudaRows) -> WeightArgs {
    dense(x.at(), x.rows, x.width)
}

/// The parts of a weight on their way to the device.
struct Parts {
    layout: Layout,
    codes: Vec<u8>,
    scales: Vec<u8>,
    second: Vec<f32>,
    levels: Vec<f32>,
    block: usize,
    offset: f32,
}

impl Parts {
    fn plain(layout: Layout, codes: Vec<u8>, scales: Vec<u8>) -> Self {
        let (second, levels) = (Vec::new(), Vec::new());
        Self { layout, codes, scales, second, levels, block: 1, offset: 0.0 }
    }
}

impl CudaBackend {
    pub(super) fn packed(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> CudaWeight {
        let HostWeight { values: from, out_features: n, in_features: k } = weight;
        assert!(format.fits(n, k), "{format:?} cannot hold a weight ({n}, {k})");
        assert_eq!(from.len(), n * k, "a weight holds out times in values");
        let threads = self.host_threads();
        let four_bit = |code, double| FourBitBlocks::quantize(&threads, from, code, 64, double);
        let values = &match format {
            WeightFormat::Nf4 { .. } | WeightFormat::Fp4 { .. } | WeightFormat::Q4K => Vec::new(),
            _ => from.to_vec(&threads),
        };
        let parts = match format {
            WeightFormat::F32 => {
                Parts::plain(Layout::F32, bytemuck::cast_slice(values).to_vec(), Vec::new())
            }
            WeightFormat::F16 => halves(Layout::F16, values, |x| f16::from_f32(x).to_bits()),
            WeightFormat::Bf16 => halves(Layout::Bf16, values, |x| bf16::from_f32(x).to_bits()),
            WeightFormat::Nf4 { double } => from_four_bit(&four_bit(FourBitCode::Nf4, double)),
            WeightFormat::Fp4 { double } => from_four_bit(&four_bit(FourBitCode::Fp4, double)),
            WeightFormat::Q8_0 => from_gguf(format, &q8::quantize(values)),
            WeightFormat::Q4_0 => from_gguf(format, &q4::quantize(values)),
            WeightFormat::Q4K => from_gguf(format, &q4k::quantize(&threads, from)),
        };
        self.place(parts, n, k)
    }

    pub(super) fn adopted(&mut self, blocks: &HostBlocks<'_>, n: usize, k: usize) -> CudaWeight {
        let format = blocks.format();
        assert!(format.fits(n, k), "{format:?} cannot hold a weight ({n}, {k})");
        let parts = match blocks {
            HostBlocks::Gguf { format, bytes } => from_gguf(*format, bytes),
            HostBlocks::FourBit(blocks) => from_four_bit(blocks),
        };
        let exact = matches!(blocks, HostBlocks::FourBit(blocks) if blocks.exact);
        CudaWeight { exact, ..self.place(parts, n, k) }
    }

    fn place(&mut self, parts: Parts, n: usize, k: usize) -> CudaWeight {
        let Parts { layout, codes, scales, second, levels, block, offset } = parts;
        let second: &[u8] = bytemuck::cast_slice(&second);
        let levels: &[u8] = bytemuck::cast_slice(&levels);
        let bytes = codes.len() + scales.len() + second.len() + levels.len();
        let some = |bytes: &[u8]| (!bytes.is_empty()).then(|| self.memory_with(bytes));
        let (scales, second, levels) = (some(&scales), some(second), some(levels));
        let codes = self.memory_with(&codes);
        let exact = false;
        CudaWeight { layout, n, k, codes, scales, second, levels, block, offset, exact, bytes }
    }
}

fn halves(layout: Layout, values: &[f32], round: impl Fn(f32) -> u16) -> Parts {
    let codes = values.iter().flat_map(|&x| round(x).to_le_bytes());
    Parts::plain(layout, codes.collect(), Vec::new())
}

/// bitsandbytes has the first code of a byte high, the kernels have it low.
fn from_four_bit(blocks: &FourBitBlocks) -> Parts {
    let mut levels = blocks.code.levels().to_vec();
    let codes = blocks.bytes.iter().map(|byte| byte.rotate_left(4)).collect();
    let (layout, scales, second, offset) = match &blocks.absmax {
        Absmax::F32(absmax) => {
            (Layout::FourBit, bytemuck::cast_slice(absmax).to_vec(), Vec::new(), 0.0)
        }
        Absmax::Double { codes, map, second, offset } => {
            levels.extend_from_slice(&map[..]);
            (Layout::FourBitDouble, codes.clone(), second.clone(), *offset)
        }
    };
    Parts { layout, codes, scales, second, levels, block: blocks.block, offset }
}

/// GGUF's blocks, taken apart into codes in order and what scales them.
fn from_gguf(format: WeightFormat, bytes: &[u8]) -> Parts {
    let (size, head) = match format {
        WeightFormat::Q8_0 => (34, 2),
        WeightFormat::Q4_0 => (18, 2),
        WeightFormat::Q4K => (144, 16),
        _ => panic!("GGUF has no blocks of {format:?}"),
    };
    let mut codes = Vec::with_capacity(bytes.len());
    let mut scales = Vec::with_capacity(bytes.len() / size * head);
    for block in bytes.chunks_exact(size) {
        let (first, rest) = block.split_at(head);
        scales.extend_from_slice(first);
        match format {
            WeightFormat::Q8_0 => codes.extend_from_slice(rest),
            // A run of bytes holds its values first low, then high.
            WeightFormat::Q4_0 => in_order(rest, &mut codes),
            _ => rest.chunks_exact(32).for_each(|run| in_order(run, &mut codes)),
        }
    }
    Parts::plain(Layout::of(format), codes, scales)
}

/// The low nibbles of a run of bytes, then the high ones, two to a byte.
fn in_order(run: &[u8], codes: &mut Vec<u8>) {
    codes.extend(run.chunks_exact(2).map(|two| two[0] & 15 | two[1] << 4));
    codes.extend(run.chunks_exact(2).map(|two| two[0] >> 4 | two[1] & 0xf0));
}
