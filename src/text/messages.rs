//! One form for conversations: what clients and training files may write, and what templates read.
//!
//! Text parts join to one string, `developer` becomes `system`, the arguments of tool calls become
//! objects, absent content becomes empty. Serving and training both pass through here.

use serde_json::{Map, Value};

/// What is wrong with one message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageProblem {
    #[error("a message must be an object")]
    NotAnObject,
    #[error("`{key}` is missing")]
    Missing { key: &'static str },
    #[error("`{key}` must be {expected}")]
    WrongType { key: &'static str, expected: &'static str },
    #[error("the role `{role}` is unknown; roles are system, developer, user, assistant and tool")]
    UnknownRole { role: String },
    #[error("an assistant message needs `content` or `tool_calls`")]
    NoContent,
    #[error("content parts of type `{kind}` are not supported by this model; {known}")]
    UnsupportedPart { kind: String, known: &'static str },
    #[error(
        "the chat template has no place for pictures; start the server with `template=llava-v1`"
    )]
    NoPlaceForPictures,
    #[error("this model reads every picture at the same size; leave `detail` out")]
    Detail,
    #[error("`arguments` must be a string that holds a JSON object: {reason}")]
    Arguments { reason: String },
    #[error("`{key}` is not supported: {instead}")]
    Unsupported { key: &'static str, instead: &'static str },
}

impl MessageProblem {
    /// Whether another model might take it: one that sees, or one with another template.
    pub fn depends_on_model(&self) -> bool {
        match self {
            Self::UnsupportedPart { kind, .. } => kind == "image_url",
            Self::NoPlaceForPictures => true,
            _ => false,
        }
    }
}

/// A problem and its place, as a JSON path below the list of messages (`[2].content[0].type`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("messages{path}: {problem}")]
pub struct MessageError {
    pub path: String,
    pub problem: MessageProblem,
}

/// What content may hold, and how the template reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentRules {
    pub pictures: PictureRule,
    /// The template reads lists of parts and no strings.
    pub only_parts: bool,
}

/// Whether messages may show pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PictureRule {
    /// The model sees none.
    #[default]
    Unseen,
    /// The model sees, but its template writes none.
    Unplaced,
    /// As parts `{"type": "image"}`.
    Placed,
}

/// A picture of a conversation: its URL, and where it stands, as a JSON path below the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureUrl<'a> {
    pub path: String,
    pub url: &'a str,
}

/// The pictures of well-formed messages, in order.
pub fn picture_urls(messages: &[Value]) -> Vec<PictureUrl<'_>> {
    let mut urls = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        for (index, part) in message["content"].as_array().into_iter().flatten().enumerate() {
            if let Some(url) = part["image_url"]["url"].as_str() {
                urls.push(PictureUrl {
                    path: format!("[{at}].content[{index}].image_url.url"),
                    url,
                });
            }
        }
    }
    urls
}

/// The messages as templates read them.
///
/// # Errors
/// The first [`MessageError`].
pub fn normalise(messages: &[Value], rules: ContentRules) -> Result<Vec<Value>, MessageError> {
    let (messages, mut errors) = normalise_all(messages, rules);
    match errors.is_empty() {
        true => Ok(messages),
        false => Err(errors.swap_remove(0)),
    }
}

/// The messages as templates read them, and every problem found.
pub(super) fn normalise_all(
    messages: &[Value],
    rules: ContentRules,
) -> (Vec<Value>, Vec<MessageError>) {
    let mut errors = Vec::new();
    let mut normal = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        match message.as_object() {
            Some(message) => {
                let mut reader = Reader { base: format!("[{index}]"), rules, errors: &mut errors };
                normal.push(Value::Object(reader.message(message)));
            }
            None => errors.push(MessageError {
                path: format!("[{index}]"),
                problem: MessageProblem::NotAnObject,
            }),
        }
    }
    (normal, errors)
}

struct Reader<'a> {
    base: String,
    rules: ContentRules,
    errors: &'a mut Vec<MessageError>,
}

