//! The narrow waist: the fused operations that decoder and trainer are written over, once for
//! every device.
//!
//! A backend owns buffers and computes on them; it knows no layer, no model and no request. Above
//! it nothing knows the device. [`cpu`] calls our `kernels`; [`cuda`] launches kernels on a GPU;
//! [`reference`] is the plain twin that tests compare with.
//!
//! Shapes: `t` tokens (rows), `d` hidden, `h` query heads, `kv` key-value heads, `hd` head size,
//! `v` vocabulary, `r` rank. Everything is row-major `f32` but frozen weights, which each backend
//! packs once as it likes. A product may read or write a *column range* of a wider matrix: `at`
//! is its first column, so that q, k and v (or gate and up) share one buffer.
//!
//! Determinism: the numbers of a row depend on that row alone, never on which rows share the
//! call, on the thread count or on timing. Sums over rows (gradients) run in row order.

use std::ops::Range;
use std::sync::Arc;

pub mod cpu;
pub mod cuda;
#[cfg(test)]
pub(crate) use cuda::emulator;
mod one_by_one;
mod operands;
pub mod reference;
mod rope;
#[cfg(test)]
mod tests;

pub use crate::domain::{KvFormat, WeightFormat};
pub use crate::kernels::dynamic::BLOCK as MOMENTS_BLOCK;
pub use crate::kernels::nf4::{Absmax, Blocks as FourBitBlocks, Code as FourBitCode};
pub use crate::kernels::optimiser::Moments8;
pub use crate::kernels::pool::Pool as HostThreads;
pub use crate::kernels::values::Values as HostValues;
pub use operands::*;
pub use rope::*;

