//! Why a model of the hub cannot be had, each a sentence with what to do.

use std::path::PathBuf;

use super::HubModel;

/// What kept a model from being found or downloaded.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("write hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE.gguf")]
    Name,
    #[error(
        "{model} at `{}` is not whole in the cache {} ({lacking} is missing), and HF_HUB_OFFLINE \
         forbids to download it: unset that, or fetch it elsewhere with \
         `huggingface-cli download {model} --revision {}` and copy the cache",
        .model.revision, .cache.display(), .model.revision
    )]
    Offline { model: Box<HubModel>, cache: PathBuf, lacking: String },
    #[error("HF_ENDPOINT is `{0}`; write it as https://HOST")]
    Endpoint(String),
    #[error(
        "{endpoint} knows no model {model}, or hides it: check the name, and {}",
        if *.with_token { "whether the account of HF_TOKEN may read it" } else { "for a private model set HF_TOKEN" }
    )]
    NotFound { endpoint: String, model: Box<HubModel>, with_token: bool },
    #[error("{model} has no revision `{}`; see {endpoint}/{model}/tree/main", .model.revision)]
    NoRevision { endpoint: String, model: Box<HubModel> },
    #[error(
        "{model} is gated: accept its terms at {endpoint}/{model}, then set HF_TOKEN to a token of that \
         account"
    )]
    Gated { endpoint: String, model: Box<HubModel> },
    #[error("{endpoint} does not accept the token in HF_TOKEN; make a new one, or unset it")]
    Token { endpoint: String },
    #[error("{model} has no `{file}`; {remedy}")]
    NoFile { model: Box<HubModel>, file: String, remedy: String },
    #[error("{url} answered {status}; try again later")]
    Status { url: String, status: u16 },
    #[error(
        "{url} cannot be reached: {reason}; check the network (HTTPS_PROXY, HF_ENDPOINT), or name a \
         folder that is on this machine. What was downloaded is kept and taken up again"
    )]
    Unreachable { url: String, reason: String },
    #[error("{url} answers what no hub answers: {reason}; check HF_ENDPOINT")]
    Answer { url: String, reason: String },
    #[error(
        "`{file}` came with {kind} {found} where the hub promises {expected}; it was deleted, so \
         download it again"
    )]
    Damaged { file: String, kind: &'static str, expected: String, found: String },
    #[error("cannot write {path}: {source}; set HF_HOME to a folder with room that may be written")]
    Write { path: PathBuf, source: std::io::Error },
}

impl HubError {
    /// Whether the same request may well succeed in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    pub(super) fn write(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}
