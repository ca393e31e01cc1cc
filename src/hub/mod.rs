//! `hf:` models: from the local cache of the Hugging Face hub, downloaded into it where needed.
//!
//! Only the command line and the configuration file lead here, at start; no request does. The cache
//! is the one `huggingface-cli` and its relatives keep, so each finds what another has fetched. A
//! complete copy is used as it is and nobody is asked.
//!
//! [`download`] is the journey: [`remote`] asks the hub, [`choice`] says which files are needed,
//! [`transfer`] brings one of them, [`cache`] knows where everything lies.

use std::path::PathBuf;

mod cache;
mod choice;
mod digest;
mod download;
mod error;
mod name;
mod remote;
mod settings;
mod transfer;

use cache::Cache;
pub use error::HubError;
pub use name::HubModel;
pub use settings::HubSettings;

/// The folder of a model, or its GGUF file if one was named; downloads what is not there.
///
/// # Errors
/// [`HubError`], a sentence with what to do.
pub fn locate(model: &HubModel, settings: &HubSettings) -> Result<PathBuf, HubError> {
    let cache = Cache::of(model, settings);
    let lacking = match cache.snapshot_of(&model.revision) {
        Some(folder) => match choice::lacking(&folder, model.file.as_deref()) {
            None => return Ok(place(folder, model)),
            Some(file) => file,
        },
        None => "all of it".to_owned(),
    };
    if settings.offline {
        let (model, cache) = (Box::new(model.clone()), settings.cache.clone());
        return Err(HubError::Offline { model, cache, lacking });
    }
    Ok(place(download::download(model, settings, &cache)?, model))
}

fn place(folder: PathBuf, model: &HubModel) -> PathBuf {
    match &model.file {
        Some(file) => folder.join(file),
        None => folder,
    }
}
