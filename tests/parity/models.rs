//! Logits and greedy tokens of every family.

use std::borrow::Cow;

use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::backend::{BLOCK_TOKENS, Backend, SequenceRows};
use tandem::model::{LoadOptions, Model, ModelSource, Step};

use super::golden;
use crate::support::emulator;

pub const FAMILIES: [&str; 12] = [
    "llama_gqa",
    "llama_linear_rope",
    "llama3_rope",
    "mistral_swa",
    "qwen2",
    "qwen3",
    "phi3",
    "gpt2",
    "mpt_alibi",
    "mpt_clip",
    "gemma2",
    "gemma3_text",
];

/// A sequence whose blocks are scattered over the cache.
fn sequence(rows: std::ops::Range<usize>, start: usize, place: usize) -> SequenceRows {
    let blocks = (0..5).map(|block| ((block * 7 + place * 3) % 20) as u32).collect();
    SequenceRows { read: start + rows.len(), rows, start, blocks }
}

/// Logits of every row of `tokens`, served in chunks that end at `ends`.
fn served<B: Backend>(b: &mut B, model: &Model<B>, tokens: &[u32], ends: &[usize]) -> Vec<f32> {
    let mut cache = model.cache(b, 20);
    let (mut logits, mut start) = (Vec::new(), 0);
    for &end in ends {
        let rows: Vec<usize> = (0..end - start).collect();
        let sequences = [sequence(0..end - start, start, 0)];
        let tokens = &tokens[start..end];
        // Without logits first, as for a chunk of a prompt: the second time overwrites the first.
        let step =
            Step { tokens, sequences: &sequences, pictures: &[], adapters: &[], logits: &[] };
        let none = model.forward(b, &mut cache, &step);
        assert!(b.download(&none).is_empty());
        let z = model.forward(b, &mut cache, &Step { logits: &rows, ..step });
        logits.extend(b.download(&z));
        start = end;
    }
    logits
}

pub fn check_logits<B: Backend>(b: &mut B, name: &str, model: &Model<B>) {
    let folder = golden::path(&format!("models/{name}"));
    let io = golden::tensors(&folder.join("io.safetensors"));
    let atol = golden::number(&golden::json(&folder.join("case.json")), "atol");
    let rows = golden::ids(&io["input_ids"]);
    let per_row = rows[0].len() * model.info.vocab_size;
    for (ids, expected) in rows.iter().zip(io["logits"].1.chunks(per_row)) {
        let found = served(b, model, ids, &[ids.len()]);
        let error = golden::max_error(&found, expected);
        assert!(error <= atol, "{name}: logits are off by {error:.1e}, {atol:.1e} is allowed");
    }
}

fn every_family_gives_the_logits_of_transformers<B: Backend>(b: &mut B) {
    for name in FAMILIES {
        let model = golden::load(b, name);
        check_logits(b, name, &model);
    }
}

/// Rows of the padded batch, without their padding, share one step.
fn a_ragged_batch_gives_each_sequence_its_own_logits<B: Backend>(b: &mut B) {
    for name in FAMILIES {
        let model = golden::load(b, name);
        let folder = golden::path(&format!("models/{name}"));
        let io = golden::tensors(&folder.join("io.safetensors"));
        let atol = golden::number(&golden::json(&folder.join("case.json")), "atol");
        let mask = &io["padded_attention_mask"].1;
        let real: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] == 1.0).collect();
        let tokens: Vec<u32> = real.iter().map(|&i| io["padded_input_ids"].1[i] as u32).collect();
        let width = io["padded_input_ids"].0[1];
        let mut sequences = Vec::new();
        for row in 0..io["padded_input_ids"].0[0] {
            let first = real.iter().filter(|&&i| i / width < row).count();
            let n = real.iter().filter(|&&i| i / width == row).count();
            sequences.push(sequence(first..first + n, 0, row));
        }
        let logits: Vec<usize> = (0..tokens.len()).collect();
        let step = Step {
            tokens: &tokens,
            sequences: &sequences,
            pictures: &[],
            adapters: &[],
            logits: &logits,
        };
        let mut cache = model.cache(b, 20);
        let z = model.forward(b, &mut cache, &step);
        let v = model.info.vocab_size;
        let found = b.download(&z);
        for (found, &i) in found.chunks(v).zip(&real) {
            let error = golden::max_error(found, &io["padded_logits"].1[i * v..][..v]);
            assert!(error <= atol, "{name}: token {i} is off by {error:.1e}");
        }
    }
}

fn greedy_tokens_are_those_of_transformers<B: Backend>(b: &mut B) {
    for name in FAMILIES {
        let model = golden::load(b, name);
        let io = golden::tensors(&golden::path(&format!("models/{name}/io.safetensors")));
        let (mut step, expected) = (golden::ids(&io["prompt"]).remove(0), &io["greedy"].1);
        let (mut cache, mut start, mut found) = (model.cache(b, 20), 0, Vec::new());
        while found.len() < expected.len() {
            let n = step.len();
            let one = Step {
                tokens: &step,
                pictures: &[],
                sequences: &[sequence(0..n, start, 1)],
                adapters: &[],
                logits: &[n - 1],
            };
            let z = model.forward(b, &mut cache, &one);
            let z = b.download(&z);
            let best = (0..z.len()).max_by(|&i, &j| z[i].total_cmp(&z[j])).unwrap() as u32;
            start += n;
            found.push(best as f32);
            step = vec![best];
        }
        assert_eq!(&found, expected, "{name}");
    }
}

