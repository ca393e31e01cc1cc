//! Features of several layers of the tower, side by side before the projector.

use std::borrow::Cow;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tandem::backend::Backend;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::domain::{AdapterWeights, Example, SavedModule};
use tandem::model::{MicroBatchOptions, Model, ModelSource, SeenPicture, TrainBatch, Trainee};

use super::golden;
use super::llava::{atol, seen, served, tensor};
use crate::support::emulator;

const MODEL: &str = "llava/clip_default/model";
const FIRST: &str = "multi_modal_projector.linear_1.weight";
const MODULE: &str = "model.multi_modal_projector";
/// In place of one layer.
const LAYERS: [i64; 3] = [-2, 0, 3];
/// The projector's first matrix stands so many times side by side.
const MULTIPLES: [f32; 3] = [1.0, 0.5, -0.25];

fn config(layers: Value) -> Vec<u8> {
    let mut config = golden::json(&golden::path(&format!("{MODEL}/config.json")));
    config["vision_feature_layer"] = layers;
    config.to_string().into_bytes()
}

/// The golden model with a projector as wide as features of `layers` are.
fn source(layers: Value) -> ModelSource {
    let file = std::fs::read(golden::path(&format!("{MODEL}/model.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let (shape, values) = golden::tensors(&golden::path(&format!("{MODEL}/model.safetensors")))
        .remove(FIRST)
        .unwrap();
    let wide = values.chunks(shape[1]).flat_map(|row| {
        MULTIPLES.iter().flat_map(|times| row.iter().map(move |value| value * times))
    });
    let wide: Vec<u8> = wide.flat_map(f32::to_le_bytes).collect();
    let wide = TensorView::new(Dtype::F32, vec![shape[0], 3 * shape[1]], &wide).unwrap();
    let all = tensors.iter().map(|(name, view)| match name == FIRST {
        true => (name, wide.clone()),
        false => (name, view),
    });
    ModelSource::Embedded {
        config: Cow::Owned(config(layers)),
        tensors: Cow::Owned(safetensors::serialize(all, None).unwrap()),
    }
}

fn expected(name: &str) -> Vec<f32> {
    let file = golden::path("llava/feature_layers/io.safetensors");
    golden::tensors(&file).remove(name).unwrap().1
}

fn served_as_in_transformers<B: Backend>(b: &mut B) {
    let model = golden::load_from(b, &source(json!(LAYERS)));
    assert_eq!(model.info.vision.unwrap().feature_width, 3 * 48);
    let features = seen(b, &model, tensor("pixel_values").1);
    let ids = golden::ids(&tensor("input_ids")).remove(0);
    let found = served(b, &model, &features, &ids, &[3, 11, ids.len()]);
    let error = golden::max_error(&found, &expected("logits"));
    assert!(error <= atol(), "logits are off by {error:.1e}");
}

fn trained_as_in_torch<B: Backend>(b: &mut B) {
    let model = golden::load_from(b, &source(json!(LAYERS)));
    let features = seen(b, &model, tensor("pixel_values").1);
    let ids = golden::ids(&tensor("input_ids")).remove(0);
    let row = ids.iter().position(|&id| id == 250).unwrap();
    let labels = expected("labels").into_iter().map(|label| label as i32).collect();
    let batch = TrainBatch::new(&[Example::new(ids, labels)]);
    let options = MicroBatchOptions {
        weight: 1.0 / batch.trained_tokens() as f32,
        pictures: vec![SeenPicture { row, features: features.into() }],
        ..MicroBatchOptions::default()
    };
    let mut trainee = projector_alone(b, &model);
    let sum = golden::run(b, &model, &mut trainee, &batch, options);
    let loss = (sum.loss / sum.tokens as f64) as f32;
    assert!((loss - expected("loss")[0]).abs() < 2e-5, "loss {loss}");
    let first =
        trainee.parameters_mut().find(|parameter| parameter.name.contains("linear_1.weight"));
    let found = b.download(first.expect("the projector is trained").gradient);
    let error = golden::relative_l2(&found, &expected("linear_1.gradient"));
    assert!(error <= 1e-4, "the gradient is off by {error:.1e}");
}

fn projector_alone<B: Backend>(b: &mut B, model: &Model<B>) -> Trainee<B> {
    let values = model.saved_values(b, MODULE).unwrap();
    let saved = vec![SavedModule { module: MODULE.to_owned(), values }];
    let sites = Vec::new();
    let weights = AdapterWeights { key: "projector".to_owned(), sites, saved, dropout: 0.0 };
    Trainee::adapter(b, model, &weights).unwrap()
}

#[test]
fn several_layers_are_served_as_in_transformers() {
    served_as_in_transformers(&mut ReferenceBackend);
    served_as_in_transformers(&mut CpuBackend::new(2));
    served_as_in_transformers(&mut emulator::cuda());
}

#[test]
fn several_layers_train_the_projector_as_in_torch() {
    trained_as_in_torch(&mut ReferenceBackend);
    trained_as_in_torch(&mut CpuBackend::new(2));
    trained_as_in_torch(&mut emulator::cuda());
}

#[test]
fn a_list_of_one_layer_is_that_layer() {
    let b = &mut ReferenceBackend;
    let model = |b: &mut ReferenceBackend, layers: Value| {
        let tensors = std::fs::read(golden::path(&format!("{MODEL}/model.safetensors"))).unwrap();
        let (config, tensors) = (Cow::Owned(config(layers)), Cow::Owned(tensors));
        golden::load_from(b, &ModelSource::Embedded { config, tensors })
    };
    let (listed, plain) = (model(b, json!([-2])), model(b, json!(-2)));
    let pixels = tensor("pixel_values").1;
    assert_eq!(seen(b, &listed, pixels.clone()), seen(b, &plain, pixels));
}

#[test]
fn layers_that_are_not_there_are_refused_by_name() {
    for layers in [json!([]), json!([4]), json!([-5, 1]), json!(["last"]), json!([1, 1, 1, 1, 1])] {
        let options = tandem::model::LoadOptions { name: "golden".to_owned(), format: None };
        let source = source(layers.clone());
        let refused = Model::load(&mut ReferenceBackend, &source, &options).err();
        let message = refused.expect("refused").to_string();
        assert!(message.contains("vision_feature_layer"), "{layers}: {message}");
    }
}
