//! 4-bit weights: bytes, absmax and values of bitsandbytes; gradients through them of peft.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::backend::{Backend, HostWeight, WeightFormat};
use tandem::kernels::nf4::{Absmax, Blocks, Code, PackedNf4};
use tandem::kernels::pool::Pool;
use tandem::model::{
    AdapterRows, LoadOptions, MicroBatchOptions, Model, ModelSource, TrainBatch, Trainee,
};

use super::golden;
use crate::support::emulator;

const CODES: [(&str, Code); 2] = [("nf4", Code::Nf4), ("fp4", Code::Fp4)];

/// The bytes of every tensor of a file.
fn raw(path: &Path) -> HashMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// FP4 has two zeros.
fn one_zero(code: Code, bytes: &[u8]) -> Vec<u8> {
    let merged = |nibble: u8| if code == Code::Fp4 && nibble == 8 { 0 } else { nibble };
    bytes.iter().map(|byte| merged(byte >> 4) << 4 | merged(byte & 15)).collect()
}

fn check_case(name: &str) {
    let folder = golden::path(&format!("bnb/{name}"));
    let (case, file) =
        (golden::json(&folder.join("case.json")), raw(&folder.join("tensors.safetensors")));
    let block = case["blocksize"].as_u64().unwrap() as usize;
    let bf16 = case["dtype"] == "torch.bfloat16";
    let values = |bytes: &[u8]| match bf16 {
        true => {
            let numbers = bytes.as_chunks().0.iter();
            numbers.map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
        }
        false => floats(bytes),
    };
    let input: Vec<f32> = values(&file["input"]);
    for ((word, code), double) in CODES.into_iter().flat_map(|code| [(code, false), (code, true)]) {
        let case = format!("{word}{}", if double { "_dq" } else { "" });
        let part = |part: &str| &file[&format!("{case}.{part}")];
        let ours = Blocks::quantize(&Pool::new(2), (&input).into(), code, block, double);
        assert_eq!(one_zero(code, &ours.bytes), one_zero(code, part("packed")), "{name} {case}");
        match &ours.absmax {
            Absmax::F32(absmax) => assert_eq!(*absmax, floats(part("absmax")), "{name} {case}"),
            Absmax::Double { codes, map, second, offset } => {
                assert_eq!(codes, part("absmax"), "{name} {case}");
                assert_eq!(map.to_vec(), floats(part("nested_code")), "{name} {case}");
                close(second, &floats(part("nested_absmax")), 1e-6);
                close(&[*offset], &floats(part("offset")), 1.5e-7); // the last bit
            }
        }
        let expected = values(part("dequantized"));
        for (i, &expected) in expected.iter().enumerate() {
            let ours = ours.value(i);
            let ours = if bf16 { half::bf16::from_f32(ours).to_f32() } else { ours };
            // Nested absmax may differ in its last bit, which bf16 may round to its own last one.
            let allowed = if bf16 { 8e-3 } else { 1e-6 } * expected.abs();
            // Nested, the offset's last bit moves every absmax, and levels are at most 1.
            let allowed = if double { allowed + 1.5e-7 } else { 0.0 };
            assert!((ours - expected).abs() <= allowed, "{name} {case} {i}: {ours} {expected}");
        }
    }
}

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (x, y) in found.iter().zip(expected) {
        assert!((x - y).abs() <= tolerance * y.abs(), "{x} {y}");
    }
}

#[test]
fn codes_absmax_and_values_are_those_of_bitsandbytes() {
    ["quant_bf16", "quant_f32_bs128", "quant_f32_tail"].into_iter().for_each(check_case);
}

#[test]
fn a_double_quantised_weight_takes_4_127_bits_per_value() {
    let values: Vec<f32> = (0..4096 * 512).map(|i| (0.37 * i as f32).sin()).collect();
    for (double, bits) in [(false, 4.5), (true, 4.0 + 8.0 / 64.0 + 32.0 / (64.0 * 256.0))] {
        let w =
            PackedNf4::quantize(&Pool::new(2), (&values).into(), (4096, 512), Code::Nf4, double);
        let found = 8.0 * w.size_bytes() as f64 / values.len() as f64;
        assert!((found - bits).abs() < 1e-3, "{found} bits per weight");
        let format = WeightFormat::Nf4 { double };
        let b = &mut CpuBackend::new(1);
        let host = HostWeight { values: (&values).into(), out_features: 4096, in_features: 512 };
        let weight = b.pack(host, format);
        assert_eq!(b.weight_bytes(&weight), w.size_bytes());
    }
}

/// The stored 4-bit checkpoint of a case as it is held and computed with: its values are of `f32`.
fn stored<B: Backend>(b: &mut B, name: &str) -> Model<B> {
    let model =
        golden::load_from(b, &ModelSource::Folder(golden::path(&format!("bnb/{name}/model"))));
    assert!(["nf4-dq", "fp4"].contains(&model.info.dtype.as_str()), "{}", model.info.dtype);
    model
}

/// `bnb_4bit_quant_storage` declares the codes as wider numbers; the bytes are the same.
#[test]
fn codes_declared_as_bf16_are_the_same_weights() {
    let b = &mut ReferenceBackend;
    let folder = golden::path("bnb/qlora_nf4_dq/model");
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut declared = 0;
    let views: Vec<_> = (file.iter())
        .map(|(name, view)| match view.dtype() == Dtype::U8 && name.ends_with(".weight") {
            true => {
                declared += 1;
                let shape = vec![view.data().len() / 2, 1];
                (name, TensorView::new(Dtype::BF16, shape, view.data()).unwrap())
            }
            false => (name, view),
        })
        .collect();
    assert_eq!(declared, 14);
    let tensors = safetensors::serialize(views, None).unwrap();
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let source = ModelSource::Embedded { config: config.into(), tensors: tensors.into() };
    let models = [golden::load_from(b, &source), stored(b, "qlora_nf4_dq")];
    let [wide, narrow] = models.map(|model| {
        let z = model.forward_spans(b, &[3, 4, 5], &[0..2, 2..3], &[], &[0, 1, 2]);
        b.download(&z)
    });
    assert_eq!(wide, narrow);
}

