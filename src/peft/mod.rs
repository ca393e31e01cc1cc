//! LoRA adapters as PEFT keeps them on disk: `adapter_config.json` and `adapter_model.safetensors`,
//! and beside them `tandem.json`, which names what an adapter was trained on.
//!
//! Reading trusts nothing: every module, shape, type and number is checked against the base model
//! before the device sees the adapter. What changes the mathematics and is not built here is
//! refused by its name. Plain functions over bytes; no files, no async.

mod config;
mod error;
mod provenance;
mod read;
mod targets;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;
mod write;

pub use config::AdapterConfig;
pub use error::PeftError;
pub use provenance::{Fingerprints, Provenance};
pub use read::{CheckedAdapter, read, read_known};
pub use targets::{LoraRanks, ModuleFilter, Targets, resolve_saved, resolve_targets};
pub use write::{AdapterFiles, content_key, write};

/// The file that says how the matrices are applied.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file that holds the matrices.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The file that names base model, tokenizer and chat template of an adapter made here.
pub const PROVENANCE_FILE: &str = "tandem.json";
