//! A picture through tower, projector and decoder.

use std::borrow::Cow;

use safetensors::SafeTensors;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::backend::{Backend, SequenceRows};
use tandem::domain::Picture;
use tandem::model::{Model, ModelSource, PictureRows, Step};

use super::golden;

const CASE: &str = "llava/clip_default";

fn folder() -> ModelSource {
    ModelSource::Folder(golden::path(&format!("{CASE}/model")))
}

fn tensor(name: &str) -> (Vec<usize>, Vec<f32>) {
    golden::tensors(&golden::path(&format!("{CASE}/io.safetensors"))).remove(name).unwrap()
}

fn atol() -> f64 {
    golden::number(&golden::json(&golden::path(&format!("{CASE}/case.json"))), "atol")
}

/// The features of the golden picture, from the golden pixels.
fn features<B: Backend>(b: &mut B, model: &Model<B>) -> Vec<f32> {
    let picture = Picture { digest: [0; 32], pixels: tensor("pixel_values").1 };
    let mut run = model.see(b, &picture).expect("the model sees");
    loop {
        if let Some(features) = run.advance(b, model) {
            run.release(b);
            return features;
        }
    }
}

/// Logits of every row of `tokens`, served in chunks that end at `ends`, the picture at its tokens.
fn served<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    features: &[f32],
    tokens: &[u32],
    ends: &[usize],
) -> Vec<f32> {
    let image_token = model.info.vision.unwrap().image_token;
    let first = tokens.iter().position(|&token| token == image_token).unwrap();
    let d = model.info.hidden_size;
    let seen = first..first + features.len() / d;
    let mut cache = model.cache(b, 4);
    let (mut logits, mut start) = (Vec::new(), 0);
    for &end in ends {
        let rows: Vec<usize> = (0..end - start).collect();
        let (from, to) = (seen.start.max(start), seen.end.min(end));
        let picture = (from < to).then(|| PictureRows {
            row: from - start,
            features: &features[(from - seen.start) * d..(to - seen.start) * d],
        });
        let sequences = [SequenceRows { rows: 0..rows.len(), start, blocks: vec![2, 0, 3, 1] }];
        let step = Step {
            tokens: &tokens[start..end],
            sequences: &sequences,
            pictures: picture.as_slice(),
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
    let error = golden::max_error(&features, &tensor("image_features").1);
    assert!(error <= atol(), "features are off by {error:.1e}");
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
        let found = features(b, &model);
        let error = golden::max_error(&found, &tensor("image_features").1);
        assert!(error <= atol(), "{style}: features are off by {error:.1e}");
        let names = ["model.language_model.layers.0.self_attn.q_proj", "lm_head"];
        assert!(names.iter().all(|name| model.info.modules.iter().any(|m| m.name == *name)));
    }
}
