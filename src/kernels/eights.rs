//! The few loads and stores every AVX2 kernel needs, as safe functions over slices: eight values at a
//! time, half a [`Line`]. What [`super::simd`] is for AVX-512.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ptr;

use crate::kernels::line::Line;

/// The words of one half of `line`, 0 or 1.
#[inline]
#[target_feature(enable = "avx2")]
pub fn load_words(line: &Line, half: usize) -> __m256i {
    let words: &[u32; 8] = line.0.as_chunks().0.get(half).expect("half is 0 or 1");
    // SAFETY: `words` is 32 readable bytes.
    unsafe { _mm256_loadu_si256(ptr::from_ref(words).cast()) }
}

/// Writes the words of one half of `line`, 0 or 1.
#[inline]
#[target_feature(enable = "avx2")]
pub fn store_words(line: &mut Line, half: usize, words: __m256i) {
    let to: &mut [u32; 8] = line.0.as_chunks_mut().0.get_mut(half).expect("half is 0 or 1");
    // SAFETY: `to` is 32 writable bytes.
    unsafe { _mm256_storeu_si256(ptr::from_mut(to).cast(), words) }
}

/// Values `8 · eight ..` as far as they exist, zeros after them.
#[inline]
#[target_feature(enable = "avx2")]
pub fn load_ps(values: &[f32], eight: usize) -> __m256 {
    let part = values.get(8 * eight..).unwrap_or_default();
    if let Some(whole) = part.first_chunk::<8>() {
        // SAFETY: `whole` is 32 readable bytes.
        return unsafe { _mm256_loadu_ps(whole.as_ptr()) };
    }
    let mut lanes = [0.0; 8];
    lanes[..part.len()].copy_from_slice(part);
    // SAFETY: `lanes` is 32 readable bytes.
    unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
}

/// Writes values `8 · eight ..` as far as they exist.
#[inline]
#[target_feature(enable = "avx2")]
pub fn store_ps(values: &mut [f32], eight: usize, lanes: __m256) {
    let part = values.get_mut(8 * eight..).unwrap_or_default();
    if let Some(whole) = part.first_chunk_mut::<8>() {
        // SAFETY: `whole` is 32 writable bytes.
        return unsafe { _mm256_storeu_ps(whole.as_mut_ptr(), lanes) };
    }
    let mut spare = [0.0; 8];
    // SAFETY: `spare` is 32 writable bytes.
    unsafe { _mm256_storeu_ps(spare.as_mut_ptr(), lanes) };
    part.copy_from_slice(&spare[..part.len()]);
}
