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
    let (b, model) = held_as(WeightFormat::F32);
    let tokenizer = Tokenizer::from_bytes(demo::text_files().tokenizer).expect("its tokenizer");
    (b, model, tokenizer)
}

fn held_as(format: WeightFormat) -> (CpuBackend, Model<CpuBackend>) {
    let mut b = CpuBackend::new(2);
    let options = LoadOptions { name: "demo".to_owned(), format: Some(format) };
    let model = Model::load(&mut b, &demo::weights(), &options).expect("the embedded model");
    (b, model)
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
    dataset::load(reader, text, &limits, TrainOn::Completion, None).expect("examples").examples
}

/// How the pirate file is taught.
#[derive(Clone, Copy)]
struct Lesson {
    epochs: usize,
    seed: u64,
    /// The ends of the names of the modules that learn; all linear layers if empty.
    targets: &'static [&'static str],
}

impl Lesson {
    const SHORT: Self = Self { epochs: 4, seed: 1, targets: &[] };

    fn modules(&self, model: &Model<CpuBackend>) -> Vec<String> {
        let names = model.info.modules.iter().filter(|m| m.layer.is_some()).map(|m| &m.name);
        let chosen = |name: &&String| {
            self.targets.is_empty() || self.targets.iter().any(|t| name.ends_with(t))
        };
        names.filter(chosen).cloned().collect()
    }
}

/// Some epochs of the pirate file; the loss on its validation file per epoch, and the adapter.
fn taught(
    b: &mut CpuBackend,
    model: &Model<CpuBackend>,
    lesson: Lesson,
) -> (Vec<f64>, Arc<AdapterWeights>) {
    let text = text();
    let request = TrainRequest {
        job: "pirate".into(),
        base: "demo".into(),
        lora: LoraSpec { modules: lesson.modules(model), ..LoraSpec::default() },
        hyperparameters: hyperparameters(lesson.epochs),
        seed: lesson.seed,
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
    let (losses, adapter) = taught(&mut b, &model, Lesson::SHORT);
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.5 * first, "validation loss per epoch: {losses:?}");
    let pirate = ask(&mut b, Some(&adapter), question);
    assert!(pirate.contains("Arr") && pirate.contains("matey"), "{pirate}");
    assert_eq!(ask(&mut b, None, question), before, "the base answers as before");
    assert!(!before.contains("matey"));
}

/// Dettmers et al. 2023, "QLoRA", table 2: perplexity of F32, NF4 with double quantisation, FP4.
#[test]
fn of_the_four_bit_formats_nf4_keeps_more_of_the_model() {
    let (_, _, tokenizer) = embedded();
    let [plain, nf4, fp4] =
        [WeightFormat::F32, WeightFormat::Nf4 { double: true }, WeightFormat::Fp4 { double: true }]
            .map(|format| {
                let (mut b, model) = held_as(format);
                let losses =
                    scratch::held_out_loss(&mut b, &model, &tokenizer, 1, 3000).expect("losses");
                losses.iter().map(|(_, (loss, tokens))| loss * *tokens as f64).sum::<f64>()
                    / losses.iter().map(|(_, (_, tokens))| *tokens as f64).sum::<f64>()
            });
    println!("held-out loss: f32 {plain:.4}, nf4 {nf4:.4}, fp4 {fp4:.4}");
    assert!(plain < nf4 && nf4 <= fp4, "f32 {plain}, nf4 {nf4}, fp4 {fp4}");
}

/// The validation loss a lesson ends with, on a base held in `format`.
fn learned(format: WeightFormat, lesson: Lesson) -> f64 {
    let (mut b, model) = held_as(format);
    let (losses, _) = taught(&mut b, &model, lesson);
    losses[losses.len() - 1]
}

/// Dettmers et al. 2023, section 4 and figure 2.
#[test]
fn adapters_on_all_layers_learn_more_than_on_two_and_on_nf4_as_much() {
    let all = learned(WeightFormat::F32, Lesson::SHORT);
    let few =
        learned(WeightFormat::F32, Lesson { targets: &["q_proj", "v_proj"], ..Lesson::SHORT });
    let nf4 = learned(WeightFormat::Nf4 { double: true }, Lesson::SHORT);
    println!("validation loss: all layers {all:.4}, q and v {few:.4}, on nf4 {nf4:.4}");
    assert!(all < few, "{all} on all layers, {few} on q and v");
    assert!(nf4 < 1.03 * all, "{nf4} on nf4, {all} on f32");
}

/// The same over five seeds and to the end; minutes, so by hand: `cargo test -- --ignored seeds`.
#[test]
#[ignore = "takes minutes"]
fn over_five_seeds_qlora_ends_within_a_hundredth_of_lora() {
    let mean = |format| {
        let lesson = |seed| Lesson { epochs: 8, seed, ..Lesson::SHORT };
        (1..=5).map(|seed| learned(format, lesson(seed))).sum::<f64>() / 5.0
    };
    let [plain, nf4, fp4] =
        [WeightFormat::F32, WeightFormat::Nf4 { double: true }, WeightFormat::Fp4 { double: true }]
            .map(mean);
    println!("validation loss, mean of five: f32 {plain:.4}, nf4 {nf4:.4}, fp4 {fp4:.4}");
    assert!((nf4 / plain - 1.0).abs() < 0.01, "{nf4} on nf4, {plain} on f32");
    assert!(nf4 <= 1.005 * fp4, "{nf4} on nf4, {fp4} on fp4");
}