impl Reader<'_> {
    fn report(&mut self, path: &str, problem: MessageProblem) {
        self.errors.push(MessageError { path: format!("{}{path}", self.base), problem });
    }

    fn message(&mut self, message: &Map<String, Value>) -> Map<String, Value> {
        let mut normal = Map::new();
        let role = self.role(message);
        normal.insert("role".into(), role.into());
        let content = self.content(message.get("content"));
        let calls = self.tool_calls(message.get("tool_calls"));
        match (&content, role) {
            (None, "assistant") if calls.is_none() => self.report("", MessageProblem::NoContent),
            (None, "assistant") => {}
            (None, _) if message.get("content").is_none_or(Value::is_null) => {
                self.report("", MessageProblem::Missing { key: "content" })
            }
            _ => {}
        }
        let empty = || if self.rules.only_parts { Value::Array(Vec::new()) } else { "".into() };
        normal.insert("content".into(), content.unwrap_or_else(empty));
        if let Some(calls) = calls {
            normal.insert("tool_calls".into(), calls);
        }
        for key in ["name", "tool_call_id", "reasoning_content"] {
            self.copy_text(key, message, &mut normal);
        }
        if message.get("function_call").is_some_and(|call| !call.is_null()) {
            let instead = "write `tool_calls`";
            self.report(
                ".function_call",
                MessageProblem::Unsupported { key: "function_call", instead },
            );
        }
        normal
    }

    fn role(&mut self, message: &Map<String, Value>) -> &'static str {
        let problem = match message.get("role") {
            None => MessageProblem::Missing { key: "role" },
            Some(Value::String(role)) => match role.as_str() {
                "system" | "developer" => return "system",
                "user" => return "user",
                "assistant" => return "assistant",
                "tool" => return "tool",
                other => MessageProblem::UnknownRole { role: other.chars().take(64).collect() },
            },
            Some(_) => MessageProblem::WrongType { key: "role", expected: "a string" },
        };
        self.report(".role", problem);
        "user"
    }

    /// A string, text parts joined by line breaks, or where there are pictures the parts themselves;
    /// `None` if absent, null or wrong.
    fn content(&mut self, content: Option<&Value>) -> Option<Value> {
        let parts = match content {
            None | Some(Value::Null) => return None,
            Some(Value::String(text)) => vec![text_part(text)],
            Some(Value::Array(parts)) => {
                let parts = parts.iter().enumerate();
                parts.filter_map(|(index, part)| self.part(index, part)).collect()
            }
            Some(_) => {
                let expected = "a string or a list of content parts";
                self.report(".content", MessageProblem::WrongType { key: "content", expected });
                Vec::new()
            }
        };
        let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        match self.rules.only_parts || texts.len() < parts.len() {
            true => Some(parts.into()),
            false => Some(texts.join("\n").into()),
        }
    }

    fn part(&mut self, index: usize, part: &Value) -> Option<Value> {
        let kind = part["type"].as_str().unwrap_or("none");
        let known = match self.rules.pictures {
            PictureRule::Unseen => "only `text` is",
            _ => "only `text` and `image_url` are",
        };
        let (key, problem) = match (kind, part["text"].as_str()) {
            ("text", Some(text)) => return Some(text_part(text)),
            ("text", None) => {
                ("text", MessageProblem::WrongType { key: "text", expected: "a string" })
            }
            ("image_url", _) if self.rules.pictures == PictureRule::Unplaced => {
                ("type", MessageProblem::NoPlaceForPictures)
            }
            ("image_url", _) if self.rules.pictures == PictureRule::Placed => {
                match picture_problem(&part["image_url"]) {
                    None => return Some(serde_json::json!({"type": "image"})),
                    Some(found) => found,
                }
            }
            (kind, _) => {
                let kind = kind.chars().take(64).collect();
                ("type", MessageProblem::UnsupportedPart { kind, known })
            }
        };
        self.report(&format!(".content[{index}].{key}"), problem);
        None
    }

    fn tool_calls(&mut self, calls: Option<&Value>) -> Option<Value> {
        let calls = match calls {
            None | Some(Value::Null) => return None,
            Some(Value::Array(calls)) => calls,
            Some(_) => {
                let problem = MessageProblem::WrongType { key: "tool_calls", expected: "a list" };
                self.report(".tool_calls", problem);
                return None;
            }
        };
        let calls: Vec<Value> =
            calls.iter().enumerate().map(|(index, call)| self.tool_call(index, call)).collect();
        (!calls.is_empty()).then_some(Value::Array(calls))
    }

    /// Templates write `arguments | tojson`, so they want the object that the wire form quotes.
    fn tool_call(&mut self, index: usize, call: &Value) -> Value {
        let path = format!(".tool_calls[{index}].function");
        if !call["function"]["name"].is_string() {
            let problem = MessageProblem::WrongType { key: "name", expected: "a string" };
            self.report(&format!("{path}.name"), problem);
            return Value::Null;
        }
        let mut call = call.clone();
        let arguments = &mut call["function"]["arguments"];
        let parsed = match &*arguments {
            Value::String(text) => serde_json::from_str::<Value>(text),
            Value::Null => Ok(Value::Object(Map::new())),
            other => Ok(other.clone()),
        };
        let reason = match parsed {
            Ok(Value::Object(object)) => {
                *arguments = Value::Object(object);
                return call;
            }
            Ok(_) => "it is not an object".to_owned(),
            Err(error) => error.to_string(),
        };
        self.report(&format!("{path}.arguments"), MessageProblem::Arguments { reason });
        call
    }

    fn copy_text(
        &mut self,
        key: &'static str,
        message: &Map<String, Value>,
        normal: &mut Map<String, Value>,
    ) {
        match message.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                normal.insert(key.into(), text.clone().into());
            }
            Some(_) => {
                let problem = MessageProblem::WrongType { key, expected: "a string" };
                self.report(&format!(".{key}"), problem);
            }
        }
    }
}

