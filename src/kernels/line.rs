//! The unit of storage: one cache line, which is also one AVX-512 register.
//!
//! Packed weights and packed activations are vectors of [`Line`], so every load is aligned and
//! every offset inside a kernel is a constant.

use std::ops::{Deref, DerefMut};

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

/// Zero lines, on huge pages where the system offers them.
///
/// A weight of 2048 × 5632 in 4 bits spans 1 400 ordinary pages; with huge pages it needs three
/// entries of the translation cache. The pages come from the system as zeros and are first touched
/// when they are first used, so a large cache costs nothing until it fills: an allocation aligned to
/// 64 would be cleared by hand, so this one is aligned to 16 and begins at the first whole line.
#[derive(Debug, Default)]
pub struct Lines {
    memory: Vec<u128>,
    /// Words of `memory` before the first line.
    skip: usize,
    len: usize,
}

/// Words of `memory` per line.
const WORDS: usize = size_of::<Line>() / size_of::<u128>();

/// `count` zero lines.
pub fn zeroed(count: usize) -> Lines {
    if count == 0 {
        return Lines::default();
    }
    let memory = vec![0u128; count * WORDS + WORDS - 1];
    let skip = memory.as_ptr().align_offset(align_of::<Line>());
    let lines = Lines { memory, skip, len: count };
    prefer_huge_pages(&lines);
    lines
}

impl Deref for Lines {
    type Target = [Line];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[Line] {
        let start = self.memory[self.skip..].as_ptr().cast();
        // SAFETY: `skip` words lead to a multiple of 64 and `len` lines lie behind it, since
        // `memory` never moves and has room for them; any bits are a valid line.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for Lines {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [Line] {
        let start = self.memory[self.skip..].as_mut_ptr().cast();
        // SAFETY: as in `deref`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
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
fn prefer_huge_pages(lines: &Lines) {
    const PAGE: usize = 4096;
    let range = lines.memory.as_ptr_range();
    let start = (range.start as usize).next_multiple_of(PAGE);
    let end = range.end as usize / PAGE * PAGE;
    if end > start && end - start >= 2 << 20 {
        // SAFETY: the range lies inside the vector's own allocation, and the advice changes how
        // the pages are backed, never what they hold. A refusal is harmless and ignored.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: &Lines) {}
