//! The plain twin: every operation of [`Backend`] as the loop its formula reads as, one thread,
//! sums in `f64`. It is slow, and it is the specification that the fast backends are tested
//! against; its own backward passes are held to finite differences.

use std::ops::Range;

use half::bf16;

use super::{
    Activation, AdamStep, AttentionSpec, BLOCK_TOKENS, Backend, CacheShape, HeadsSpec, HostBlocks,
    HostMoments, HostThreads, HostWeight, KvFormat, LossSum, Norm, Places, SequenceRows,
    WeightFormat, dropout_keeps,
};

mod activation;
mod attention;
mod eight_bit;
mod formats;
mod heads;
mod loss;
mod matrix;
mod norm;
#[cfg(test)]
mod tests;

pub use matrix::Matrix;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

/// A frozen weight: what its format rounds it to, held as `f32 (out, in)`.
#[derive(Clone, Debug)]
pub struct ReferenceWeight {
    values: Matrix,
    format: WeightFormat,
}

/// Keys and values: per layer, a row of `kv · hd` numbers for each slot of each block.
#[derive(Clone, Debug)]
pub struct ReferenceCache {
    keys: Vec<Matrix>,
    values: Vec<Matrix>,
    head_dim: usize,
    format: KvFormat,
}

/// The slot of `position` in a sequence whose blocks these are.
fn slot(blocks: &[u32], position: usize) -> usize {
    blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
}

impl Backend for ReferenceBackend {
    type Rows = Matrix;
    type Weight = ReferenceWeight;
    type LowRank = ();
    type Cache = ReferenceCache;

    fn zeros(&mut self, rows: usize, width: usize) -> Matrix {
        Matrix::zeros(rows, width)
    }

    fn upload(&mut self, values: &[f32], rows: usize, width: usize) -> Matrix {
        Matrix::new(values.to_vec(), rows, width)
    }

    fn download(&self, x: &Matrix) -> Vec<f32> {
        x.values.clone()
    }

    fn overwrite(&mut self, x: &mut Matrix, values: &[f32]) {
        x.values.copy_from_slice(values);
    }

    fn shape(&self, x: &Matrix) -> (usize, usize) {
        (x.rows, x.width)
    }

    fn recycle(&mut self, _x: Matrix) {}

    fn duplicate(&mut self, x: &Matrix) -> Matrix {
        x.clone()
    }

    fn halve(&mut self, x: &Matrix) -> Matrix {
        let words = x.width.div_ceil(2);
        let bits = |x: &[f32], i: usize| x.get(i).map_or(0, |&x| bf16::from_f32(x).to_bits());
        let word = |row: &[f32], i| u32::from(bits(row, i)) | u32::from(bits(row, words + i)) << 16;
        let rows = (0..x.rows).flat_map(|r| (0..words).map(move |i| (r, i)));
        let halved = rows.map(|(r, i)| f32::from_bits(word(x.row(r), i))).collect();
        Matrix::new(halved, x.rows, words)
    }

    fn widen(&mut self, x: &Matrix, width: usize) -> Matrix {
        let words = x.width;
        assert_eq!(words, width.div_ceil(2), "rows of this width have so many words");
        let half = |row: &[f32], c: usize| row[c % words].to_bits() >> (16 * (c / words));
        let values = (0..x.rows).flat_map(|r| (0..width).map(move |c| (r, c)));
        let whole = values.map(|(r, c)| bf16::from_bits(half(x.row(r), c) as u16).to_f32());
        Matrix::new(whole.collect(), x.rows, width)
    }

    fn pack(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> ReferenceWeight {
        let values = weight.values.to_vec(&HostThreads::new(1));
        let rounded = formats::round_trip(&values, weight.in_features, format);
        ReferenceWeight {
            values: Matrix::new(rounded, weight.out_features, weight.in_features),
            format,
        }
    }

    fn adopt(&mut self, blocks: HostBlocks<'_>, out: usize, inner: usize) -> ReferenceWeight {
        let values = Matrix::new(formats::dequantised(&blocks), out, inner);
        ReferenceWeight { values, format: blocks.format() }
    }

    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        formats::bytes(weight.values.values.len(), weight.format)
    }

