//! From a folder or from memory to a resident model.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::build::{Builder, Parts};
use super::checkpoint::{Checkpoint, Layout, read_file};
use super::config::DecoderConfig;
use super::fields::Fields;
use super::vision::Vision;
use super::{LoadOptions, Model, ModelError, ModelSource, families, projector};
use crate::backend::{Backend, WeightFormat};
use crate::domain::{BaseInfo, SaveableModule, TrainingCost, VisionInfo};
use crate::gguf::Gguf;

impl<B: Backend> Model<B> {
    /// Reads a model and packs it for the device.
    ///
    /// # Errors
    /// If a file cannot be read, the configuration asks for something that is not supported, or a
    /// tensor is missing, superfluous, misshapen or not finite. Each names file and tensor.
    pub fn load(
        b: &mut B,
        source: &ModelSource,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let started = Instant::now();
        let bytes = config_bytes(source)?;
        let (json, mut config) = read_config(&bytes)?;
        add_generation_config(source, &mut config)?;
        if config.head_dim > b.most_head_values() {
            let (head_dim, most) = (config.head_dim, b.most_head_values());
            return Err(ModelError::LargeHeads { head_dim, most });
        }
        let mut checkpoint = Checkpoint::open(source, &bytes, &config.family, b.host_threads())?;
        if let ModelSource::Gguf(_) = source {
            checkpoint.set_layout(Layout::Gguf(Box::new(config.clone())));
        }
        if config.vision.is_some() {
            checkpoint.rename(families::canonical_name);
            add_preprocessor(source, &mut checkpoint)?;
        }
        name_embedding(&config, &mut checkpoint);
        untie(&mut config, &checkpoint)?;
        let format = match options.format {
            Some(format) => format,
            None => {
                let dtype = stored_dtype(&json)?;
                checkpoint.keep_formats(dtype == Some("float32"));
                nearest_format(dtype)
            }
        };
        let mut model = Self::build(b, config, &mut checkpoint, &options.name, format)?;
        checkpoint.finish(|name| model.ignores(name))?;
        model.set_fingerprint(checkpoint.fingerprint());
        model.say(started);
        Ok(model)
    }

    fn build(
        b: &mut B,
        config: DecoderConfig,
        checkpoint: &mut Checkpoint,
        name: &str,
        format: WeightFormat,
    ) -> Result<Self, ModelError> {
        let mut builder = Builder::new(b, &config, checkpoint, format);
        let Parts { embedding, layers, head } = builder.build()?;
        let (specs, modules, report) = (builder.specs, builder.modules, builder.report);
        let held = report.format().filter(|_| checkpoint.keeps_formats()).unwrap_or(format);
        let vision = config.vision.as_ref();
        let vision =
            vision.map(|vision| Vision::build(b, vision, config.hidden_size, checkpoint, format));
        let vision = vision.transpose()?;
        let seen = vision.as_ref().map_or((0, 0), |v| (v.parameters, v.size_bytes));
        let info = BaseInfo {
            name: name.into(),
            family: config.family.clone(),
            context_length: config.context_length,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_layers: layers.len(),
            parameters: specs.iter().map(|spec| spec.parameters() as u64).sum::<u64>() + seen.0,
            dtype: held.name().to_owned(),
            size_bytes: (report.size_bytes + seen.1) as u64,
            fingerprint: String::new(),
            saveable: saveable(&config),
            modules,
            default_targets: config.default_targets.iter().map(|&name| name.to_owned()).collect(),
            training: TrainingCost::default(),
            vision: config.vision.as_ref().map(|vision| VisionInfo {
                image_token: vision.image_token,
                tokens_per_image: vision.tokens(),
                feature_width: vision.feature_width(),
                image_size: vision.image_size,
            }),
        };
        let (info, eos_token_ids) = (Arc::new(info), config.eos_token_ids.clone());
        let mut model = Self {
            info,
            eos_token_ids,
            embedding,
            layers,
            head,
            vision,
            specs,
            config,
            beside: match held {
                WeightFormat::Nf4 { .. } | WeightFormat::Fp4 { .. } if checkpoint.is_exact() => {
                    WeightFormat::F32
                }
                held => held,
            },
            report,
        };
        let cost = model.training_cost();
        Arc::make_mut(&mut model.info).training = cost;
        Ok(model)
    }

    fn set_fingerprint(&mut self, fingerprint: String) {
        Arc::make_mut(&mut self.info).fingerprint = fingerprint;
    }

    /// Serves at most `tokens` tokens per sequence, where the device has no room for more.
    pub fn cut_context(&mut self, tokens: usize) {
        let info = Arc::make_mut(&mut self.info);
        info.context_length = info.context_length.min(tokens);
    }

    /// Whether a tensor that was not asked for may lie in the checkpoint all the same: a buffer,
    /// the copy of a tied head, or the end of a vision tower.
    fn ignores(&self, tensor: &str) -> bool {
        let names = &self.config.names;
        let buffer = names.ignored.iter().any(|suffix| tensor.ends_with(suffix));
        let read_before =
            matches!(tensor, "rope_freqs.weight") || tensor.starts_with("rope_factors_");
        // Blocks of the tower behind the one whose output is taken.
        let unused = self.vision.is_some() && tensor.starts_with(families::TOWER);
        let tied = self.config.tied && tensor == format!("{}.weight", names.head);
        buffer || read_before || unused || tied
    }

