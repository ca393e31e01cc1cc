//! One slice that several threads fill at once, each its own part.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// A `&mut [T]` whose disjoint parts may be handed to different threads.
///
/// A tile of columns in a row-major matrix is not one slice, so `split_at_mut` cannot express
/// "thread A takes columns 0 to 16 of every row". The loop nests promise disjointness instead.
pub struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the slice is only reachable through `part`, whose contract forbids overlap, so sharing
// the handle is the same as sending disjoint `&mut [T]` to each thread.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// How many elements there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Borrows `slice` for as long as the handle lives.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// A second handle on the same slice; parts of both fall under one contract.
    pub(crate) fn share(&self) -> Self {
        Self { start: self.start, len: self.len, borrow: PhantomData }
    }

    /// The elements of `range`, checked against the slice's length.
    ///
    /// # Safety
    /// While the returned slice lives, no other part that overlaps `range` may exist.
    ///
    /// # Panics
    /// If `range` leaves the slice.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the slice");
        // SAFETY: in bounds by the assertion; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Where `range` starts, checked against the slice's length.
    ///
    /// # Panics
    /// If `range` leaves the slice.
    pub fn pointer(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "pointer outside the slice");
        self.start.wrapping_add(range.start)
    }
}
