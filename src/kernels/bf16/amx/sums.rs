//! Sums on their way between tiles and rows of the output.
#![allow(unsafe_code)]

use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch, _mm512_store_ps};
use std::mem::MaybeUninit;

use crate::kernels::amx::PAIR_ROWS;
use crate::kernels::simd::{load_ps, store_ps};

/// Sums of up to 32 rows by 32 columns. Those of rows that nobody wrote are undefined.
#[repr(align(64))]
pub(super) struct Sums(MaybeUninit<[[[f32; 16]; 2]; PAIR_ROWS]>);

impl Sums {
    pub fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Sums that are written before they are put to the rows of `row_of`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn unset<'a>(rows: usize, row_of: &impl Fn(usize) -> &'a mut [f32]) -> Self {
        own(rows, row_of);
        Self::new()
    }

    /// Zeros, or what `row_of` holds if `add`: up to 32 columns of each row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn start<'a>(rows: usize, row_of: &impl Fn(usize) -> &'a mut [f32], add: bool) -> Self {
        let mut sums = if add { Self::new() } else { Self::unset(rows, row_of) };
        for i in 0..rows {
            let row: &[f32] = if add { row_of(i) } else { &[] };
            let (left, right) = row.split_at(row.len().min(16));
            let to = sums.row_mut(i).as_mut_ptr().cast::<f32>();
            // SAFETY: a row has two lines.
            unsafe {
                _mm512_store_ps(to, load_ps(left));
                _mm512_store_ps(to.add(16), load_ps(right));
            }
        }
        sums
    }

    /// Where the first row begins; the others follow.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }

    /// Row `i`, which may be undefined.
    pub fn row_mut(&mut self, i: usize) -> &mut MaybeUninit<[[f32; 16]; 2]> {
        assert!(i < PAIR_ROWS, "there are 32 rows");
        // SAFETY: so many rows lie there, and an undefined row is one of this type.
        unsafe { &mut *self.0.as_mut_ptr().cast::<MaybeUninit<_>>().add(i) }
    }

    /// Row `i`.
    ///
    /// # Safety
    /// It must have been written.
    pub unsafe fn row(&self, i: usize) -> &[[f32; 16]; 2] {
        assert!(i < PAIR_ROWS, "there are 32 rows");
        // SAFETY: so many rows lie there, and this one is defined by this function's contract.
        unsafe { &*self.0.as_ptr().cast::<[[f32; 16]; 2]>().add(i) }
    }

    /// Writes the columns that exist.
    ///
    /// # Safety
    /// The rows must have been written.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn put<'a>(&self, rows: usize, row_of: &impl Fn(usize) -> &'a mut [f32]) {
        for i in 0..rows {
            let row = row_of(i);
            let (left, right) = row.split_at_mut(row.len().min(16));
            // SAFETY: by this function's contract.
            let sums = unsafe { self.row(i) };
            store_ps(left, load_ps(&sums[0]));
            store_ps(right, load_ps(&sums[1]));
        }
    }
}

/// Asks for the lines that [`Sums::put`] will write, to be this core's own by then: a store that waits
/// for its line holds up those of the next tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn own<'a>(rows: usize, row_of: &impl Fn(usize) -> &'a mut [f32]) {
    for i in 0..rows {
        row_of(i).iter().step_by(16).for_each(|value| {
            _mm_prefetch::<_MM_HINT_ET0>(std::ptr::from_ref(value).cast()); // a hint: it never faults
        });
    }
}