    fn say(&self, started: Instant) {
        let info = &self.info;
        tracing::info!(
            model = &*info.name,
            family = info.family,
            parameters = info.parameters,
            format = info.dtype,
            weights = %self.report,
            size_bytes = info.size_bytes,
            seconds = started.elapsed().as_secs_f64(),
            "the model is loaded"
        );
    }
}

/// Of a matrix that is both embedding and head, some files keep the head's name alone.
fn name_embedding(config: &DecoderConfig, checkpoint: &mut Checkpoint) {
    let names = &config.names;
    let stored = |prefix: &str| checkpoint.has(&format!("{prefix}{}.weight", names.embedding));
    if config.tied && !stored(names.prefix) && !stored("") {
        let embedding = format!("{}{}.weight", names.prefix, names.embedding);
        let head = format!("{}.weight", names.head);
        checkpoint.rename(|name| if name == head { embedding.clone() } else { name.to_owned() });
    }
}

/// A head of its own is used although the configuration speaks of one matrix for both, as
/// `transformers` does from 5 on: a head that was trained apart is often stored with the old
/// configuration.
fn untie(config: &mut DecoderConfig, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let names = &config.names;
    let head = format!("{}.weight", names.head);
    for prefix in [names.prefix, ""] {
        let embedding = format!("{prefix}{}.weight", names.embedding);
        if config.tied && checkpoint.differ(&embedding, &head)? {
            tracing::warn!("the head differs from the embedding, and is used as it is stored");
            config.tied = false;
            break;
        }
    }
    Ok(())
}

/// The token embedding and the head, which may be the same matrix, and the projector of pictures.
fn saveable(config: &DecoderConfig) -> Vec<SaveableModule> {
    let (names, hidden_size) = (&config.names, config.hidden_size);
    let embedding = format!("{}{}", names.prefix, names.embedding);
    let table = |name| SaveableModule::table(name, config.vocab_size, hidden_size);
    let projector = config.vision.as_ref().map(|vision| projector::saveable(vision, hidden_size));
    [table(embedding), table(names.head.to_owned())].into_iter().chain(projector).collect()
}

/// The bytes of the configuration.
pub(super) fn config_bytes(source: &ModelSource) -> Result<Cow<'static, [u8]>, ModelError> {
    match source {
        ModelSource::Embedded { config, .. } => Ok(config.clone()),
        ModelSource::Folder(folder) => match read_file(folder, "config.json")? {
            Some(bytes) => Ok(bytes.into()),
            None => Err(ModelError::NoConfig(folder.clone())),
        },
        ModelSource::Gguf(path) => gguf_config(path),
    }
}

/// The configuration that a GGUF file was made from, as JSON.
fn gguf_config(path: &Path) -> Result<Cow<'static, [u8]>, ModelError> {
    let gguf = Gguf::open(path)?;
    let vector = |name: &str| Checkpoint::vector(path, &gguf, name);
    Ok(super::gguf::config(&gguf, vector)?.to_string().into_bytes().into())
}

fn read_config(bytes: &[u8]) -> Result<(Value, DecoderConfig), ModelError> {
    let json = parse("config.json", bytes)?;
    let config = families::read(&json)?;
    Ok((json, config))
}

/// Instruct models often name further end tokens in `generation_config.json`.
fn add_generation_config(
    source: &ModelSource,
    config: &mut DecoderConfig,
) -> Result<(), ModelError> {
    const NAME: &str = "generation_config.json";
    let ModelSource::Folder(folder) = source else { return Ok(()) };
    let Some(bytes) = read_file(folder, NAME)? else { return Ok(()) };
    config.eos_token_ids.extend(Fields::new(&parse(NAME, &bytes)?)?.token_ids("eos_token_id")?);
    config.eos_token_ids.sort_unstable();
    config.eos_token_ids.dedup();
    Ok(())
}

/// A model that sees is another one where pictures are prepared in another way.
fn add_preprocessor(source: &ModelSource, checkpoint: &mut Checkpoint) -> Result<(), ModelError> {
    let ModelSource::Folder(folder) = source else { return Ok(()) };
    if let Some(bytes) = read_file(folder, "preprocessor_config.json")? {
        checkpoint.mark(&bytes);
    }
    Ok(())
}

pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Value, ModelError> {
    serde_json::from_slice(bytes)
        .map_err(|source| ModelError::Json { file: file.to_owned(), source })
}

/// What the checkpoint says of itself, in either spelling.
fn stored_dtype(config: &Value) -> Result<Option<&str>, ModelError> {
    let fields = Fields::new(config)?;
    Ok(fields.optional_str("dtype")?.or(fields.optional_str("torch_dtype")?))
}

fn nearest_format(dtype: Option<&str>) -> WeightFormat {
    if dtype == Some("bfloat16") { WeightFormat::Bf16 } else { WeightFormat::F32 }
}
