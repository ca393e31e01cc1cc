//! Handing each task of a region its own part of the outputs.
#![allow(unsafe_code)]

use std::ops::Range;

use super::pool::Pool;
use super::shared::SharedSlice;

/// Outputs that fall into parts, one run of values per item.
pub trait Split: Sync {
    /// What a task receives.
    type Part;

    /// The part of `items`.
    ///
    /// # Safety
    /// While the part lives, no other part of an overlapping range may exist.
    unsafe fn part(&self, items: &Range<usize>) -> Self::Part;
}

/// A slice with `width` values per item; items past its end have none.
pub struct PerItem<'a, T> {
    values: SharedSlice<'a, T>,
    width: usize,
}

impl<'a, T> PerItem<'a, T> {
    /// Items of `width` values each; the last may have fewer.
    pub fn new(values: &'a mut [T], width: usize) -> Self {
        Self { values: SharedSlice::new(values), width }
    }
}

impl<'a, T: Send> Split for PerItem<'a, T> {
    type Part = &'a mut [T];

    unsafe fn part(&self, items: &Range<usize>) -> &'a mut [T] {
        let end = |item: usize| (item * self.width).min(self.values.len());
        // SAFETY: disjoint items have disjoint values; the rest by this function's contract.
        unsafe { self.values.part(end(items.start)..end(items.end)) }
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    type Part = (A::Part, B::Part);

    unsafe fn part(&self, items: &Range<usize>) -> Self::Part {
        // SAFETY: by this function's contract.
        unsafe { (self.0.part(items), self.1.part(items)) }
    }
}

impl<A: Split, B: Split, C: Split> Split for (A, B, C) {
    type Part = (A::Part, B::Part, C::Part);

    unsafe fn part(&self, items: &Range<usize>) -> Self::Part {
        // SAFETY: by this function's contract.
        unsafe { (self.0.part(items), self.1.part(items), self.2.part(items)) }
    }
}

/// Calls `task` with ranges that cover `0..items` and the parts of `outputs` that belong to them.
/// `size` is the number of values an item costs.
pub fn split<S: Split>(
    pool: &Pool,
    items: usize,
    size: usize,
    outputs: S,
    task: impl Fn(Range<usize>, S::Part) + Sync,
) {
    pool.split(items, size, &|range| {
        // SAFETY: the pool calls with disjoint ranges, and `outputs` was moved in here.
        let part = unsafe { outputs.part(&range) };
        task(range, part);
    });
}

impl Pool {
    /// Calls `task` with every item, each once, on whichever thread is free.
    pub fn for_each<T: Send>(&self, items: &mut [T], task: impl Fn(&mut T) + Sync) {
        let (count, items) = (items.len(), PerItem::new(items, 1));
        self.run(count, &|item| {
            // SAFETY: the pool calls with every number once.
            let item = unsafe { items.part(&(item..item + 1)) };
            item.iter_mut().for_each(&task);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_meets_its_own_values_once() {
        let (mut a, mut b) = (vec![0; 50_000], vec![0; 24_995]);
        let outputs = (PerItem::new(&mut a, 10), PerItem::new(&mut b, 5));
        split(&Pool::new(3), 5000, 10, outputs, |items, (a, b)| {
            assert_eq!(a.len(), items.len() * 10);
            a.iter_mut().for_each(|a| *a += 1);
            b.iter_mut().for_each(|b| *b += items.start);
        });
        assert!(a.iter().all(|&a| a == 1) && b.is_sorted());
    }
}
