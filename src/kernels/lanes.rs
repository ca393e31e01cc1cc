//! Sixteen `f32` values side by side: one vocabulary for every instruction set.
//!
//! A kernel is written once over [`Simd`] and compiled three times by [`kernel!`]: with AVX-512
//! (one register), with AVX2 (two registers) and plainly (an array). Every operation is correctly
//! rounded and sums fold in one fixed order, so the three give the same bits.
//!
//! A token such as [`Avx512`] proves that its instructions were detected; it is what makes the
//! operations safe to call. Generic bodies must be `#[inline(always)]`: only inside the functions
//! that [`kernel!`] writes are the instructions enabled.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use scalar::Scalar;

/// How many values a vector holds.
pub(crate) const LANES: usize = 16;

/// An instruction set that is known to be present.
pub(crate) trait Simd: Copy {
    /// Sixteen values.
    type V: Copy;
    /// Which of sixteen lanes take part in a load or store.
    type Mask: Copy;
    /// Rows of the register tile of a product.
    const TILE_ROWS: usize;
    /// Vectors across the register tile of a product.
    const TILE_VECTORS: usize;
    /// Whether masked loads and stores are as fast as others.
    const FREE_MASKS: bool;

    fn splat(self, x: f32) -> Self::V;
    /// The first `lanes` lanes, at most sixteen.
    fn mask(self, lanes: usize) -> Self::Mask;
    /// Sixteen values, or as many as the mask says; the others read as zero.
    ///
    /// # Safety
    /// The lanes of the mask must be readable at `x`.
    unsafe fn load_masked(self, x: *const f32, mask: Self::Mask) -> Self::V;
    /// Writes the lanes of the mask.
    ///
    /// # Safety
    /// The lanes of the mask must be writable at `y`.
    unsafe fn store_masked(self, y: *mut f32, v: Self::V, mask: Self::Mask);
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, y: &mut [f32; LANES], v: Self::V);
    /// Sixteen bf16 values, widened.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::V;
    /// Sixteen small integers.
    fn load_i8(self, x: &[i8; LANES]) -> Self::V;

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^a` for an integer `a` in −126..=127.
    fn pow2(self, a: Self::V) -> Self::V;
    /// `a < b ? x : y`, lane by lane.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Exchanges rows and columns of 16 × 16 values.
    fn transpose(self, v: &mut [Self::V; LANES]);

    /// Up to sixteen values from the front of `x`; missing ones read as zero.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        // SAFETY: the mask covers at most `x.len()` lanes.
        unsafe { self.load_masked(x.as_ptr(), self.mask(x.len().min(LANES))) }
    }

    /// Writes the first `y.len()` lanes, at most sixteen.
    #[inline(always)]
    fn store_part(self, y: &mut [f32], v: Self::V) {
        // SAFETY: the mask covers at most `y.len()` lanes.
        unsafe { self.store_masked(y.as_mut_ptr(), v, self.mask(y.len().min(LANES))) }
    }

    /// The lanes as an array.
    #[inline(always)]
    fn lanes(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        lanes
    }

    /// The sum of the lanes: halves are added until one value is left.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = self.lanes(v);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        let lanes = self.lanes(v);
        let mut max = lanes[0];
        for lane in lanes {
            max = if lane > max { lane } else { max };
        }
        max
    }
}

/// Defines a function `name(cpu, …)` whose body is compiled for each instruction set. Inside, `s`
/// is the token of type `S: Simd`.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($s:ident $(, $arg:ident: $ty:ty)* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(cpu: $crate::kernels::cpu::Cpu $(, $arg: $ty)*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<S: $crate::kernels::lanes::Simd>($s: S $(, $arg: $ty)*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::lanes::{Avx2, Avx512};
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn wide(s: Avx512 $(, $arg: $ty)*) $(-> $ret)? { body(s $(, $arg)*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn narrow(s: Avx2 $(, $arg: $ty)*) $(-> $ret)? { body(s $(, $arg)*) }
                if let Some(s) = Avx512::detected(cpu) {
                    // SAFETY: the token says that these features were detected.
                    #[allow(unsafe_code)]
                    return unsafe { wide(s $(, $arg)*) };
                }
                if let Some(s) = Avx2::detected(cpu) {
                    // SAFETY: the token says that these features were detected.
                    #[allow(unsafe_code)]
                    return unsafe { narrow(s $(, $arg)*) };
                }
            }
            let _ = cpu;
            body($crate::kernels::lanes::Scalar $(, $arg)*)
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod tests {
    use crate::kernels::cpu::Cpu;

    kernel! {
        fn every_operation(s, x: &[f32; 16], y: &[f32; 16], out: &mut Vec<f32>) {
            let (a, b) = (s.load(x), s.load(y));
            let exponent = s.round(s.mul(a, s.splat(20.0)));
            let results = [
                s.add(a, b), s.sub(a, b), s.mul(a, b), s.div(a, b), s.fma(a, b, a), s.max(a, b),
                s.min(a, b), s.abs(a), s.sqrt(s.abs(a)), exponent, s.pow2(exponent),
                s.select_lt(a, b, b, a), s.load_part(&x[..5]), s.splat(x[3]), a, b,
            ];
            let mut turned = results;
            s.transpose(&mut turned);
            for v in results.into_iter().chain(turned) {
                out.extend(s.lanes(v));
                out.extend([s.sum(v), s.largest(v)]);
            }
            let halves = std::array::from_fn(|i| (x[i].to_bits() >> 16) as u16);
            let bytes = std::array::from_fn(|i| (x[i] * 40.0) as i8);
            out.extend(s.lanes(s.load_bf16(&halves)));
            out.extend(s.lanes(s.load_i8(&bytes)));
            let mut part = [7.0; 9];
            s.store_part(&mut part[..6], a);
            out.extend(part);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x = std::array::from_fn(|i| (i as f32 * 1.7).sin() * 3.0);
        let y = std::array::from_fn(|i| (i as f32 * 0.9).cos() * 2.0);
        let run = |cpu| {
            let mut out = Vec::new();
            every_operation(cpu, &x, &y, &mut out);
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let plain = run(Cpu::SCALAR);
        assert_eq!(run(Cpu::detect()), plain);
        if let Some(avx2) = Cpu::avx2_only() {
            assert_eq!(run(avx2), plain);
        }
        for i in 0..16 {
            assert_eq!(plain[18 * (16 + i)], plain[i], "the transpose turns rows into columns");
        }
    }
}
