//! Matrix products in every format.

use std::ops::Range;

use super::*;
use crate::backend::{
    HostWeight, LowRank, LowRankGradient, LowRankPart, LowRankShape, Part, Product, WeightFormat,
};

const FORMATS: [(WeightFormat, f32); 9] = [
    (WeightFormat::F32, 2e-6),
    (WeightFormat::F16, 2e-6),
    (WeightFormat::Bf16, 1e-2),
    (WeightFormat::Nf4 { double: false }, 2e-2),
    (WeightFormat::Nf4 { double: true }, 2e-2),
    (WeightFormat::Fp4 { double: false }, 2e-2),
    (WeightFormat::Fp4 { double: true }, 2e-2),
    (WeightFormat::Q8_0, 2e-2),
    (WeightFormat::Q4_0, 2e-2),
];

fn weight<B: Backend>(b: &mut B, format: WeightFormat, n: usize, k: usize) -> B::Weight {
    let values = Seeded(70).values(n * k);
    b.pack(HostWeight { values: (&values).into(), out_features: n, in_features: k }, format)
}

struct Frozen {
    format: WeightFormat,
    m: usize,
    n: usize,
    k: usize,
}

impl Case for Frozen {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let &Self { format, m, n, k } = self;
        let w = weight(b, format, n, k);
        assert_eq!((b.weight_shape(&w), b.weight_bytes(&w) > 0), ((n, k), true));
        let (x, bias) = (seeded(b, 1, m, k), seeded(b, 2, 1, n));
        let mut y = seeded(b, 3, m, n + 5);
        b.matmul(&x, &w, Some(&bias), &mut y, 3);
        let mut plain = b.zeros(m, n);
        b.matmul(&x, &w, None, &mut plain, 0);
        let (dy, mut dx) = (seeded(b, 4, m, n + 4), seeded(b, 5, m, k));
        b.matmul_backward(&dy, 2, &w, &mut dx);
        let mut e = b.zeros(3, k);
        b.embed(&w, &[n as u32 - 1, 0, 5], 2.5, &mut e);
        [&y, &plain, &dx, &e].map(|x| b.download(x)).into_iter().chain([b.unpack(&w)]).collect()
    }
}

#[test]
fn products_with_frozen_weights_agree_in_every_format() {
    for (format, tolerance) in FORMATS {
        for (m, n, k) in [(1, 33, 64), (5, 70, 128), (27, 96, 192)] {
            agree(tolerance, Frozen { format, m, n, k });
        }
    }
    agree(2e-6, Frozen { format: WeightFormat::F32, m: 14, n: 9, k: 23 });
    agree(1e-2, Frozen { format: WeightFormat::Bf16, m: 14, n: 9, k: 23 });
    agree(2e-2, Frozen { format: WeightFormat::Q4K, m: 5, n: 70, k: 512 });
}

struct Trained;

impl Case for Trained {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let (m, n, k, r) = (29, 37, 45, 6);
        let (x, dy) = (seeded(b, 1, m, k), seeded(b, 2, m, n + 7));
        let (mut dw, mut bias) = (seeded(b, 3, n, k), seeded(b, 4, 1, n));
        b.weight_gradient(&dy, 7, &x, &mut dw, Some(&mut bias));
        b.weight_gradient(&dy, 0, &x, &mut dw, None);

        let (a, low) = (seeded(b, 5, r, k), seeded(b, 6, n, r));
        let mut y = seeded(b, 7, m, n + 2);
        b.add_low_rank(&x, 4..21, &a, &low, 0.5, &mut y, 2);
        let (mut da, mut db, mut dx) =
            (seeded(b, 8, r, k), seeded(b, 9, n, r), seeded(b, 10, m, k));
        b.low_rank_backward(&dy, 5, &x, &a, &low, 0.5, &mut da, &mut db, &mut dx);
        [&dw, &bias, &y, &da, &db, &dx].map(|x| b.download(x)).into()
    }
}

#[test]
fn trained_weights_and_adapters_agree() {
    agree(3e-6, Trained);
}

