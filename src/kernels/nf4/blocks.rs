//! A tensor in 4 bits exactly as bitsandbytes stores it: flat, before it is packed for a product.

use super::Absmax;
use super::quantize::{Ladder, quantize_block};
use crate::kernels::cpu::Cpu;
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;

/// What the sixteen codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Quantiles of a normal distribution scaled to −1..1. Dettmers et al. 2023, appendix E.
    Nf4,
    /// A sign, two bits of exponent and one of mantissa (E2M1), scaled to −1..1.
    Fp4,
}

#[allow(clippy::excessive_precision)] // as bitsandbytes prints them; each is an exact f32
const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// By bit pattern, over the largest.
const FP4: [f32; 16] = {
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let (mut levels, mut i) = ([0f32; 16], 0);
    while i < 8 {
        levels[i] = twelfths[i] / 12.0f32;
        levels[i + 8] = -levels[i];
        i += 1;
    }
    levels
};

/// FP4's codes by ascending level; plus zero stands before minus zero, as in bitsandbytes.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

impl Code {
    /// The level of each code.
    pub const fn levels(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// A code whose level is zero.
    pub const fn zero(self) -> u8 {
        match self {
            Self::Nf4 => 7,
            Self::Fp4 => 0,
        }
    }

    /// The codes by ascending level.
    pub(super) fn order(self) -> [u8; 16] {
        match self {
            Self::Nf4 => std::array::from_fn(|i| i as u8),
            Self::Fp4 => FP4_ORDER,
        }
    }
}

/// Codes and absmax of a tensor.
#[derive(Clone, Debug)]
pub struct Blocks {
    pub code: Code,
    /// Consecutive values, in row-major order, that share one absmax.
    pub block: usize,
    /// Two codes per byte, the first in the *high* nibble.
    pub bytes: Vec<u8>,
    pub absmax: Absmax,
    /// Products take values and rows in `f32`: they are not rounded to bf16 first.
    pub exact: bool,
}

impl Blocks {
    /// Quantises `values`, row-major, on the threads of `pool`: the nearest code, the lower one of two
    /// that are equally near. The last block may be shorter. `double` quantises absmax once more.
    pub fn quantize(
        pool: &Pool,
        values: Values<'_>,
        code: Code,
        block: usize,
        double: bool,
    ) -> Self {
        let (cpu, ladder) = (Cpu::detect(), Ladder::of(code));
        let mut bytes = vec![0; values.len().div_ceil(2)];
        let mut absmax = vec![0.0; values.len().div_ceil(block)];
        let (blocks, half) = (absmax.len(), block / 2);
        let out = (PerItem::new(&mut bytes, half), PerItem::new(&mut absmax, 1));
        split(pool, blocks, block, out, |items, (bytes, absmax)| {
            let mut scratch = vec![0.0; block];
            for ((index, bytes), absmax) in items.zip(bytes.chunks_mut(half)).zip(absmax) {
                let at = index * block;
                let x = &mut scratch[..block.min(values.len() - at)];
                values.read(at, x);
                *absmax = quantize_block(cpu, x, &ladder, bytes);
            }
        });
        let absmax = Absmax::F32(absmax);
        let absmax = if double { absmax.double_quantize(pool) } else { absmax };
        Self { code, block, bytes, absmax, exact: false }
    }

    /// The code of value `i`.
    pub fn code_at(&self, i: usize) -> u8 {
        self.bytes[i / 2] >> (4 - 4 * (i % 2)) & 15
    }

    /// Value `i`.
    pub fn value(&self, i: usize) -> f32 {
        self.code.levels()[usize::from(self.code_at(i))] * self.absmax.get(i / self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_meet_at_the_thresholds_of_bitsandbytes() {
        // From kernels.cu; a value must exceed the threshold to move up.
        let pool = &Pool::new(1);
        let code = |x: f32, code| {
            Blocks::quantize(pool, Values::F32(&[1.0, x]), code, 64, false).code_at(1)
        };
        for (low, threshold) in [(0, -0.848_096_4), (6, -0.045_525_018), (7, 0.039_790_15)] {
            assert_eq!(code(threshold - 1e-6, Code::Nf4), low);
            assert_eq!(code(threshold + 1e-6, Code::Nf4), low + 1);
        }
        for (low, high, threshold) in [(1, 6, 0.085_937_5), (4, 5, 0.416_666_7)] {
            assert_eq!(code(threshold - 1e-6, Code::Fp4), low);
            assert_eq!(code(threshold + 1e-6, Code::Fp4), high);
        }
    }
}