/// Loss, logits and gradients through the 4-bit weights, within float32.
fn follows_the_definition<B: Backend>(b: &mut B) {
    for name in ["qlora_nf4_dq", "qlora_fp4"] {
        let model = stored(b, name);
        let folder = golden::path(&format!("bnb/{name}"));
        let case = golden::json(&folder.join("case.json"));
        let weights = golden::adapter_in(&folder, &model);
        let adapter = model.attach(b, &weights).unwrap();
        let io = golden::tensors(&folder.join("io.safetensors"));
        let rows = golden::ids(&io["input_ids"]);
        let n = rows[0].len();
        let worn = [AdapterRows { rows: 0..2 * n, adapter: &adapter, scale: 1.0 }];
        let all: Vec<usize> = (0..2 * n).collect();
        let z = model.forward_spans(b, &rows.concat(), &[0..n, n..2 * n], &worn, &all);
        let error = golden::max_error(&b.download(&z), &io["logits"].1);
        assert!(error <= golden::number(&case, "atol"), "{name}: logits are off by {error:.1e}");
        let (loss, worst) = loss_and_gradients(b, &model, &folder);
        assert!((loss - golden::number(&case, "loss")).abs() < 2e-5, "{name}: {loss}");
        assert!(worst <= golden::number(&case, "grad_rel_l2_tol"), "{name}: {worst:.1e}");
    }
}

/// The loss, and the gradient that is furthest off.
fn loss_and_gradients<B: Backend>(b: &mut B, model: &Model<B>, folder: &Path) -> (f64, f64) {
    let mut trainee = Trainee::adapter(b, model, &golden::adapter_in(folder, model)).unwrap();
    let batch = TrainBatch::new(&golden::examples_in(folder));
    let weight = 1.0 / batch.trained_tokens() as f32;
    let options = MicroBatchOptions { weight, ..Default::default() };
    let sum = golden::run(b, model, &mut trainee, &batch, options);
    let expected = golden::tensors(&folder.join("grads.safetensors"));
    let mut worst = 0f64;
    for parameter in trainee.parameters_mut() {
        let found = b.download(parameter.gradient);
        worst = worst.max(golden::relative_l2(&found, &expected[parameter.name].1));
    }
    (sum.loss / sum.tokens as f64, worst)
}

#[test]
fn the_definition_on_the_reference_backend() {
    follows_the_definition(&mut ReferenceBackend);
}

#[test]
fn the_definition_on_the_cpu_backend() {
    follows_the_definition(&mut CpuBackend::new(2));
}

#[test]
fn the_definition_on_the_emulated_cuda_backend() {
    follows_the_definition(&mut emulator::cuda());
}

fn quantised<B: Backend>(b: &mut B, base: &str, format: WeightFormat) -> Model<B> {
    let source = ModelSource::Folder(golden::path(&format!("models/{base}/model")));
    let options = LoadOptions { name: "golden".to_owned(), format: Some(format) };
    Model::load(b, &source, &options).unwrap()
}

/// The resident 4-bit weights, with products as they are served (bf16, and the head in bf16), stay
/// near the definition.
#[test]
fn training_on_resident_four_bit_weights_stays_near_the_definition() {
    for (name, base, format) in [
        ("qlora_nf4_dq", "llama_gqa", WeightFormat::Nf4 { double: true }),
        ("qlora_fp4", "mistral_swa", WeightFormat::Fp4 { double: false }),
    ] {
        let b = &mut CpuBackend::new(2);
        let model = quantised(b, base, format);
        let folder = golden::path(&format!("bnb/{name}"));
        let (loss, worst) = loss_and_gradients(b, &model, &folder);
        let expected = golden::number(&golden::json(&folder.join("case.json")), "loss");
        assert!((loss - expected).abs() < 0.02, "{name}: loss {loss}, {expected} by definition");
        assert!(worst < 0.05, "{name}: a gradient is off by {worst:.1e}");
    }
}

/// QLoRA over GGUF's formats: the gradients of the CPU backend, whose activations are in int8 on the
/// way forward, against plain arithmetic on the same rounded weights.
#[test]
fn training_on_resident_gguf_weights_stays_near_the_reference() {
    let folder = golden::path("bnb/qlora_nf4_dq");
    for format in [WeightFormat::Q8_0, WeightFormat::Q4_0] {
        let fast = all_gradients(&mut CpuBackend::new(2), format, &folder);
        let plain = all_gradients(&mut ReferenceBackend, format, &folder);
        for (fast, plain) in fast.iter().zip(&plain) {
            let error = golden::relative_l2(fast, plain);
            assert!(error < 0.15, "{format:?}: a gradient is off by {error:.1e}");
        }
    }
}

fn all_gradients<B: Backend>(b: &mut B, format: WeightFormat, folder: &Path) -> Vec<Vec<f32>> {
    let model = quantised(b, "llama_gqa", format);
    let mut trainee = Trainee::adapter(b, &model, &golden::adapter_in(folder, &model)).unwrap();
    let batch = TrainBatch::new(&golden::examples_in(folder));
    let weight = 1.0 / batch.trained_tokens() as f32;
    golden::run(
        b,
        &model,
        &mut trainee,
        &batch,
        MicroBatchOptions { weight, ..Default::default() },
    );
    trainee.parameters_mut().map(|parameter| b.download(parameter.gradient)).collect()
}
