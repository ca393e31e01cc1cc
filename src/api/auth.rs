//! Who may call: bearer keys, kept as SHA-256 and compared in constant time.
//!
//! The layer stands around the whole router and lets nothing through that is not listed in
//! [`PUBLIC`], so a new route is closed until somebody opens it. It looks at the route the router
//! matched, not at the path or `Host` that a client wrote.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::guesses::Peer;
use super::{ApiError, AppState};

/// Routes that answer without a key: probes, and the pages that hold no data of their own.
pub const PUBLIC: &[&str] =
    &["/", "/docs", "/docs/", "/docs/{*rest}", "/openapi.json", "/health/live", "/health/ready"];

/// The keys that open the server. Without any, everybody on this machine may call.
#[derive(Clone, Default)]
pub struct Keys(Arc<[Key]>);

struct Key {
    sha256: [u8; 32],
    tenant: Arc<str>,
}

/// Whoever sent the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Callers of different tenants share no prefix cache.
    pub tenant: Arc<str>,
}

impl Keys {
    /// Keys as their owners write them; only their digests are kept.
    pub fn new<K: AsRef<str>>(keys: &[K]) -> Self {
        let key = |key: &K| {
            let sha256: [u8; 32] = Sha256::digest(key.as_ref()).into();
            Key { tenant: format!("key-{}", hex::encode(&sha256[..6])).into(), sha256 }
        };
        Self(keys.iter().map(key).collect())
    }

    /// Whether calls need no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The owner of a key. Every key is compared, whichever fits.
    fn owner(&self, presented: &str) -> Option<Caller> {
        let digest = Sha256::digest(presented);
        let mut owner = None;
        for key in self.0.iter() {
            if bool::from(key.sha256.ct_eq(digest.as_slice())) {
                owner = Some(Caller { tenant: Arc::clone(&key.tenant) });
            }
        }
        owner
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} keys)", self.0.len())
    }
}

/// Lets a request pass if its key is known, or if its route is public.
pub(super) async fn authenticate(
    State(app): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let public = route.is_some_and(|route| PUBLIC.contains(&route));
    if app.keys.is_empty() {
        check_origin(request.headers(), request.uri())?;
    }
    let caller = match app.keys.is_empty() {
        true => Some(Caller { tenant: "default".into() }),
        false => bearer(request.headers()).and_then(|key| app.keys.owner(key)),
    };
    match caller {
        Some(caller) => {
            request.extensions_mut().insert(caller);
            Ok(next.run(request).await)
        }
        None if public => Ok(next.run(request).await),
        None => Err(slow_down(&app, &request).unwrap_or_else(|| refusal(request.headers()))),
    }
}

/// 429 for an address that tries one wrong key after the other. A missing key is no guess.
fn slow_down(app: &AppState, request: &Request) -> Option<ApiError> {
    bearer(request.headers())?;
    let peer = request.extensions().get::<Peer>()?;
    let wait = app.guesses.wrong(*peer, Instant::now())?;
    let message = "Too many wrong API keys came from your address; wait, and check the key.";
    Some(ApiError::overloaded("too_many_wrong_keys", message, wait))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn refusal(headers: &HeaderMap) -> ApiError {
    let message = match headers.contains_key(header::AUTHORIZATION) {
        true => "Incorrect API key provided.",
        false => "You didn't provide an API key. Send it as `Authorization: Bearer <key>`.",
    };
    ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key")
}

/// Keeps web pages of other origins out of a server without keys: a browser sends `Origin` along,
/// and a name that was bent to point at this machine shows in `Host`. No page knows a key.
fn check_origin(headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).or(uri.authority().map(|authority| authority.as_str()));
    if let Some(origin) = text(header::ORIGIN) {
        let origin = origin.split_once("://").map_or(origin, |(_, authority)| authority);
        if Some(origin) != host {
            let message = "requests from pages of another origin are not accepted";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message).code("foreign_origin"));
        }
    }
    match host {
        Some(host) if !is_local(host) => {
            let message = "without API keys the server answers to addresses and `localhost` only; \
                           start it with `--api-key` to use other names";
            Err(ApiError::new(StatusCode::FORBIDDEN, message).code("foreign_host"))
        }
        _ => Ok(()),
    }
}

/// Whether `host` is an address or a name that always means this machine.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| refusal(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_and_another_does_not() {
        let keys = Keys::new(&["sk-one", "sk-two"]);
        let one = keys.owner("sk-one").unwrap();
        assert_ne!(one, keys.owner("sk-two").unwrap());
        assert_eq!(keys.owner("sk-three"), None);
        assert_eq!(keys.owner(""), None);
        assert!(!format!("{keys:?}").contains("sk-one"));
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "10.0.0.2:80", "a.localhost"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "", "127.0.0.1.nip.io"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
