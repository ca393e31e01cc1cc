//! Value by value: addition, scaling, soft cap, sums of rows.

use super::bf16::round_bits;
use super::lanes::{LANES, kernel};
use super::math::tanh;

kernel! {
    /// `y += x`.
    pub fn add(s, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
            let value = s.add(s.load_part(y), s.load_part(x));
            s.store_part(y, value);
        }
    }
}

kernel! {
    /// `y += factor · x`, not fused.
    pub fn add_scaled(s, factor: f32, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
            let value = s.add(s.load_part(y), s.mul(s.splat(factor), s.load_part(x)));
            s.store_part(y, value);
        }
    }
}

kernel! {
    /// `x *= factor`.
    pub fn scale(s, factor: f32, x: &mut [f32]) {
        for x in x.chunks_mut(LANES) {
            let value = s.mul(s.load_part(x), s.splat(factor));
            s.store_part(x, value);
        }
    }
}

kernel! {
    /// `z = cap · tanh(factor · z / cap)`.
    pub fn soft_cap(s, factor: f32, cap: f32, z: &mut [f32]) {
        for z in z.chunks_mut(LANES) {
            let inner = s.div(s.mul(s.splat(factor), s.load_part(z)), s.splat(cap));
            s.store_part(z, s.mul(s.splat(cap), tanh(s, inner)));
        }
    }
}

kernel! {
    /// The backward of [`soft_cap`], `z` being its output: `dz *= factor · (1 − (z / cap)²)`.
    pub fn soft_cap_backward(s, z: &[f32], factor: f32, cap: f32, dz: &mut [f32]) {
        for (z, dz) in z.chunks(LANES).zip(dz.chunks_mut(LANES)) {
            let part = s.div(s.load_part(z), s.splat(cap));
            let slope = s.mul(s.splat(factor), s.sub(s.splat(1.0), s.mul(part, part)));
            let value = s.mul(s.load_part(dz), slope);
            s.store_part(dz, value);
        }
    }
}

kernel! {
    /// `sums += Σ rows` in row order, for the columns from `at` on that `sums` holds; rows are
    /// `stride` values apart.
    pub fn column_sums(s, x: &[f32], stride: usize, at: usize, sums: &mut [f32]) {
        for row in x.chunks_exact(stride) {
            let row = &row[at..at + sums.len()];
            for (x, y) in row.chunks(LANES).zip(sums.chunks_mut(LANES)) {
                let value = s.add(s.load_part(y), s.load_part(x));
                s.store_part(y, value);
            }
        }
    }
}

kernel! {
    /// A row rounded to bf16, two values to a word: word `i` holds value `i` low and value
    /// `words.len() + i` high, if there is one.
    pub fn halve(_s, row: &[f32], words: &mut [f32]) {
        let (low, high) = row.split_at(words.len());
        let (pairs, single) = words.split_at_mut(high.len());
        for ((word, &low), &high) in pairs.iter_mut().zip(low).zip(high) {
            *word = f32::from_bits(round_bits(low) | round_bits(high) << 16);
        }
        let rest = single.iter_mut().zip(&low[high.len()..]);
        rest.for_each(|(word, &low)| *word = f32::from_bits(round_bits(low)));
    }
}

kernel! {
    /// The values of the words that [`halve`] wrote.
    pub fn widen(_s, words: &[f32], row: &mut [f32]) {
        let (low, high) = row.split_at_mut(words.len());
        low.iter_mut().zip(words).for_each(|(x, w)| *x = f32::from_bits(w.to_bits() << 16));
        let upper = |word: &f32| f32::from_bits(word.to_bits() & 0xffff_0000);
        high.iter_mut().zip(words).for_each(|(x, word)| *x = upper(word));
    }
}

kernel! {
    /// `z = x · y`.
    pub fn product(s, x: &[f32], y: &[f32], z: &mut [f32]) {
        for ((x, y), z) in x.chunks(LANES).zip(y.chunks(LANES)).zip(z.chunks_mut(LANES)) {
            s.store_part(z, s.mul(s.load_part(x), s.load_part(y)));
        }
    }
}

kernel! {
    /// `y += strength · (factor − 1) · (y − bias)`; an empty `bias` is zero.
    pub fn stretch(s, factor: &[f32], bias: &[f32], strength: f32, y: &mut [f32]) {
        for (at, (factor, y)) in factor.chunks(LANES).zip(y.chunks_mut(LANES)).enumerate() {
            let bias = bias.chunks(LANES).nth(at).map_or(s.splat(0.0), |bias| s.load_part(bias));
            let more = s.mul(s.splat(strength), s.sub(s.load_part(factor), s.splat(1.0)));
            let old = s.load_part(y);
            s.store_part(y, s.add(old, s.mul(more, s.sub(old, bias))));
        }
    }
}

kernel! {
    /// `sums += Σ x · y / norm` over rows, in their order, for the columns from `at` on of `x` and
    /// from `from` on of `y` that `sums` holds.
    pub fn column_dots(
        s,
        x: (&[f32], usize, usize),
        y: (&[f32], usize, usize),
        norm: &[f32],
        sums: &mut [f32]
    ) {
        let ((x, x_stride, at), (y, y_stride, from)) = (x, y);
        for (x, y) in x.chunks_exact(x_stride).zip(y.chunks_exact(y_stride)) {
            let (x, y) = (&x[at..at + sums.len()], &y[from..from + sums.len()]);
            let columns = x.chunks(LANES).zip(y.chunks(LANES));
            for ((x, y), (norm, sum)) in columns.zip(norm.chunks(LANES).zip(sums.chunks_mut(LANES))) {
                let part = s.div(s.mul(s.load_part(x), s.load_part(y)), s.load_part(norm));
                s.store_part(sum, s.add(s.load_part(sum), part));
            }
        }
    }
}

kernel! {
    /// `to (columns, rows) = fromᵀ` of the first `columns` values of `rows` rows, which are `stride`
    /// values apart.
    pub fn transpose(
        s,
        from: &[f32],
        stride: usize,
        columns: usize,
        rows: usize,
        to: &mut [f32],
    ) {
        let mut r = 0;
        while r < rows {
            let height = (rows - r).min(LANES);
            let mut c = 0;
            while c < columns {
                let width = (columns - c).min(LANES);
                let mut square = [s.splat(0.0); LANES];
                for i in 0..height {
                    square[i] = s.load_part(&from[(r + i) * stride + c..][..width]);
                }
                s.transpose(&mut square);
                for i in 0..width {
                    s.store_part(&mut to[(c + i) * rows + r..][..height], square[i]);
                }
                c += LANES;
            }
            r += LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;

    #[test]
    fn column_sums_add_rows_in_order() {
        let x: Vec<f32> = (0..60).map(|i| (i as f32).sin()).collect();
        let mut sums = vec![1.0; 17];
        column_sums(Cpu::detect(), &x, 20, 2, &mut sums);
        for (j, sum) in sums.iter().enumerate() {
            assert_eq!(*sum, 1.0 + x[j + 2] + x[20 + j + 2] + x[40 + j + 2]);
        }
    }
}
