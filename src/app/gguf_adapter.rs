//! A LoRA adapter in a GGUF file as the folder PEFT would have written.

use std::path::Path;

use crate::domain::{BaseInfo, LoraSpec};
use crate::model::{ModelError, ModelSource, read_adapter};
use crate::peft::{self, AdapterFiles, Fingerprints, Provenance};

pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}

/// Reads the file at `path` for `base`, which was loaded from `source`.
///
/// # Errors
/// As [`read_adapter`].
pub fn files(
    path: &Path,
    source: &ModelSource,
    base: &BaseInfo,
) -> Result<AdapterFiles, ModelError> {
    let weights = read_adapter(path, source, base)?;
    let first = &weights.sites[0];
    let spec = LoraSpec {
        r: first.r,
        alpha: f64::from(first.scaling * first.r as f32),
        ..LoraSpec::default()
    };
    let fingerprints =
        Fingerprints { base: String::new(), tokenizer: String::new(), template: None };
    let provenance =
        Provenance { base_model: base.name.to_string(), fingerprints, job: None, step: None };
    // The file does not say what it was trained on.
    Ok(AdapterFiles { provenance: None, ..peft::write(&weights, &spec, base, &provenance) })
}
