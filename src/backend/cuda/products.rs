//! Matrix products, forward and backward.

use super::machine::Address;
use super::source::Module;
use super::weight::{CudaWeight, WeightArgs};
use super::{CudaBackend, CudaRows, float};

/// Rows up to which each lane of a warp sums a part of a product, and rows of one such block.
const FEW_ROWS: usize = 8;
const FEW: usize = 4;
/// Outputs of such a block.
const FEW_OUTPUTS: usize = 32;
/// The same on tensor cores, and what one `mma` takes.
const FEW_TENSOR_ROWS: usize = 32;
const MMA_ROWS: usize = 16;
const MMA_OUTPUTS: usize = 8;
/// Rows and columns of the tile of a block that works on many.
pub(super) const TILE: usize = 64;

/// One side of a product: some columns of some rows.
#[derive(Clone, Copy)]
pub(super) struct Side {
    pub first: Address,
    pub rows: usize,
    pub width: usize,
    pub at: usize,
}

impl Side {
    pub fn all(x: &CudaRows) -> Self {
        Self::columns(x, 0)
    }

    /// The columns from `at` on.
    pub fn columns(x: &CudaRows, at: usize) -> Self {
        Self { first: x.at(), rows: x.rows, width: x.width, at }
    }
}

/// What becomes of `W x`.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub alpha: f32,
    pub bias: Option<&'a CudaRows>,
    /// Added to what is there, or put in its place.
    pub add: bool,
}

impl CudaBackend {
    /// `y[:, at..at+n] = alpha · x Wᵀ (+ bias)`, or added to it.
    pub(super) fn product(
        &self,
        module: Module,
        w: WeightArgs,
        x: Side,
        y: Side,
        finish: Finish<'_>,
    ) {
        let [.., n, k, _, _] = w.map(|word| word as usize);
        assert!(x.width == k && x.rows == y.rows, "x and W must agree on k, x and y on rows");
        assert!(y.at + n <= y.width, "the product must fit into y");
        assert!(finish.bias.is_none_or(|bias| bias.len() == n), "one bias per output");
        let bias = finish.bias.map_or(0, CudaRows::at);
        let (rows, width) = (x.rows as u64, x.width as u64);
        let mut args = [0; 17];
        args[..8].copy_from_slice(&w);
        args[8..].copy_from_slice(&[
            x.first,
            rows,
            width,
            bias,
            y.first,
            y.width as u64,
            y.at as u64,
            float(finish.alpha),
            finish.add.into(),
        ]);
        if matches!(module, Module::Tensor(_)) {
            if x.rows <= FEW_TENSOR_ROWS {
                let grid = [n.div_ceil(MMA_OUTPUTS), x.rows.div_ceil(MMA_ROWS)];
                self.launch(module, "tensor_few", grid, &args);
            } else {
                let grid = [n.div_ceil(TILE), x.rows.div_ceil(TILE)];
                self.launch(module, "tensor_many", grid, &args);
            }
        } else if x.rows <= FEW_ROWS {
            let grid = [n.div_ceil(FEW_OUTPUTS), x.rows.div_ceil(FEW)];
            self.launch(module, "product_few", grid, &args);
        } else {
            self.launch(module, "product_many", [n.div_ceil(TILE), x.rows.div_ceil(TILE)], &args);
        }
    }

    /// `dx = alpha · dy[:, at..at+n] W`, or added to it.
    pub(super) fn product_transposed(
        &self,
        module: Module,
        w: WeightArgs,
        dy: Side,
        dx: &CudaRows,
        alpha: f32,
        add: bool,
    ) {
        let [.., n, k, _, _] = w.map(|word| word as usize);
        assert!(dx.width == k && dx.rows == dy.rows, "dx and W must agree on k, dx and dy on rows");
        assert!(dy.at + n <= dy.width, "the columns must lie in dy");
        let mut args = [0; 17];
        args[..8].copy_from_slice(&w);
        args[8..].copy_from_slice(&[
            dy.first,
            dy.rows as u64,
            dy.width as u64,
            0,
            dx.at(),
            dx.width as u64,
            dy.at as u64,
            float(alpha),
            add.into(),
        ]);
        let grid = [k.div_ceil(TILE), dy.rows.div_ceil(TILE)];
        let name = match module {
            Module::Tensor(_) => "tensor_transposed",
            _ => "product_transposed",
        };
        self.launch(module, name, grid, &args);
    }

    /// What forms the products with `w`: all of them on tensor cores or none, so that a row has the
    /// same bits in every batch.
    pub(super) fn multiplier(&self, w: &CudaWeight) -> Module {
        let rounds = w.layout.computes_in_bf16() && !w.exact;
        match rounds && self.machine.has_tensor_cores() {
            true => Module::Tensor(w.layout),
            false => Module::Product(w.layout),
        }
    }

    /// `dw (n, k) += alpha · dy[:, at..at+n]ᵀ x`.
    pub(super) fn outer(&self, dy: Side, x: &CudaRows, alpha: f32, dw: &CudaRows) {
        let (n, k) = (dw.rows, dw.width);
        assert!(x.width == k && x.rows == dy.rows, "dw and x must agree on k, x and dy on rows");
        assert!(dy.at + n <= dy.width, "the columns must lie in dy");
        let args = [
            dy.first,
            dy.rows as u64,
            dy.width as u64,
            dy.at as u64,
            n as u64,
            x.at(),
            k as u64,
            float(alpha),
            dw.at(),
        ];
        let grid = [k.div_ceil(TILE), n.div_ceil(TILE)];
        self.launch(Module::Gradient, "weight_gradient", grid, &args);
    }

    /// `db += Σ dy[:, at..at+n]`.
    pub(super) fn column_sums(&self, dy: Side, db: &CudaRows) {
        let n = db.len();
        assert!(dy.at + n <= dy.width, "the columns must lie in dy");
        let (rows, width, at) = (dy.rows as u64, dy.width as u64, dy.at as u64);
        let args = [dy.first, rows, width, at, n as u64, db.at()];
        self.each(Module::Gradient, "bias_gradient", n, &args);
    }
}
