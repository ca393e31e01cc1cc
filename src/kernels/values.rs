//! Numbers of a weight on their way to be packed, as whoever brings them has them.
//!
//! What is packed reads a few values at a time, into registers or onto the stack, so that a weight
//! of a billion values is never written out in `f32` only to be read once.

use half::{bf16, f16};

use super::pool::Pool;
use super::q6k;
use super::split::{PerItem, split};

/// Values per piece that a thread widens or looks through at a time.
const PIECE: usize = 1 << 15;

/// Values in row-major order, little-endian where they are bytes.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    F32(&'a [f32]),
    F32Bytes(&'a [[u8; 4]]),
    F16(&'a [[u8; 2]]),
    Bf16(&'a [[u8; 2]]),
    /// Blocks of 256.
    Q6K(&'a [[u8; q6k::BYTES]]),
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a Vec<f32>> for Values<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl Values<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F32Bytes(values) => values.len(),
            Self::F16(values) | Self::Bf16(values) => values.len(),
            Self::Q6K(blocks) => blocks.len() * q6k::BLOCK,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the values from `at` on to `to`.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline]
    pub fn read(&self, at: usize, to: &mut [f32]) {
        let of = at..at + to.len();
        match self {
            Self::F32(values) => to.copy_from_slice(&values[of]),
            Self::F32Bytes(values) => each(&values[of], to, f32::from_le_bytes),
            Self::F16(values) => each(&values[of], to, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16(values) => each(&values[of], to, |b| bf16::from_le_bytes(b).to_f32()),
            Self::Q6K(blocks) => q6k::read(blocks, at, to),
        }
    }

    /// The `N` values from `at` on.
    #[inline]
    pub fn block<const N: usize>(&self, at: usize) -> [f32; N] {
        let mut to = [0.0; N];
        self.read(at, &mut to);
        to
    }

    /// All of them, widened on the threads of `pool`.
    pub fn to_vec(&self, pool: &Pool) -> Vec<f32> {
        let mut to = vec![0.0; self.len()];
        let pieces = to.len().div_ceil(PIECE);
        split(pool, pieces, PIECE, PerItem::new(&mut to, PIECE), |pieces, to| {
            self.read(pieces.start * PIECE, to);
        });
        to
    }

    /// Whether every value is a number, and none infinite.
    pub fn are_finite(&self, pool: &Pool) -> bool {
        match self {
            Self::F32(values) => all(pool, values, |x| x.to_bits() & EXPONENT == EXPONENT),
            Self::F32Bytes(values) => {
                all(pool, values, |x| u32::from_le_bytes(*x) & EXPONENT == EXPONENT)
            }
            Self::F16(values) => all(pool, values, |x| u16::from_le_bytes(*x) & 0x7c00 == 0x7c00),
            Self::Bf16(values) => all(pool, values, |x| u16::from_le_bytes(*x) & 0x7f80 == 0x7f80),
            Self::Q6K(blocks) => all(pool, blocks, |block| !q6k::scale(block).is_finite()),
        }
    }
}

/// The bits that are all set in what is not finite.
const EXPONENT: u32 = 0x7f80_0000;

#[inline(always)]
fn each<const N: usize>(from: &[[u8; N]], to: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    from.iter().zip(to).for_each(|(from, to)| *to = read(*from));
}

/// Whether no value of any piece is `bad`. Looks on within a piece, which takes no branch.
pub(crate) fn all<T: Sync>(pool: &Pool, values: &[T], bad: impl Fn(&T) -> bool + Sync) -> bool {
    let mut found = vec![false; values.len().div_ceil(PIECE)];
    let pieces = found.len();
    split(pool, pieces, PIECE, PerItem::new(&mut found, 1), |pieces, found| {
        for (piece, found) in pieces.zip(found) {
            let values = &values[piece * PIECE..values.len().min((piece + 1) * PIECE)];
            *found = values.iter().fold(false, |any, value| any | bad(value));
        }
    });
    !found.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_from_anywhere() {
        let numbers: Vec<f32> = (0..PIECE + 700).map(|i| (i % 251) as f32 - 125.0).collect();
        let four: Vec<[u8; 4]> = numbers.iter().map(|x| x.to_le_bytes()).collect();
        let halves: Vec<_> = numbers.iter().map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let wide: Vec<_> = numbers.iter().map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let pool = Pool::new(2);
        for values in [
            Values::from(&numbers),
            Values::F32Bytes(&four),
            Values::F16(&halves),
            Values::Bf16(&wide),
        ] {
            assert_eq!(values.to_vec(&pool), numbers);
            assert_eq!(values.block::<5>(700), numbers[700..705]);
            assert!(values.are_finite(&pool));
        }
    }

    #[test]
    fn one_value_that_is_no_number_is_found() {
        let pool = Pool::new(2);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, PIECE, PIECE + 699] {
                let mut numbers = vec![1.0; PIECE + 700];
                numbers[at] = bad;
                let four: Vec<[u8; 4]> = numbers.iter().map(|x| x.to_le_bytes()).collect();
                let halves: Vec<_> =
                    numbers.iter().map(|&x| f16::from_f32(x).to_le_bytes()).collect();
                let wide: Vec<_> =
                    numbers.iter().map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
                assert!(!Values::from(&numbers).are_finite(&pool));
                assert!(!Values::F32Bytes(&four).are_finite(&pool));
                assert!(!Values::F16(&halves).are_finite(&pool));
                assert!(!Values::Bf16(&wide).are_finite(&pool));
            }
        }
    }
}
