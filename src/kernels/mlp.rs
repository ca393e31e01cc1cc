//! What lies between the projections of the MLP: `act(gate) · up`, or `act(up)`.

use super::lanes::{LANES, Simd, kernel};
use super::math::{erf, exp, sigmoid, tanh};
use super::output::ask;

/// The non-linearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Silu,
    /// Through the error function.
    Gelu,
    GeluTanh,
    /// `x · σ(1.702 x)`.
    QuickGelu,
    Relu,
}

const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
const QUICK: f32 = 1.702;

/// `act(x)` and `act'(x)`.
#[inline(always)]
fn value_and_slope<S: Simd>(s: S, act: Act, x: S::V) -> (S::V, S::V) {
    let (one, half) = (s.splat(1.0), s.splat(0.5));
    match act {
        Act::Silu => {
            let sig = sigmoid(s, x);
            let value = s.mul(x, sig);
            (value, s.fma(value, s.sub(one, sig), sig))
        }
        Act::Gelu => {
            let phi =
                s.mul(half, s.add(one, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)))));
            let density = s.mul(exp(s, s.mul(s.splat(-0.5), s.mul(x, x))), s.splat(0.398_942_3));
            (s.mul(x, phi), s.fma(x, density, phi))
        }
        Act::GeluTanh => {
            let (c, square) = (s.splat(ROOT_2_OVER_PI), s.mul(x, x));
            let inner = s.mul(s.mul(c, x), s.fma(s.splat(CUBIC), square, one));
            let th = tanh(s, inner);
            let inner_slope = s.mul(c, s.fma(s.splat(3.0 * CUBIC), square, one));
            let both = s.mul(half, s.add(one, th));
            let bend = s.mul(s.mul(half, x), s.mul(s.sub(one, s.mul(th, th)), inner_slope));
            (s.mul(x, both), s.add(both, bend))
        }
        Act::QuickGelu => {
            let steep = s.mul(s.splat(QUICK), x);
            let sig = sigmoid(s, steep);
            (s.mul(x, sig), s.fma(s.mul(steep, sig), s.sub(one, sig), sig))
        }
        Act::Relu => {
            let zero = s.splat(0.0);
            (s.max(x, zero), s.select_lt(zero, x, one, zero))
        }
    }
}

/// Values ahead of those at work that are asked for: of this many streams at once, and of what is
/// written, the processor fetches too little by itself.
const AHEAD: usize = 16 * LANES;

/// Asks for what follows `part`, which need not exist.
#[inline(always)]
fn ask_ahead(part: &[f32]) {
    ask(part.as_ptr().wrapping_add(AHEAD), part.len());
}

kernel! {
    /// `u = act(x)`, value by value.
    pub fn activate(s, act: Act, x: &[f32], u: &mut [f32]) {
        for (x, u) in x.chunks(LANES).zip(u.chunks_mut(LANES)) {
            [x, u].into_iter().for_each(ask_ahead);
            s.store_part(u, value_and_slope(s, act, s.load_part(x)).0);
        }
    }
}

kernel! {
    /// `u = act(gate) · up` for rows `[gate, up]` of `2 ff` values.
    pub fn gated(s, act: Act, x: &[f32], ff: usize, u: &mut [f32]) {
        for (x, u) in x.chunks_exact(2 * ff).zip(u.chunks_exact_mut(ff)) {
            let (gate, up) = x.split_at(ff);
            let parts = gate.chunks(LANES).zip(up.chunks(LANES)).zip(u.chunks_mut(LANES));
            for ((gate, up), u) in parts {
                [gate, up, u].into_iter().for_each(ask_ahead);
                let value = value_and_slope(s, act, s.load_part(gate)).0;
                s.store_part(u, s.mul(value, s.load_part(up)));
            }
        }
    }
}

kernel! {
    /// `dx = act'(x) du`.
    pub fn activate_backward(s, act: Act, du: &[f32], x: &[f32], dx: &mut [f32]) {
        for ((du, x), dx) in du.chunks(LANES).zip(x.chunks(LANES)).zip(dx.chunks_mut(LANES)) {
            [du, x, dx].into_iter().for_each(ask_ahead);
            let slope = value_and_slope(s, act, s.load_part(x)).1;
            s.store_part(dx, s.mul(slope, s.load_part(du)));
        }
    }
}

kernel! {
    /// `dgate = act'(gate) du up` and `dup = act(gate) du`, side by side.
    pub fn gated_backward(s, act: Act, du: &[f32], x: &[f32], ff: usize, dx: &mut [f32]) {
        let rows = du.chunks_exact(ff).zip(x.chunks_exact(2 * ff)).zip(dx.chunks_exact_mut(2 * ff));
        for ((du, x), dx) in rows {
            let (gate, up) = x.split_at(ff);
            let (dgate, dup) = dx.split_at_mut(ff);
            for (i, du) in du.chunks(LANES).enumerate() {
                let part = i * LANES..i * LANES + du.len();
                let (dgate, dup) = (&mut dgate[part.clone()], &mut dup[part.clone()]);
                [du, &gate[part.clone()], &up[part.clone()], dgate, dup].into_iter().for_each(ask_ahead);
                let du = s.load_part(du);
                let (value, slope) = value_and_slope(s, act, s.load_part(&gate[part.clone()]));
                let dgate_value = s.mul(slope, s.mul(du, s.load_part(&up[part])));
                s.store_part(dgate, dgate_value);
                s.store_part(dup, s.mul(value, du));
            }
        }
    }
}
