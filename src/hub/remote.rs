//! Questions to the hub: what a model consists of, and the bytes of a file from some place on.

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, ETAG, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::digest::Digest;
use super::name::plain;
use super::{HubError, HubModel, HubSettings};

const CONNECT: Duration = Duration::from_secs(10);
/// A server that is silent for so long has gone.
const SILENCE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 8;
const MAX_LISTING_BYTES: u64 = 32 << 20;

/// The hub, as a model's files are asked for.
pub struct Remote<'a> {
    agent: Agent,
    endpoint: Url,
    settings: &'a HubSettings,
    model: &'a HubModel,
}

/// The files of a model at a commit.
pub struct Listing {
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// A file, and what is promised of it.
#[derive(Clone)]
pub struct RemoteFile {
    pub name: String,
    pub size: Option<u64>,
    pub digest: Option<Digest>,
}

/// What the API tells about a model; `blobs=true` adds sizes and digests.
#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// An answer with bytes.
pub struct Bytes {
    pub response: Response<Body>,
    /// Of the file, as the headers promise it.
    pub digest: Option<Digest>,
}

impl<'a> Remote<'a> {
    pub fn new(model: &'a HubModel, settings: &'a HubSettings) -> Result<Self, HubError> {
        let wrong = || HubError::Endpoint(settings.endpoint.clone());
        let endpoint = Url::parse(&settings.endpoint).map_err(|_| wrong())?;
        if !["http", "https"].contains(&endpoint.scheme()) || !endpoint.has_host() {
            return Err(wrong());
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: agent.into(), endpoint, settings, model })
    }

    /// What the model consists of at its revision.
    pub fn listing(&self) -> Result<Listing, HubError> {
        let (endpoint, model) = (&self.settings.endpoint, self.model);
        let url = format!("{endpoint}/api/models/{model}/revision/{}?blobs=true", model.revision);
        let answer = |reason: String| HubError::Answer { url: url.clone(), reason };
        let mut response = self.get(&url, 0)?.response;
        if response.status() != 200 {
            return Err(self.refused(&url, &response));
        }
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let body = body.map_err(|error| unreachable(&url, &error))?;
        let info: ModelInfo =
            serde_json::from_slice(&body).map_err(|error| answer(error.to_string()))?;
        if !plain(&info.sha) {
            return Err(answer("its commit is no plain name".to_owned()));
        }
        Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(file).collect() })
    }

    /// The bytes of a file from `from` on.
    pub fn open(&self, commit: &str, file: &str, from: u64) -> Result<Bytes, HubError> {
        let url = self.url_of(commit, file);
        let bytes = self.get(&url, from)?;
        match bytes.response.status().as_u16() {
            200 | 206 | 416 => Ok(bytes),
            _ => Err(self.refused(&url, &bytes.response)),
        }
    }

    pub fn url_of(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.settings.endpoint, self.model)
    }

    /// Follows redirects itself: the token goes to the hub alone, and never from https to http.
    fn get(&self, start: &str, from: u64) -> Result<Bytes, HubError> {
        let answer = |reason: &str| HubError::Answer { url: start.into(), reason: reason.into() };
        let mut url = Url::parse(start).map_err(|_| answer("a malformed address"))?;
        let mut digest = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(url.as_str()).header("Accept-Encoding", "identity");
            if let Some(token) = &self.settings.token
                && url.origin() == self.endpoint.origin()
            {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| unreachable(start, &error))?;
            digest = digest.or_else(|| promised(response.headers()));
            if !response.status().is_redirection() {
                return Ok(Bytes { response, digest });
            }
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let next = to.and_then(|to| url.join(to).ok());
            let next = next.ok_or_else(|| answer("a redirect to nowhere"))?;
            let kept =
                next.scheme() == "https" || (next.scheme() == "http" && url.scheme() == "http");
            if !kept {
                return Err(answer("a redirect away from https"));
            }
            url = next;
        }
        Err(answer("redirects without end"))
    }

    /// What a refusal means.
    fn refused(&self, url: &str, response: &Response<Body>) -> HubError {
        let (endpoint, model) = (self.settings.endpoint.clone(), Box::new(self.model.clone()));
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        let with_token = self.settings.token.is_some();
        match (response.status().as_u16(), code) {
            (_, Some("GatedRepo")) => HubError::Gated { endpoint, model },
            (_, Some("RevisionNotFound")) => HubError::NoRevision { endpoint, model },
            (_, Some("RepoNotFound")) => HubError::NotFound { endpoint, model, with_token },
            (401, _) if with_token => HubError::Token { endpoint },
            (401 | 404, _) => HubError::NotFound { endpoint, model, with_token },
            (403, _) => HubError::Gated { endpoint, model },
            (status, _) => HubError::Status { url: url.to_owned(), status },
        }
    }
}

fn file(sibling: Sibling) -> RemoteFile {
    let lfs = sibling.lfs.as_ref();
    let digest = match lfs {
        Some(lfs) => lfs.sha256.as_deref().and_then(Digest::read),
        None => sibling.blob_id.as_deref().and_then(Digest::read),
    };
    let size = lfs.and_then(|lfs| lfs.size).or(sibling.size);
    RemoteFile { name: sibling.rfilename, size, digest }
}

/// The digest that the headers of the hub name; those of where it redirects to are of other kinds.
fn promised(headers: &HeaderMap) -> Option<Digest> {
    let header = headers.get("x-linked-etag").or_else(|| headers.get(ETAG))?;
    Digest::read(header.to_str().ok()?)
}

pub fn unreachable(url: &str, error: &dyn std::fmt::Display) -> HubError {
    HubError::Unreachable { url: url.to_owned(), reason: error.to_string() }
}