/// Three linear layers of one input: one without a bias, one without an adapter.
struct Projected {
    format: WeightFormat,
    m: usize,
    k: usize,
    widths: [usize; 3],
}

impl Case for Projected {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let &Self { format, m, k, widths } = self;
        let (r, out) = (6, widths.iter().sum());
        let weights = widths.map(|n| weight(b, format, n, k));
        let bias = seeded(b, 2, 1, widths[1]);
        let [a, c] = [3, 4].map(|seed| seeded(b, seed, r, k));
        let (up, wide) = (seeded(b, 5, widths[0], r), seeded(b, 6, widths[1], r));
        let low_rank = |a, b, scaling| Some(LowRank { a, b, scaling });
        let part = |number: usize, bias, low_rank| Part {
            weight: &weights[number],
            bias,
            at: widths[..number].iter().sum(),
            low_rank,
        };
        let parts: [Part<'_, B>; 3] = [
            part(0, None, low_rank(&a, &up, 0.5)),
            part(1, Some(&bias), low_rank(&c, &wide, 2.0)),
            part(2, None, None),
        ];
        let (x, dy) = (seeded(b, 7, m, k), seeded(b, 8, m, out));
        let mut y = b.room(m, out);
        b.project(&x, &parts, &mut y);
        let mut sums =
            [(r, k), (widths[0], r), (r, k), (widths[1], r)].map(|(n, k)| seeded(b, 9, n, k));
        let [da, db, dc, dd] = &mut sums;
        let gradient = |a, b| Some(LowRankGradient { a, b });
        let mut gradients = [gradient(da, db), gradient(dc, dd), None];
        let mut dx = b.room(m, k);
        b.project_backward(&dy, &x, &parts, &mut gradients, Some(&mut dx));
        b.project_backward(&dy, &x, &parts, &mut gradients, None);
        [&y, &dx].into_iter().chain(&sums).map(|x| b.download(x)).collect()
    }
}

/// A linear layer that the trained adapter leaves alone.
struct Bare(WeightFormat);

impl Case for Bare {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let (m, n, k) = (13, 70, 64);
        let weight = weight(b, self.0, n, k);
        let parts = [Part { weight: &weight, bias: None, at: 0, low_rank: None }];
        let (x, dy) = (seeded(b, 7, m, k), seeded(b, 8, m, n));
        let (mut y, mut dx) = (b.room(m, n), b.room(m, k));
        b.project(&x, &parts, &mut y);
        b.project_backward(&dy, &x, &parts, &mut [None], Some(&mut dx));
        [&y, &dx].map(|x| b.download(x)).into()
    }
}

#[test]
fn projections_with_their_adapters_agree_in_every_format() {
    for (format, tolerance) in FORMATS {
        agree(tolerance, Bare(format));
    }
    for (format, tolerance) in FORMATS {
        for (m, k, widths) in [(1, 64, [32, 33, 5]), (31, 128, [70, 96, 20])] {
            agree(3.0 * tolerance, Projected { format, m, k, widths });
        }
    }
}

/// A product, an adapter and the way back, of some of 29 rows.
fn some_rows<B: Backend>(b: &mut B, format: WeightFormat, rows: Range<usize>) -> [Vec<f32>; 2] {
    let (n, k) = (75, 192);
    let w = weight(b, format, n, k);
    let x = &Seeded(1).values(29 * k)[rows.start * k..rows.end * k];
    let x = b.upload(x, rows.len(), k);
    let mut y = b.zeros(rows.len(), n);
    b.matmul(&x, &w, None, &mut y, 0);
    let (a, low) = (seeded(b, 5, 8, k), seeded(b, 6, n, 8));
    b.add_low_rank(&x, 0..rows.len(), &a, &low, 2.0, &mut y, 0);
    let mut back = b.zeros(rows.len(), k);
    b.matmul_backward(&y, 0, &w, &mut back);
    [b.download(&y), b.download(&back)]
}

