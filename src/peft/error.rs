//! Why an adapter cannot be used: one sentence each, naming the place.

/// What is wrong with an adapter.
#[derive(Debug, thiserror::Error)]
pub enum PeftError {
    #[error("{file} {}: {source}", if source.is_data() { "holds a value of another type" } else { "is not valid JSON" })]
    Json { file: &'static str, source: serde_json::Error },
    #[error("{file} is missing from the adapter")]
    MissingFile { file: &'static str },
    #[error("the adapter uses `{feature}`, which this server does not support")]
    Unsupported { feature: String },
    #[error("`{key}` in adapter_config.json {reason}")]
    Config { key: &'static str, reason: String },
    #[error("`{pattern}` is not a pattern this server can match: {source}")]
    Pattern { pattern: String, source: Box<regex::Error> },
    #[error(
        "the target modules {targets} match no module of the base model `{base}`; its modules are \
         named like `{example}`"
    )]
    NoModule { targets: String, base: String, example: String },
    #[error(
        "`modules_to_save` names `{name}`; of this base model an adapter may replace {possible}"
    )]
    NotSaveable { name: String, possible: String },
    #[error("adapter_model.safetensors cannot be read: {reason}")]
    Tensors { reason: String },
    #[error("the tensor `{tensor}` is missing from adapter_model.safetensors")]
    MissingTensor { tensor: String },
    #[error(
        "the tensor `{tensor}` in adapter_model.safetensors belongs to no target module of the \
         base model `{base}`"
    )]
    UnexpectedTensor { tensor: String, base: String },
    #[error("the tensor `{tensor}` has the shape {found:?}; this base model needs {expected:?}")]
    Shape { tensor: String, found: Box<[usize]>, expected: Box<[usize]> },
    #[error("the tensor `{tensor}` has the type {found}; F32, F16 and BF16 are supported")]
    Dtype { tensor: String, found: String },
    #[error("the tensor `{tensor}` holds a number that is not finite")]
    NotFinite { tensor: String },
    #[error(
        "the adapter was trained with another {what} (fingerprint {trained}) than the one served \
         (fingerprint {served})"
    )]
    Mismatch { what: &'static str, trained: String, served: String },
}

/// What every function here returns.
pub type Result<T> = std::result::Result<T, PeftError>;
