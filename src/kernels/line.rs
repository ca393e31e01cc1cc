//! The unit of storage: one cache line, which is also one AVX-512 register.
//!
//! Packed weights and packed activations are vectors of [`Line`], so every load is aligned and
//! every offset inside a kernel is a constant.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Sixteen 32-bit words, 64 bytes, aligned to 64.
///
/// What a word means is up to the owner: an `f32`, two bf16 values (the even one in the low half),
/// four int8 values or eight 4-bit codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

// SAFETY: sixteen words without a gap, of which any bits are a value.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

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
    /// Shared with the neighbours of lines that stay.
    memory: Arc<Memory>,
    /// Words of `memory` before the first line.
    skip: usize,
    len: usize,
}

/// Words of memory per line.
const WORDS: usize = size_of::<Line>() / size_of::<u128>();

/// Lines that [`resident`] takes from the system at once.
const GROUND_LINES: usize = (64 << 20) / size_of::<Line>();

/// `count` zero lines.
pub fn zeroed(count: usize) -> Lines {
    if count == 0 {
        return Lines::default();
    }
    let (memory, skip) = Memory::of(count);
    Lines { memory: Arc::new(memory), skip, len: count }
}

/// `count` zero lines for what stays as long as its neighbours, as the weights of a model do.
///
/// They lie side by side on stretches of [`GROUND_LINES`], which go back to the system when nothing
/// on them is left. An allocation of its own has ordinary pages at both ends, up to the next huge
/// page; of the weights of a model of a billion parameters that was the larger part, and touching an
/// ordinary page for the first time costs as much as reading it six times over.
pub fn resident(count: usize) -> Lines {
    static GROUND: Mutex<Option<(Weak<Memory>, usize)>> = Mutex::new(None);
    if count == 0 || count > GROUND_LINES / 2 {
        return zeroed(count);
    }
    let mut ground = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = ground.take().and_then(|(memory, free)| Some((memory.upgrade()?, free)));
    let (memory, free) =
        begun.filter(|(memory, free)| memory.has(*free, count)).unwrap_or_else(|| {
            let (memory, skip) = Memory::of(GROUND_LINES);
            (Arc::new(memory), skip)
        });
    *ground = Some((Arc::downgrade(&memory), free + count * WORDS));
    Lines { memory, skip: free, len: count }
}

/// Words that several [`Lines`] may lie on, each on its own.
#[derive(Debug, Default)]
struct Memory(Box<[UnsafeCell<u128>]>);

// SAFETY: the words are reached through `Lines` alone, whose parts do not overlap, and each lends
// its own out as any owner would.
unsafe impl Sync for Memory {}

impl Memory {
    /// Room for `count` zero lines, and the word where the first begins.
    fn of(count: usize) -> (Self, usize) {
        let words = vec![0u128; count * WORDS + WORDS - 1].into_boxed_slice();
        prefer_huge_pages(&words);
        let skip = words.as_ptr().align_offset(align_of::<Line>());
        // SAFETY: a cell has the layout of what it holds.
        let words = unsafe { Box::from_raw(Box::into_raw(words) as *mut [UnsafeCell<u128>]) };
        (Self(words), skip)
    }

    /// Whether `count` lines fit behind the first `free` words.
    fn has(&self, free: usize, count: usize) -> bool {
        self.0.len() - free >= count * WORDS
    }

    /// Where the lines behind the first `word` words begin; where there are none, somewhere aligned.
    fn at(&self, word: usize) -> *mut Line {
        match self.0.is_empty() {
            true => NonNull::dangling().as_ptr(),
            false => self.0[word..].as_ptr().cast_mut().cast(),
        }
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `skip` words lead to a multiple of 64 and `len` lines lie behind it, since
        // `memory` never moves and has room for them; they are this owner's alone; any bits are a
        // valid line.
        unsafe { std::slice::from_raw_parts(self.memory.at(self.skip), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.at(self.skip), self.len) }
    }
}

/// The words of `lines` as `f32`.
pub fn values(lines: &[Line]) -> &[f32] {
    bytemuck::cast_slice(lines)
}

/// The words of `lines` as `f32`, to be written.
pub fn values_mut(lines: &mut [Line]) -> &mut [f32] {
    bytemuck::cast_slice_mut(lines)
}

/// How many lines hold `count` values of `T`.
pub fn lines_for<T>(count: usize) -> usize {
    (count * size_of::<T>()).div_ceil(size_of::<Line>())
}

#[cfg(target_os = "linux")]
fn prefer_huge_pages(words: &[u128]) {
    const PAGE: usize = 4096;
    let range = words.as_ptr_range();
    let start = (range.start as usize).next_multiple_of(PAGE);
    let end = range.end as usize / PAGE * PAGE;
    if end > start && end - start >= 2 << 20 {
        // SAFETY: the range lies inside the slice, and the advice changes how the pages are backed,
        // never what they hold. A refusal is harmless and ignored.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: &[u128]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_stay_are_aligned_zero_and_their_owners_alone() {
        let counts = [1, 70_000, 3, GROUND_LINES / 2, 400_000, 0, GROUND_LINES];
        let mut all: Vec<Lines> = counts.map(resident).into();
        for (i, lines) in all.iter_mut().enumerate() {
            assert_eq!((lines.len(), lines.as_ptr().align_offset(64)), (counts[i], 0));
            assert!(lines.iter().all(|line| *line == Line::ZERO));
            lines.fill(Line([i as u32 + 1; 16]));
        }
        all.swap_remove(1);
        all.push(resident(9));
        assert!(all.pop().is_some_and(|lines| lines.iter().all(|line| *line == Line::ZERO)));
        for (i, lines) in [(0, &all[0]), (2, &all[2]), (4, &all[4])] {
            assert!(lines.iter().all(|line| line.0 == [i as u32 + 1; 16]));
        }
    }
}
