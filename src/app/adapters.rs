//! The adapters named on the command line.

use super::{AppError, bases, gguf_adapter};
use crate::catalog::Catalog;
use crate::config::{AdapterOption, Config};
use crate::model::ModelError;
use crate::peft::AdapterFiles;

/// Registers every `--adapter`, replacing what an earlier start registered under its name.
///
/// # Errors
/// [`AppError`] naming the adapter.
pub async fn register(catalog: &Catalog, config: &Config) -> Result<(), AppError> {
    for adapter in &config.adapters {
        let name = adapter.name.clone();
        if let Some(base) = adapter.base.clone().filter(|base| catalog.base(base).is_none()) {
            return Err(AppError::AdapterBase { name, base });
        }
        let base = adapter.base.as_deref();
        let registered = match gguf_adapter::is_gguf(&adapter.folder) {
            true => {
                catalog.register_files(&adapter.name, base, gguf(catalog, config, adapter)?).await
            }
            false => catalog.register_folder(&adapter.name, base, &adapter.folder).await,
        };
        let registered =
            registered.map_err(|source| AppError::Adapter { name, source: Box::new(source) })?;
        for note in &registered.notes {
            tracing::info!(adapter.name = adapter.name, "{note}");
        }
    }
    Ok(())
}

/// An adapter in a GGUF file, for its base or else the first base it fits. If it fits none, the
/// reason is that of the first.
fn gguf(
    catalog: &Catalog,
    config: &Config,
    adapter: &AdapterOption,
) -> Result<AdapterFiles, AppError> {
    let mut reason = None;
    let bases = catalog.bases().iter().zip(&config.models);
    for (base, model) in bases
        .filter(|(base, _)| adapter.base.as_deref().is_none_or(|wanted| wanted == &*base.info.name))
    {
        match gguf_adapter::files(&adapter.folder, &bases::model_source(&model.source), &base.info)
        {
            Ok(files) => return Ok(files),
            Err(error) => reason = reason.or(Some(error)),
        }
    }
    let (name, folder) = (adapter.name.clone(), adapter.folder.clone());
    let source = Box::new(reason.unwrap_or(ModelError::EmptyAdapter));
    Err(AppError::GgufAdapter { name, folder, source })
}