    fn weight_shape(&self, weight: &ReferenceWeight) -> (usize, usize) {
        (weight.values.rows, weight.values.width)
    }

    fn unpack(&self, weight: &ReferenceWeight) -> Vec<f32> {
        weight.values.values.clone()
    }

    fn cache(&mut self, shape: &CacheShape) -> ReferenceCache {
        let width = shape.kv_heads * shape.head_dim;
        let room = vec![Matrix::zeros(shape.blocks * BLOCK_TOKENS, width); shape.layers];
        let (head_dim, format) = (shape.head_dim, shape.format);
        ReferenceCache { keys: room.clone(), values: room, head_dim, format }
    }

    fn cache_block_bytes(&self, shape: &CacheShape) -> usize {
        let numbers = 2 * shape.layers * shape.kv_heads * shape.head_dim * BLOCK_TOKENS;
        numbers * size_of::<f32>()
    }

    fn copy_block(&mut self, cache: &mut ReferenceCache, from: u32, to: u32) {
        for layer in cache.keys.iter_mut().chain(&mut cache.values) {
            for i in 0..BLOCK_TOKENS {
                let row = layer.row(from as usize * BLOCK_TOKENS + i).to_vec();
                layer.row_mut(to as usize * BLOCK_TOKENS + i).copy_from_slice(&row);
            }
        }
    }

    fn embed(&mut self, table: &ReferenceWeight, ids: &[u32], scale: f32, y: &mut Matrix) {
        for (i, &id) in ids.iter().enumerate() {
            for (y, e) in y.row_mut(i).iter_mut().zip(table.values.row(id as usize)) {
                *y = scale * e;
            }
        }
    }

    fn matmul(
        &mut self,
        x: &Matrix,
        w: &ReferenceWeight,
        bias: Option<&Matrix>,
        y: &mut Matrix,
        at: usize,
    ) {
        for i in 0..x.rows {
            for o in 0..w.values.rows {
                let bias = bias.map_or(0.0, |bias| f64::from(bias.values[o]));
                y.row_mut(i)[at + o] = (matrix::dot(x.row(i), w.values.row(o)) + bias) as f32;
            }
        }
    }

    fn add_low_rank(
        &mut self,
        x: &Matrix,
        rows: Range<usize>,
        a: &Matrix,
        b: &Matrix,
        scaling: f32,
        y: &mut Matrix,
        at: usize,
    ) {
        for i in rows {
            let z: Vec<f32> = (0..a.rows).map(|r| matrix::dot(x.row(i), a.row(r)) as f32).collect();
            for o in 0..b.rows {
                y.row_mut(i)[at + o] += scaling * matrix::dot(&z, b.row(o)) as f32;
            }
        }
    }

    fn norm(&mut self, x: &Matrix, norm: &Norm<Matrix>, y: &mut Matrix) {
        for i in 0..x.rows {
            norm::forward(x.row(i), norm, y.row_mut(i));
        }
    }

    fn heads(
        &mut self,
        qkv: &Matrix,
        spec: &HeadsSpec<Matrix>,
        places: &Places,
        q: &mut Matrix,
        k: &mut Matrix,
        v: &mut Matrix,
    ) {
        for i in 0..qkv.rows {
            let (q, k, v) = (q.row_mut(i), k.row_mut(i), v.row_mut(i));
            heads::forward(qkv.row(i), spec, &heads::Turn::new(&spec.rope, places, i), q, k, v);
        }
    }

    fn write_cache(
        &mut self,
        cache: &mut ReferenceCache,
        layer: usize,
        sequences: &[SequenceRows],
        k: &Matrix,
        v: &Matrix,
    ) {
        for sequence in sequences {
            for (offset, row) in sequence.rows.clone().enumerate() {
                let slot = slot(&sequence.blocks, sequence.start + offset);
                for (to, from) in [(&mut cache.keys, k), (&mut cache.values, v)] {
                    let to = to[layer].row_mut(slot);
                    to.copy_from_slice(from.row(row));
                    formats::round_kv(to, cache.head_dim, cache.format);
                }
            }
        }
    }

