//! Sixteen lanes in two registers of eight.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{LANES, Simd};
use crate::kernels::cpu::Cpu;

/// AVX2 and FMA were detected.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, if `cpu` may use these instructions.
    #[inline(always)]
    pub fn detected(cpu: Cpu) -> Option<Self> {
        cpu.avx2.then_some(Self(()))
    }

    /// Exchanges rows and columns of 8 × 8 values: of two, of four, of both halves.
    #[inline(always)]
    fn turn_quarter(self, r: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: the token says that AVX2 was detected.
        unsafe {
            let mut pairs = r;
            for i in [0, 2, 4, 6] {
                pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
            }
            let mut fours = r;
            for i in [0, 4] {
                fours[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
                fours[i + 1] = _mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
                fours[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
                fours[i + 3] = _mm256_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
            }
            let mut turned = r;
            for i in 0..4 {
                turned[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
                turned[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
            }
            turned
        }
    }
}

type Pair = [__m256; 2];

// SAFETY of every block below: the token says that AVX2 and FMA were detected.
impl Simd for Avx2 {
    type V = Pair;
    type Mask = [__m256i; 2];
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;
    const FREE_MASKS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn mask(self, lanes: usize) -> Self::Mask {
        // SAFETY: see above.
        unsafe {
            let (count, low) =
                (_mm256_set1_epi32(lanes as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
            [_mm256_cmpgt_epi32(count, low), _mm256_cmpgt_epi32(count, high)]
        }
    }
    #[inline(always)]
    unsafe fn load_masked(self, x: *const f32, mask: Self::Mask) -> Pair {
        // SAFETY: see above; lanes outside the mask are not accessed.
        unsafe { [_mm256_maskload_ps(x, mask[0]), _mm256_maskload_ps(x.wrapping_add(8), mask[1])] }
    }
    #[inline(always)]
    unsafe fn store_masked(self, y: *mut f32, v: Pair, mask: Self::Mask) {
        // SAFETY: see above; lanes outside the mask are not accessed.
        unsafe {
            _mm256_maskstore_ps(y, mask[0], v[0]);
            _mm256_maskstore_ps(y.wrapping_add(8), mask[1], v[1]);
        }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Pair {
        // SAFETY: see above; `x` is 64 readable bytes.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, y: &mut [f32; LANES], v: Pair) {
        // SAFETY: see above; `y` is 64 writable bytes.
        unsafe {
            _mm256_storeu_ps(y.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(y.as_mut_ptr().add(8), v[1]);
        }
    }
    /// Masked loads and stores are slow, stores above all: sixteen values go without.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Pair {
        match x.first_chunk() {
            Some(whole) => self.load(whole),
            // SAFETY: the mask covers `x.len()` lanes.
            None => unsafe { self.load_masked(x.as_ptr(), self.mask(x.len())) },
        }
    }
    #[inline(always)]
    fn store_part(self, y: &mut [f32], v: Pair) {
        match y.first_chunk_mut() {
            Some(whole) => self.store(whole, v),
            // SAFETY: the mask covers `y.len()` lanes.
            None => unsafe { self.store_masked(y.as_mut_ptr(), v, self.mask(y.len())) },
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Pair {
        // SAFETY: see above; `x` is 32 readable bytes.
        unsafe {
            let widened = |at: usize| {
                let halves = _mm_loadu_si128(x.as_ptr().add(at).cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            };
            [widened(0), widened(8)]
        }
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Pair {
        // SAFETY: see above; `x` is 16 readable bytes, and each half reads eight of them.
        unsafe {
            let widened = |at: usize| {
                let bytes = _mm_loadl_epi64(x.as_ptr().add(at).cast());
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
            };
            [widened(0), widened(8)]
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn abs(self, a: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }
    #[inline(always)]
    fn sqrt(self, a: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }
    #[inline(always)]
    fn round(self, a: Pair) -> Pair {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see above.
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }
    #[inline(always)]
    fn pow2(self, a: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(a[0]), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(a[1]), bias);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            ]
        }
    }
    #[inline(always)]
    fn select_lt(self, a: Pair, b: Pair, x: Pair, y: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            let less =
                [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])];
            [_mm256_blendv_ps(y[0], x[0], less[0]), _mm256_blendv_ps(y[1], x[1], less[1])]
        }
    }
    /// Quarter by quarter: sixteen registers cannot hold 16 × 16 values.
    #[inline(always)]
    fn transpose(self, v: &mut [Pair; LANES]) {
        let whole = *v;
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut quarter = [whole[0][0]; 8];
            for i in 0..8 {
                quarter[i] = whole[8 * row + i][column];
            }
            let turned = self.turn_quarter(quarter);
            for i in 0..8 {
                v[8 * column + i][row] = turned[i];
            }
        }
    }
    #[inline(always)]
    fn largest(self, v: Pair) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn sum(self, v: Pair) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_add_ps(v[0], v[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
