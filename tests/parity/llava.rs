//! A picture through tower, projector and decoder.

use std::borrow::Cow;
use std::path::Path;

use safetensors::SafeTensors;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::backend::{Backend, SequenceRows};
use tandem::domain::{Example, Picture};
use tandem::gguf::TensorType;
use tandem::model::{
    AdapterRows, MicroBatchOptions, Model, ModelSource, PictureRows, SeenPicture, Step, TrainBatch,
    Trainee,
};

use super::golden;
use crate::support::emulator;

const CASE: &str = "llava/clip_default";

fn folder() -> ModelSource {
    ModelSource::Folder(golden::path(&format!("{CASE}/model")))
}

pub(super) fn tensor(name: &str) -> (Vec<usize>, Vec<f32>) {
    golden::tensors(&golden::path(&format!("{CASE}/io.safetensors"))).remove(name).unwrap()
}

pub(super) fn atol() -> f64 {
    golden::number(&golden::json(&golden::path(&format!("{CASE}/case.json"))), "atol")
}

/// What the tower says of the golden picture, from the golden pixels.
fn features<B: Backend>(b: &mut B, model: &Model<B>) -> Vec<f32> {
    seen(b, model, tensor("pixel_values").1)
}

pub(super) fn seen<B: Backend>(b: &mut B, model: &Model<B>, pixels: Vec<f32>) -> Vec<f32> {
    let picture = Picture { digest: [0; 32], pixels };
    let mut run = model.see(b, &picture).expect("the model sees");
    loop {
        if let Some(features) = run.advance(b, model) {
            run.release(b);
            return features;
        }
    }
}

/// Logits of every row of `tokens`, served in chunks that end at `ends`, the picture at its tokens.
pub(super) fn served<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    features: &[f32],
    tokens: &[u32],
    ends: &[usize],
) -> Vec<f32> {
    let image_token = model.info.vision.unwrap().image_token;
    let first = tokens.iter().position(|&token| token == image_token).unwrap();
    let width = model.info.vision.unwrap().feature_width;
    let picture = PictureRows { row: first, features };
    let mut cache = model.cache(b, 4);
    let (mut logits, mut start) = (Vec::new(), 0);
    for &end in ends {
        let rows: Vec<usize> = (0..end - start).collect();
        let part = picture.within(&(start..end), width);
        let sequences = [SequenceRows {
            rows: 0..rows.len(),
            start,
            read: start + rows.len(),
            blocks: vec![2, 0, 3, 1],
        }];
        let step = Step {
            tokens: &tokens[start..end],
            sequences: &sequences,
            pictures: part.as_slice(),
            adapters: &[],
            logits: &rows,
        };
        let z = model.forward(b, &mut cache, &step);
        logits.extend(b.download(&z));
        start = end;
    }
    logits
}

fn check<B: Backend>(b: &mut B, model: &Model<B>) {
    let features = features(b, model);
    let ids = golden::ids(&tensor("input_ids")).remove(0);
    let whole = served(b, model, &features, &ids, &[ids.len()]);
    let error = golden::max_error(&whole, &tensor("logits").1);
    assert!(error <= atol(), "logits are off by {error:.1e}");
    // To the bit, wherever a chunk ends: before the picture, inside it, behind it.
    let chunks = served(b, model, &features, &ids, &[3, 11, 16, ids.len()]);
    assert!(chunks == whole);
}

#[test]
fn features_and_logits_on_the_reference_backend() {
    let b = &mut ReferenceBackend;
    let model = golden::load_from(b, &folder());
    check(b, &model);
}

#[test]
fn features_logits_and_greedy_tokens_on_the_cpu() {
    let b = &mut CpuBackend::new(2);
    let model = golden::load_from(b, &folder());
    check(b, &model);
    let image_token = model.info.vision.unwrap().image_token;
    let features = features(b, &model);
    let mut ids = golden::ids(&tensor("input_ids")).remove(0);
    for &expected in &tensor("greedy").1 {
        let z = served(b, &model, &features, &ids, &[ids.len()]);
        let last = &z[z.len() - model.info.vocab_size..];
        let tokens = (0..last.len()).filter(|&token| token != image_token as usize);
        let best = tokens.max_by(|&i, &j| last[i].total_cmp(&last[j])).unwrap();
        assert_eq!(best as f32, expected);
        ids.push(best as u32);
    }
}

