//! Which instruction sets this machine has, asked once.

use std::sync::OnceLock;

/// The instruction sets a door may use. Each field stands for everything its kernels need.
///
/// The fields are private to the crate: a `Cpu` that claims a feature proves it was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// AVX2, FMA and F16C: eight lanes, and integer products without VNNI.
    pub(crate) avx2: bool,
    /// AVX-512 F: sixteen lanes.
    pub(crate) avx512: bool,
    /// AVX-512 F, BW, VL and VNNI: integer products (`vpdpbusd`).
    pub(crate) vnni: bool,
    /// AVX-512 F, BW, VL and BF16: bf16 and NF4 products (`vdpbf16ps`).
    pub(crate) bf16: bool,
    /// AMX tiles for bf16 and int8, granted by the system, and all of the above.
    pub(crate) amx: bool,
}

impl Cpu {
    /// The plain twin of every kernel.
    pub const SCALAR: Self =
        Self { avx2: false, avx512: false, vnni: false, bf16: false, amx: false };

    /// AVX2 kernels where they exist, scalar elsewhere; only valid where AVX2 and FMA exist.
    ///
    /// Returns `None` on a machine without them.
    pub fn avx2_only() -> Option<Self> {
        Self::detect().avx2.then_some(Self { avx2: true, ..Self::SCALAR })
    }

    /// What this machine offers but its matrix tiles.
    pub fn without_tiles() -> Self {
        Self { amx: false, ..Self::detect() }
    }

    /// The instruction sets by their usual names.
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            ("avx2", self.avx2),
            ("avx512f", self.avx512),
            ("avx512vnni", self.vnni),
            ("avx512bf16", self.bf16),
            ("amx", self.amx),
        ];
        all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
    }

    /// Whether products of bf16 values exist.
    pub(crate) fn has_bf16(self) -> bool {
        self.bf16
    }

    /// Whether there are kernels for adapters in bf16.
    pub(crate) fn has_low_rank(self) -> bool {
        self.bf16 || self.avx2
    }

    /// What this machine offers.
    pub fn detect() -> Self {
        static CPU: OnceLock<Cpu> = OnceLock::new();
        *CPU.get_or_init(Self::ask)
    }

    #[cfg(target_arch = "x86_64")]
    fn ask() -> Self {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
        Self {
            avx2: is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c"),
            avx512,
            vnni,
            bf16,
            amx: vnni && bf16 && super::amx::granted(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn ask() -> Self {
        Self::SCALAR
    }
}
