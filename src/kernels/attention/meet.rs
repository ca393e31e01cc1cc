//! Some queries meet the sixteen keys of one block.

use super::blocks::{HeadBlock, Number};
use super::state::{self, StateMut};
use super::{Attention, distances, scores, visible};
use crate::kernels::lanes::{LANES, Simd};
use crate::kernels::math::exp;

/// One query head of one row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Query {
    /// Where its numbers begin in `q`.
    pub at: usize,
    pub position: usize,
    pub head: usize,
}

/// A block of keys and values, about to be met.
pub(super) struct Meeting<'a, T> {
    pub spec: &'a Attention<'a>,
    pub block: usize,
    pub stored: HeadBlock<'a, T>,
}

impl<T: Number> Meeting<'_, T> {
    /// `R` queries in order of position; each one's arithmetic is the same whatever `R`.
    #[inline(always)]
    pub fn with<S: Simd, const R: usize>(
        &self,
        s: S,
        queries: &[Query; R],
        q: &[f32],
        states: &mut [f32],
    ) {
        let (hd, size) = (self.spec.head_dim, state::size(self.spec.head_dim));
        let dots = self.dots::<S, R>(s, std::array::from_fn(|r| &q[queries[r].at..][..hd]));
        let (mut weights, mut shrink) = ([[0.0; LANES]; R], [s.splat(1.0); R]);
        for r in 0..R {
            let state = StateMut::of(&mut states[r * size..(r + 1) * size]);
            (weights[r], shrink[r]) = self.weigh(s, &queries[r], dots[r], state);
        }
        let tokens = self.tokens(queries[0].position, queries[R - 1].position);
        let (mut at, end) = (0, self.stored.vectors());
        while at + 2 <= end {
            self.gather::<S, R, 2>(s, tokens.clone(), &weights, &shrink, states, at);
            at += 2;
        }
        if at < end {
            self.gather::<S, R, 1>(s, tokens, &weights, &shrink, states, at);
        }
    }

    /// `q · k` of each query with sixteen keys: even and odd dimensions apart, then added.
    #[inline(always)]
    fn dots<S: Simd, const R: usize>(&self, s: S, q: [&[f32]; R]) -> [S::V; R] {
        let hd = self.stored.keys.len();
        // Cut to the length that the loop runs to, so that it checks no bounds.
        let q = q.map(|q| &q[..hd]);
        let mut sums = [[s.splat(0.0); 2]; R];
        let mut d = 0;
        while d + 1 < hd {
            for odd in 0..2 {
                let keys = T::load(s, &self.stored.keys[d + odd]);
                for r in 0..R {
                    sums[r][odd] = s.fma(s.splat(q[r][d + odd]), keys, sums[r][odd]);
                }
            }
            d += 2;
        }
        let mut dots = [s.splat(0.0); R];
        for r in 0..R {
            if d < hd {
                let keys = T::load(s, &self.stored.keys[d]);
                sums[r][0] = s.fma(s.splat(q[r][d]), keys, sums[r][0]);
            }
            dots[r] = self.stored.scale_keys(s, s.add(sums[r][0], sums[r][1]));
        }
        dots
    }

    /// The exponentials of one query's scores, less the running maximum, and what the sums so far
    /// shrink by.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        s: S,
        query: &Query,
        dots: S::V,
        state: StateMut<'_>,
    ) -> ([f32; LANES], S::V) {
        let (first, position) = (self.block * LANES, query.position);
        let mut score = scores(s, self.spec, dots);
        let all_visible =
            position >= first + LANES - 1 && self.spec.first_visible(position) <= first;
        if self.spec.alibi.is_some() || !all_visible {
            let distance = distances(s, position, first);
            if self.spec.alibi.is_some() {
                let slope = s.splat(self.spec.slope(query.head));
                score = s.sub(score, s.mul(slope, distance));
            }
            score = visible(s, self.spec, distance, score, f32::NEG_INFINITY);
        }
        let (largest, before) = (s.largest(score), *state.max);
        let mut shrink = s.splat(1.0);
        if largest > before {
            shrink = exp(s, s.splat(before - largest));
            *state.max = largest;
        }
        let weights = exp(s, s.sub(score, s.splat(*state.max)));
        s.store(state.sums, s.fma(s.load(state.sums), shrink, weights));
        (s.lanes(self.stored.scale_weights(s, weights)), shrink)
    }

    /// The tokens of this block that a query from `first` to `last` sees. The others are left out:
    /// their memory may hold anything; a token that some query does not see has weight 0 there.
    #[inline(always)]
    fn tokens(&self, first: usize, last: usize) -> std::ops::Range<usize> {
        let start = self.block * LANES;
        self.spec.first_visible(first).saturating_sub(start)..(last + 1 - start).min(LANES)
    }

    /// Adds the weighted values to `V` vectors of the accumulators, from vector `at` on.
    #[inline(always)]
    fn gather<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        tokens: std::ops::Range<usize>,
        weights: &[[f32; LANES]; R],
        shrink: &[S::V; R],
        states: &mut [f32],
        at: usize,
    ) {
        let size = state::size(self.spec.head_dim) / LANES;
        let (states, _) = states.as_chunks_mut::<LANES>();
        let mut sums = [[s.splat(0.0); V]; R];
        for r in 0..R {
            for v in 0..V {
                sums[r][v] = s.mul(s.load(&states[r * size + at + v]), shrink[r]);
            }
        }
        for token in tokens {
            // No closure: one that is not inlined would leave the instruction set behind.
            let mut value = [s.splat(0.0); V];
            for v in 0..V {
                value[v] = self.stored.value(s, token, at + v);
            }
            for r in 0..R {
                let weight = s.splat(weights[r][token]);
                for v in 0..V {
                    sums[r][v] = s.fma(weight, value[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                s.store(&mut states[r * size + at + v], sums[r][v]);
            }
        }
    }
}
