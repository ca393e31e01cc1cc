//! The unit of storage: one cache line, which is also one AVX-512 register.
//!
//! Packed weights and packed activations are vectors of [`Line`], so every load is aligned and
//! every offset inside a kernel is a constant.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

use half::bf16;

/// Sixteen 32-bit words, 64 bytes, aligned to 64.
///
/// What a word means is up to the owner: an `f32`, two bf16 values (the even one in the low half),
/// four int8 values or eight 4-bit codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

impl Line {
    /// All bits clear: sixteen `0.0f32`, thirty-two `0.0` in bf16.
    pub const ZERO: Self = Self([0; 16]);

    /// Word `lane` read as `f32`.
    pub fn f32(&self, lane: usize) -> f32 {
        f32::from_bits(self.0[lane])
    }

    /// Writes `value` into word `lane`.
    pub fn set_f32(&mut self, lane: usize, value: f32) {
        self.0[lane] = value.to_bits();
    }

    /// The bf16 value in half `half` (0 low, 1 high) of word `lane`, widened.
    pub fn bf16(&self, lane: usize, half: usize) -> f32 {
        bf16::from_bits((self.0[lane] >> (16 * half)) as u16).to_f32()
    }

    /// Rounds `value` to bf16 into half `half` of word `lane`, which must be clear.
    pub fn set_bf16(&mut self, lane: usize, half: usize, value: f32) {
        self.0[lane] |= u32::from(bf16::from_f32(value).to_bits()) << (16 * half);
    }
}

/// `count` zero lines, on huge pages where the system offers them.
///
/// A weight of 2048 × 5632 in 4 bits spans 1 400 ordinary pages; with huge pages it needs three
/// entries of the translation cache.
/// The pages come from the system as zeros and are first touched when they are first used, so a
/// large cache costs nothing until it fills.
#[allow(unsafe_code)]
pub fn zeroed(count: usize) -> Vec<Line> {
    if count == 0 {
        return Vec::new();
    }
    let layout = Layout::array::<Line>(count).expect("no vector is larger than memory");
    // SAFETY: the layout has a size, since `count` and a line have one.
    let start = unsafe { alloc_zeroed(layout) }.cast::<Line>();
    if start.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: the global allocator gave `start` for exactly this layout, and a line whose bits are
    // all clear is a valid line, so `count` of them are initialised.
    let mut lines = unsafe { Vec::from_raw_parts(start, count, count) };
    prefer_huge_pages(&mut lines);
    lines
}

/// The words of `lines` as `f32`.
#[allow(unsafe_code)]
pub fn values(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is sixteen words, any word is an `f32`, and the alignment is larger.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
}

/// The words of `lines` as `f32`, to be written.
#[allow(unsafe_code)]
pub fn values_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as in `values`; the borrow is unique.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn prefer_huge_pages(lines: &mut Vec<Line>) {
    const PAGE: usize = 4096;
    let bytes = lines.capacity() * size_of::<Line>();
    let start = (lines.as_mut_ptr() as usize).next_multiple_of(PAGE);
    let end = (lines.as_mut_ptr() as usize + bytes) / PAGE * PAGE;
    if end > start && bytes >= 2 << 20 {
        // SAFETY: the range lies inside the vector's own allocation, and the advice changes how
        // the pages are backed, never what they hold. A refusal is harmless and ignored.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: &mut Vec<Line>) {}
