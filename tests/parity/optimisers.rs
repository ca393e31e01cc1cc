//! AdamW with moments in 8 bits, and beside the device: numbers of bitsandbytes.

use std::collections::HashMap;

use safetensors::SafeTensors;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::backend::{AdamStep, Backend, HostMoments, MOMENTS_BLOCK, Moments8};

use super::golden;
use crate::support::emulator;

struct Case {
    tensors: HashMap<String, Vec<u8>>,
    settings: serde_json::Value,
}

impl Case {
    fn read(name: &str) -> Self {
        let folder = golden::path(&format!("bnb/{name}"));
        let bytes = std::fs::read(folder.join("tensors.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec()));
        let settings = golden::json(&folder.join("case.json"))["settings"].clone();
        Self { tensors: tensors.collect(), settings }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors[name].as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn step(&self, step: usize) -> AdamStep {
        let number = |key: &str| self.settings[key].as_f64().unwrap();
        let beta = |i: usize| self.settings["betas"][i].as_f64().unwrap();
        AdamStep {
            step,
            learning_rate: number("lr"),
            beta1: beta(0),
            beta2: beta(1),
            epsilon: number("eps"),
            weight_decay: number("weight_decay"),
        }
    }
}

/// Codes that differ, and by how much at most.
fn codes_off(found: &[u8], expected: &[u8]) -> (usize, u8) {
    let pairs = found.iter().zip(expected);
    let off = pairs.filter(|(x, y)| x != y).map(|(x, y)| x.abs_diff(*y));
    off.fold((0, 0), |(count, most), off| (count + 1, most.max(off)))
}

fn eight_bits<B: Backend>(b: &mut B) {
    let case = Case::read("adamw8bit");
    let start = case.floats("p0");
    let (n, blocks) = (start.len(), start.len().div_ceil(MOMENTS_BLOCK));
    let mut p = b.upload(&start, 1, n);
    let (mut first, mut second) = (vec![0; n], vec![0; n]);
    let (mut first_absmax, mut second_absmax) = (vec![0.0; blocks], vec![0.0; blocks]);
    for step in 1..=5 {
        let g = b.upload(&case.floats(&format!("grad_p.{step}")), 1, n);
        let moments = HostMoments::Bits8(Moments8 {
            first: &mut first,
            second: &mut second,
            first_absmax: &mut first_absmax,
            second_absmax: &mut second_absmax,
        });
        b.adamw_on_host(&mut p, &g, moments, &case.step(step));
        let name = |part: &str| format!("exact.{part}.{step}");
        if !case.tensors.contains_key(&name("p")) {
            continue;
        }
        // A code on the border of two levels may fall either way, and moves its weight a little.
        for (found, part) in [(&first, "state1"), (&second, "state2")] {
            let (count, most) = codes_off(found, &case.tensors[&name(part)]);
            assert!(most <= 1 && count * 500 <= n, "step {step}: {count} codes of {part} differ");
        }
        for (found, part) in [(&first_absmax, "absmax1"), (&second_absmax, "absmax2")] {
            let error = golden::relative_l2(found, &case.floats(&name(part)));
            assert!(error < 1e-6, "step {step}: {part} is off by {error:.1e}");
        }
        let (found, expected) = (b.download(&p), case.floats(&name("p")));
        let off = found.iter().zip(&expected).filter(|(x, y)| (**x - **y).abs() > 1e-6).count();
        assert!(off * 500 <= n, "step {step}: {off} weights are off");
    }
}

fn beside_the_device<B: Backend>(b: &mut B) {
    let case = Case::read("paged_adamw32");
    for tensor in ["p", "b"] {
        let start = case.floats(&format!("{tensor}0"));
        let n = start.len();
        let mut p = b.upload(&start, 1, n);
        let (mut first, mut second) = (vec![0.0; n], vec![0.0; n]);
        for step in 1..=3 {
            let g = b.upload(&case.floats(&format!("grad_{tensor}.{step}")), 1, n);
            let moments = HostMoments::F32 { first: &mut first, second: &mut second };
            b.adamw_on_host(&mut p, &g, moments, &case.step(step));
        }
        let state = |part: &str| case.floats(&format!("state_{tensor}.{part}.3"));
        for (found, expected) in [
            (&b.download(&p), case.floats(&format!("{tensor}.3"))),
            (&first, state("state1")),
            (&second, state("state2")),
        ] {
            let error = golden::max_error(found, &expected);
            assert!(error <= 1e-6, "{tensor} is off by {error:.1e}");
        }
    }
}

#[test]
fn eight_bits_on_the_reference_backend() {
    eight_bits(&mut ReferenceBackend);
}

#[test]
fn eight_bits_on_the_cpu_backend() {
    eight_bits(&mut CpuBackend::new(2));
}

#[test]
fn moments_beside_the_device() {
    beside_the_device(&mut ReferenceBackend);
    beside_the_device(&mut CpuBackend::new(2));
    beside_the_device(&mut emulator::cuda());
}
