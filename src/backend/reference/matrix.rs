//! Rows of numbers, and the few loops over them that recur.

/// A row-major `f32` matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub(super) values: Vec<f32>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Matrix {
    pub(super) fn new(values: Vec<f32>, rows: usize, width: usize) -> Self {
        assert_eq!(values.len(), rows * width, "a matrix holds rows times width numbers");
        Self { values, rows, width }
    }

    pub(super) fn zeros(rows: usize, width: usize) -> Self {
        Self::new(vec![0.0; rows * width], rows, width)
    }

    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..][..self.width]
    }

    pub(super) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.values[i * self.width..][..self.width]
    }
}

/// Σ x y.
pub(super) fn dot(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "a dot product is over equal lengths");
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// `y += x`.
pub(super) fn add(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "a sum is over equal lengths");
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// `sums += factor · x`.
pub(super) fn add_scaled(factor: f32, x: &[f32], sums: &mut [f64]) {
    sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(factor) * f64::from(x));
}

/// `y += sums`, rounded once.
pub(super) fn add_sums(sums: &[f64], y: &mut [f32]) {
    assert_eq!(sums.len(), y.len(), "a sum is over equal lengths");
    y.iter_mut().zip(sums).for_each(|(y, &sum)| *y += sum as f32);
}
