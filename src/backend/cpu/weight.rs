//! Frozen weights in their formats.

use crate::backend::{HostBlocks, HostWeight, WeightFormat};
use crate::kernels::bf16::PackedBf16;
use crate::kernels::f16::PackedF16;
use crate::kernels::gemm::PackedF32;
use crate::kernels::line::Lines;
use crate::kernels::nf4::{Code, PackedNf4};
use crate::kernels::pool::Pool;
use crate::kernels::q4::PackedQ4;
use crate::kernels::q4k::PackedQ4K;
use crate::kernels::q8::PackedQ8;

/// A frozen weight `(out, in)`, packed once for one row and for many, forward and backward.
#[derive(Debug)]
pub enum CpuWeight {
    F32(PackedF32),
    F16(PackedF16),
    Bf16(PackedBf16),
    Nf4(PackedNf4),
    Q8(PackedQ8),
    Q4(PackedQ4),
    Q4K(PackedQ4K),
}

impl CpuWeight {
    /// Packs a weight, if it is dense into `room` of so many zero lines.
    pub(super) fn pack(
        pool: &Pool,
        weight: HostWeight<'_>,
        format: WeightFormat,
        room: fn(usize) -> Lines,
    ) -> Self {
        let HostWeight { values, out_features: n, in_features: k } = weight;
        assert!(format.fits(n, k), "{format:?} cannot hold a weight ({n}, {k})");
        match format {
            WeightFormat::F32 => Self::F32(PackedF32::pack(pool, values, (n, k), room)),
            WeightFormat::F16 => Self::F16(PackedF16::pack(pool, values, (n, k), room)),
            WeightFormat::Bf16 => Self::Bf16(PackedBf16::pack(pool, values, (n, k), room)),
            WeightFormat::Nf4 { double } => {
                Self::Nf4(PackedNf4::quantize(pool, values, (n, k), Code::Nf4, double))
            }
            WeightFormat::Fp4 { double } => {
                Self::Nf4(PackedNf4::quantize(pool, values, (n, k), Code::Fp4, double))
            }
            WeightFormat::Q8_0 => Self::Q8(PackedQ8::quantize(pool, values, n, k)),
            WeightFormat::Q4_0 => Self::Q4(PackedQ4::quantize(pool, values, n, k)),
            WeightFormat::Q4K => Self::Q4K(PackedQ4K::quantize(pool, values, n, k)),
        }
    }

    pub(super) fn adopt(pool: &Pool, blocks: HostBlocks<'_>, n: usize, k: usize) -> Self {
        match blocks {
            HostBlocks::Gguf { format: WeightFormat::Q8_0, bytes } => {
                Self::Q8(PackedQ8::from_gguf(pool, bytes, n, k))
            }
            HostBlocks::Gguf { format: WeightFormat::Q4_0, bytes } => {
                Self::Q4(PackedQ4::from_gguf(pool, bytes, n, k))
            }
            HostBlocks::Gguf { format: WeightFormat::Q4K, bytes } => {
                Self::Q4K(PackedQ4K::from_gguf(pool, bytes, n, k))
            }
            HostBlocks::Gguf { format, .. } => panic!("GGUF has no blocks of {format:?}"),
            HostBlocks::FourBit(blocks) => Self::Nf4(PackedNf4::pack(pool, blocks, n, k)),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(w) => w.size_bytes(),
            Self::F16(w) => w.size_bytes(),
            Self::Bf16(w) => w.size_bytes(),
            Self::Nf4(w) => w.size_bytes(),
            Self::Q8(w) => w.size_bytes(),
            Self::Q4(w) => w.size_bytes(),
            Self::Q4K(w) => w.size_bytes(),
        }
    }

    /// Whether both are of one format.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// `(out, in)`.
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Self::F32(w) => (w.n(), w.k()),
            Self::F16(w) => (w.n(), w.k()),
            Self::Bf16(w) => (w.n(), w.k()),
            Self::Nf4(w) => (w.n(), w.k()),
            Self::Q8(w) => (w.n(), w.k()),
            Self::Q4(w) => (w.n(), w.k()),
            Self::Q4K(w) => (w.n(), w.k()),
        }
    }

    /// Row `row`, dequantised.
    pub(super) fn row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.shape().0, "the table has {} rows, not row {row}", self.shape().0);
        let columns = to.iter_mut().enumerate();
        match self {
            Self::F32(w) => w.row(row, to),
            Self::F16(w) => columns.for_each(|(c, to)| *to = w.weight(row, c)),
            Self::Bf16(w) => columns.for_each(|(c, to)| *to = w.weight(row, c)),
            Self::Nf4(w) => columns.for_each(|(c, to)| *to = w.weight(row, c)),
            Self::Q8(w) => columns.for_each(|(c, to)| *to = w.weight(row, c)),
            Self::Q4(w) => columns.for_each(|(c, to)| *to = w.weight(row, c)),
            Self::Q4K(w) => columns.for_each(|(c, to)| *to = w.weight(row, c)),
        }
    }
}
