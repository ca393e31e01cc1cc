//! The adapters named on the command line.

use super::AppError;
use crate::catalog::Catalog;
use crate::config::Config;

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
        let registered = catalog
            .register_folder(&adapter.name, adapter.base.as_deref(), &adapter.folder)
            .await
            .map_err(|source| AppError::Adapter { name, source: Box::new(source) })?;
        for note in &registered.notes {
            tracing::info!(adapter.name = adapter.name, "{note}");
        }
    }
    Ok(())
}
