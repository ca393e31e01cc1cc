//! What lies between the products: norms, heads, the MLP, the loss, the optimiser.

use super::*;
use crate::backend::{Activation, AdamStep, Beyond, HeadsSpec, Places, Rope, Stretch};

struct Norms(NormKind, bool, usize);

impl Case for Norms {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let &Self(kind, bias, width) = self;
        let norm = norm_of(b, kind, width, bias);
        let (x, dy) = (seeded(b, 1, 33, width), seeded(b, 2, 33, width));
        let (mut y, mut dx) = (b.zeros(33, width), seeded(b, 3, 33, width));
        b.norm(&x, &norm, &mut y);
        b.norm_backward(&dy, &x, &norm, &mut dx, None, None);
        let (mut dw, mut db) = (seeded(b, 4, 1, width), seeded(b, 5, 1, width));
        b.norm_backward(&dy, &x, &norm, &mut dx, Some(&mut dw), bias.then_some(&mut db));
        [&y, &dx, &dw, &db].map(|x| b.download(x)).into()
    }
}

#[test]
fn norms_agree() {
    for width in [8, 16, 50, 256] {
        agree(3e-6, Norms(NormKind::Rms, false, width));
        agree(3e-6, Norms(NormKind::Layer, true, width));
        agree(3e-6, Norms(NormKind::Layer, false, width));
    }
}

struct HeadRows {
    head_dim: usize,
    pairs: usize,
    clip: Option<f32>,
    norm: Option<NormKind>,
    /// Over all heads of q, and of k, together.
    whole: bool,
    /// What holds from 26 tokens on.
    stretch: Option<Stretch>,
}

impl Case for HeadRows {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let (hd, heads, kv) = (self.head_dim, 4, 2);
        let (t, qw, kw) = (21, heads * hd, kv * hd);
        let spec = HeadsSpec {
            heads,
            kv_heads: kv,
            head_dim: hd,
            clip: self.clip,
            q_norm: self.norm.map(|kind| norm_of(b, kind, if self.whole { qw } else { hd }, false)),
            k_norm: self.norm.map(|kind| norm_of(b, kind, if self.whole { kw } else { hd }, true)),
            rope: Rope {
                frequencies: (0..self.pairs).map(|i| 0.7f32.powi(i as i32)).collect(),
                scale: 1.25,
                beyond: self.stretch.clone().map(|stretch| Beyond { context: 25, stretch }),
            },
        };
        let mut places = Places::default();
        (0..t).for_each(|i| places.push(i * 7 % 40..i * 7 % 40 + 1, i));
        let qkv = seeded(b, 1, t, qw + 2 * kw);
        let (mut q, mut k, mut v) = (b.zeros(t, qw), b.zeros(t, kw), b.zeros(t, kw));
        b.heads(&qkv, &spec, &places, &mut q, &mut k, &mut v);
        let (dq, dk, dv) = (seeded(b, 2, t, qw), seeded(b, 3, t, kw), seeded(b, 4, t, kw));
        let mut dqkv = seeded(b, 5, t, qw + 2 * kw);
        b.heads_backward(&dq, &dk, &dv, &qkv, &spec, &places, &mut dqkv);
        [&q, &k, &v, &dqkv].map(|x| b.download(x)).into()
    }
}

#[test]
fn heads_agree() {
    let plain = || HeadRows {
        head_dim: 32,
        pairs: 16,
        clip: None,
        norm: None,
        whole: false,
        stretch: None,
    };
    let (rms, layer) = (Some(NormKind::Rms), Some(NormKind::Layer));
    agree(3e-6, plain());
    agree(3e-6, HeadRows { head_dim: 8, pairs: 0, clip: Some(0.5), ..plain() });
    agree(1e-5, HeadRows { head_dim: 20, pairs: 6, norm: rms, ..plain() });
    agree(1e-5, HeadRows { head_dim: 64, clip: Some(0.7), norm: layer, ..plain() });
    let whole = HeadRows { head_dim: 12, pairs: 6, clip: Some(0.9), norm: layer, ..plain() };
    agree(1e-5, HeadRows { whole: true, ..whole });
    let other = (0..16).map(|i| 0.6f32.powi(i)).collect();
    for stretch in [Stretch::Other(other), Stretch::Growing { theta: 300.0, factor: 3.0 }] {
        agree(3e-6, HeadRows { stretch: Some(stretch), ..plain() });
    }
}

