//! AdamW, and the sum of squares that gradient clipping needs.

use super::cpu::Cpu;
use super::dynamic::{self, SIGNED, UNSIGNED};
use super::lanes::{LANES, kernel};

/// AdamW's numbers for one step, as `f32` the way torch applies them.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// `1 − learning rate · weight decay`.
    pub decay: f32,
    pub beta2: f32,
    /// `1 − β1` and `1 − β2`.
    pub rest1: f32,
    pub rest2: f32,
    /// `learning rate / (1 − β1ⁿ)`.
    pub rate: f32,
    /// `sqrt(1 − β2ⁿ)`.
    pub correction: f32,
    pub epsilon: f32,
}

kernel! {
    /// One step, in torch's order: `p *= decay`; the moments; then
    /// `p −= rate · m / (sqrt(v) / correction + epsilon)`. Loshchilov & Hutter 2019, algorithm 2.
    pub fn adamw(s, adam: Adam, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let states = m.chunks_mut(LANES).zip(v.chunks_mut(LANES));
        for ((p, g), (m, v)) in p.chunks_mut(LANES).zip(g.chunks(LANES)).zip(states) {
            let g = s.load_part(g);
            let decayed = s.mul(s.load_part(p), s.splat(adam.decay));
            let old = s.load_part(m);
            let first = s.add(old, s.mul(s.splat(adam.rest1), s.sub(g, old)));
            let square = s.mul(s.mul(s.splat(adam.rest2), g), g);
            let second = s.add(s.mul(s.load_part(v), s.splat(adam.beta2)), square);
            let root = s.div(s.sqrt(second), s.splat(adam.correction));
            let change = s.div(s.mul(s.splat(adam.rate), first), s.add(root, s.splat(adam.epsilon)));
            s.store_part(p, s.sub(decayed, change));
            s.store_part(m, first);
            s.store_part(v, second);
        }
    }
}

/// Moments in 8 bits: codes of the dynamic maps, and one absmax per block of [`dynamic::BLOCK`].
#[derive(Debug)]
pub struct Moments8<'a> {
    pub first: &'a mut [u8],
    pub second: &'a mut [u8],
    pub first_absmax: &'a mut [f32],
    pub second_absmax: &'a mut [f32],
}

/// [`adamw`] with moments in 8 bits: decoded block by block, moved, and encoded again.
/// Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.
pub fn adamw8(cpu: Cpu, adam: Adam, p: &mut [f32], g: &[f32], state: Moments8<'_>) {
    let (mut m, mut v) = ([0f32; dynamic::BLOCK], [0f32; dynamic::BLOCK]);
    let absmax = state.first_absmax.iter_mut().zip(state.second_absmax);
    let codes = state.first.chunks_mut(dynamic::BLOCK).zip(state.second.chunks_mut(dynamic::BLOCK));
    let values = p.chunks_mut(dynamic::BLOCK).zip(g.chunks(dynamic::BLOCK));
    for (((p, g), (first, second)), (m_absmax, v_absmax)) in values.zip(codes).zip(absmax) {
        let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
        SIGNED.decode(first, *m_absmax, m);
        UNSIGNED.decode(second, *v_absmax, v);
        adamw(cpu, adam, p, g, m, v);
        *m_absmax = SIGNED.encode(m, first);
        *v_absmax = UNSIGNED.encode(v, second);
    }
}

/// Values whose squares are summed in one run; the order of all sums follows from it.
pub const SQUARES_RUN: usize = 4096;

/// `Σ x²` in `f64` over at most [`SQUARES_RUN`] values: eight chains, added in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    for x in x.chunks(8) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;
    use crate::kernels::testing::{Seeded, every_cpu};

    #[test]
    fn a_step_follows_the_formula() {
        let mut seeded = Seeded(5);
        let [p, g, m] = std::array::from_fn(|_| seeded.values(37));
        let v: Vec<f32> = seeded.values(37).iter().map(|v| v.abs()).collect();
        let adam = Adam {
            decay: 0.99,
            beta2: 0.999,
            rest1: 0.1,
            rest2: 0.001,
            rate: 0.01,
            correction: 0.3,
            epsilon: 1e-8,
        };
        let step = |cpu| {
            let (mut p, mut m, mut v) = (p.clone(), m.clone(), v.clone());
            adamw(cpu, adam, &mut p, &g, &mut m, &mut v);
            (p, m, v)
        };
        let (p1, m1, v1) = step(Cpu::SCALAR);
        assert!(
            every_cpu().into_iter().all(|cpu| step(cpu) == (p1.clone(), m1.clone(), v1.clone()))
        );
        for i in 0..37 {
            let (m2, v2) = (0.9 * m[i] + 0.1 * g[i], 0.999 * v[i] + 0.001 * g[i] * g[i]);
            let p2 = 0.99 * p[i] - 0.01 * m2 / (v2.sqrt() / 0.3 + 1e-8);
            assert!((m1[i] - m2).abs() < 1e-6 && (v1[i] - v2).abs() < 1e-6);
            assert!((p1[i] - p2).abs() < 1e-6);
        }
        assert_eq!(sum_of_squares(&[3.0; 11]), 99.0);
    }
}
