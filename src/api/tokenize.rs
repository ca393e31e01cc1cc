//! `/tokenize` and `/detokenize`: text to token ids and back, as the model sees it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ErrorBody;
use super::{ApiError, ApiJson, AppState};
use crate::domain::VisionInfo;
use crate::engine::EngineError;
use crate::text::{TextError, TextModel};

/// A text or a conversation to tokenise.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeBody {
    pub model: String,
    /// A text. Either this or `messages`.
    pub prompt: Option<String>,
    /// A conversation, through the chat template.
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Vec<Value>>,
    /// Put the model's own special tokens around the text, as completions do. The chat template
    /// writes those of a conversation itself.
    #[schema(default = true)]
    pub add_special_tokens: Option<bool>,
    /// Give the text of each token too.
    #[schema(default = false)]
    pub return_token_strs: Option<bool>,
}

/// The tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeObject {
    pub count: usize,
    pub max_model_len: usize,
    pub tokens: Vec<u32>,
    /// `null` unless asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Tokens to put into text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeBody {
    pub model: String,
    pub tokens: Vec<u32>,
    /// Leave special tokens out of the text.
    #[schema(default = false)]
    pub skip_special_tokens: Option<bool>,
}

/// The text.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeObject {
    pub prompt: String,
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(tokenize)).routes(routes!(detokenize))
}

/// `POST /tokenize`: the tokens of a text or a conversation.
#[utoipa::path(
    post, path = "/tokenize", tag = "text", request_body = TokenizeBody,
    responses(
        (status = 200, description = "The tokens", body = TokenizeObject),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody)
    )
)]
async fn tokenize(
    State(app): State<AppState>,
    ApiJson(body): ApiJson<TokenizeBody>,
) -> Result<Json<TokenizeObject>, ApiError> {
    let model = app.engine.catalog().resolve(&body.model).await?;
    let (text, vision) = (Arc::clone(&model.text), model.base.vision);
    let with_strings = body.return_token_strs.unwrap_or(false);
    let work = move || {
        let tokens = tokens(&text, vision, &body)?;
        let strings = with_strings
            .then(|| tokens.iter().map(|&id| text.tokenizer().token_text(id)).collect());
        Ok::<_, ApiError>((tokens, strings))
    };
    let (tokens, token_strs) = app.engine.tokenise(work).await??;
    let max_model_len = model.base.context_length;
    Ok(Json(TokenizeObject { count: tokens.len(), max_model_len, tokens, token_strs }))
}

fn tokens(
    text: &TextModel,
    vision: Option<VisionInfo>,
    body: &TokenizeBody,
) -> Result<Vec<u32>, ApiError> {
    let failed = |param| move |error| ApiError::from(EngineError::Prompt { param, error });
    match (&body.prompt, &body.messages) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("messages", "send either `prompt` or `messages`, not both"))
        }
        (None, None) => Err(ApiError::invalid("prompt", "send `prompt` or `messages`")),
        (Some(prompt), None) => text
            .tokenizer()
            .encode(prompt, body.add_special_tokens.unwrap_or(true))
            .map_err(|error| failed("prompt")(TextError::from(error))),
        (None, Some(messages)) => {
            super::chat::check_messages(messages)?;
            let ids = text.chat_prompt(messages, None, &Map::new()).map_err(failed("messages"))?;
            Ok(match vision {
                Some(vision) => vision.make_room(&ids).0,
                None => ids,
            })
        }
    }
}

/// `POST /detokenize`: the text of tokens.
#[utoipa::path(
    post, path = "/detokenize", tag = "text", request_body = DetokenizeBody,
    responses(
        (status = 200, description = "The text", body = DetokenizeObject),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody)
    )
)]
async fn detokenize(
    State(app): State<AppState>,
    ApiJson(body): ApiJson<DetokenizeBody>,
) -> Result<Json<DetokenizeObject>, ApiError> {
    let model = app.engine.catalog().resolve(&body.model).await?;
    let text = Arc::clone(&model.text);
    let work = move || {
        text.tokenizer().check_ids(&body.tokens)?;
        text.tokenizer().decode(&body.tokens, body.skip_special_tokens.unwrap_or(false))
    };
    let prompt = app.engine.tokenise(work).await?;
    let prompt = prompt.map_err(|error| ApiError::invalid("tokens", error))?;
    Ok(Json(DetokenizeObject { prompt }))
}
