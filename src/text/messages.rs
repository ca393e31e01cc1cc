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
    #[error("content parts of type `{kind}` are not supported by this model; only `text` is")]
    UnsupportedPart { kind: String },
    #[error("`arguments` must be a string that holds a JSON object: {reason}")]
    Arguments { reason: String },
    #[error("`{key}` is not supported: {instead}")]
    Unsupported { key: &'static str, instead: &'static str },
}

/// A problem and its place, as a JSON path below the list of messages (`[2].content[0].type`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("messages{path}: {problem}")]
pub struct MessageError {
    pub path: String,
    pub problem: MessageProblem,
}

/// The messages as templates read them.
///
/// # Errors
/// The first [`MessageError`].
pub fn normalise(messages: &[Value]) -> Result<Vec<Value>, MessageError> {
    let (messages, mut errors) = normalise_all(messages);
    match errors.is_empty() {
        true => Ok(messages),
        false => Err(errors.swap_remove(0)),
    }
}

/// The messages as templates read them, and every problem found.
pub(super) fn normalise_all(messages: &[Value]) -> (Vec<Value>, Vec<MessageError>) {
    let mut errors = Vec::new();
    let mut normal = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        match message.as_object() {
            Some(message) => {
                let mut reader = Reader { base: format!("[{index}]"), errors: &mut errors };
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
        normal.insert("content".into(), content.unwrap_or_default().into());
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

    /// A string, or text parts joined by line breaks; `None` if absent, null or wrong.
    fn content(&mut self, content: Option<&Value>) -> Option<String> {
        match content {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(parts)) => {
                let texts: Vec<String> = parts
                    .iter()
                    .enumerate()
                    .filter_map(|(index, part)| self.part(index, part))
                    .collect();
                Some(texts.join("\n"))
            }
            Some(_) => {
                let expected = "a string or a list of text parts";
                self.report(".content", MessageProblem::WrongType { key: "content", expected });
                Some(String::new())
            }
        }
    }

    fn part(&mut self, index: usize, part: &Value) -> Option<String> {
        let kind = part["type"].as_str().unwrap_or("none");
        match (kind, part["text"].as_str()) {
            ("text", Some(text)) => return Some(text.to_owned()),
            ("text", None) => self.report(
                &format!(".content[{index}].text"),
                MessageProblem::WrongType { key: "text", expected: "a string" },
            ),
            (kind, _) => self.report(
                &format!(".content[{index}].type"),
                MessageProblem::UnsupportedPart { kind: kind.chars().take(64).collect() },
            ),
        }
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
        let normal = normalise(&messages).unwrap();
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
        let paths: Vec<String> = normalise_all(&messages).1.into_iter().map(|e| e.path).collect();
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
}
