//! Gradients of whole models against differences of the loss: every weight trained, and what the
//! golden adapters leave out (dropout, noise, a trained head, few layers).

use tandem::backend::Backend;
use tandem::backend::reference::ReferenceBackend;
use tandem::domain::{AdapterSite, AdapterWeights, Example};
use tandem::model::{LoraDropout, MicroBatchOptions, Model, ModelError, TrainBatch, Trainee};

use super::golden;

/// Two examples of unlike length, some of it unlabelled.
fn batch() -> TrainBatch {
    let example = |ids: &[u32], masked: usize| {
        let label = |(i, &id): (usize, &u32)| if i < masked { -100 } else { id as i32 };
        Example::new(ids.to_vec(), ids.iter().enumerate().map(label).collect())
    };
    TrainBatch::new(&[
        example(&[7, 41, 9, 200, 3, 77, 5, 90, 120, 33, 41], 3),
        example(&[19, 4, 19, 88, 250], 0),
    ])
}

/// Moves each trained tensor a little along its gradient, both ways: the loss must change by what
/// the gradient says.
fn check<B: Backend>(
    b: &mut B,
    model: &mut Model<B>,
    trainee: &mut Trainee<B>,
    options: &MicroBatchOptions,
) -> usize {
    let batch = batch();
    golden::run(b, model, trainee, &batch, options.clone());
    let gradients: Vec<Vec<f32>> =
        trainee.parameters_mut().map(|p| b.download(p.gradient)).collect();
    for (index, gradient) in gradients.iter().enumerate() {
        let norm = golden::norm(gradient);
        assert!(norm > 0.0, "{} has no gradient", name(trainee, index));
        let before = b.download(trainee.parameters_mut().nth(index).unwrap().value);
        let step = 0.02 / norm.max(1.0);
        let mut loss_at = |side: f64| {
            let moved = before.iter().zip(gradient);
            let moved: Vec<f32> = moved
                .map(|(&p, &g)| (f64::from(p) + side * step * f64::from(g) / norm) as f32)
                .collect();
            b.overwrite(trainee.parameters_mut().nth(index).unwrap().value, &moved);
            trainee.refresh(b, model);
            f64::from(options.weight) * golden::run(b, model, trainee, &batch, options.clone()).loss
        };
        // Richardson's extrapolation takes the error from h² to h⁴.
        let coarse = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * step);
        let fine = (loss_at(0.5) - loss_at(-0.5)) / step;
        loss_at(0.0);
        let expected = (4.0 * fine - coarse) / 3.0;
        assert!(
            (norm - expected).abs() < 5e-3 * expected.abs() + 2e-4,
            "{}: {norm} by the backward, {expected} by differences",
            name(trainee, index)
        );
    }
    gradients.len()
}

fn name<B: Backend>(trainee: &mut Trainee<B>, index: usize) -> String {
    trainee.parameters_mut().nth(index).unwrap().name.to_owned()
}

/// An adapter of rank 2 at `modules`, neither matrix zero.
fn adapter<B: Backend>(model: &Model<B>, wanted: impl Fn(&str) -> bool) -> AdapterWeights {
    let numbers = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) % 19) as f32 / 60.0 - 0.15).collect()
    };
    let modules = model.info.modules.iter().filter(|module| wanted(&module.name));
    let site = |(seed, module): (usize, &tandem::domain::ModuleShape)| AdapterSite {
        module: module.name.clone(),
        r: 2,
        scaling: 1.5,
        a: numbers(2 * module.in_features, seed),
        b: numbers(module.out_features * 2, seed + 5),
        magnitude: None,
    };
    AdapterWeights {
        key: "a".to_owned(),
        sites: modules.enumerate().map(site).collect(),
        dropout: 0.0,
        saved: Vec::new(),
    }
}