    fn attention_cached(
        &mut self,
        cache: &ReferenceCache,
        layer: usize,
        sequences: &[SequenceRows],
        spec: &AttentionSpec,
        q: &Matrix,
        o: &mut Matrix,
    ) {
        for sequence in sequences {
            let keys = |position| cache.keys[layer].row(slot(&sequence.blocks, position));
            let values = |position| cache.values[layer].row(slot(&sequence.blocks, position));
            for (offset, row) in sequence.rows.clone().enumerate() {
                let position = sequence.start + offset;
                attention::forward(q.row(row), position, keys, values, spec, o.row_mut(row));
            }
        }
    }

    fn attention(
        &mut self,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        o: &mut Matrix,
        lse: &mut Matrix,
    ) {
        for span in spans {
            let keys = |position| k.row(span.start + position);
            let values = |position| v.row(span.start + position);
            for i in span.clone() {
                let last = if spec.causal { i } else { span.end - 1 } - span.start;
                let sums = attention::forward(q.row(i), last, keys, values, spec, o.row_mut(i));
                lse.row_mut(i).copy_from_slice(&sums);
            }
        }
    }

    fn mlp_inner(&mut self, up: &Matrix, act: Activation, gated: bool, u: &mut Matrix) {
        for i in 0..up.rows {
            activation::mlp_inner(up.row(i), act, gated, u.row_mut(i));
        }
    }

    fn add(&mut self, x: &Matrix, y: &mut Matrix) {
        matrix::add(&x.values, &mut y.values);
    }

    fn gather(&mut self, x: &Matrix, rows: &[usize], y: &mut Matrix) {
        for (i, &row) in rows.iter().enumerate() {
            y.row_mut(i).copy_from_slice(x.row(row));
        }
    }

    fn scale_logits(&mut self, z: &mut Matrix, scale: f32, softcap: Option<f32>) {
        for z in &mut z.values {
            *z = match softcap {
                Some(cap) => cap * (scale * *z / cap).tanh(),
                None => scale * *z,
            };
        }
    }

    fn dropout(&mut self, x: &Matrix, key: u64, p: f32, y: &mut Matrix) {
        for (index, (x, y)) in x.values.iter().zip(&mut y.values).enumerate() {
            *y = if dropout_keeps(key, index, p) { x / (1.0 - p) } else { 0.0 };
        }
    }

    fn matmul_backward(&mut self, dy: &Matrix, at: usize, w: &ReferenceWeight, dx: &mut Matrix) {
        let (out, width) = self.weight_shape(w);
        for i in 0..dy.rows {
            let mut sums = vec![0.0f64; width];
            for o in 0..out {
                matrix::add_scaled(dy.row(i)[at + o], w.values.row(o), &mut sums);
            }
            matrix::add_sums(&sums, dx.row_mut(i));
        }
    }

    fn weight_gradient(
        &mut self,
        dy: &Matrix,
        at: usize,
        x: &Matrix,
        dw: &mut Matrix,
        db: Option<&mut Matrix>,
    ) {
        for o in 0..dw.rows {
            let mut sums = vec![0.0f64; dw.width];
            for i in 0..dy.rows {
                matrix::add_scaled(dy.row(i)[at + o], x.row(i), &mut sums);
            }
            matrix::add_sums(&sums, dw.row_mut(o));
        }
        if let Some(db) = db {
            for (o, db) in db.values.iter_mut().enumerate() {
                *db += (0..dy.rows).map(|i| f64::from(dy.row(i)[at + o])).sum::<f64>() as f32;
            }
        }
    }

