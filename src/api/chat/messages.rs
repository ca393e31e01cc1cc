//! Keys of messages: those that are read, and those of OpenAI's that may only be empty here.

use serde_json::Value;

use crate::api::ApiError;

/// Keys that the chat template gets to see.
const READ: &[&str] =
    &["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"];
/// Keys that clients send back from earlier answers, with nothing in them.
const EMPTY: &[&str] = &["refusal", "annotations", "audio", "function_call"];

/// Refuses conversations without a message, and keys that would be ignored.
///
/// # Errors
/// A 400 that names the key's place.
pub(in crate::api) fn check(messages: &[Value]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "`messages` is empty; send at least one message",
        ));
    }
    for (at, message) in messages.iter().enumerate() {
        for (key, value) in message.as_object().into_iter().flatten() {
            let param = format!("messages[{at}].{key}");
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if READ.contains(&key.as_str()) || (EMPTY.contains(&key.as_str()) && empty) {
                continue;
            }
            return Err(match EMPTY.contains(&key.as_str()) {
                true => ApiError::unsupported(&param, format!("`{param}` is not supported")),
                false => {
                    let message = format!("unrecognized request argument: `{param}`");
                    ApiError::invalid(&param, message).code("unknown_parameter")
                }
            });
        }
    }
    Ok(())
}
