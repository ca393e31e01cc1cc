//! The base models: their text side read here, their weights on the device thread.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{AppError, device};
use crate::catalog::ServedBase;
use crate::config::{Config, ModelOption, Source, TemplateChoice};
use crate::demo;
use crate::domain::{BaseInfo, WeightFormat};
use crate::model::{LoadOptions, ModelSource};
use crate::pictures::{PictureConfig, PictureReader};
use crate::text::{Rendering, TextError, TextModel, TextSource};
use crate::worker::{BaseSource, StartError, Worker, WorkerHandle, WorkerSettings};

/// Loads every model of the configuration and starts the device thread. The text side is read
/// meanwhile; if it is refused, nobody waits for the weights.
///
/// # Errors
/// [`AppError::Text`] or [`AppError::Model`], naming the model and the file; [`AppError::Device`].
pub async fn load(config: &Config) -> Result<(WorkerHandle, Worker, Vec<ServedBase>), AppError> {
    let sources = config.models.iter().map(source).collect();
    let (config_of_device, settings) = (config.clone(), settings(config));
    let start = move || -> Result<_, AppError> {
        let device = device::choose(&config_of_device)?;
        Ok(device.start(sources, settings)?)
    };
    let (started, starting) = oneshot::channel();
    std::thread::spawn(move || started.send(start()).is_ok());
    let texts = config.models.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let (handle, worker) = starting.await.map_err(|_| StartError::Died)??;
    let bases = handle.bases().iter().cloned().zip(texts);
    let served = bases.zip(&config.models).map(|((info, text), option)| {
        let pictures = pictures(&info, option)?.map(Arc::new);
        Ok(ServedBase { info, text: Arc::new(text), pictures })
    });
    let served = served.collect::<Result<_, AppError>>()?;
    Ok((handle, worker, served))
}

/// What reads the pictures of a model that sees.
fn pictures(info: &BaseInfo, model: &ModelOption) -> Result<Option<PictureReader>, AppError> {
    let (Some(vision), Source::Folder(folder)) = (info.vision, &model.source) else {
        return Ok(None);
    };
    match PictureConfig::from_folder(folder, vision.image_size) {
        Ok(config) => Ok(Some(PictureReader::new(config))),
        Err(source) => Err(AppError::Pictures { model: model.name.clone(), source }),
    }
}

fn settings(config: &Config) -> WorkerSettings {
    WorkerSettings {
        max_batch_tokens: config.max_batch_tokens,
        max_sequences: config.max_sequences,
        max_waiting: config.max_waiting,
        max_waiting_tokens: config.max_waiting_tokens,
        kv_cache_bytes: config.kv_cache_mib << 20,
        adapter_cache_bytes: config.adapter_cache_mib << 20,
        training_latency_budget: config.training_latency_budget,
        training_memory_bytes: config.training_memory_mib.map(|mib| mib << 20),
        speculation: config.speculative,
        kv_format: config.kv_cache_dtype,
        ..WorkerSettings::default()
    }
}

fn text(model: &ModelOption) -> Result<TextModel, AppError> {
    let template = model.template.as_ref().map(|choice| match choice {
        TemplateChoice::Preset(name) => name.clone(),
        TemplateChoice::File(path) => path.display().to_string(),
    });
    let failed = |source| AppError::Text { model: model.name.clone(), source };
    let own = text_source(&model.source).map_err(failed)?;
    let rendering = rendering(&model.source, template.as_deref());
    let text = TextModel::new(own, template.as_deref(), &rendering).map_err(failed)?;
    if text.tokenizer().is_bare() {
        tracing::warn!(model = model.name, "no tokenizer is there: prompts must be token ids");
    }
    Ok(text)
}

/// A process of its own for templates that come with a model or from a file of the operator's.
pub(super) fn rendering(source: &Source, chosen: Option<&str>) -> Rendering {
    if (source, chosen) == (&Source::Demo, None) {
        return Rendering::Here;
    }
    // Linux names the program so even after another was installed in its place.
    let running = PathBuf::from("/proc/self/exe");
    match running.exists() {
        true => Rendering::Apart(running),
        false => Rendering::Apart(std::env::current_exe().unwrap_or_else(|_| "tandem".into())),
    }
}

/// The text side of a source.
pub(super) fn text_source(source: &Source) -> Result<TextSource, TextError> {
    match source {
        Source::Demo => TextSource::from_bytes(&demo::text_files()),
        Source::Folder(folder) => TextSource::from_folder(folder),
        Source::Gguf(path) => TextSource::from_gguf(path),
    }
}

/// Configuration and weights of a source.
pub(super) fn model_source(source: &Source) -> ModelSource {
    match source {
        Source::Demo => demo::weights(),
        Source::Folder(folder) => ModelSource::Folder(folder.clone()),
        Source::Gguf(path) => ModelSource::Gguf(path.clone()),
    }
}

/// Where a model comes from and how it shall be held.
pub fn source(model: &ModelOption) -> BaseSource {
    // The demo is small and must run as fast on any CPU: dense f32.
    let stored = (model.source == Source::Demo).then_some(WeightFormat::F32);
    let format = model.format().or(stored);
    let source = model_source(&model.source);
    BaseSource { source, options: LoadOptions { name: model.name.clone(), format } }
}
