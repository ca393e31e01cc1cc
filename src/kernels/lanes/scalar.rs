//! Sixteen lanes as an array: the specification of the other two.
#![allow(unsafe_code)]

use super::{LANES, Simd};

/// No instructions beyond the baseline.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type V = [f32; LANES];
    type Mask = usize;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;
    const FREE_MASKS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn mask(self, lanes: usize) -> usize {
        lanes
    }
    #[inline(always)]
    unsafe fn load_masked(self, x: *const f32, mask: usize) -> Self::V {
        let mut lanes = [0.0; LANES];
        // SAFETY: `mask` values are readable by the caller's promise, and fit in the array.
        lanes[..mask].copy_from_slice(unsafe { std::slice::from_raw_parts(x, mask) });
        lanes
    }
    #[inline(always)]
    unsafe fn store_masked(self, y: *mut f32, v: Self::V, mask: usize) {
        // SAFETY: `mask` values are writable by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(y, mask) }.copy_from_slice(&v[..mask]);
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn store(self, y: &mut [f32; LANES], v: Self::V) {
        *y = v;
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::V {
        x.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::V {
        x.map(f32::from)
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        a.map(|a| f32::from_bits(((a as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn transpose(self, v: &mut [Self::V; LANES]) {
        let rows = *v;
        *v = std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]));
    }
}