/// To the bit: however a sequence is cut into chunks, whoever shares its batch, cached or not.
fn chunks_batches_and_the_cache_leave_every_bit_as_it_is<B: Backend>(b: &mut B) {
    for name in FAMILIES {
        let model = golden::load(b, name);
        let io = golden::tensors(&golden::path(&format!("models/{name}/io.safetensors")));
        let rows = golden::ids(&io["input_ids"]);
        let n = rows[0].len();
        let whole = served(b, &model, &rows[0], &[n]);
        for ends in [vec![1, 8, n], vec![BLOCK_TOKENS, n], (1..=n).collect()] {
            assert!(served(b, &model, &rows[0], &ends) == whole, "{name}: chunks {ends:?}");
        }
        let both: Vec<u32> = rows.concat();
        let logits: Vec<usize> = (0..n).collect();
        let z = model.forward_spans(b, &both, &[0..n, n..2 * n], &[], &logits);
        assert!(b.download(&z) == whole, "{name}: without a cache, beside another sequence");
    }
}

#[test]
fn logits_on_the_reference_backend() {
    every_family_gives_the_logits_of_transformers(&mut ReferenceBackend);
}

#[test]
fn logits_on_the_cpu_backend() {
    every_family_gives_the_logits_of_transformers(&mut CpuBackend::new(2));
}

#[test]
fn ragged_batches_on_the_reference_backend() {
    a_ragged_batch_gives_each_sequence_its_own_logits(&mut ReferenceBackend);
}

#[test]
fn ragged_batches_on_the_cpu_backend() {
    a_ragged_batch_gives_each_sequence_its_own_logits(&mut CpuBackend::new(2));
}

#[test]
fn greedy_tokens_on_the_reference_backend() {
    greedy_tokens_are_those_of_transformers(&mut ReferenceBackend);
}

#[test]
fn greedy_tokens_on_the_cpu_backend() {
    greedy_tokens_are_those_of_transformers(&mut CpuBackend::new(2));
}

#[test]
fn same_bits_on_the_reference_backend() {
    chunks_batches_and_the_cache_leave_every_bit_as_it_is(&mut ReferenceBackend);
}

#[test]
fn same_bits_on_the_cpu_backend() {
    chunks_batches_and_the_cache_leave_every_bit_as_it_is(&mut CpuBackend::new(2));
}

#[test]
fn logits_on_the_emulated_cuda_backend() {
    every_family_gives_the_logits_of_transformers(&mut emulator::cuda());
}

#[test]
fn ragged_batches_on_the_emulated_cuda_backend() {
    a_ragged_batch_gives_each_sequence_its_own_logits(&mut emulator::cuda());
}

#[test]
fn greedy_tokens_on_the_emulated_cuda_backend() {
    greedy_tokens_are_those_of_transformers(&mut emulator::cuda());
}

#[test]
fn same_bits_on_the_emulated_cuda_backend() {
    chunks_batches_and_the_cache_leave_every_bit_as_it_is(&mut emulator::cuda());
}

#[test]
fn heads_too_large_for_the_device_are_refused_before_a_weight_is_read() {
    let mut config = golden::json(&golden::path("models/llama_gqa/model/config.json"));
    config["head_dim"] = 258.into();
    let config = serde_json::to_vec(&config).unwrap().into();
    let source = ModelSource::Embedded { config, tensors: Cow::Borrowed(&[]) };
    let options = LoadOptions { name: "large".into(), format: None };
    let refused = Model::load(&mut emulator::cuda(), &source, &options).err().expect("a refusal");
    assert!(refused.to_string().contains("258 values"), "{refused}");
    assert!(refused.to_string().contains("--device cpu"), "{refused}");
    let other = Model::load(&mut CpuBackend::new(1), &source, &options).err().expect("no weights");
    assert!(!other.to_string().contains("258"), "{other}");
}

#[test]
fn older_configurations_mean_the_same() {
    let b = &mut ReferenceBackend;
    for name in FAMILIES.into_iter().filter(|&name| name != "llama3_rope") {
        let folder = golden::path(&format!("models/{name}"));
        let read = |file: &str| Cow::Owned(std::fs::read(folder.join(file)).unwrap());
        let source = ModelSource::Embedded {
            config: read("config_legacy.json"),
            tensors: read("model/model.safetensors"),
        };
        let model = golden::load_from(b, &source);
        check_logits(b, name, &model);
    }
}

#[test]
fn the_older_configuration_of_a_sharded_model_means_the_same() {
    let b = &mut ReferenceBackend;
    let (from, to) = (golden::path("models/llama3_rope"), tempfile::tempdir().unwrap());
    for file in std::fs::read_dir(from.join("model")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    std::fs::copy(from.join("config_legacy.json"), to.path().join("config.json")).unwrap();
    let model = golden::load_from(b, &ModelSource::Folder(to.path().to_owned()));
    check_logits(b, "llama3_rope", &model);
    std::fs::remove_file(to.path().join("model-00003-of-00006.safetensors")).unwrap();
    let options = LoadOptions { name: "golden".to_owned(), format: None };
    let error = Model::load(b, &ModelSource::Folder(to.path().to_owned()), &options);
    let error = error.err().expect("a shard is missing").to_string();
    assert!(error.contains("model-00003-of-00006.safetensors"), "{error}");
}
