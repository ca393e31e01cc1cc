//! Sixteen lanes in one register.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{LANES, Simd};
use crate::kernels::cpu::Cpu;

/// AVX-512 F was detected.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The token, if `cpu` may use these instructions.
    #[inline(always)]
    pub fn detected(cpu: Cpu) -> Option<Self> {
        cpu.avx512.then_some(Self(()))
    }
}

impl Avx512 {
    /// A quarter of a transpose: exchanges one bit of the row number with the same bit of the lane.
    #[inline(always)]
    fn exchange<const BIT: usize>(self, v: &mut [__m512; LANES]) {
        let [clear, set] = &EXCHANGE[BIT];
        for i in 0..LANES / 2 {
            let a = (i >> BIT << (BIT + 1)) | (i & ((1 << BIT) - 1));
            let (x, y) = (v[a], v[a | 1 << BIT]);
            // SAFETY: see below; each selector is 64 readable bytes.
            unsafe {
                let clear = _mm512_loadu_si512(clear.as_ptr().cast());
                let set = _mm512_loadu_si512(set.as_ptr().cast());
                v[a] = _mm512_permutex2var_ps(x, clear, y);
                v[a | 1 << BIT] = _mm512_permutex2var_ps(x, set, y);
            }
        }
    }
}

// SAFETY of every block below: the token says that AVX-512 F was detected.
impl Simd for Avx512 {
    type V = __m512;
    type Mask = __mmask16;
    const TILE_ROWS: usize = 12;
    const TILE_VECTORS: usize = 2;
    const FREE_MASKS: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn mask(self, lanes: usize) -> __mmask16 {
        ((1u32 << lanes) - 1) as __mmask16
    }
    #[inline(always)]
    unsafe fn load_masked(self, x: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: see above; lanes outside the mask are not accessed.
        unsafe { _mm512_maskz_loadu_ps(mask, x) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, y: *mut f32, v: __m512, mask: __mmask16) {
        // SAFETY: see above; lanes outside the mask are not accessed.
        unsafe { _mm512_mask_storeu_ps(y, mask, v) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: see above; `x` is 64 readable bytes.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, y: &mut [f32; LANES], v: __m512) {
        // SAFETY: see above; `y` is 64 writable bytes.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> __m512 {
        // SAFETY: see above; `x` is 32 readable bytes.
        unsafe {
            let halves = _mm256_loadu_si256(x.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> __m512 {
        // SAFETY: see above; `x` is 16 readable bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(a) }
    }
    #[inline(always)]
    fn pow2(self, a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }

    #[inline(always)]
    fn transpose(self, v: &mut [__m512; LANES]) {
        self.exchange::<0>(v);
        self.exchange::<1>(v);
        self.exchange::<2>(v);
        self.exchange::<3>(v);
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }
}

/// Per bit, the selectors of the row with the bit clear and of the one with it set.
static EXCHANGE: [[[u32; LANES]; 2]; 4] = [
    [selector(0, false), selector(0, true)],
    [selector(1, false), selector(1, true)],
    [selector(2, false), selector(2, true)],
    [selector(3, false), selector(3, true)],
];

/// Lane `l` of the new row comes from the row that `l`'s bit names (16 adds the second row), at
/// the lane whose bit is the new row's own.
const fn selector(bit: u32, row_bit: bool) -> [u32; LANES] {
    let (mut lanes, mut l) = ([0; LANES], 0);
    while l < LANES as u32 {
        lanes[l as usize] = (l & !(1 << bit)) | (row_bit as u32) << bit | (l >> bit & 1) << 4;
        l += 1;
    }
    lanes
}
