//! A device whose turns the test takes itself, and a tiny random model for it to serve.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures::FutureExt;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tokio::sync::mpsc;

use crate::backend::Backend;
use crate::backend::reference::ReferenceBackend;
use crate::domain::{
    AdapterSite, AdapterWeights, BaseInfo, FinishReason, GenerationRequest, KvFormat, PromptToken,
    SampledToken, SamplingParams, WeightFormat,
};
use crate::model::{LoadOptions, ModelSource};
use crate::train::rng::{Site, Stream};
use crate::worker::run::Device;
use crate::worker::start::{BaseSource, load, trainer};
use crate::worker::{
    Command, GenerationEvent, GenerationEvents, WorkerError, WorkerHandle, WorkerSettings,
    WorkerStats,
};

pub const CONTEXT: usize = 160;
pub const VOCABULARY: usize = 61;

/// Bytes one KV block of the tiny model takes.
pub const BLOCK_BYTES: usize = 2 * 2 * 2 * 16 * 16 * 4;

/// The same where the CPU holds keys and values in `format`; in int8 two scales per head and token
/// are among them.
pub fn block_bytes(format: KvFormat) -> usize {
    match format {
        KvFormat::F32 => BLOCK_BYTES,
        KvFormat::Bf16 => BLOCK_BYTES / 2,
        KvFormat::Int8 => BLOCK_BYTES / 4 + 2 * 2 * 2 * 16 * 4,
    }
}

/// Two layers, grouped queries, random weights.
pub fn tiny(name: &str, seed: u64) -> BaseSource {
    tiny_with(name, seed, json!({}))
}

/// Tiny models that turn sequences of more than 50 tokens otherwise: all of them in one other way,
/// and each length in its own.
pub fn tiny_stretched() -> [BaseSource; 2] {
    let long: Vec<f32> = (0..8).map(|i| 1.0 + i as f32 / 2.0).collect();
    let longrope = json!({
        "rope_type": "longrope", "original_max_position_embeddings": 50,
        "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": long,
    });
    let dynamic = json!({"rope_type": "dynamic", "factor": 3.0});
    [
        tiny_with("tiny", 1, json!({"rope_scaling": longrope})),
        tiny_with("tiny", 1, json!({"rope_scaling": dynamic, "max_position_embeddings": 50})),
    ]
}

/// With other keys in its configuration.
fn tiny_with(name: &str, seed: u64, more: serde_json::Value) -> BaseSource {
    let (d, ff, kv) = (64, 128, 32);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, d]),
        ("model.norm.weight".to_owned(), vec![d]),
    ];
    for layer in 0..2 {
        let shapes = [
            ("input_layernorm", vec![d]),
            ("self_attn.q_proj", vec![d, d]),
            ("self_attn.k_proj", vec![kv, d]),
            ("self_attn.v_proj", vec![kv, d]),
            ("self_attn.o_proj", vec![d, d]),
            ("post_attention_layernorm", vec![d]),
            ("mlp.gate_proj", vec![ff, d]),
            ("mlp.up_proj", vec![ff, d]),
            ("mlp.down_proj", vec![d, ff]),
        ];
        let name = |module: &str| format!("model.layers.{layer}.{module}.weight");
        tensors.extend(shapes.map(|(module, shape)| (name(module), shape)));
    }
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": VOCABULARY, "hidden_size": d, "intermediate_size": ff,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": CONTEXT, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    let more = more.as_object().cloned().expect("more keys");
    config.as_object_mut().expect("a map").extend(more);
    let source = ModelSource::Embedded {
        config: Cow::Owned(config.to_string().into_bytes()),
        tensors: Cow::Owned(random_safetensors(&tensors, seed)),
    };
    BaseSource { source, options: LoadOptions { name: name.to_owned(), format: None } }
}

/// Norms of 1 and matrices drawn at random.
fn random_safetensors(tensors: &[(String, Vec<usize>)], seed: u64) -> Vec<u8> {
    let bytes = |(number, (_, shape)): (usize, &(String, Vec<usize>))| -> Vec<u8> {
        let stream = Stream::new(seed, 0, Site::Init(number));
        let norm = shape.len() == 1;
        let draw = |i| if norm { 1.0 } else { 0.25 * stream.normal(i) };
        let count = shape.iter().product::<usize>() as u64;
        (0..count).flat_map(|i| draw(i).to_le_bytes()).collect()
    };
    let bytes: Vec<Vec<u8>> = tensors.iter().enumerate().map(bytes).collect();
    let view = |((name, shape), bytes): (&(String, Vec<usize>), _)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("it fits its shape");
        (name.clone(), view)
    };
    let views: Vec<(String, TensorView<'_>)> =
        tensors.iter().zip(bytes.iter().map(Vec::as_slice)).map(view).collect();
    safetensors::serialize(views, None).expect("tensors can be laid out")
}

