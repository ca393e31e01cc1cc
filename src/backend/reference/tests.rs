//! Each backward operation against central differences of its forward.

use super::{Matrix, ReferenceBackend};
use crate::backend::{
    Activation, AdamStep, AttentionSpec, Backend, CacheShape, HeadsSpec, HostWeight, KvFormat,
    Norm, NormKind, Places, Rope, SequenceRows, WeightFormat,
};
use crate::domain::IGNORE_INDEX;

const STEP: f32 = 1e-2;

/// Seeded numbers in −1 .. 1.
fn noise(seed: u64, rows: usize, width: usize) -> Matrix {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values = (0..rows * width).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    });
    Matrix::new(values.collect(), rows, width)
}

/// `Σ y · dy`: the scalar whose gradient by `y` is `dy`.
fn inner(y: &Matrix, dy: &Matrix) -> f64 {
    super::matrix::dot(&y.values, &dy.values)
}

/// Holds `gradient` to the central differences of `loss` around `x`, element by element.
fn check(what: &str, x: &Matrix, gradient: &Matrix, mut loss: impl FnMut(&Matrix) -> f64) {
    for i in 0..x.values.len() {
        let mut at = |delta: f32| {
            let mut moved = x.clone();
            moved.values[i] += delta;
            loss(&moved)
        };
        // Richardson's extrapolation takes the error from h² to h⁴.
        let coarse = (at(STEP) - at(-STEP)) / (2.0 * f64::from(STEP));
        let fine = (at(STEP / 2.0) - at(-STEP / 2.0)) / f64::from(STEP);
        let expected = (4.0 * fine - coarse) / 3.0;
        let found = f64::from(gradient.values[i]);
        assert!(
            (found - expected).abs() < 5e-4 * (1.0 + expected.abs()),
            "{what}[{i}]: {found} by the backward, {expected} by differences"
        );
    }
}

fn weight(values: &Matrix) -> super::ReferenceWeight {
    let (out_features, in_features) = (values.rows, values.width);
    let host = HostWeight { values: (&values.values).into(), out_features, in_features };
    ReferenceBackend.pack(host, WeightFormat::F32)
}

#[test]
fn matmul_in_a_column_range() {
    let b = &mut ReferenceBackend;
    let (x, w, bias, dy) = (noise(1, 3, 4), noise(2, 5, 4), noise(3, 1, 5), noise(4, 3, 9));
    let mut forward = |x: &Matrix, w: &Matrix, bias: &Matrix| {
        let mut y = Matrix::zeros(3, 9);
        b.matmul(x, &weight(w), Some(bias), &mut y, 2);
        inner(&y, &dy)
    };
    let b = &mut ReferenceBackend;
    let (mut dx, mut dw, mut db) = (Matrix::zeros(3, 4), Matrix::zeros(5, 4), Matrix::zeros(1, 5));
    b.matmul_backward(&dy, 2, &weight(&w), &mut dx);
    b.weight_gradient(&dy, 2, &x, &mut dw, Some(&mut db));
    check("dx", &x, &dx, |x| forward(x, &w, &bias));
    check("dw", &w, &dw, |w| forward(&x, w, &bias));
    check("db", &bias, &db, |bias| forward(&x, &w, bias));
}

#[test]
fn low_rank() {
    let (x, a, up, dy) = (noise(1, 3, 4), noise(2, 2, 4), noise(3, 5, 2), noise(4, 3, 7));
    let forward = |x: &Matrix, a: &Matrix, up: &Matrix| {
        let mut y = Matrix::zeros(3, 7);
        ReferenceBackend.add_low_rank(x, 0..3, a, up, 0.7, &mut y, 1);
        inner(&y, &dy)
    };
    let (mut da, mut db, mut dx) = (Matrix::zeros(2, 4), Matrix::zeros(5, 2), Matrix::zeros(3, 4));
    ReferenceBackend.low_rank_backward(&dy, 1, &x, &a, &up, 0.7, &mut da, &mut db, &mut dx);
    check("dx", &x, &dx, |x| forward(x, &a, &up));
    check("dA", &a, &da, |a| forward(&x, a, &up));
    check("dB", &up, &db, |up| forward(&x, &a, up));
}

#[test]
fn norms() {
    for kind in [NormKind::Rms, NormKind::Layer] {
        let (x, w, bias, dy) = (noise(1, 2, 6), noise(2, 1, 6), noise(3, 1, 6), noise(4, 2, 6));
        let norm = |w: &Matrix, bias: &Matrix| Norm {
            kind,
            eps: 1e-3,
            weight: w.clone(),
            bias: Some(bias.clone()),
        };
        let forward = |x: &Matrix, w: &Matrix, bias: &Matrix| {
            let mut y = Matrix::zeros(2, 6);
            ReferenceBackend.norm(x, &norm(w, bias), &mut y);
            inner(&y, &dy)
        };
        let (mut dx, mut dw, mut db) =
            (Matrix::zeros(2, 6), Matrix::zeros(1, 6), Matrix::zeros(1, 6));
        let the_norm = norm(&w, &bias);
        ReferenceBackend.norm_backward(&dy, &x, &the_norm, &mut dx, Some(&mut dw), Some(&mut db));
        check("dx", &x, &dx, |x| forward(x, &w, &bias));
        check("dw", &w, &dw, |w| forward(&x, w, &bias));
        check("db", &bias, &db, |bias| forward(&x, &w, bias));
    }
}