#[test]
fn a_model_that_prepares_pictures_in_another_way_is_another_model() {
    let (copy, original) = (tempfile::tempdir().unwrap(), golden::path(&format!("{CASE}/model")));
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        std::fs::copy(original.join(name), copy.path().join(name)).unwrap();
    }
    let fingerprint = |folder: &Path| {
        let source = ModelSource::Folder(folder.to_owned());
        golden::load_from(&mut ReferenceBackend, &source).info.fingerprint.clone()
    };
    assert_eq!(fingerprint(copy.path()), fingerprint(&original));
    let preprocessor = copy.path().join("preprocessor_config.json");
    let text = std::fs::read_to_string(&preprocessor).unwrap();
    let other = text.replacen("\"do_center_crop\": true", "\"do_center_crop\": false", 1);
    assert_ne!(text, other);
    std::fs::write(&preprocessor, other).unwrap();
    assert_ne!(fingerprint(copy.path()), fingerprint(&original));
}

#[test]
fn both_styles_of_configuration_and_every_layout_of_names_are_read() {
    let b = &mut ReferenceBackend;
    let file = std::fs::read(golden::path(&format!("{CASE}/model/model.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let legacy = std::fs::read(golden::path(&format!("{CASE}/config_legacy.json"))).unwrap();
    let styles = golden::json(&golden::path(&format!("{CASE}/key_styles.json")));
    for (style, names) in styles.as_object().unwrap() {
        let renamed = names["keys"].as_array().unwrap().iter().map(|pair| {
            let name = |at: usize| pair[at].as_str().unwrap();
            (name(1), tensors.tensor(name(0)).unwrap())
        });
        let source = ModelSource::Embedded {
            config: Cow::Owned(legacy.clone()),
            tensors: Cow::Owned(safetensors::serialize(renamed, None).unwrap()),
        };
        let model = golden::load_from(b, &source);
        let features = features(b, &model);
        let ids = golden::ids(&tensor("input_ids")).remove(0);
        let found = served(b, &model, &features, &ids, &[ids.len()]);
        let error = golden::max_error(&found, &tensor("logits").1);
        assert!(error <= atol(), "{style}: logits are off by {error:.1e}");
        let names = ["model.language_model.layers.0.self_attn.q_proj", "lm_head"];
        assert!(names.iter().all(|name| model.info.modules.iter().any(|m| m.name == *name)));
    }
}

/// The case in which PEFT trains the projector whole beside LoRA.
const TRAINED: &str = "lora/llava_projector";

/// Its two rows as examples, and what the tower says of the picture of each.
fn trained_rows<B: Backend>(b: &mut B, model: &Model<B>) -> (Vec<Example>, Vec<Vec<f32>>) {
    let folder = golden::path(TRAINED);
    let io = golden::tensors(&folder.join("io.safetensors"));
    let size = 3 * model.info.vision.unwrap().image_size.pow(2);
    let pixels = io["pixel_values"].1.chunks(size);
    let features = pixels.map(|pixels| seen(b, model, pixels.to_vec())).collect();
    (golden::examples_in(&folder), features)
}

/// Where the pictures stand in the rows laid end to end.
fn placed<'a>(examples: &[Example], features: &'a [Vec<f32>]) -> Vec<(usize, &'a [f32])> {
    let first = |ids: &[u32]| ids.iter().position(|&id| id == 250).unwrap();
    let starts = examples.iter().scan(0, |start, example| {
        let row = *start + first(&example.ids);
        *start += example.ids.len();
        Some(row)
    });
    starts.zip(features).map(|(row, features)| (row, &features[..])).collect()
}

/// The first row wears the adapter, the second does not: each has its own projector.
fn each_row_wears_its_own_projector<B: Backend>(b: &mut B) {
    let model = golden::load_from(b, &folder());
    let weights = golden::adapter_in(&golden::path(TRAINED), &model);
    let adapter = model.attach(b, &weights).unwrap();
    let io = golden::tensors(&golden::path(&format!("{TRAINED}/io.safetensors")));
    let case = golden::json(&golden::path(&format!("{TRAINED}/case.json")));
    let (examples, features) = trained_rows(b, &model);
    let (n, v) = (examples[0].ids.len(), model.info.vocab_size);
    let tokens: Vec<u32> = examples.iter().flat_map(|example| example.ids.clone()).collect();
    let pictures = placed(&examples, &features);
    let pictures = pictures.into_iter().map(|(row, features)| PictureRows { row, features });
    let sequences = [0, 1].map(|row: usize| SequenceRows {
        rows: row * n..(row + 1) * n,
        start: 0,
        read: n,
        blocks: (0..4).map(|block| 4 * row as u32 + block).collect(),
    });
    let mut cache = model.cache(b, 8);
    let step = Step {
        tokens: &tokens,
        sequences: &sequences,
        pictures: &pictures.collect::<Vec<_>>(),
        adapters: &[AdapterRows { rows: 0..n, adapter: &adapter, scale: 1.0 }],
        logits: &(0..2 * n).collect::<Vec<_>>(),
    };
    let z = model.forward(b, &mut cache, &step);
    let expected = [&io["logits"].1[..n * v], &io["base_logits"].1[n * v..]].concat();
    let error = golden::max_error(&b.download(&z), &expected);
    assert!(error <= golden::number(&case, "atol"), "logits are off by {error:.1e}");
    model.detach(b, adapter);
}

fn the_projector_gets_the_gradients_of_torch<B: Backend>(b: &mut B) {
    let model = golden::load_from(b, &folder());
    let weights = golden::adapter_in(&golden::path(TRAINED), &model);
    let mut trainee = Trainee::adapter(b, &model, &weights).unwrap();
    let (examples, features) = trained_rows(b, &model);
    let batch = TrainBatch::new(&examples);
    let labels = batch.trained_tokens();
    let pictures = placed(&examples, &features);
    let pictures =
        pictures.into_iter().map(|(row, features)| SeenPicture { row, features: features.into() });
    let options = MicroBatchOptions {
        weight: 1.0 / labels as f32,
        pictures: pictures.collect(),
        ..MicroBatchOptions::default()
    };
    let sum = golden::run(b, &model, &mut trainee, &batch, options);
    let case = golden::json(&golden::path(&format!("{TRAINED}/case.json")));
    let loss = sum.loss / sum.tokens as f64;
    assert!((loss - golden::number(&case, "loss")).abs() < 2e-5, "loss {loss}");
    let tolerance = golden::number(&case, "grad_rel_l2_tol");
    let expected = golden::tensors(&golden::path(&format!("{TRAINED}/grads.safetensors")));
    let mut met = 0;
    for parameter in trainee.parameters_mut() {
        let found = b.download(parameter.gradient);
        let error = golden::relative_l2(&found, &expected[parameter.name].1);
        assert!(error <= tolerance, "{} is off by {error:.1e}", parameter.name);
        met += 1;
    }
    assert_eq!(met, expected.len(), "every trained tensor has a gradient");
}

#[test]
fn an_adapter_brings_its_own_projector() {
    each_row_wears_its_own_projector(&mut ReferenceBackend);
    each_row_wears_its_own_projector(&mut CpuBackend::new(2));
    each_row_wears_its_own_projector(&mut emulator::cuda());
}

#[test]
fn merged_into_the_weights_an_adapter_gives_the_logits_of_peft() {
    let b = &mut CpuBackend::new(2);
    let model = golden::load_from(b, &folder());
    let adapter = golden::adapter_in(&golden::path(TRAINED), &model);
    let out = tempfile::tempdir().unwrap();
    let weights = model.weights(&folder(), Some(&adapter)).unwrap();
    weights.write_safetensors(out.path(), TensorType::F32).unwrap();
    let merged = golden::load_from(b, &ModelSource::Folder(out.path().to_owned()));
    let (examples, features) = trained_rows(b, &merged);
    let rows = examples.iter().zip(&features);
    let found: Vec<f32> = rows
        .flat_map(|(row, features)| served(b, &merged, features, &row.ids, &[row.ids.len()]))
        .collect();
    let folder = golden::path(TRAINED);
    let expected = &golden::tensors(&folder.join("io.safetensors"))["logits"].1;
    let error = golden::max_error(&found, expected);
    let atol = golden::number(&golden::json(&folder.join("case.json")), "atol");
    assert!(error <= atol, "logits are off by {error:.1e}");
}

#[test]
fn gradients_of_projector_and_lora() {
    the_projector_gets_the_gradients_of_torch(&mut ReferenceBackend);
    the_projector_gets_the_gradients_of_torch(&mut CpuBackend::new(2));
    the_projector_gets_the_gradients_of_torch(&mut emulator::cuda());
}