/// The same held in another format.
pub fn tiny_as(format: WeightFormat) -> BaseSource {
    let mut base = tiny("tiny", 1);
    base.options.format = Some(format);
    base
}

/// Room for everything.
pub fn roomy() -> WorkerSettings {
    WorkerSettings { kv_cache_bytes: 2000 * BLOCK_BYTES, ..Default::default() }
}

/// A device and the door to it.
pub struct Bench<B: Backend> {
    pub device: Device<B>,
    pub handle: WorkerHandle,
    pub commands: mpsc::Sender<Command>,
    pub stopping: Arc<AtomicBool>,
}

impl Bench<ReferenceBackend> {
    pub fn new(settings: &WorkerSettings) -> Self {
        Self::with(ReferenceBackend, &[tiny("tiny", 1)], settings)
    }
}

impl<B: Backend> Bench<B> {
    pub fn with(mut backend: B, bases: &[BaseSource], settings: &WorkerSettings) -> Self {
        let lanes = load(&mut backend, bases, settings).expect("the tiny model loads");
        let infos: Vec<Arc<BaseInfo>> =
            lanes.iter().map(|lane| Arc::clone(&lane.model.info)).collect();
        let (commands, receiver) = mpsc::channel(settings.max_waiting + 64);
        let (stats, stopping) =
            (Arc::new(WorkerStats::default()), Arc::new(AtomicBool::new(false)));
        stats.max_waiting.store(settings.max_waiting, Relaxed);
        let trainer = trainer(&backend, &lanes, settings, &stopping, &stats).expect("a thread");
        let flag = Arc::clone(&stopping);
        let device = Device::new(backend, lanes, receiver, flag, Arc::clone(&stats), trainer);
        let handle = WorkerHandle::new(commands.clone(), infos, stats);
        Self { device, handle, commands, stopping }
    }

    pub fn submit(&self, ask: &GenerationRequest) -> GenerationEvents {
        self.handle.generate(ask.clone()).expect("the queue has room")
    }

    /// Turns until nothing is left to do.
    pub fn drain(&mut self) {
        self.device.turn();
        while self.device.is_busy() {
            self.device.turn();
        }
    }

    /// The request's answer, with nobody else about.
    pub fn answer(&mut self, ask: &GenerationRequest) -> Answer {
        let mut events = self.submit(ask);
        self.drain();
        Answer::heard(&mut events)
    }

    /// The request's answer while other work goes on.
    pub fn answer_beside(&mut self, ask: &GenerationRequest) -> Answer {
        let mut events = self.submit(ask);
        (0..200).for_each(|_| self.device.turn());
        Answer::heard(&mut events)
    }

    pub fn stats(&self) -> &WorkerStats {
        self.handle.stats()
    }

    /// Holds that nothing is held: no block, no adapter, no place in a queue.
    pub fn assert_nothing_is_held(&mut self) {
        self.device.turn();
        let stats = self.stats();
        assert_eq!(stats.blocks_used.load(Relaxed), 0, "blocks");
        assert_eq!(stats.running.load(Relaxed), 0, "running");
        assert_eq!(stats.waiting.load(Relaxed), 0, "waiting");
        assert_eq!(stats.waiting_tokens.load(Relaxed), 0, "waiting tokens");
        assert_eq!(self.device.pinned_adapters(), 0, "pinned adapters");
        assert!(!self.device.is_busy());
    }
}

/// Everything a request heard but how much of its prompt was cached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub prompt: Vec<PromptToken>,
    pub choices: Vec<(Vec<SampledToken>, Option<FinishReason>)>,
    pub failed: Option<WorkerError>,
}

impl Answer {
    /// What has arrived so far.
    pub fn heard(events: &mut GenerationEvents) -> Self {
        let mut answer = Self::default();
        while let Some(Some(event)) = events.next().now_or_never() {
            answer.hear(event);
        }
        answer
    }