fn assert_company_does_not_show<B: Backend>(whole: &mut B, part: &mut B, what: &str) {
    for (format, _) in FORMATS {
        let [y, back] = some_rows(whole, format, 0..29);
        for rows in [0..1, 7..9, 20..28, 28..29] {
            let [part, part_back] = some_rows(part, format, rows.clone());
            assert_eq!(part, y[rows.start * 75..rows.end * 75], "{format:?} {what}");
            assert_eq!(part_back, back[rows.start * 192..rows.end * 192], "{format:?} {what}");
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_it_has_in_a_batch() {
    for cpu in every_cpu() {
        let (whole, part) = (&mut CpuBackend::on(cpu, 2), &mut CpuBackend::on(cpu, 1));
        assert_company_does_not_show(whole, part, &format!("{cpu:?}"));
    }
    for make in [emulator::cuda, emulator::cuda_without_tensor_cores] {
        assert_company_does_not_show(&mut make(), &mut make(), "emulated CUDA");
    }
}

#[test]
fn weights_that_share_an_input_give_the_bits_they_give_one_by_one() {
    let (m, k) = (19, 128);
    // Neighbours of one format share a region, others do not; the widths are not whole tiles.
    let kinds = [WeightFormat::Q4_0, WeightFormat::Q4_0, WeightFormat::Q8_0, WeightFormat::Bf16];
    let parts = kinds.iter().zip([(33, 0), (70, 33), (16, 103), (5, 119)]);
    for cpu in every_cpu() {
        let b = &mut CpuBackend::on(cpu, 2);
        let (x, bias) = (seeded(b, 1, m, k), seeded(b, 2, 1, 70));
        let weights: Vec<_> =
            parts.clone().map(|(&format, (n, at))| (weight(b, format, n, k), at)).collect();
        let part = |(weight, at)| Product { weight, bias: (at == 33).then_some(&bias), at };
        let parts: Vec<_> = weights.iter().map(|(weight, at)| part((weight, *at))).collect();
        let (mut together, mut apart) = (b.room(m, 124), b.room(m, 124));
        b.products(&x, &parts, &mut together);
        for part in &parts {
            b.matmul(&x, part.weight, part.bias, &mut apart, part.at);
        }
        assert_eq!(b.download(&together), b.download(&apart), "{cpu:?}");
    }
}

#[test]
fn a_packed_adapter_is_the_exact_one_but_for_its_rounding() {
    packed_adapters(&mut CpuBackend::on(crate::kernels::cpu::Cpu::detect(), 2), 1e-2);
    packed_adapters(&mut emulator::cuda(), 2e-6);
}

fn packed_adapters<B: Backend>(b: &mut B, tolerance: f32) {
    let (m, n, k) = (23, 70, 96);
    let x = seeded(b, 1, m, k);
    let (mut packed, mut exact) = (seeded(b, 7, m, n + 3), seeded(b, 7, m, n + 3));
    let mut held = Vec::new();
    for (rows, r) in [(4..21, 6), (21..22, 40)] {
        let (a, low) = (Seeded(5).values(r * k), Seeded(6).values(n * r));
        let shape = LowRankShape { rank: r, in_features: k, out_features: n };
        let Some(weights) = b.pack_low_rank(&a, &low, shape, WeightFormat::Q4_0) else { return };
        let (a, low) = (b.upload(&a, r, k), b.upload(&low, n, r));
        b.add_low_rank(&x, rows.clone(), &a, &low, 0.5, &mut exact, 2);
        held.push((rows, weights));
    }
    let part =
        |(rows, weights)| LowRankPart { rows: Range::clone(rows), weights, scale: 0.5, at: 2 };
    let parts: Vec<_> = held.iter().map(|(rows, weights)| part((rows, weights))).collect();
    b.add_low_ranks(&x, &parts, &mut packed);
    close(&b.download(&packed), &b.download(&exact), tolerance, "packed");
}

#[test]
fn adapters_of_exact_products_stay_exact_on_the_cpu() {
    let b = &mut CpuBackend::new(1);
    let shape = LowRankShape { rank: 1, in_features: 4, out_features: 2 };
    assert!(b.pack_low_rank(&[1.0; 4], &[1.0; 2], shape, WeightFormat::F32).is_none());
}
