//! Other forms of the same models: GGUF, bitsandbytes, and what is written and read back.

use std::path::Path;

use tandem::backend::Backend;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::gguf::{Gguf, TensorType};
use tandem::model::{LoadOptions, Model, ModelError, ModelSource};

use super::golden;
use super::models::{FAMILIES, check_logits};

fn source(name: &str) -> ModelSource {
    ModelSource::Folder(golden::path(&format!("models/{name}/model")))
}

fn write_gguf(name: &str, kind: TensorType, to: &Path) {
    let model = golden::load(&mut ReferenceBackend, name);
    let weights = model.weights(&source(name), None).unwrap();
    weights.write_gguf(to, name, kind, Vec::new()).unwrap();
}

fn all_logits<B: Backend>(b: &mut B, model: &Model<B>) -> Vec<f32> {
    let ids: Vec<u32> = (0..24).map(|i| (i * i * 7 + i) % 250).collect();
    let rows: Vec<usize> = (0..24).collect();
    let z = model.forward_spans(b, &ids, std::slice::from_ref(&(0..24)), &[], &rows);
    b.download(&z)
}

#[test]
fn every_family_survives_gguf() {
    let (b, folder) = (&mut ReferenceBackend, tempfile::tempdir().unwrap());
    for name in FAMILIES {
        let path = folder.path().join(format!("{name}.gguf"));
        write_gguf(name, TensorType::F32, &path);
        let model = golden::load_from(b, &ModelSource::Gguf(path));
        check_logits(b, name, &model);
        let original = golden::load(b, name);
        assert_eq!(model.info.modules, original.info.modules, "adapters fit both");
        assert_eq!(model.info.parameters, original.info.parameters);
    }
}

#[test]
fn every_family_survives_safetensors_to_the_bit() {
    let (b, folder) = (&mut ReferenceBackend, tempfile::tempdir().unwrap());
    for name in FAMILIES {
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        let model = golden::load(b, name);
        let weights = model.weights(&source(name), None).unwrap();
        weights.write_safetensors(&to, TensorType::F32).unwrap();
        let copy = golden::load_from(b, &ModelSource::Folder(to));
        assert_eq!(all_logits(b, &copy), all_logits(b, &model), "{name}");
    }
}

#[test]
fn a_gguf_file_becomes_the_folder_it_was_made_from() {
    let (b, folder) = (&mut ReferenceBackend, tempfile::tempdir().unwrap());
    for name in ["gpt2", "gemma3_text", "llama3_rope", "qwen3"] {
        let path = folder.path().join(format!("{name}.gguf"));
        write_gguf(name, TensorType::F32, &path);
        let source = ModelSource::Gguf(path);
        let model = golden::load_from(b, &source);
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        let weights = model.weights(&source, None).unwrap();
        weights.write_safetensors(&to, TensorType::F32).unwrap();
        let copy = golden::load_from(b, &ModelSource::Folder(to));
        check_logits(b, name, &copy);
    }
}

/// Blocks that have a form of their own are held as they are, the others so that little is lost:
/// the logits are those of the dequantised values.
#[test]
fn every_block_type_is_served_as_it_dequantises() {
    let (b, folder) = (&mut ReferenceBackend, tempfile::tempdir().unwrap());
    let cpu = &mut CpuBackend::new(2);
    let types = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "f16", "bf16"];
    for name in types {
        let kind = TensorType::from_name(name).unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        write_gguf("llama_gqa", kind, &path);
        let source = ModelSource::Gguf(path);
        let exact = LoadOptions {
            name: "exact".to_owned(),
            format: Some(tandem::backend::WeightFormat::F32),
        };
        let exact = Model::load(b, &source, &exact).unwrap();
        let exact = all_logits(b, &exact);
        let plain = golden::load_from(b, &source);
        let found = all_logits(b, &plain);
        // Q4_1 and Q5_1 pass through eight bits; the others lose nothing.
        let lossless = !matches!(kind, TensorType::Q4_1 | TensorType::Q5_1);
        let bound = if lossless { 1e-6 } else { 5e-2 };
        let error = golden::relative_l2(&found, &exact);
        assert!(error < bound, "{name}: {error:.1e}");
        let served = golden::load_from(cpu, &source);
        let error = golden::relative_l2(&all_logits(cpu, &served), &exact);
        assert!(error < 0.1, "{name} on the CPU: {error:.1e}");
    }
}