    fn hear(&mut self, event: GenerationEvent) {
        match event {
            GenerationEvent::Prefilled { prompt, .. } => self.prompt = prompt,
            GenerationEvent::Token { choice, token } => self.choice(choice).0.push(token),
            GenerationEvent::Finished { choice, reason } => {
                let before = self.choice(choice).1.replace(reason);
                assert_eq!(before, None, "a choice ends once");
            }
            GenerationEvent::Failed(error) => self.failed = Some(error),
        }
    }

    fn choice(&mut self, choice: usize) -> &mut (Vec<SampledToken>, Option<FinishReason>) {
        if self.choices.len() <= choice {
            self.choices.resize(choice + 1, (Vec::new(), None));
        }
        &mut self.choices[choice]
    }

    pub fn is_complete(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|(_, reason)| reason.is_some())
    }

    pub fn tokens(&self, choice: usize) -> Vec<u32> {
        self.choices[choice].0.iter().map(|sampled| sampled.token).collect()
    }
}

/// A request for eight greedy tokens.
pub fn ask(prompt: &[u32]) -> GenerationRequest {
    GenerationRequest {
        base: "tiny".into(),
        adapter: None,
        adapter_scale: 1.0,
        tenant: "tenant".into(),
        prompt: prompt.to_vec(),
        pictures: Vec::new(),
        choices: 1,
        sampling: SamplingParams { temperature: 0.0, max_tokens: 8, ..Default::default() },
        stop_tokens: Vec::new(),
        speculative: true,
    }
}

/// An adapter of rank `r` at every module, none of it zero.
pub fn adapter(info: &BaseInfo, r: usize, seed: u64) -> Arc<AdapterWeights> {
    let site = |(number, module): (usize, &crate::domain::ModuleShape)| {
        let draw = |matrix: usize, count: usize| -> Vec<f32> {
            let stream = Stream::new(seed, 0, Site::Init(2 * number + matrix));
            (0..count as u64).map(|i| 0.3 * stream.normal(i)).collect()
        };
        AdapterSite {
            module: module.name.clone(),
            r,
            scaling: 2.0 / r as f32,
            a: draw(0, r * module.in_features),
            b: draw(1, module.out_features * r),
            magnitude: None,
        }
    };
    let modules = info.modules.iter().filter(|module| module.layer.is_some());
    let sites = modules.enumerate().map(site).collect();
    Arc::new(AdapterWeights {
        key: format!("adapter-{seed}-{r}"),
        sites,
        saved: Vec::new(),
        dropout: 0.0,
    })
}

/// A stream of small random numbers.
pub struct Dice(Stream, u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Stream::new(seed, 0, Site::Shuffle), 0)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.1 += 1;
        self.0.below(self.1, bound)
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())].clone()
    }

    pub fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(VOCABULARY) as u32).collect()
    }

    /// A request of any kind: every sampling control, prompts that begin alike, several choices.
    pub fn request(&mut self, adapters: &[Option<Arc<AdapterWeights>>]) -> GenerationRequest {
        let shared: Vec<u32> = (0..40).map(|i| (i * 7 % VOCABULARY as u32 + 1) % 60).collect();
        let mut prompt = shared[..self.pick(&[0, 0, 16, 33, 40])].to_vec();
        let own = 1 + self.below(30);
        prompt.extend(self.tokens(own));
        let sampling = SamplingParams {
            temperature: self.pick(&[0.0, 0.7, 1.0, 1.5]),
            top_p: self.pick(&[1.0, 0.9, 0.5]),
            top_k: self.pick(&[0, 5, 20]),
            min_p: self.pick(&[0.0, 0.0, 0.05]),
            repetition_penalty: self.pick(&[1.0, 1.0, 1.3]),
            frequency_penalty: self.pick(&[0.0, 0.0, 0.5]),
            presence_penalty: self.pick(&[0.0, 0.0, -0.5]),
            logit_bias: self.pick(&[vec![], vec![(3, 2.0), (4, -50.0)]]),
            seed: self.below(1000) as u64,
            max_tokens: self.pick(&[0, 1, 4, 12, 30]),
            min_tokens: self.pick(&[0, 3]),
            ignore_eos: self.one_in(4),
            logprobs: self.pick(&[None, Some(0), Some(4)]),
            prompt_logprobs: self.pick(&[None, None, None, Some(2)]),
        };
        GenerationRequest {
            adapter: self.pick(adapters),
            adapter_scale: self.pick(&[1.0, 0.5]),
            prompt,
            choices: self.pick(&[1, 1, 2, 3]),
            sampling,
            stop_tokens: vec![1, 2, 3, 5, 8],
            ..ask(&[])
        }
    }
}
