//! The few loads and stores every AVX-512 kernel needs, as safe functions over slices.
//!
//! Kernels are safe functions marked `#[target_feature]`: inside them arithmetic intrinsics need
//! no `unsafe`, so only these helpers and the calls that enter a kernel carry it.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ptr;

use crate::kernels::line::Line;

/// The sixteen words of `line`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load_line(line: &Line) -> __m512i {
    // SAFETY: a `Line` is 64 readable bytes aligned to 64.
    unsafe { _mm512_load_si512(ptr::from_ref(line).cast()) }
}

/// Writes `words` to `line`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn store_line(line: &mut Line, words: __m512i) {
    // SAFETY: a `Line` is 64 writable bytes aligned to 64.
    unsafe { _mm512_store_si512(ptr::from_mut(line).cast(), words) }
}

/// The sixteen words of `line` as `f32`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load_line_ps(line: &Line) -> __m512 {
    _mm512_castsi512_ps(load_line(line))
}

/// Up to sixteen values from the front of `source`; missing ones read as zero.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load_ps(source: &[f32]) -> __m512 {
    // SAFETY: masked-out lanes are not accessed, and the mask covers at most `source.len()` lanes.
    unsafe { _mm512_maskz_loadu_ps(mask(source.len()), source.as_ptr()) }
}

/// Writes the first `target.len()` lanes of `values`, at most sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn store_ps(target: &mut [f32], values: __m512) {
    // SAFETY: masked-out lanes are not accessed, and the mask covers at most `target.len()` lanes.
    unsafe { _mm512_mask_storeu_ps(target.as_mut_ptr(), mask(target.len()), values) }
}

/// [`store_ps`] past the caches where a whole line is written. A store that misses them waits for its
/// line, and stores behind it wait too; [`stored`] must follow before another thread reads.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn stream_ps(target: &mut [f32], values: __m512) {
    let whole = target.len() >= 16 && target.as_ptr().cast::<Line>().is_aligned();
    if !whole {
        return store_ps(target, values);
    }
    // SAFETY: `target` is 64 writable bytes aligned to 64.
    unsafe { _mm512_stream_ps(target.as_mut_ptr(), values) }
}

/// What [`stream_ps`] wrote is there for other threads once they hear of it.
#[inline]
pub fn stored() {
    // SAFETY: the instruction exists wherever AVX-512 does.
    unsafe { _mm_sfence() }
}

/// The bits of `words` as thirty-two bf16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn as_bf16(words: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits and any bit pattern is valid.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
}

/// The bits of thirty-two bf16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn as_words(values: __m512bh) -> __m512i {
    // SAFETY: both types are 512 bits and any bit pattern is valid.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(values) }
}

/// Sixteen even values and sixteen odd ones, rounded to bf16 and paired up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn round_pairs(even: __m512, odd: __m512) -> __m512i {
    let halves = as_words(_mm512_cvtne2ps_pbh(odd, even));
    _mm512_permutexvar_epi16(load_line(&INTERLEAVE), halves)
}

/// Sixteen values then sixteen more become sixteen pairs.
static INTERLEAVE: Line = {
    let (mut words, mut lane) = ([0; 16], 0);
    while lane < 16 {
        words[lane] = lane as u32 | (lane as u32 + 16) << 16;
        lane += 1;
    }
    Line(words)
};

/// Asks for what lies `ahead` times its size after `item`, which need not exist.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn prefetch<T>(item: &T, ahead: usize) {
    let address = ptr::from_ref(item).wrapping_add(ahead);
    _mm_prefetch::<_MM_HINT_T0>(address.cast()); // a hint: it never faults
}

/// [`prefetch`] into the second-level cache.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn prefetch_second<T>(item: &T, ahead: usize) {
    let address = ptr::from_ref(item).wrapping_add(ahead);
    _mm_prefetch::<_MM_HINT_T1>(address.cast()); // a hint: it never faults
}

/// Asks for `lines`, to be in the second-level cache.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn prefetch_lines(lines: &[Line]) {
    lines.iter().for_each(|line| prefetch_second(line, 0));
}

#[inline(always)]
fn mask(lanes: usize) -> __mmask16 {
    if lanes >= 16 { !0 } else { (1 << lanes) - 1 }
}

/// The sums of an `MR` × 32 tile: zeros, or what `y` holds if `add`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load_tile<const MR: usize>(y: &[&mut [f32]; MR], add: bool) -> [[__m512; 2]; MR] {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    if add {
        let [left, right] = columns(y);
        for i in 0..MR {
            let row = y[i].as_ptr();
            // SAFETY: masked-out lanes are not accessed, and every row has the columns of the masks.
            sums[i] = unsafe {
                let rest = _mm512_maskz_loadu_ps(right, row.wrapping_add(16));
                [_mm512_maskz_loadu_ps(left, row), rest]
            };
        }
    }
    sums
}

/// Writes the sums of an `MR` × 32 tile to the columns that exist.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn store_tile<const MR: usize>(y: [&mut [f32]; MR], sums: &[[__m512; 2]; MR]) {
    let [left, right] = columns(&y);
    for i in 0..MR {
        let row = y[i].as_mut_ptr();
        // SAFETY: as in `load_tile`.
        unsafe {
            _mm512_mask_storeu_ps(row, left, sums[i][0]);
            _mm512_mask_storeu_ps(row.wrapping_add(16), right, sums[i][1]);
        }
    }
}

/// The columns every row of a tile has, as the masks of both halves. Masks of each row's own would
/// make the loops over rows too long to unroll early, and then sums live in memory.
#[inline]
fn columns<const MR: usize>(y: &[&mut [f32]; MR]) -> [__mmask16; 2] {
    let columns = y.iter().map(|row| row.len()).min().unwrap_or(0);
    [mask(columns), mask(columns.saturating_sub(16))]
}