#[test]
fn heads_with_clip_norm_and_partial_rope() {
    // The norm of each head, and of all together.
    heads_agree_with_differences(NormKind::Rms, 6);
    heads_agree_with_differences(NormKind::Layer, 12);
}

fn heads_agree_with_differences(kind: NormKind, q_width: usize) {
    let norm = |seed, width| Norm { kind, eps: 1e-3, weight: noise(seed, 1, width), bias: None };
    let spec = HeadsSpec {
        heads: 2,
        kv_heads: 1,
        head_dim: 6,
        clip: Some(0.8),
        q_norm: Some(norm(7, q_width)),
        k_norm: Some(norm(8, 6)),
        rope: Rope { frequencies: vec![1.0, 0.3], scale: 1.1, beyond: None },
    };
    // Nothing within a step of the clip, whose derivative jumps there.
    let mut qkv = noise(1, 3, 24);
    for x in &mut qkv.values {
        *x = if (x.abs() - 0.8).abs() < 0.05 { 0.5 } else { *x };
    }
    let (dq, dk, dv) = (noise(2, 3, 12), noise(3, 3, 6), noise(4, 3, 6));
    let places = Places { positions: vec![0, 3, 11], lengths: vec![12; 3] };
    let mut dqkv = Matrix::zeros(3, 24);
    ReferenceBackend.heads_backward(&dq, &dk, &dv, &qkv, &spec, &places, &mut dqkv);
    check("dqkv", &qkv, &dqkv, |qkv| {
        let (mut q, mut k, mut v) =
            (Matrix::zeros(3, 12), Matrix::zeros(3, 6), Matrix::zeros(3, 6));
        ReferenceBackend.heads(qkv, &spec, &places, &mut q, &mut k, &mut v);
        inner(&q, &dq) + inner(&k, &dk) + inner(&v, &dv)
    });
}

fn attention_specs() -> [AttentionSpec; 3] {
    let plain = AttentionSpec {
        heads: 4,
        kv_heads: 2,
        head_dim: 3,
        scale: 0.6,
        window: None,
        softcap: None,
        alibi: None,
        causal: true,
    };
    [
        AttentionSpec { window: Some(2), ..plain.clone() },
        AttentionSpec { softcap: Some(0.9), ..plain.clone() },
        AttentionSpec { alibi: Some(vec![0.5, 0.25, 0.125, 0.0625]), ..plain },
    ]
}

#[test]
fn attention_with_groups_window_softcap_and_alibi() {
    let spans = [0..2, 2..7];
    for spec in attention_specs() {
        let (q, k, v, d_o) = (noise(1, 7, 12), noise(2, 7, 6), noise(3, 7, 6), noise(4, 7, 12));
        let forward = |q: &Matrix, k: &Matrix, v: &Matrix| {
            let (mut o, mut lse) = (Matrix::zeros(7, 12), Matrix::zeros(7, 4));
            ReferenceBackend.attention(q, k, v, &spans, &spec, &mut o, &mut lse);
            (o, lse)
        };
        let (o, lse) = forward(&q, &k, &v);
        let (mut dq, mut dk, mut dv) = (noise(5, 7, 12), noise(6, 7, 6), noise(7, 7, 6));
        ReferenceBackend.attention_backward(
            &d_o, &q, &k, &v, &o, &lse, &spans, &spec, &mut dq, &mut dk, &mut dv,
        );
        check("dq", &q, &dq, |q| inner(&forward(q, &k, &v).0, &d_o));
        check("dk", &k, &dk, |k| inner(&forward(&q, k, &v).0, &d_o));
        check("dv", &v, &dv, |v| inner(&forward(&q, &k, v).0, &d_o));
    }
}

#[test]
fn attention_over_the_cache_is_attention_over_the_span() {
    let b = &mut ReferenceBackend;
    let t = 20;
    let sequence = |rows, start| SequenceRows { rows, start, read: t, blocks: vec![2, 0] };
    for spec in attention_specs() {
        let (q, k, v) = (noise(1, t, 12), noise(2, t, 6), noise(3, t, 6));
        let (mut whole, mut lse) = (Matrix::zeros(t, 12), Matrix::zeros(t, 4));
        b.attention(&q, &k, &v, std::slice::from_ref(&(0..t)), &spec, &mut whole, &mut lse);
        let shape =
            CacheShape { layers: 2, kv_heads: 2, head_dim: 3, blocks: 3, format: KvFormat::F32 };
        let (mut cache, mut o) = (b.cache(&shape), Matrix::zeros(t, 12));
        b.write_cache(&mut cache, 1, &[sequence(0..t, 0)], &k, &v);
        b.attention_cached(&cache, 1, &[sequence(0..t, 0)], &spec, &q, &mut o);
        assert_eq!(o, whole);
        // The last token alone, from a copied block.
        b.copy_block(&mut cache, 0, 1);
        let last = SequenceRows { rows: 0..1, start: t - 1, read: t, blocks: vec![2, 1] };
        let (mut query, mut o) = (Matrix::zeros(1, 12), Matrix::zeros(1, 12));
        b.gather(&q, &[t - 1], &mut query);
        b.attention_cached(&cache, 1, &[last], &spec, &query, &mut o);
        assert_eq!(o.row(0), whole.row(t - 1));
    }
}

