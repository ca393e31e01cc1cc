//! Requests to the server, and what its refusals mean.

use std::path::Path;
use std::time::Duration;

use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Deserialize;
use serde_json::Value;

use super::error::{ClientError, ClientResult, ErrorBody};

const CONNECT: Duration = Duration::from_secs(10);

/// A server's address, and the key it is asked with.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<String>,
}

impl Client {
    /// A client of the server at `url`; a trailing `/v1`, as other clients want it, is fine.
    ///
    /// # Errors
    /// [`ClientError::Url`], [`ClientError::Https`].
    pub fn new(url: &str, key: Option<&str>) -> ClientResult<Self> {
        let plain = url.trim_end_matches('/');
        let plain = plain.strip_suffix("/v1").unwrap_or(plain);
        let base = Url::parse(plain).map_err(|_| ClientError::Url(url.to_owned()))?;
        match base.scheme() {
            "http" if base.has_host() => {}
            "https" => return Err(ClientError::Https(url.to_owned())),
            _ => return Err(ClientError::Url(url.to_owned())),
        }
        let http = reqwest::Client::builder().connect_timeout(CONNECT).no_proxy().build();
        let http = http.map_err(|_| ClientError::Url(url.to_owned()))?;
        // A server's TANDEM_API_KEY may list several keys; any of them opens.
        let key = key.and_then(|keys| keys.split_whitespace().next()).map(str::to_owned);
        Ok(Self { http, base, key })
    }

    /// `GET` of the path with these segments.
    ///
    /// # Errors
    /// As all requests: [`ClientError::NoServer`] and what follows it.
    pub async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> ClientResult<Value> {
        self.json(self.request(Method::GET, path, query)).await
    }

    /// `POST` of a JSON body, or of none.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &[&str], body: Option<&Value>) -> ClientResult<Value> {
        let request = self.request(Method::POST, path, &[]);
        match body {
            Some(body) => self.json(request.json(body)).await,
            None => self.json(request).await,
        }
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, path: &[&str]) -> ClientResult<Value> {
        self.json(self.request(Method::DELETE, path, &[])).await
    }

    /// `POST` of a form.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_form(&self, path: &[&str], form: Form) -> ClientResult<Value> {
        self.json(self.request(Method::POST, path, &[]).multipart(form)).await
    }

    /// A request for [`Client::open`].
    pub(super) fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; the answer is one that was not refused.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn open(&self, request: RequestBuilder) -> ClientResult<Response> {
        let response = request.send().await.map_err(|error| self.unsent(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.as_u16() == 401 {
            let url = self.address();
            return Err(match self.key {
                None => ClientError::KeyMissing(url),
                Some(_) => ClientError::KeyUnknown(url),
            });
        }
        let path = response.url().path().to_owned();
        let bytes = response.bytes().await.map_err(|error| self.broken(&error))?;
        Err(self.refusal(status.as_u16(), &path, &bytes))
    }

    async fn json(&self, request: RequestBuilder) -> ClientResult<Value> {
        let response = self.open(request).await?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await.map_err(|error| self.broken(&error))?;
        serde_json::from_slice(&bytes).map_err(|_| self.not_tandem(status))
    }

    fn refusal(&self, status: u16, path: &str, bytes: &[u8]) -> ClientError {
        #[derive(Deserialize)]
        struct Wrapped {
            error: ErrorBody,
        }
        match serde_json::from_slice::<Wrapped>(bytes) {
            Ok(Wrapped { error }) => ClientError::refused(ErrorBody { status, ..error }, path),
            Err(_) => self.not_tandem(status),
        }
    }

    fn unsent(&self, error: &reqwest::Error) -> ClientError {
        match error.is_connect() {
            true => ClientError::NoServer(self.address()),
            false => self.broken(error),
        }
    }

    pub(super) fn broken(&self, error: &reqwest::Error) -> ClientError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        ClientError::Broken { url: self.address(), reason: cause.to_string() }
    }

    fn not_tandem(&self, status: u16) -> ClientError {
        ClientError::NotTandem { url: self.address(), status }
    }

    /// The server's address as people write it.
    pub fn address(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// The first base model: what commands use that are told no other.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn first_model(&self) -> ClientResult<String> {
        let models = self.get(&["v1", "models"], &[]).await?;
        let first = models["data"][0]["id"].as_str();
        first.map(str::to_owned).ok_or_else(|| self.not_tandem(200))
    }
}

/// A file as a part of a form, read while it is sent.
pub(super) async fn file_part(path: &Path) -> ClientResult<Part> {
    let unreadable = |source| ClientError::Read { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(unreadable(std::io::ErrorKind::IsADirectory.into()));
    }
    Part::file(path).await.map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_segment_of_the_path() {
        let client = Client::new("http://localhost:1/v1/", Some("one two")).expect("an address");
        let request = client.request(Method::GET, &["v1", "adapters", "a/b c?"], &[("after", "&")]);
        let request = request.build().expect("a request");
        let url = request.url().as_str();
        assert_eq!(url, "http://localhost:1/v1/adapters/a%2Fb%20c%3F?after=%26");
        assert_eq!(request.headers()["authorization"], "Bearer one");
    }

    #[test]
    fn addresses_that_cannot_be_are_usage_errors() {
        let refused = |url| Client::new(url, None).err().expect("must be refused");
        assert!(matches!(refused("https://host"), ClientError::Https(_)));
        assert!(matches!(refused("localhost:8080"), ClientError::Url(_)));
        assert!(matches!(refused("nonsense"), ClientError::Url(_)));
    }
}
