//! Runs whose examples show pictures: the projector is trained, and nothing else depends on how
//! often the tower looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem::backend::Backend;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::domain::{
    Example, ExamplePicture, Hyperparameters, IGNORE_INDEX, LoraSpec, Picture, StoredPicture,
};
use tandem::model::{Model, ModelSource};
use tandem::train::{Run, TrainEvent, TrainRequest, TrainSnapshot};

use crate::parity::golden;

const PROJECTOR: &str = "model.multi_modal_projector";
const TOKENS: usize = 16;
const IMAGE_TOKEN: u32 = 250;

fn load<B: Backend>(b: &mut B) -> Model<B> {
    golden::load_from(b, &ModelSource::Folder(golden::path("llava/clip_default/model")))
}

/// A picture that counts how often it is read, or is gone.
#[derive(Debug)]
struct Counted {
    picture: Arc<Picture>,
    reads: Arc<AtomicUsize>,
    gone: bool,
}

impl StoredPicture for Counted {
    fn digest(&self) -> [u8; 32] {
        self.picture.digest
    }

    fn read(&self) -> Result<Arc<Picture>, String> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.gone { Err("the file is gone".to_owned()) } else { Ok(Arc::clone(&self.picture)) }
    }
}

/// Words, a picture, words; the last ones are learned and depend on the picture.
fn example(number: u8, reads: &Arc<AtomicUsize>) -> Example {
    let pixel = |i: usize| ((i * (3 + usize::from(number))) % 17) as f32 / 6.0 - 1.4;
    let pixels = (0..3 * 32 * 32).map(pixel).collect();
    let picture = Arc::new(Picture { digest: [number; 32], pixels });
    let mut ids = vec![5, 9, 20 + u32::from(number) % 3];
    let tokens = ids.len()..ids.len() + TOKENS;
    ids.extend([IMAGE_TOKEN; TOKENS]);
    ids.extend([7, 40 + u32::from(number), 60 + u32::from(number), 2]);
    let label = |(at, &id): (usize, &u32)| if at < tokens.end { IGNORE_INDEX } else { id as i32 };
    let labels = ids.iter().enumerate().map(label).collect();
    let picture = Arc::new(Counted { picture, reads: Arc::clone(reads), gone: false });
    Example { ids, labels, pictures: vec![ExamplePicture { tokens, picture }] }
}

/// A run with everything that draws random numbers, some of its examples without a picture.
fn request<B: Backend>(model: &Model<B>, reads: &Arc<AtomicUsize>) -> TrainRequest {
    let names = model.info.modules.iter().map(|module| module.name.clone());
    let modules = names.filter(|name| name.ends_with("q_proj") || name.ends_with("up_proj"));
    let mut examples: Vec<Example> = (0..10).map(|number| example(number % 8, reads)).collect();
    examples.insert(4, Example::new(vec![3, 4, 5, 6], vec![3, 4, 5, 6]));
    TrainRequest {
        job: "a job".to_owned(),
        base: Arc::clone(&model.info.name),
        lora: LoraSpec {
            r: 4,
            alpha: 8.0,
            dropout: 0.2,
            modules: modules.collect(),
            modules_to_save: vec![PROJECTOR.to_owned()],
            ..LoraSpec::default()
        },
        hyperparameters: Hyperparameters {
            n_epochs: 2,
            micro_batch_size: 2,
            gradient_accumulation_steps: 2,
            batch_size: 4,
            max_steps: Some(5),
            learning_rate: 3e-3,
            modules_to_save_lr_ratio: Some(0.5),
            max_seq_length: 64,
            packing: true,
            neftune_alpha: 5.0,
            checkpoint_steps: Some(2),
            ..Hyperparameters::default()
        },
        seed: 3,
        validation: Arc::new(vec![example(8, reads), example(2, reads)]),
        examples: Arc::new(examples),
        init_adapter: None,
        resume: None,
        scratch: std::env::temp_dir(),
    }
}

