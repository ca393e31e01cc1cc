//! Why a client's command failed, each a sentence with what to do.

use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::cli::Failure;

/// What commands answer with.
pub type ClientResult<T> = Result<T, ClientError>;

/// What kept a command from being done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{0}` is no address of a server; write it as http://HOST:PORT")]
    Url(String),
    #[error("{0}")]
    Usage(String),
    #[error(
        "`{0}` asks for https, which this program does not speak; use the server's http address, or \
         a tunnel that ends on this machine"
    )]
    Https(String),
    #[error(
        "no server answers at {0}; start one with `tandem serve`, or name another with `--url`"
    )]
    NoServer(String),
    #[error("the connection to {url} broke off: {reason}; the server's log may say more")]
    Broken { url: String, reason: String },
    #[error("the server at {0} asks for a key; give it with `--api-key` or TANDEM_API_KEY")]
    KeyMissing(String),
    #[error("the server at {0} does not know this key; check `--api-key` and TANDEM_API_KEY")]
    KeyUnknown(String),
    #[error("what answers at {url} is no Tandem server (status {status}); check `--url`")]
    NotTandem { url: String, status: u16 },
    #[error("the server's answer cannot be read: {0}; is it another version than this program?")]
    Unreadable(String),
    #[error("{}{}", .0.message, .1)]
    Refused(Box<ErrorBody>, &'static str),
    #[error("{}", bad_lines(.0))]
    BadLines(Box<ErrorBody>),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// What was asked for was done, and the outcome is a bad one.
    #[error("{0}")]
    Outcome(String),
}

/// What the server says when it refuses, and the bad lines of a training file.
#[derive(Debug, Default, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status; it is not in the body.
    #[serde(skip)]
    pub status: u16,
    pub message: String,
    pub code: Option<String>,
    #[serde(default)]
    pub error_count: u64,
    #[serde(default)]
    pub errors: Vec<Finding>,
}

/// A problem of a training file. Line 0 is the whole file.
#[derive(Debug, Deserialize)]
pub struct Finding {
    pub line: u64,
    pub path: String,
    pub reason: String,
    pub remedy: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, {}: ", self.line, self.path)?;
        }
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

/// Every finding on a line of its own, below how many there are.
pub fn listed(what: &str, findings: &[Finding], count: u64) -> String {
    let plural = if count == 1 { "" } else { "s" };
    let mut text = format!("{count} {what}{plural}");
    for finding in findings {
        text.push_str(&format!("\n  {finding}"));
    }
    let more = count.saturating_sub(findings.len() as u64);
    if more > 0 {
        text.push_str(&format!("\n  and {more} more"));
    }
    text
}

fn bad_lines(body: &ErrorBody) -> String {
    format!("the file was refused: {}", listed("error", &body.errors, body.error_count))
}

impl ClientError {
    /// What the refusal of a request to `path` means, with the remedy where the command line knows
    /// one.
    pub(super) fn refused(body: ErrorBody, path: &str) -> Self {
        if !body.errors.is_empty() {
            return Self::BadLines(Box::new(body));
        }
        let remedy = match body.status {
            404 if path.contains("/fine_tuning/jobs/") => "; see `tandem jobs list`",
            404 if path.contains("/files/") => "; see `tandem files list`",
            404 if path.contains("/adapters/") => "; see `tandem adapters list`",
            404 if body.code.as_deref() == Some("model_not_found") => {
                "; leave `--model` out for the base model, or see `tandem adapters list`"
            }
            429 | 503 => "; try again in a moment",
            _ => "",
        };
        Self::Refused(Box::new(body), remedy)
    }

    /// Whether the same request may well succeed in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoServer(_) | Self::Broken { .. } => true,
            Self::Refused(body, _) => body.status == 429 || body.status >= 500,
            _ => false,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let usage =
            matches!(error, ClientError::Url(_) | ClientError::Usage(_) | ClientError::Https(_));
        Self::new(if usage { 2 } else { 1 }, error)
    }
}