#[test]
fn every_weight_of_a_model_learns() {
    let b = &mut ReferenceBackend;
    let options = MicroBatchOptions { weight: 0.1, ..Default::default() };
    for (base, tensors) in
        [("llama_linear_rope", 35), ("gpt2", 28), ("mpt_clip", 14), ("gemma2", 24)]
    {
        let mut model = golden::load(b, base);
        let mut trainee = Trainee::full(b, &mut model).unwrap();
        assert_eq!(trainee.trainable_parameters() as u64, model.info.parameters);
        assert_eq!(check(b, &mut model, &mut trainee, &options), tensors, "{base}");
        trainee.release(b);
    }
}

#[test]
fn adapters_learn_through_dropout_noise_and_soft_caps() {
    let b = &mut ReferenceBackend;
    for base in ["llama_gqa", "gemma2", "gemma3_text", "qwen3"] {
        let mut model = golden::load(b, base);
        let weights = adapter(&model, |_| true);
        let mut trainee = Trainee::adapter(b, &model, &weights).unwrap();
        let noise = (0..batch().tokens() * model.info.hidden_size).map(|i| (i % 7) as f32 / 50.0);
        let options = MicroBatchOptions {
            weight: 0.1,
            dropout: Some(LoraDropout { p: 0.3, key: 42 }),
            noise: Some(noise.collect()),
            keep_bytes: usize::MAX,
            ..MicroBatchOptions::default()
        };
        check(b, &mut model, &mut trainee, &options);
        let kept = trainee.adapter_weights(b, "a".to_owned(), 0.0).unwrap();
        assert_eq!(kept.sites.len(), weights.sites.len());
    }
}

#[test]
fn an_adapter_on_the_last_layer_or_the_head_alone_learns() {
    let b = &mut ReferenceBackend;
    let options = MicroBatchOptions { weight: 0.1, ..Default::default() };
    for wanted in ["layers.1.mlp", "layers.1.self_attn", "lm_head"] {
        let mut model = golden::load(b, "llama_gqa");
        let weights = adapter(&model, |name| name.contains(wanted));
        let mut trainee = Trainee::adapter(b, &model, &weights).unwrap();
        assert_eq!(check(b, &mut model, &mut trainee, &options), 2 * weights.sites.len());
    }
}

#[test]
fn evaluation_finds_the_same_loss_and_leaves_gradients_alone() {
    let b = &mut ReferenceBackend;
    let model = golden::load(b, "llama_gqa");
    let weights = adapter(&model, |name| name.ends_with("q_proj"));
    let mut trainee = Trainee::adapter(b, &model, &weights).unwrap();
    let evaluate = MicroBatchOptions { evaluate: true, ..Default::default() };
    let evaluated = golden::run(b, &model, &mut trainee, &batch(), evaluate.clone());
    assert!(trainee.parameters_mut().all(|p| b.download(p.gradient).iter().all(|&g| g == 0.0)));
    let train = MicroBatchOptions { weight: 0.1, ..Default::default() };
    assert_eq!(golden::run(b, &model, &mut trainee, &batch(), train), evaluated);
    trainee.zero_gradients(b);
    assert!(trainee.parameters_mut().all(|p| b.download(p.gradient).iter().all(|&g| g == 0.0)));
    let base = golden::run(b, &model, &mut Trainee::nothing(), &batch(), evaluate);
    assert!(base.tokens == evaluated.tokens && base.loss != evaluated.loss);
}

#[test]
fn a_batch_without_labels_is_done_at_once() {
    let b = &mut ReferenceBackend;
    let model = golden::load(b, "llama_gqa");
    let masked = Example::new(vec![5, 6, 7], vec![-100; 3]);
    let mut trainee = Trainee::nothing();
    let mut micro_batch =
        tandem::model::MicroBatch::start(TrainBatch::new([&masked]), MicroBatchOptions::default());
    assert_eq!(micro_batch.advance(b, &model, &mut trainee).map(|sum| sum.tokens), Some(0));
}

#[test]
fn norms_on_q_and_k_cannot_be_trained_in_full() {
    let b = &mut ReferenceBackend;
    let mut model = golden::load(b, "qwen3");
    assert!(matches!(Trainee::full(b, &mut model), Err(ModelError::NotTrainable { .. })));
}