#[test]
fn mlp_inner() {
    for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu] {
        for gated in [true, false] {
            let (up, du) = (noise(1, 2, if gated { 10 } else { 5 }), noise(2, 2, 5));
            let mut dup = Matrix::zeros(2, up.width);
            ReferenceBackend.mlp_inner_backward(&du, &up, act, gated, &mut dup);
            check("dup", &up, &dup, |up| {
                let mut u = Matrix::zeros(2, 5);
                ReferenceBackend.mlp_inner(up, act, gated, &mut u);
                inner(&u, &du)
            });
        }
    }
}

#[test]
fn loss_through_a_soft_cap() {
    let labels = [3, IGNORE_INDEX, 0];
    let logits = noise(1, 3, 5);
    for softcap in [None, Some(0.8)] {
        let loss = |z: &Matrix| {
            let mut z = z.clone();
            ReferenceBackend.scale_logits(&mut z, 1.7, softcap);
            let capped = z.clone();
            (ReferenceBackend.cross_entropy(&mut z, &labels, 0.5), capped, z)
        };
        let (sum, capped, mut dz) = loss(&logits);
        assert_eq!(sum.tokens, 2);
        ReferenceBackend.scale_logits_backward(&capped, 1.7, softcap, &mut dz);
        check("dz", &logits, &dz, |z| 0.5 * loss(z).0.loss);
    }
}

#[test]
fn dropout_keeps_its_share_scales_the_rest_and_follows_its_key() {
    let ones = Matrix::new(vec![1.0; 4000], 4, 1000);
    let mut y = Matrix::zeros(4, 1000);
    ReferenceBackend.dropout(&ones, 9, 0.3, &mut y);
    let kept = y.values.iter().filter(|&&y| y != 0.0).count();
    assert!((2700..2900).contains(&kept), "{kept} of 4000 kept");
    assert!(y.values.iter().all(|&y| y == 0.0 || y == 1.0 / 0.7));
    let mut other = Matrix::zeros(4, 1000);
    ReferenceBackend.dropout(&ones, 10, 0.3, &mut other);
    assert_ne!(y, other);
}

#[test]
fn rows_gathered_and_scattered_and_embedded() {
    let b = &mut ReferenceBackend;
    let (x, dy) = (noise(1, 4, 3), noise(2, 3, 3));
    let mut gathered = Matrix::zeros(3, 3);
    b.gather(&x, &[2, 0, 2], &mut gathered);
    assert_eq!((gathered.row(0), gathered.row(1)), (x.row(2), x.row(0)));
    let mut dx = Matrix::zeros(4, 3);
    b.scatter_add(&dy, &[2, 0, 2], &mut dx);
    let embed = |table: &Matrix| {
        let mut y = Matrix::zeros(3, 3);
        ReferenceBackend.embed(&weight(table), &[2, 0, 2], 1.5, &mut y);
        inner(&y, &dy)
    };
    let mut de = Matrix::zeros(4, 3);
    b.embed_backward(&dy, &[2, 0, 2], 1.5, &mut de);
    check("dE", &x, &de, embed);
    dx.values.iter_mut().for_each(|x| *x *= 1.5);
    assert!(dx.values.iter().zip(&de.values).all(|(x, e)| (x - e).abs() < 1e-6));
}

#[test]
fn the_first_adamw_step_is_the_rate_in_the_direction_of_the_gradient() {
    let b = &mut ReferenceBackend;
    let (mut p, g) = (noise(1, 2, 3), noise(2, 2, 3));
    let (before, mut m, mut v) = (p.clone(), Matrix::zeros(2, 3), Matrix::zeros(2, 3));
    let step = AdamStep {
        step: 1,
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.5,
    };
    b.adamw(&mut p, &g, &mut m, &mut v, &step);
    for i in 0..6 {
        let expected = before.values[i] * 0.95 - 0.1 * g.values[i].signum();
        assert!((p.values[i] - expected).abs() < 1e-5);
        assert!((m.values[i] - 0.1 * g.values[i]).abs() < 1e-6);
        assert!((v.values[i] - 0.01 * g.values[i].powi(2)).abs() < 1e-6);
    }
    b.scale(&mut p, 2.0);
    assert!((b.sum_of_squares(&p) - inner(&p, &p)).abs() < 1e-9);
}
