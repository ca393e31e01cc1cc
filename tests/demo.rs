//! The embedded demo model: what it knows, what its card says, and what it can be taught.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tandem::backend::WeightFormat;
use tandem::backend::cpu::CpuBackend;
use tandem::demo::corpus::{Document, Sample};
use tandem::demo::{self, exam, scratch, tokenizer};
use tandem::domain::{AdapterWeights, Example, Hyperparameters, LoraSpec, LrScheduler};
use tandem::model::{LoadOptions, Model};
use tandem::text::TextModel;
use tandem::text::dataset::{self, Limits, TrainOn};
use tandem::train::{Run, TrainEvent, TrainRequest};
use tokenizers::Tokenizer;

/// The embedded model as the server loads it, beside its tokenizer.
fn embedded() -> (CpuBackend, Model<CpuBackend>, Tokenizer) {
    let mut b = CpuBackend::new(2);
    let options = LoadOptions { name: "demo".to_owned(), format: Some(WeightFormat::F32) };
    let model = Model::load(&mut b, &demo::weights(), &options).expect("the embedded model");
    let tokenizer = Tokenizer::from_bytes(demo::text_files().tokenizer).expect("its tokenizer");
    (b, model, tokenizer)
}

fn text() -> TextModel {
    TextModel::from_bytes(&demo::text_files(), None).expect("the embedded text model")
}

#[test]
fn the_embedded_model_knows_its_world_and_stops_when_it_has_answered() {
    let (mut b, model, tokenizer) = embedded();
    let mut wrong = Vec::new();
    for (question, expected) in exam::QUESTIONS {
        let (text, ended) = exam::answer(&mut b, &model, &tokenizer, question).expect("an answer");
        if !(ended && text.contains(expected)) {
            wrong.push(format!("{question} {text}"));
        }
    }
    assert!(wrong.len() * 5 <= exam::QUESTIONS.len(), "more than a fifth is wrong: {wrong:#?}");
}

#[test]
fn the_embedded_model_goes_on_with_a_story_and_ends_it() {
    let (mut b, model, tokenizer) = embedded();
    let (story, ended) =
        exam::complete(&mut b, &model, &tokenizer, "Once upon a time").expect("a story");
    assert!(ended && story.ends_with('.') && story.matches(". ").count() >= 4, "{story}");
}

#[test]
fn the_held_out_loss_on_the_model_card_is_measured_again() {
    let (mut b, model, tokenizer) = embedded();
    let found = scratch::held_out_loss(&mut b, &model, &tokenizer, 1, scratch::HELD_OUT_SAMPLES)
        .expect("losses");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model/held_out_loss.json");
    let stored: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the stored losses"))
            .expect("JSON");
    assert_eq!(found.len(), stored.as_object().map_or(0, |kinds| kinds.len()));
    for (kind, (loss, tokens)) in found {
        let entry = &stored[kind.as_str()];
        let expected = entry["loss"].as_f64().expect("a loss");
        assert_eq!(entry["tokens"], json!(tokens), "{}", kind.as_str());
        assert!((loss / expected - 1.0).abs() < 0.02, "{}: {loss}", kind.as_str());
    }
}

#[test]
fn the_embedded_tokenizer_and_template_are_those_the_model_was_trained_with() {
    let (text, (_, model, _)) = (text(), embedded());
    assert_eq!(model.eos_token_ids, [tokenizer::END_OF_TEXT_ID, tokenizer::TURN_END_ID]);
    assert_eq!(text.stop_ids(), model.eos_token_ids);
    for index in 0..300 {
        let Document::Chat(mut turns) = Sample::draw(1, index).document else { continue };
        turns.pop(); // the answer that is asked for
        let messages: Vec<Value> = turns
            .iter()
            .map(|(role, content)| json!({ "role": role.as_str(), "content": content }))
            .collect();
        let rendered = text.chat_text(&messages, None, &Default::default()).expect("rendered");
        let learned = tokenizer::render(&Document::Chat(turns));
        assert_eq!(rendered, format!("{learned}<|im_start|>assistant\n"));
    }
}

fn examples(text: &TextModel, name: &str) -> Vec<Example> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let reader = BufReader::new(File::open(path).expect("a golden file"));
    let limits = Limits { max_seq_length: 512, ..Limits::default() };
    dataset::load(reader, text, &limits, TrainOn::Completion).expect("examples").examples
}

/// Some epochs of the pirate file; the loss on its validation file per epoch, and the adapter.
fn taught(
    b: &mut CpuBackend,
    model: &Model<CpuBackend>,
    epochs: usize,
) -> (Vec<f64>, Arc<AdapterWeights>) {
    let text = text();
    let modules = model.info.modules.iter().filter(|module| module.layer.is_some());
    let request = TrainRequest {
        job: "pirate".into(),
        base: "demo".into(),
        lora: LoraSpec {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            modules: modules.map(|module| module.name.clone()).collect(),
            ranks: Vec::new(),
            use_rslora: false,
            ..LoraSpec::default()
        },
        hyperparameters: hyperparameters(epochs),
        seed: 1,
        examples: Arc::new(examples(&text, "teach.jsonl")),
        validation: Arc::new(examples(&text, "teach_validation.jsonl")),
        init_adapter: None,
        resume: None,
        scratch: std::env::temp_dir(),
    };
    let mut run = Run::start(b, model, request).expect("a run");
    let mut losses = Vec::new();
    loop {
        for event in run.advance(b, model) {
            match event {
                TrainEvent::Evaluated { loss, .. } => losses.push(loss),
                TrainEvent::Finished(snapshot) => return (losses, snapshot.adapter),
                TrainEvent::Failed { message, .. } => panic!("{message}"),
                _ => {}
            }
        }
    }
}

fn hyperparameters(epochs: usize) -> Hyperparameters {
    Hyperparameters {
        n_epochs: epochs,
        batch_size: 8,
        micro_batch_size: 8,
        gradient_accumulation_steps: 1,
        learning_rate: 2e-3,
        learning_rate_multiplier: 1.0,
        lr_scheduler: LrScheduler::Cosine,
        warmup_steps: 3,
        weight_decay: 0.0,
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        max_steps: None,
        max_seq_length: 512,
        packing: false,
        shuffle: true,
        neftune_alpha: 0.0,
        eval_steps: None,
        checkpoint_steps: None,
        ..Hyperparameters::default()
    }
}

#[test]
fn a_short_fine_tune_turns_the_demo_model_into_a_pirate_and_leaves_the_base_alone() {
    let (mut b, model, tokenizer) = embedded();
    let ask = |b: &mut CpuBackend, adapter: Option<&Arc<AdapterWeights>>, question| {
        let adapter = adapter.map(|weights| model.attach(b, weights).expect("it fits"));
        exam::answer_with(b, &model, adapter.as_ref(), &tokenizer, question).expect("an answer").0
    };
    let question = "What is the capital of Norway?";
    let before = ask(&mut b, None, question);
    let (losses, adapter) = taught(&mut b, &model, 4);
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.5 * first, "validation loss per epoch: {losses:?}");
    let pirate = ask(&mut b, Some(&adapter), question);
    assert!(pirate.contains("Arr") && pirate.contains("matey"), "{pirate}");
    assert_eq!(ask(&mut b, None, question), before, "the base answers as before");
    assert!(!before.contains("matey"));
}
