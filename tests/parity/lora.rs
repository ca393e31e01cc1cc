//! Adapters: logits, loss and gradients of peft.

use tandem::backend::Backend;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::model::{AdapterRows, MicroBatchOptions, TrainBatch, Trainee};

use super::golden;
use crate::support::emulator;

/// The case and its base model.
pub const CASES: [(&str, &str); 9] = [
    ("llama_lora", "llama_gqa"),
    ("llama_rslora", "llama_gqa"),
    ("gpt2_lora", "gpt2"),
    ("mpt_lora", "mpt_alibi"),
    ("phi3_lora", "phi3"),
    ("llama_dora", "llama_gqa"),
    ("gpt2_dora", "gpt2"),
    ("mpt_rslora_dora", "mpt_clip"),
    ("llama_patterns", "llama_gqa"),
];

/// One batch: its first sequence wears the adapter, its second does not.
fn an_adapter_changes_the_rows_that_wear_it_and_no_others<B: Backend>(b: &mut B) {
    for (name, base) in CASES {
        let model = golden::load(b, base);
        let adapter = model.attach(b, &golden::adapter(name, &model)).unwrap();
        let folder = golden::path(&format!("lora/{name}"));
        let io = golden::tensors(&folder.join("io.safetensors"));
        let atol = golden::number(&golden::json(&folder.join("case.json")), "atol");
        let rows = golden::ids(&io["input_ids"]);
        let (n, v) = (rows[0].len(), model.info.vocab_size);
        let worn = [AdapterRows { rows: 0..n, adapter: &adapter, scale: 1.0 }];
        let all: Vec<usize> = (0..2 * n).collect();
        let z = model.forward_spans(b, &rows.concat(), &[0..n, n..2 * n], &worn, &all);
        let found = b.download(&z);
        let expected = [&io["logits"].1[..n * v], &io["base_logits"].1[n * v..]].concat();
        let error = golden::max_error(&found, &expected);
        assert!(error <= atol, "{name}: logits are off by {error:.1e}, {atol:.1e} is allowed");
        model.detach(b, adapter);
    }
}

fn loss_and_every_gradient_are_those_of_peft<B: Backend>(b: &mut B) {
    for (name, base) in CASES {
        let model = golden::load(b, base);
        let mut trainee = Trainee::adapter(b, &model, &golden::adapter(name, &model)).unwrap();
        let batch = TrainBatch::new(&golden::examples(name));
        let labels = batch.trained_tokens();
        let options = MicroBatchOptions { weight: 1.0 / labels as f32, ..Default::default() };
        let sum = golden::run(b, &model, &mut trainee, &batch, options);
        let case = golden::json(&golden::path(&format!("lora/{name}/case.json")));
        let loss = sum.loss / sum.tokens as f64;
        assert_eq!(sum.tokens, labels);
        assert!((loss - golden::number(&case, "loss")).abs() < 2e-5, "{name}: loss {loss}");
        check_gradients(b, name, &mut trainee, golden::number(&case, "grad_rel_l2_tol"));
    }
}

fn check_gradients<B: Backend>(b: &B, name: &str, trainee: &mut Trainee<B>, tolerance: f64) {
    let expected = golden::tensors(&golden::path(&format!("lora/{name}/grads.safetensors")));
    let mut met = 0;
    for parameter in trainee.parameters_mut() {
        let found = b.download(parameter.gradient);
        let error = golden::relative_l2(&found, &expected[parameter.name].1);
        assert!(error <= tolerance, "{name}: {} is off by {error:.1e}", parameter.name);
        assert!(found.iter().any(|&g| g != 0.0), "{name}: {} has no gradient", parameter.name);
        met += 1;
    }
    assert_eq!(met, expected.len(), "{name}: every trained tensor has a gradient");
}

#[test]
fn logits_on_the_reference_backend() {
    an_adapter_changes_the_rows_that_wear_it_and_no_others(&mut ReferenceBackend);
}

#[test]
fn logits_on_the_cpu_backend() {
    an_adapter_changes_the_rows_that_wear_it_and_no_others(&mut CpuBackend::new(2));
}

#[test]
fn gradients_on_the_reference_backend() {
    loss_and_every_gradient_are_those_of_peft(&mut ReferenceBackend);
}

#[test]
fn gradients_on_the_cpu_backend() {
    loss_and_every_gradient_are_those_of_peft(&mut CpuBackend::new(2));
}

#[test]
fn logits_on_the_emulated_cuda_backend() {
    an_adapter_changes_the_rows_that_wear_it_and_no_others(&mut emulator::cuda());
}

#[test]
fn gradients_on_the_emulated_cuda_backend() {
    loss_and_every_gradient_are_those_of_peft(&mut emulator::cuda());
}
