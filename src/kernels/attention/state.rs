//! What a query has gathered so far: weighted values, sums of weights, the largest score.

use crate::kernels::lanes::{LANES, kernel};
use crate::kernels::math::exp;

/// Numbers in the state of one query: the accumulator in whole vectors, sixteen partial sums, and
/// a vector whose first lane is the maximum.
pub(super) fn size(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) + 2 * LANES
}

/// The parts of a state.
pub(super) struct StateMut<'a> {
    pub sums: &'a mut [f32; LANES],
    pub max: &'a mut f32,
}

impl<'a> StateMut<'a> {
    #[inline(always)]
    pub fn of(state: &'a mut [f32]) -> Self {
        let (rest, tail) = state.split_last_chunk_mut::<LANES>().expect("a state has a tail");
        let (_, sums) = rest.split_last_chunk_mut::<LANES>().expect("a state has sums");
        Self { sums, max: &mut tail[0] }
    }
}

/// Nothing seen yet.
pub(super) fn clear(states: &mut [f32], size: usize) {
    for state in states.chunks_exact_mut(size) {
        state.fill(0.0);
        *StateMut::of(state).max = f32::NEG_INFINITY;
    }
}

kernel! {
    /// `total` has also seen what `part` has: the softmax over both.
    pub(super) fn merge(s, total: &mut [f32], part: &[f32]) {
        assert_eq!(total.len(), part.len());
        let tail = total.len() - LANES;
        let (before, other) = (total[tail], part[tail]);
        if other == f32::NEG_INFINITY {
            return;
        }
        if before == f32::NEG_INFINITY {
            return total.copy_from_slice(part);
        }
        let max = if other > before { other } else { before };
        let (mine, theirs) = (exp(s, s.splat(before - max)), exp(s, s.splat(other - max)));
        let (total_vectors, _) = total[..tail].as_chunks_mut::<LANES>();
        let (part_vectors, _) = part[..tail].as_chunks::<LANES>();
        for (total, part) in total_vectors.iter_mut().zip(part_vectors) {
            let sum = s.fma(s.load(part), theirs, s.mul(s.load(total), mine));
            s.store(total, sum);
        }
        total[tail] = max;
    }
}

kernel! {
    /// `o = acc / sum`; returns the log of the sum of exponentials.
    pub(super) fn finish(s, state: &[f32], o: &mut [f32]) -> f32 {
        let (acc, tail) = state.split_at(state.len() - 2 * LANES);
        let sum = s.sum(s.load_part(&tail[..LANES]));
        for (acc, o) in acc.chunks(LANES).zip(o.chunks_mut(LANES)) {
            s.store_part(o, s.div(s.load_part(acc), s.splat(sum)));
        }
        tail[LANES] + sum.ln()
    }
}