fn text_part(text: &str) -> Value {
    serde_json::json!({"type": "text", "text": text})
}

/// What is wrong with `image_url`, and the key it is wrong at.
fn picture_problem(image_url: &Value) -> Option<(&'static str, MessageProblem)> {
    if !image_url["url"].is_string() {
        let (key, expected) = ("image_url", "an object with the string `url`");
        return Some(("image_url", MessageProblem::WrongType { key, expected }));
    }
    let detail = &image_url["detail"];
    let plain = detail.is_null() || detail == "auto";
    (!plain).then_some(("image_url.detail", MessageProblem::Detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wire_forms_become_what_templates_read() {
        let messages = [
            json!({"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}),
        ];
        let normal = normalise(&messages, ContentRules::default()).unwrap();
        assert_eq!(normal[0], json!({"role": "system", "content": "a\nb"}));
        assert_eq!(normal[1]["content"], "");
        assert_eq!(normal[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
    }

    #[test]
    fn every_problem_names_its_place() {
        let messages = [
            json!(3),
            json!({"role": "narrator", "content": 5}),
            json!({"role": "user"}),
            json!({"role": "assistant"}),
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}),
        ];
        let paths: Vec<String> = normalise_all(&messages, ContentRules::default())
            .1
            .into_iter()
            .map(|e| e.path)
            .collect();
        assert_eq!(
            paths,
            [
                "[0]",
                "[1].role",
                "[1].content",
                "[2]",
                "[3]",
                "[4].content[0].type",
                "[5].tool_calls[0].function.arguments"
            ]
        );
    }

    #[test]
    fn pictures_stay_parts_where_a_template_places_them() {
        let url = json!({"url": "data:,"});
        let message = json!({"role": "user", "content": [
            {"type": "image_url", "image_url": url}, {"type": "text", "text": "what?"}]});
        let read = |pictures, only_parts, messages: &[Value]| {
            normalise(messages, ContentRules { pictures, only_parts })
        };
        let normal = read(PictureRule::Placed, false, std::slice::from_ref(&message)).unwrap();
        let parts = json!([{"type": "image"}, {"type": "text", "text": "what?"}]);
        assert_eq!(normal[0]["content"], parts);
        let urls = picture_urls(std::slice::from_ref(&message));
        assert_eq!((urls.len(), &*urls[0].path), (1, "[0].content[0].image_url.url"));
        let plain = json!({"role": "user", "content": "hi"});
        let normal = read(PictureRule::Placed, true, &[plain]).unwrap();
        assert_eq!(normal[0]["content"], json!([{"type": "text", "text": "hi"}]));
        for rule in [PictureRule::Unseen, PictureRule::Unplaced] {
            let error = read(rule, false, std::slice::from_ref(&message)).unwrap_err();
            assert_eq!(error.path, "[0].content[0].type");
        }
        let detailed = json!({"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:,", "detail": "high"}}]});
        let error = read(PictureRule::Placed, false, &[detailed]).unwrap_err();
        assert_eq!(error.path, "[0].content[0].image_url.detail");
    }
}