    fn low_rank_backward(
        &mut self,
        dy: &Matrix,
        at: usize,
        x: &Matrix,
        a: &Matrix,
        b: &Matrix,
        scaling: f32,
        da: &mut Matrix,
        db: &mut Matrix,
        dx: &mut Matrix,
    ) {
        let (t, r) = (x.rows, a.rows);
        let (mut du, mut z, mut dz) =
            (Matrix::zeros(t, b.rows), Matrix::zeros(t, r), Matrix::zeros(t, r));
        for i in 0..t {
            for (o, du) in du.row_mut(i).iter_mut().enumerate() {
                *du = scaling * dy.row(i)[at + o];
            }
            for (j, z) in z.row_mut(i).iter_mut().enumerate() {
                *z = matrix::dot(x.row(i), a.row(j)) as f32;
            }
        }
        self.matmul_backward(&du, 0, &dense(b), &mut dz);
        self.weight_gradient(&du, 0, &z, db, None);
        self.weight_gradient(&dz, 0, x, da, None);
        self.matmul_backward(&dz, 0, &dense(a), dx);
    }

    fn norm_backward(
        &mut self,
        dy: &Matrix,
        x: &Matrix,
        norm: &Norm<Matrix>,
        dx: &mut Matrix,
        mut dweight: Option<&mut Matrix>,
        dbias: Option<&mut Matrix>,
    ) {
        for i in 0..x.rows {
            let dweight = dweight.as_deref_mut().map(|dw| &mut dw.values[..]);
            norm::backward(dy.row(i), x.row(i), norm, dx.row_mut(i), dweight);
        }
        if let Some(db) = dbias {
            for i in 0..x.rows {
                matrix::add(dy.row(i), &mut db.values);
            }
        }
    }

    fn heads_backward(
        &mut self,
        dq: &Matrix,
        dk: &Matrix,
        dv: &Matrix,
        qkv: &Matrix,
        spec: &HeadsSpec<Matrix>,
        places: &Places,
        dqkv: &mut Matrix,
    ) {
        for i in 0..qkv.rows {
            let gradients = [dq.row(i), dk.row(i), dv.row(i)];
            let turn = heads::Turn::new(&spec.rope, places, i);
            heads::backward(gradients, qkv.row(i), spec, &turn, dqkv.row_mut(i));
        }
    }

    fn attention_backward(
        &mut self,
        d_o: &Matrix,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        o: &Matrix,
        lse: &Matrix,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        dq: &mut Matrix,
        dk: &mut Matrix,
        dv: &mut Matrix,
    ) {
        assert!(spec.causal, "only causal attention is trained");
        let saved = attention::Saved { q, k, v, o, lse };
        for gradient in [&mut *dq, &mut *dk, &mut *dv] {
            gradient.values.fill(0.0);
        }
        for span in spans {
            attention::backward(d_o, &saved, span.clone(), spec, dq, dk, dv);
        }
    }

    fn mlp_inner_backward(
        &mut self,
        du: &Matrix,
        up: &Matrix,
        act: Activation,
        gated: bool,
        dup: &mut Matrix,
    ) {
        for i in 0..up.rows {
            activation::mlp_inner_backward(du.row(i), up.row(i), act, gated, dup.row_mut(i));
        }
    }

    fn cross_entropy(&mut self, z: &mut Matrix, labels: &[i32], weight: f32) -> LossSum {
        let mut sum = LossSum::default();
        for (i, &label) in labels.iter().enumerate() {
            loss::cross_entropy(z.row_mut(i), label, weight, &mut sum);
        }
        sum
    }

    fn scale_logits_backward(
        &mut self,
        z: &Matrix,
        scale: f32,
        softcap: Option<f32>,
        dz: &mut Matrix,
    ) {
        for (z, dz) in z.values.iter().zip(&mut dz.values) {
            *dz *= scale * softcap.map_or(1.0, |cap| 1.0 - (z / cap).powi(2));
        }
    }

    fn scatter_add(&mut self, x: &Matrix, rows: &[usize], y: &mut Matrix) {
        for (i, &row) in rows.iter().enumerate() {
            matrix::add(x.row(i), y.row_mut(row));
        }
    }