/// Fused operations over device buffers. Shape mismatches are programming errors and panic.
pub trait Backend: Send + 'static {
    /// A row-major `f32` matrix on the device.
    type Rows: Send + Sync;
    /// A frozen weight `(out, in)`, packed once.
    type Weight: Send + Sync;
    /// The matrices `A` and `B` of an adapter at one linear layer, packed once for serving.
    type LowRank: Send;
    /// Keys and values of all layers of one model, in blocks of [`BLOCK_TOKENS`].
    type Cache: Send;

    // ---- cores

    /// A second one for another thread, which trains while this one serves: it computes to the same
    /// bits on the same weights, and while both are [at work](Backend::at_work) each has its share of
    /// the device. `None` where two would only wait for each other.
    fn beside(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
    /// Says whether there is work for this one.
    fn at_work(&self, _works: bool) {}

    // ---- buffers

    /// A zeroed matrix; memory is reused from [`Backend::recycle`] where it fits.
    fn zeros(&mut self, rows: usize, width: usize) -> Self::Rows;
    /// A matrix of undefined content, to be overwritten.
    fn room(&mut self, rows: usize, width: usize) -> Self::Rows {
        self.zeros(rows, width)
    }
    /// Gives back to the system what was recycled and is not in use.
    fn trim(&mut self) {}
    /// Values that a head may have.
    fn most_head_values(&self) -> usize {
        usize::MAX
    }
    /// Bytes that may still be allocated, where that is known.
    fn available_bytes(&self) -> Option<usize> {
        None
    }
    /// Bytes this process has allocated there, where that is known.
    fn resident_bytes(&self) -> Option<usize> {
        None
    }
    /// A matrix with these values.
    fn upload(&mut self, values: &[f32], rows: usize, width: usize) -> Self::Rows;
    /// A matrix with these values, only ever to be read: a device that can read them where they are
    /// need not copy them.
    fn share(&mut self, values: SharedMatrix, rows: usize, width: usize) -> Self::Rows {
        self.upload(values.values(), rows, width)
    }
    /// The values of a matrix.
    fn download(&self, x: &Self::Rows) -> Vec<f32>;
    /// Copies `values` over a matrix of the same size.
    fn overwrite(&mut self, x: &mut Self::Rows, values: &[f32]);
    /// `(rows, width)`.
    fn shape(&self, x: &Self::Rows) -> (usize, usize);
    /// Gives a buffer's memory back for the next [`Backend::zeros`].
    fn recycle(&mut self, x: Self::Rows);
    /// A copy.
    fn duplicate(&mut self, x: &Self::Rows) -> Self::Rows;
    /// `x (t, n)` rounded to bf16, two values to a word, `(t, ⌈n / 2⌉)`: to be put by, not to be
    /// computed with. Word `i` of a row holds value `i` low and value `⌈n / 2⌉ + i` high.
    fn halve(&mut self, x: &Self::Rows) -> Self::Rows;
    /// The values `(t, width)` of what [`Backend::halve`] gave.
    fn widen(&mut self, x: &Self::Rows, width: usize) -> Self::Rows;

    /// The host's threads, to read and turn what is packed.
    fn host_threads(&self) -> Arc<HostThreads> {
        Arc::new(HostThreads::for_this_machine())
    }
    /// Packs a frozen weight.
    fn pack(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> Self::Weight;
    /// Packs one of the many weights that stay as long as their model does.
    fn pack_to_stay(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> Self::Weight {
        self.pack(weight, format)
    }
    /// Packs such a weight `(out, in)` from blocks; no value changes.
    fn adopt(
        &mut self,
        blocks: HostBlocks<'_>,
        out_features: usize,
        in_features: usize,
    ) -> Self::Weight;
    /// Bytes it takes.
    fn weight_bytes(&self, weight: &Self::Weight) -> usize;
    /// `(out, in)`.
    fn weight_shape(&self, weight: &Self::Weight) -> (usize, usize);
    /// The weight as `f32 (out, in)`, dequantised.
    fn unpack(&self, weight: &Self::Weight) -> Vec<f32>;

    /// Packs `A (r, in)` and `B (out, r)` for [`Backend::add_low_ranks`] in the precision in which
    /// products with weights of `format` are formed anyway; `None` where that gains nothing.
    fn pack_low_rank(
        &mut self,
        _a: &[f32],
        _b: &[f32],
        _shape: LowRankShape,
        _format: WeightFormat,
    ) -> Option<Self::LowRank> {
        None
    }
    /// Bytes it takes.
    fn low_rank_bytes(&self, _weights: &Self::LowRank) -> usize {
        0
    }

    /// Room for KV blocks.
    fn cache(&mut self, shape: &CacheShape) -> Self::Cache;
    /// Bytes that one block takes over all layers.
    fn cache_block_bytes(&self, shape: &CacheShape) -> usize;
    /// Copies block `from` over block `to` in every layer (copy on write).
    fn copy_block(&mut self, cache: &mut Self::Cache, from: u32, to: u32);

    // ---- forward

    /// `y[i] = scale · E[ids[i]]`, `E (v, d)`.
    fn embed(&mut self, table: &Self::Weight, ids: &[u32], scale: f32, y: &mut Self::Rows);
    /// `y[:, at..at+out] = x Wᵀ (+ bias)`; `bias (1, out)`.
    fn matmul(
        &mut self,
        x: &Self::Rows,
        w: &Self::Weight,
        bias: Option<&Self::Rows>,
        y: &mut Self::Rows,
        at: usize,
    );
    /// [`Backend::matmul`] with several weights of one input: q, k and v, or gate and up.
    fn products(
        &mut self,
        x: &Self::Rows,
        products: &[Product<'_, Self::Weight, Self::Rows>],
        y: &mut Self::Rows,
    ) {
        for product in products {
            self.matmul(x, product.weight, product.bias, y, product.at);
        }
    }
    /// Adapters in the batch as one pass: every part adds its share to its rows and columns of `y`.
    /// Only called with what [`Backend::pack_low_rank`] gave.
    fn add_low_ranks(
        &mut self,
        _x: &Self::Rows,
        _parts: &[LowRankPart<'_, Self::LowRank>],
        _y: &mut Self::Rows,
    ) {
    }
    /// `y[rows, at..at+out] += scaling · (x[rows] Aᵀ) Bᵀ`; `A (r, in)`, `B (out, r)`.
    /// Hu et al. 2021, "LoRA", section 4.1.
    #[allow(clippy::too_many_arguments)]
    fn add_low_rank(
        &mut self,
        x: &Self::Rows,
        rows: Range<usize>,
        a: &Self::Rows,
        b: &Self::Rows,
        scaling: f32,
        y: &mut Self::Rows,
        at: usize,
    );
    /// DoRA's other half: `y[rows, at..at+out] += strength · (factor − 1) ⊙ (y − bias)`, so that
    /// with strength 1 what the weight gave is stretched by `factor (1, out)` and the bias is not.
    /// Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5.
    fn scale_columns(
        &mut self,
        y: &mut Self::Rows,
        rows: Range<usize>,
        at: usize,
        factor: &Self::Rows,
        strength: f32,
        bias: Option<&Self::Rows>,
    );
    /// The linear layers of one projection in training, side by side in `y (t, out)`, which is
    /// overwritten: `y = W x (+ bias) + scaling · B A x` each. Where the frozen weights compute in
    /// bf16, so do the adapters, from `f32` master copies and with `f32` sums.
    fn project(&mut self, x: &Self::Rows, parts: &[Part<'_, Self>], y: &mut Self::Rows)
    where
        Self: Sized,
    {
        one_by_one::project(self, x, parts, y);
    }
    /// `y = norm(x)`, each row over its whole width.
    fn norm(&mut self, x: &Self::Rows, norm: &Norm<Self::Rows>, y: &mut Self::Rows);
    /// Clip, split, q/k norm and RoPE of a raw projection into `q (t, h·hd)`, `k` and `v (t, kv·hd)`.
    fn heads(
        &mut self,
        qkv: &Self::Rows,
        spec: &HeadsSpec<Self::Rows>,
        places: &Places,
        q: &mut Self::Rows,
        k: &mut Self::Rows,
        v: &mut Self::Rows,
    );
    /// Writes each sequence's keys and values into its blocks.
    fn write_cache(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        sequences: &[SequenceRows],
        k: &Self::Rows,
        v: &Self::Rows,
    );
    /// Causal attention of every row over its own sequence's cache: `o (t, h·hd)`.
    fn attention_cached(
        &mut self,
        cache: &Self::Cache,
        layer: usize,
        sequences: &[SequenceRows],
        spec: &AttentionSpec,
        q: &Self::Rows,
        o: &mut Self::Rows,
    );
    /// Attention within each span of rows; `lse (t, h)` is kept for the backward.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &mut self,
        q: &Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        o: &mut Self::Rows,
        lse: &mut Self::Rows,
    );
    /// What lies between the MLP's projections: `act(gate) · up` with `[gate, up] (t, 2 ff)`, or
    /// `act(up)` of `(t, ff)` if not `gated`. `u (t, ff)`.
    fn mlp_inner(&mut self, up: &Self::Rows, act: Activation, gated: bool, u: &mut Self::Rows);
    /// `y += x`.
    fn add(&mut self, x: &Self::Rows, y: &mut Self::Rows);
    /// `y[i] = x[rows[i]]`.
    fn gather(&mut self, x: &Self::Rows, rows: &[usize], y: &mut Self::Rows);
    /// `y = cap · tanh(scale · x / cap)` in place, or `scale · x` without a cap.
    fn scale_logits(&mut self, z: &mut Self::Rows, scale: f32, softcap: Option<f32>);
    /// `y = x · mask / (1 − p)`, the mask drawn from `key` and the element's index.
    fn dropout(&mut self, x: &Self::Rows, key: u64, p: f32, y: &mut Self::Rows);

    // ---- backward (frozen weights get no gradient)

    /// `dx += dy[:, at..at+out] W`.
    fn matmul_backward(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        w: &Self::Weight,
        dx: &mut Self::Rows,
    );
    /// `dw += dy[:, at..at+out]ᵀ x` for a weight trained in full, `dw (out, in)`; and
    /// `db (1, out) += Σ dy`.
    fn weight_gradient(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        x: &Self::Rows,
        dw: &mut Self::Rows,
        db: Option<&mut Self::Rows>,
    );
    /// With `z = x Aᵀ`, `du = scaling · dy[:, at..]`, `dz = du B`: `dB += duᵀ z`, `dA += dzᵀ x`,
    /// `dx += dz A`.
    #[allow(clippy::too_many_arguments)]
    fn low_rank_backward(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        x: &Self::Rows,
        a: &Self::Rows,
        b: &Self::Rows,
        scaling: f32,
        da: &mut Self::Rows,
        db: &mut Self::Rows,
        dx: &mut Self::Rows,
    );
    /// The backward of `y = magnitude / norm ⊙ u`, norm held fixed and `factor` their quotient, each
    /// `(1, out)`: `du (t, out) = factor ⊙ dy[:, at..]`, `dmagnitude += Σ dy[:, at..] ⊙ u / norm`.
    #[allow(clippy::too_many_arguments)]
    fn scale_columns_backward(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        u: &Self::Rows,
        factor: &Self::Rows,
        norm: &Self::Rows,
        du: &mut Self::Rows,
        dmagnitude: &mut Self::Rows,
    );
    /// The backward of [`Backend::project`]: adds to `gradients`, one per part that has an adapter,
    /// and overwrites `dx` where it is asked for.
    fn project_backward(
        &mut self,
        dy: &Self::Rows,
        x: &Self::Rows,
        parts: &[Part<'_, Self>],
        gradients: &mut [Option<LowRankGradient<'_, Self::Rows>>],
        dx: Option<&mut Self::Rows>,
    ) where
        Self: Sized,
    {
        one_by_one::project_backward(self, dy, x, parts, gradients, dx);
    }
    /// `dx += ∂norm`, and the gradients of weight and bias where they are asked for.
    fn norm_backward(
        &mut self,
        dy: &Self::Rows,
        x: &Self::Rows,
        norm: &Norm<Self::Rows>,
        dx: &mut Self::Rows,
        dweight: Option<&mut Self::Rows>,
        dbias: Option<&mut Self::Rows>,
    );
    /// The backward of [`Backend::heads`]: `dqkv` is overwritten. q/k norm weights stay frozen.
    #[allow(clippy::too_many_arguments)]
    fn heads_backward(
        &mut self,
        dq: &Self::Rows,
        dk: &Self::Rows,
        dv: &Self::Rows,
        qkv: &Self::Rows,
        spec: &HeadsSpec<Self::Rows>,
        places: &Places,
        dqkv: &mut Self::Rows,
    );
    /// The backward of [`Backend::attention`], without a `(t, t)` buffer; `dq`, `dk`, `dv` are
    /// overwritten. Dao et al. 2022, "FlashAttention", algorithm 4.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &mut self,
        d_o: &Self::Rows,
        q: &Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
        o: &Self::Rows,
        lse: &Self::Rows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        dq: &mut Self::Rows,
        dk: &mut Self::Rows,
        dv: &mut Self::Rows,
    );
    /// The backward of [`Backend::mlp_inner`]: `dup` is overwritten.
    fn mlp_inner_backward(
        &mut self,
        du: &Self::Rows,
        up: &Self::Rows,
        act: Activation,
        gated: bool,
        dup: &mut Self::Rows,
    );
    /// Loss of logits `z (n, v)` against `labels (n)` and, over `z`, its gradient times `weight`:
    /// `z = weight · (softmax(z) − onehot)`. Rows labelled `IGNORE_INDEX` become zero.
    fn cross_entropy(&mut self, z: &mut Self::Rows, labels: &[i32], weight: f32) -> LossSum;
    /// The backward of [`Backend::scale_logits`], `z` being its output, in place on `dz`.
    fn scale_logits_backward(
        &mut self,
        z: &Self::Rows,
        scale: f32,
        softcap: Option<f32>,
        dz: &mut Self::Rows,
    );
    /// `y[rows[i]] += x[i]`.
    fn scatter_add(&mut self, x: &Self::Rows, rows: &[usize], y: &mut Self::Rows);
    /// `dE[ids[i]] += scale · dy[i]`.
    fn embed_backward(&mut self, dy: &Self::Rows, ids: &[u32], scale: f32, de: &mut Self::Rows);

    // ---- optimiser

    /// Σ x², in `f64`, in a fixed order.
    fn sum_of_squares(&mut self, x: &Self::Rows) -> f64;
    /// `x *= factor`.
    fn scale(&mut self, x: &mut Self::Rows, factor: f32);
    /// One AdamW step on one tensor, decay first, as torch does it.
    fn adamw(
        &mut self,
        p: &mut Self::Rows,
        g: &Self::Rows,
        m: &mut Self::Rows,
        v: &mut Self::Rows,
        step: &AdamStep,
    );
    /// [`Backend::adamw`] with moments that lie in the host's memory.
    fn adamw_on_host(
        &mut self,
        p: &mut Self::Rows,
        g: &Self::Rows,
        moments: HostMoments<'_>,
        step: &AdamStep,
    );
}

/// Whether dropout with probability `p` keeps element `index` under `key`: the same on every
/// backend, and again in the recomputation. SplitMix64 (Steele et al. 2014) as a counter-based
/// generator.
pub fn dropout_keeps(key: u64, index: usize, p: f32) -> bool {
    let mut z = key.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // 24 random bits are a uniform f32 in [0, 1) without rounding.
    (z >> 40) as f32 / (1 << 24) as f32 >= p
}