#[test]
fn rows_that_are_no_whole_blocks_get_another_type() {
    let (b, folder) = (&mut ReferenceBackend, tempfile::tempdir().unwrap());
    let path = folder.path().join("model.gguf");
    let model = golden::load(b, "llama_gqa");
    let weights = model.weights(&source("llama_gqa"), None).unwrap();
    let written = weights.write_gguf(&path, "x", TensorType::Q4_K, Vec::new()).unwrap();
    assert_eq!(written.fallbacks.len(), 16, "rows of 64 and 128 hold no block of 256");
    assert!(written.fallbacks.iter().all(|(_, kind)| *kind == TensorType::Q8_0));
    let gguf = Gguf::open(&path).unwrap();
    let matrices = gguf.tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    assert!(matrices.into_iter().all(|tensor| tensor.kind == TensorType::Q8_0));
}

#[test]
fn a_merged_adapter_gives_the_weights_and_logits_of_peft() {
    let (b, folder) = (&mut ReferenceBackend, tempfile::tempdir().unwrap());
    let mut compared = Vec::new();
    for (case, base) in super::lora::CASES {
        let to = folder.path().join(case);
        std::fs::create_dir(&to).unwrap();
        let model = golden::load(b, base);
        let adapter = golden::adapter(case, &model);
        let weights = model.weights(&source(base), Some(&adapter)).unwrap();
        weights.write_safetensors(&to, TensorType::F32).unwrap();
        let io = golden::tensors(&golden::path(&format!("lora/{case}/io.safetensors")));
        let written = golden::tensors(&to.join("model.safetensors"));
        for (name, (shape, expected)) in &io {
            let Some(name) = name.strip_prefix("merged.") else { continue };
            let (found_shape, found) = &written[name];
            assert_eq!(found_shape, shape, "{case}: {name}");
            assert!(golden::max_error(found, expected) < 5e-6, "{case}: {name}");
            compared.push(case);
        }
        let config = golden::path(&format!("models/{base}/model/config.json"));
        std::fs::copy(config, to.join("config.json")).unwrap();
        let merged = golden::load_from(b, &ModelSource::Folder(to));
        let case_file = golden::json(&golden::path(&format!("lora/{case}/case.json")));
        let atol = golden::number(&case_file, "atol");
        let rows = golden::ids(&io["input_ids"]);
        let (n, all) = (rows[0].len(), (0..2 * rows[0].len()).collect::<Vec<_>>());
        let z = merged.forward_spans(b, &rows.concat(), &[0..n, n..2 * n], &[], &all);
        let error = golden::max_error(&b.download(&z), &io["logits"].1);
        assert!(error <= atol, "{case}: logits are off by {error:.1e}, {atol:.1e} is allowed");
    }
    compared.dedup();
    assert_eq!(compared, ["llama_lora", "gpt2_lora", "mpt_lora", "llama_dora"]);
}

#[test]
fn checkpoints_of_bitsandbytes_are_read_as_they_are() {
    for case in ["qlora_nf4_dq", "qlora_fp4"] {
        let folder = golden::path(&format!("bnb/{case}"));
        let io = golden::tensors(&folder.join("io.safetensors"));
        let atol = golden::number(&golden::json(&folder.join("case.json")), "atol");
        let source = ModelSource::Folder(folder.join("model"));
        let b = &mut ReferenceBackend;
        let model = golden::load_from(b, &source);
        let (v, rows) = (model.info.vocab_size, golden::ids(&io["input_ids"]));
        let mut check = |ids: &[u32], expected: &[f32]| {
            let (n, rows) = (ids.len(), (0..ids.len()).collect::<Vec<_>>());
            let z = model.forward_spans(b, ids, std::slice::from_ref(&(0..n)), &[], &rows);
            let error = golden::max_error(&b.download(&z), expected);
            assert!(error <= atol, "{case}: logits are off by {error:.1e}");
        };
        for (ids, expected) in rows.iter().zip(io["base_logits"].1.chunks(rows[0].len() * v)) {
            check(ids, expected);
        }
        let cpu = &mut CpuBackend::new(2);
        let served = golden::load_from(cpu, &source);
        let error = golden::relative_l2(&all_logits(cpu, &served), &all_logits(b, &model));
        assert!(error < 0.1, "{case} on the CPU: {error:.1e}");
    }
}

#[test]
fn what_gguf_has_no_words_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = golden::json(&golden::path("models/mpt_alibi/config_legacy.json"));
    config["logit_scale"] = 0.5.into();
    let from = folder.path().join("model");
    std::fs::create_dir(&from).unwrap();
    std::fs::write(from.join("config.json"), config.to_string()).unwrap();
    let weights = golden::path("models/mpt_alibi/model/model.safetensors");
    std::fs::copy(weights, from.join("model.safetensors")).unwrap();
    let source = ModelSource::Folder(from);
    let model = golden::load_from(&mut ReferenceBackend, &source);
    let weights = model.weights(&source, None).unwrap();
    let refused =
        weights.write_gguf(&folder.path().join("x.gguf"), "x", TensorType::F32, Vec::new());
    assert!(matches!(refused, Err(ModelError::NotExportable { .. })));
}
