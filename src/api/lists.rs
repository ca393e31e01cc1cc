//! Cursors: `after`, `limit` and `order`, as every list has them.

use axum::http::HeaderMap;

use super::ApiError;
use crate::store::{Order, Page};

/// The page a query asks for.
pub(super) fn page(
    after: Option<String>,
    limit: Option<i64>,
    default_limit: usize,
    most: usize,
) -> Result<Page, ApiError> {
    let limit = match limit {
        None => default_limit,
        Some(limit) => usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=most).contains(limit))
            .ok_or_else(|| ApiError::invalid("limit", format!("`limit` must be 1 to {most}")))?,
    };
    let after = after.map(|id| known("after", id)).transpose()?;
    Ok(Page { after, limit, order: Order::Descending })
}

/// An id or a word that the databases can look for: they differ on NUL characters.
pub(super) fn known(param: &'static str, text: String) -> Result<String, ApiError> {
    match text.contains('\0') {
        true => {
            Err(ApiError::invalid(param, format!("`{param}` must not contain a NUL character")))
        }
        false => Ok(text),
    }
}

/// `asc` or `desc`, by time of creation.
pub(super) fn order(order: Option<&str>) -> Result<Order, ApiError> {
    match order {
        None | Some("desc") => Ok(Order::Descending),
        Some("asc") => Ok(Order::Ascending),
        Some(_) => Err(ApiError::invalid("order", "`order` must be `asc` or `desc`")),
    }
}

/// The `Idempotency-Key` header, if one was sent.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => {
            let message =
                "the header `Idempotency-Key` must have 1 to 255 visible ASCII characters";
            Err(ApiError::invalid("Idempotency-Key", message))
        }
    }
}