struct Inner(Activation, bool);

impl Case for Inner {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let &Self(act, gated) = self;
        let (t, ff) = (13, 41);
        let width = if gated { 2 * ff } else { ff };
        let mut up = seeded(b, 1, t, width);
        b.scale(&mut up, 6.0);
        let (du, mut u, mut dup) = (seeded(b, 2, t, ff), b.zeros(t, ff), seeded(b, 3, t, width));
        b.mlp_inner(&up, act, gated, &mut u);
        b.mlp_inner_backward(&du, &up, act, gated, &mut dup);
        [&u, &dup].map(|x| b.download(x)).into()
    }
}

#[test]
fn the_inside_of_the_mlp_agrees() {
    use Activation::*;
    for act in [Silu, Gelu, GeluTanh, QuickGelu, Relu] {
        agree(1e-6, Inner(act, true));
        agree(1e-6, Inner(act, false));
    }
}

struct Loss;

impl Case for Loss {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let mut z = seeded(b, 1, 5, 77);
        b.scale_logits(&mut z, 9.0, None);
        let mut capped = b.duplicate(&z);
        b.scale_logits(&mut capped, 0.5, Some(3.0));
        let loss = b.cross_entropy(&mut z, &[3, -100, 76, 0, 12], 0.25);
        let mut dz = b.duplicate(&z);
        b.scale_logits_backward(&capped, 0.5, Some(3.0), &mut dz);
        b.scale_logits_backward(&capped, 2.0, None, &mut dz);
        let sums = vec![loss.loss as f32, loss.tokens as f32, loss.correct as f32];
        [&z, &capped, &dz].map(|x| b.download(x)).into_iter().chain([sums]).collect()
    }
}

#[test]
fn the_loss_and_its_gradient_agree() {
    agree(2e-6, Loss);
}

struct Moves;

impl Case for Moves {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let (x, mut y) = (seeded(b, 1, 6, 300), seeded(b, 2, 6, 300));
        b.add(&x, &mut y);
        let mut few = b.zeros(3, 300);
        b.gather(&x, &[5, 0, 5], &mut few);
        b.scatter_add(&few, &[1, 1, 4], &mut y);
        let mut de = seeded(b, 3, 9, 300);
        b.embed_backward(&x, &[8, 2, 2, 0, 8, 8], 3.0, &mut de);
        let mut dropped = b.zeros(6, 300);
        b.dropout(&x, 77, 0.3, &mut dropped);
        let squares = vec![b.sum_of_squares(&x) as f32];
        assert_eq!(b.shape(&de), (9, 300));
        b.overwrite(&mut few, &vec![0.5; 900]);
        let outs = [&y, &few, &de, &dropped].map(|x| b.download(x));
        b.recycle(x);
        let fresh = b.zeros(6, 300);
        outs.into_iter().chain([squares, b.download(&fresh)]).collect()
    }
}

#[test]
fn moves_and_sums_agree() {
    agree(1e-6, Moves);
}

struct Halves;

impl Case for Halves {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let back = [1, 2, 33, 100].map(|width| {
            let x = seeded(b, 1, 7, width);
            let halved = b.halve(&x);
            assert_eq!(b.shape(&halved), (7, width.div_ceil(2)));
            let back = b.widen(&halved, width);
            let (x, back) = (b.download(&x), b.download(&back));
            assert!(x.iter().zip(&back).all(|(x, y)| (x - y).abs() <= x.abs() / 256.0));
            back
        });
        back.into()
    }
}

#[test]
fn halves_agree_to_the_bit() {
    agree(0.0, Halves);
}

struct Optimiser;

impl Case for Optimiser {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let (mut p, mut m, mut v) = (seeded(b, 1, 30, 50), b.zeros(30, 50), b.zeros(30, 50));
        for step in 1..4 {
            let g = seeded(b, 10 + step as u64, 30, 50);
            let numbers = AdamStep {
                step,
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                weight_decay: 0.1,
            };
            b.adamw(&mut p, &g, &mut m, &mut v, &numbers);
        }
        [&p, &m, &v].map(|x| b.download(x)).into()
    }
}

#[test]
fn the_optimiser_agrees() {
    agree(1e-6, Optimiser);
}