/// Every event of a run that may keep so many bytes of pictures.
fn drive<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    request: TrainRequest,
    keep: usize,
) -> Vec<TrainEvent> {
    let mut run = Run::start(b, model, request).expect("a run");
    run.keep_pictures(keep);
    let mut events = Vec::new();
    while !run.finished() {
        events.extend(run.advance(b, model));
    }
    run.release(b);
    events
}

fn finished(events: &[TrainEvent]) -> &TrainSnapshot {
    match events.last() {
        Some(TrainEvent::Finished(snapshot)) => snapshot,
        _ => panic!("finished, not {events:?}"),
    }
}

#[test]
fn the_projector_is_trained_resumed_to_the_bit_and_served_as_trained() {
    let b = &mut CpuBackend::new(2);
    let (model, reads) = (load(b), Arc::default());
    let events = drive(b, &model, request(&model, &reads), usize::MAX);
    let end = finished(&events);
    let [saved] = &end.adapter.saved[..] else { panic!("the projector is saved") };
    let before = model.saved_values(b, PROJECTOR).expect("a projector");
    assert_eq!((saved.module.as_str(), saved.values.len()), (PROJECTOR, 4));
    let moved = |(new, old): (&Vec<f32>, &Vec<f32>)| new.iter().zip(old).any(|(x, y)| x != y);
    assert!(saved.values.iter().zip(&before).all(moved), "every tensor of it learns");
    let served = end.served.expect("compared");
    assert!(served.tokens > TOKENS && served.top1_agreement == 1.0, "{served:?}");
    assert!(served.max_abs_logit_difference < 1e-4, "{served:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.safetensors");
    let mut resumed = 0;
    for event in &events {
        let TrainEvent::Checkpoint(checkpoint) = event else { continue };
        std::fs::write(&path, &**checkpoint.state).expect("written");
        let again = TrainRequest { resume: Some(path.clone()), ..request(&model, &reads) };
        assert!(finished(&drive(b, &model, again, 0)).state == end.state, "{}", checkpoint.step);
        resumed += 1;
    }
    assert_eq!(resumed, 2);
}

#[test]
fn what_is_kept_of_pictures_saves_looks_and_changes_no_bit() {
    let b = &mut ReferenceBackend;
    let model = load(b);
    let mut ended = |keep| {
        let reads = Arc::default();
        let state = finished(&drive(b, &model, request(&model, &reads), keep)).state.clone();
        (state, reads.load(Ordering::Relaxed))
    };
    let feature_bytes = TOKENS * 48 * 4;
    let (all, some, none) = (ended(usize::MAX), ended(4 * feature_bytes), ended(0));
    assert!(all.0 == some.0 && all.0 == none.0);
    assert_eq!(all.1, 9, "each picture is read once");
    assert!(all.1 < some.1 && some.1 < none.1, "{} {} {}", all.1, some.1, none.1);
}

#[test]
fn a_picture_that_is_gone_ends_the_run_with_a_sentence() {
    let b = &mut ReferenceBackend;
    let (model, reads) = (load(b), Arc::default());
    let mut request = request(&model, &reads);
    let mut gone = example(3, &reads);
    let picture = Arc::new(Picture { digest: [9; 32], pixels: Vec::new() });
    gone.pictures[0].picture = Arc::new(Counted { picture, reads: Arc::clone(&reads), gone: true });
    request.validation = Arc::new(vec![gone]);
    let events = drive(b, &model, request, 0);
    let Some(TrainEvent::Failed { message, .. }) = events.last() else { panic!("{events:?}") };
    assert!(message.contains("a picture of the training data") && message.contains("gone"));
}

#[test]
fn a_picture_is_kept_whole_or_not_at_all() {
    let whole = example(1, &Arc::default());
    let end = whole.pictures[0].tokens.end;
    assert_eq!([end + 2, end, end - 1, 2].map(|max| whole.kept(max)), [end + 2, end, 3, 2]);
    let cut = whole.beginning(end - 1);
    assert_eq!((cut.ids.len(), cut.labels.len(), cut.pictures.len()), (3, 3, 0));
    assert_eq!(whole.beginning(end).pictures, whole.pictures);
}
