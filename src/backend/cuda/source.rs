//! The kernel files, and the forms in which each is compiled.

use crate::backend::{KvFormat, WeightFormat};

/// The first architecture whose tensor cores multiply bf16.
pub const TENSOR_CORES: u32 = 80;

const PRELUDE: &str = include_str!("kernels/prelude.cu");
const WEIGHT: &str = include_str!("kernels/weight.cu");
const ATTEND: &str = include_str!("kernels/attend.cu");

/// A file of kernels in one of its forms; the unit of compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    /// Products with a weight that lies so.
    Product(Layout),
    /// Products on tensor cores, in bf16, with a weight that lies so.
    Tensor(Layout),
    /// Attention over keys and values that lie so, and their cache.
    Attention(KvFormat),
    AttentionBackward,
    Gradient,
    Heads,
    Loss,
    LowRank,
    Mlp,
    Norm,
    Rows,
}

/// How a frozen weight lies in memory: `FORMAT` in `weight.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Layout {
    F32,
    F16,
    Bf16,
    FourBit,
    FourBitDouble,
    Q8_0,
    Q4_0,
    Q4K,
}

impl Layout {
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::FourBit,
        Self::FourBitDouble,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4K,
    ];

    /// Whether products are formed in bf16 where there are tensor cores: not where a weight is held
    /// more exactly than that.
    pub fn computes_in_bf16(self) -> bool {
        !matches!(self, Self::F32 | Self::F16)
    }

    /// Of a format; NF4 and FP4 differ in their levels alone.
    pub fn of(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => Self::F32,
            WeightFormat::F16 => Self::F16,
            WeightFormat::Bf16 => Self::Bf16,
            WeightFormat::Nf4 { double: false } | WeightFormat::Fp4 { double: false } => {
                Self::FourBit
            }
            WeightFormat::Nf4 { double: true } | WeightFormat::Fp4 { double: true } => {
                Self::FourBitDouble
            }
            WeightFormat::Q8_0 => Self::Q8_0,
            WeightFormat::Q4_0 => Self::Q4_0,
            WeightFormat::Q4K => Self::Q4K,
        }
    }
}

impl Module {
    /// Every form of every file that a GPU of this architecture runs; 75 is sm_75.
    pub fn all(architecture: u32) -> Vec<Self> {
        let kv_formats = [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8];
        let single = [
            Self::AttentionBackward,
            Self::Gradient,
            Self::Heads,
            Self::Loss,
            Self::LowRank,
            Self::Mlp,
            Self::Norm,
            Self::Rows,
        ];
        let rounded = Layout::ALL.into_iter().filter(|layout| layout.computes_in_bf16());
        let tensor = rounded.filter(|_| architecture >= TENSOR_CORES).map(Self::Tensor);
        let products = Layout::ALL.map(Self::Product).into_iter().chain(tensor);
        products.chain(kv_formats.map(Self::Attention)).chain(single).collect()
    }

    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Product(_) => "product",
            Self::Tensor(_) => "tensor",
            Self::Attention(_) => "attention",
            Self::AttentionBackward => "attention_backward",
            Self::Gradient => "gradient",
            Self::Heads => "heads",
            Self::Loss => "loss",
            Self::LowRank => "low_rank",
            Self::Mlp => "mlp",
            Self::Norm => "norm",
            Self::Rows => "rows",
        }
    }

    /// The text to be compiled: C without includes.
    pub fn text(self) -> String {
        let choice = match self {
            Self::Product(layout) | Self::Tensor(layout) => {
                format!("#define FORMAT {}\n", layout as u8)
            }
            Self::Attention(format) => format!("#define KV {}\n", kv_number(format)),
            _ => String::new(),
        };
        let (shared, own) = match self {
            Self::Product(_) => (WEIGHT, include_str!("kernels/product.cu")),
            Self::Tensor(_) => (WEIGHT, include_str!("kernels/tensor.cu")),
            Self::Attention(_) => (ATTEND, include_str!("kernels/attention.cu")),
            Self::AttentionBackward => (ATTEND, include_str!("kernels/attention_backward.cu")),
            Self::Gradient => ("", include_str!("kernels/gradient.cu")),
            Self::Heads => ("", include_str!("kernels/heads.cu")),
            Self::Loss => ("", include_str!("kernels/loss.cu")),
            Self::LowRank => ("", include_str!("kernels/low_rank.cu")),
            Self::Mlp => ("", include_str!("kernels/mlp.cu")),
            Self::Norm => ("", include_str!("kernels/norm.cu")),
            Self::Rows => ("", include_str!("kernels/rows.cu")),
        };
        [PRELUDE, &choice, shared, own].concat()
    }
}

/// `KV` in `attention.cu`.
fn kv_number(format: KvFormat) -> u8 {
    match format {
        KvFormat::F32 => 0,
        KvFormat::Bf16 => 1,
        KvFormat::Int8 => 2,
    }
}