    fn embed_backward(&mut self, dy: &Matrix, ids: &[u32], scale: f32, de: &mut Matrix) {
        for (i, &id) in ids.iter().enumerate() {
            for (dy, de) in dy.row(i).iter().zip(de.row_mut(id as usize)) {
                *de += scale * dy;
            }
        }
    }

    fn sum_of_squares(&mut self, x: &Matrix) -> f64 {
        x.values.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
    }

    fn scale(&mut self, x: &mut Matrix, factor: f32) {
        x.values.iter_mut().for_each(|x| *x *= factor);
    }

    fn adamw(&mut self, p: &mut Matrix, g: &Matrix, m: &mut Matrix, v: &mut Matrix, s: &AdamStep) {
        let decay = (1.0 - s.learning_rate * s.weight_decay) as f32;
        let (beta2, rest1, rest2) =
            (s.beta2 as f32, (1.0 - s.beta1) as f32, (1.0 - s.beta2) as f32);
        let rate = (s.learning_rate / (1.0 - s.beta1.powi(s.step as i32))) as f32;
        let root = (1.0 - s.beta2.powi(s.step as i32)).sqrt() as f32;
        for (i, &g) in g.values.iter().enumerate() {
            let (p, m, v) = (&mut p.values[i], &mut m.values[i], &mut v.values[i]);
            *p *= decay;
            *m += rest1 * (g - *m);
            *v = beta2 * *v + rest2 * g * g;
            *p -= rate * *m / (v.sqrt() / root + s.epsilon as f32);
        }
    }

    fn scale_columns(
        &mut self,
        y: &mut Matrix,
        rows: Range<usize>,
        at: usize,
        factor: &Matrix,
        strength: f32,
        bias: Option<&Matrix>,
    ) {
        for row in rows {
            for (o, &c) in factor.values.iter().enumerate() {
                let y = &mut y.row_mut(row)[at + o];
                let bias = bias.map_or(0.0, |bias| bias.values[o]);
                *y += strength * (c - 1.0) * (*y - bias);
            }
        }
    }

    fn scale_columns_backward(
        &mut self,
        dy: &Matrix,
        at: usize,
        u: &Matrix,
        factor: &Matrix,
        norm: &Matrix,
        du: &mut Matrix,
        dmagnitude: &mut Matrix,
    ) {
        for (o, &c) in factor.values.iter().enumerate() {
            let mut sum = 0.0;
            for row in 0..u.rows {
                let dy = dy.row(row)[at + o];
                sum += f64::from(dy) * f64::from(u.row(row)[o]);
                du.row_mut(row)[o] = c * dy;
            }
            dmagnitude.values[o] += (sum / f64::from(norm.values[o])) as f32;
        }
    }

    fn adamw_on_host(
        &mut self,
        p: &mut Matrix,
        g: &Matrix,
        moments: HostMoments<'_>,
        step: &AdamStep,
    ) {
        let matrix = |values: &[f32]| Matrix::new(values.to_vec(), 1, values.len());
        match moments {
            HostMoments::F32 { first, second } => {
                let (mut m, mut v) = (matrix(first), matrix(second));
                self.adamw(p, g, &mut m, &mut v, step);
                first.copy_from_slice(&m.values);
                second.copy_from_slice(&v.values);
            }
            HostMoments::Bits8(state) => {
                let mut m = matrix(&eight_bit::decode(state.first, state.first_absmax, true));
                let mut v = matrix(&eight_bit::decode(state.second, state.second_absmax, false));
                self.adamw(p, g, &mut m, &mut v, step);
                eight_bit::encode(&m.values, true, state.first, state.first_absmax);
                eight_bit::encode(&v.values, false, state.second, state.second_absmax);
            }
        }
    }
}

/// A matrix in the place of a frozen weight.
fn dense(values: &Matrix) -> ReferenceWeight {
    ReferenceWeight { values: values.clone(), format: WeightFormat::F32 }
}
