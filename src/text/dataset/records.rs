//! One parsed line, checked against its format.

use serde_json::{Map, Value};

use super::TrainOn;
use super::format::Format;
use super::report::{Problem, Severity};
use crate::domain::IGNORE_INDEX;
use crate::text::mask::Conversation;
use crate::text::messages::normalise_all;
use crate::text::model::TextModel;

/// Keys a message of the wire form may have.
const MESSAGE_KEYS: [&str; 9] = [
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "weight",
    "function_call",
    "reasoning_content",
    "refusal",
];

/// What a line says, in the forms that become examples.
#[derive(Debug)]
pub(super) enum Record {
    Conversation(Conversation),
    /// Loss on `completion` and the end that follows it.
    Pair {
        prompt: String,
        completion: String,
    },
    Text(String),
    Tokens {
        ids: Vec<u32>,
        labels: Vec<i32>,
    },
}

/// Findings of one line, each with its JSON path.
#[derive(Debug, Default)]
pub(super) struct Findings(pub Vec<(String, Problem)>);

impl Findings {
    pub fn add(&mut self, path: impl Into<String>, problem: Problem) {
        self.0.push((path.into(), problem));
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|(_, problem)| problem.severity() == Severity::Error)
    }
}

/// Reads a line of a known format; `None` if that left errors in `findings`.
pub(super) fn read(
    format: Format,
    line: &Map<String, Value>,
    model: &TextModel,
    train_on: TrainOn,
    findings: &mut Findings,
) -> Option<Record> {
    for key in line.keys().filter(|key| !format.keys().contains(&key.as_str())) {
        let problem = Problem::UnknownKey { key: key.chars().take(64).collect(), format };
        findings.add(format!("$.{key}"), problem);
    }
    let mut reader = Reader { line, model, train_on, findings };
    let record = match format {
        Format::Messages => reader.messages(),
        Format::ShareGpt => reader.share_gpt(),
        Format::PromptCompletion => reader.prompt_completion(),
        Format::Alpaca => reader.alpaca(),
        Format::Text => reader.filled_text("text").map(Record::Text),
        Format::Tokenized => reader.tokenized(),
    };
    record.filter(|_| !findings.has_errors())
}

struct Reader<'a> {
    line: &'a Map<String, Value>,
    model: &'a TextModel,
    train_on: TrainOn,
    findings: &'a mut Findings,
}

impl<'a> Reader<'a> {
    fn messages(&mut self) -> Option<Record> {
        if self.line.get("functions").is_some_and(|functions| !functions.is_null()) {
            self.findings.add("$.functions", Problem::Functions);
        }
        let tools = self.tools();
        let list = self.list("messages")?;
        let trained = self.weights(list);
        let (messages, errors) = normalise_all(list, self.model.training_rules());
        for error in errors {
            self.findings.add(format!("$.messages{}", error.path), Problem::Message(error.problem));
        }
        let mut extra = Map::new();
        match self.line.get("parallel_tool_calls") {
            None | Some(Value::Null) => {}
            Some(value @ Value::Bool(_)) => {
                extra.insert("parallel_tool_calls".into(), value.clone());
            }
            Some(_) => self.wrong_type("$.parallel_tool_calls", "true or false"),
        }
        self.conversation(Conversation { messages, trained, tools, extra }, |index| {
            format!("$.messages[{index}].content")
        })
    }

    fn tools(&mut self) -> Option<Vec<Value>> {
        let tools = match self.line.get("tools") {
            None | Some(Value::Null) => return None,
            Some(Value::Array(tools)) => tools,
            Some(_) => {
                self.wrong_type("$.tools", "a list of objects");
                return None;
            }
        };
        for (index, tool) in tools.iter().enumerate() {
            if !tool.is_object() {
                self.wrong_type(format!("$.tools[{index}]"), "an object");
            } else if let Some((path, token)) = self.model.special_token_in(tool) {
                self.findings
                    .add(format!("$.tools[{index}]{path}"), Problem::SpecialToken { token });
            }
        }
        (!tools.is_empty()).then(|| tools.clone())
    }

    /// Which messages bear loss, from `weight`; also reports keys nobody reads.
    fn weights(&mut self, messages: &[Value]) -> Vec<bool> {
        let mut trained = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let Some(message) = message.as_object() else {
                trained.push(false);
                continue;
            };
            for key in message.keys().filter(|key| !MESSAGE_KEYS.contains(&key.as_str())) {
                let key: String = key.chars().take(64).collect();
                let path = format!("$.messages[{index}].{key}");
                self.findings.add(path, Problem::UnknownKey { key, format: Format::Messages });
            }
            let role = message.get("role").and_then(Value::as_str).unwrap_or("");
            let weight = message.get("weight").filter(|weight| !weight.is_null());
            let path = format!("$.messages[{index}].weight");
            trained.push(match weight.map(Value::as_f64) {
                None => role == "assistant",
                Some(_) if role != "assistant" => {
                    self.findings.add(
                        path,
                        Problem::WeightOfOther { role: role.chars().take(64).collect() },
                    );
                    false
                }
                Some(Some(1.0)) => true,
                Some(Some(0.0)) => false,
                Some(_) => {
                    self.findings.add(path, Problem::Weight);
                    true
                }
            });
        }
        trained
    }

    fn share_gpt(&mut self) -> Option<Record> {
        let turns = self.list("conversations")?;
        let mut messages = Vec::with_capacity(turns.len() + 1);
        let before = match self.line.get("system") {
            None | Some(Value::Null) => 0,
            Some(Value::String(system)) => {
                messages.push(message("system", system));
                1
            }
            Some(_) => {
                self.wrong_type("$.system", "a string");
                0
            }
        };
        for (index, turn) in turns.iter().enumerate() {
            messages.extend(self.turn(index, turn));
        }
        if self.findings.has_errors() {
            return None;
        }
        self.check_alternation(turns);
        let trained = messages.iter().map(|message| message["role"] == "assistant").collect();
        let conversation = Conversation { messages, trained, ..Conversation::default() };
        self.conversation(conversation, |index| match index.checked_sub(before) {
            Some(turn) => format!("$.conversations[{turn}].value"),
            None => "$.system".to_owned(),
        })
    }

    fn turn(&mut self, index: usize, turn: &Value) -> Option<Value> {
        let path = format!("$.conversations[{index}]");
        let (Some(from), Some(value)) = (turn["from"].as_str(), turn["value"].as_str()) else {
            self.wrong_type(path, "an object with the strings `from` and `value`");
            return None;
        };
        match speaker(from) {
            Some(role) => Some(message(role, value)),
            None => {
                let from = from.chars().take(64).collect();
                self.findings.add(format!("{path}.from"), Problem::UnknownSpeaker { from });
                None
            }
        }
    }

    /// After an optional system turn, human and gpt take turns, human first.
    fn check_alternation(&mut self, turns: &[Value]) {
        let mut expected = ("user", "human");
        for (index, turn) in turns.iter().enumerate() {
            let from = turn["from"].as_str().unwrap_or("");
            let role = speaker(from).unwrap_or("");
            if role == "system" && index == 0 {
                continue;
            }
            if role != expected.0 {
                let problem =
                    Problem::NotAlternating { from: from.to_owned(), expected: expected.1 };
                return self.findings.add(format!("$.conversations[{index}].from"), problem);
            }
            expected = if role == "user" { ("assistant", "gpt") } else { ("user", "human") };
        }
    }

    /// What every conversation has to fulfil, once its messages are well formed.
    fn conversation(
        &mut self,
        conversation: Conversation,
        path: impl Fn(usize) -> String,
    ) -> Option<Record> {
        if self.findings.has_errors() {
            return None;
        }
        let role = |message: &Value| message["role"].as_str().unwrap_or("").to_owned();
        let messages = &conversation.messages;
        for (index, message) in messages.iter().enumerate() {
            let role = role(message);
            let needs_text =
                role == "user" || (role == "assistant" && message.get("tool_calls").is_none());
            if says_nothing(&message["content"]) && needs_text {
                self.findings.add(path(index), Problem::EmptyText);
            }
            if index > 0 && role == "system" {
                self.findings.add(path(index), Problem::SystemNotFirst);
            }
            if let Some((_, token)) = self.model.special_token_in(message) {
                self.findings.add(path(index), Problem::SpecialToken { token });
            }
        }
        let last = messages.last().map(role).unwrap_or_default();
        if !messages.iter().any(|message| message["role"] == "assistant") {
            self.findings.add("$", Problem::NoAssistant);
        } else if last != "assistant" {
            self.findings.add("$", Problem::LastNotAssistant { role: last });
        } else if self.train_on == TrainOn::Completion && !conversation.trained.contains(&true) {
            self.findings.add("$", Problem::AllWeightsZero);
        }
        Some(Record::Conversation(conversation))
    }

    fn prompt_completion(&mut self) -> Option<Record> {
        let prompt = self.text("prompt");
        let completion = self.filled_text("completion");
        Some(Record::Pair { prompt: prompt?, completion: completion? })
    }

    /// Taori et al. 2023, "Stanford Alpaca", `train.py`, `PROMPT_DICT`: no space after the colon.
    fn alpaca(&mut self) -> Option<Record> {
        let instruction = self.filled_text("instruction");
        let input = match self.line.get("input") {
            None | Some(Value::Null) => Some(String::new()),
            Some(_) => self.text("input"),
        };
        let completion = self.filled_text("output");
        for key in ["instruction", "input", "output"] {
            let value = self.line.get(key).unwrap_or(&Value::Null);
            if let Some((_, token)) = self.model.special_token_in(value) {
                self.findings.add(format!("$.{key}"), Problem::SpecialToken { token });
            }
        }
        let (instruction, input, completion) = (instruction?, input?, completion?);
        let prompt = alpaca_prompt(&instruction, &input);
        Some(Record::Pair { prompt, completion })
    }

    fn tokenized(&mut self) -> Option<Record> {
        let ids = self.numbers("input_ids");
        let labels = self.numbers("labels");
        let (ids, labels) = (ids?, labels?);
        let vocab_size = self.model.tokenizer().vocab_size();
        let known = |id: &Value| id.as_u64().filter(|&id| id < vocab_size as u64);
        if ids.is_empty() {
            self.findings.add("$.input_ids", Problem::EmptyList);
        }
        if ids.len() != labels.len() {
            let problem = Problem::LabelsLength { ids: ids.len(), labels: labels.len() };
            self.findings.add("$.labels", problem);
        }
        let mut record = (Vec::with_capacity(ids.len()), Vec::with_capacity(labels.len()));
        for (index, id) in ids.iter().enumerate() {
            match known(id) {
                Some(id) => record.0.push(id as u32),
                None => {
                    let problem = Problem::IdOutOfVocabulary { id: short(id), vocab_size };
                    self.findings.add(format!("$.input_ids[{index}]"), problem);
                    break;
                }
            }
        }
        for (index, label) in labels.iter().enumerate() {
            match (label.as_i64() == Some(i64::from(IGNORE_INDEX)), known(label)) {
                (true, _) => record.1.push(IGNORE_INDEX),
                (false, Some(id)) => record.1.push(id as i32),
                (false, None) => {
                    let path = format!("$.labels[{index}]");
                    self.findings.add(path, Problem::BadLabel { vocab_size });
                    break;
                }
            }
        }
        Some(Record::Tokens { ids: record.0, labels: record.1 })
    }

    fn numbers(&mut self, key: &'static str) -> Option<&'a [Value]> {
        match self.line.get(key) {
            Some(Value::Array(items)) => return Some(items),
            Some(_) => self.wrong_type(format!("$.{key}"), "a list of integers"),
            None => self.findings.add("$", Problem::MissingKey { key }),
        }
        None
    }

    fn list(&mut self, key: &'static str) -> Option<&'a [Value]> {
        match self.line.get(key) {
            Some(Value::Array(items)) if !items.is_empty() => return Some(items),
            Some(Value::Array(_)) => self.findings.add(format!("$.{key}"), Problem::EmptyList),
            Some(_) => self.wrong_type(format!("$.{key}"), "a list of objects"),
            None => self.findings.add("$", Problem::MissingKey { key }),
        }
        None
    }

    fn text(&mut self, key: &'static str) -> Option<String> {
        match self.line.get(key) {
            Some(Value::String(text)) => return Some(text.clone()),
            Some(_) => self.wrong_type(format!("$.{key}"), "a string"),
            None => self.findings.add("$", Problem::MissingKey { key }),
        }
        None
    }

    fn filled_text(&mut self, key: &'static str) -> Option<String> {
        let text = self.text(key)?;
        if text.is_empty() {
            self.findings.add(format!("$.{key}"), Problem::EmptyText);
        }
        Some(text)
    }

    fn wrong_type(&mut self, path: impl Into<String>, expected: &'static str) {
        self.findings.add(path, Problem::WrongType { expected });
    }
}

/// The prompt of Stanford Alpaca for an instruction, with or without an input.
pub fn alpaca_prompt(instruction: &str, input: &str) -> String {
    match input.is_empty() {
        true => format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
        ),
        false => format!(
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        ),
    }
}

/// Whether content has neither words nor pictures.
fn says_nothing(content: &Value) -> bool {
    let silent = |part: &Value| part["type"] == "text" && part["text"] == "";
    match content {
        Value::Array(parts) => parts.iter().all(silent),
        content => content.as_str().unwrap_or("").is_empty(),
    }
}

fn message(role: &str, content: &str) -> Value {
    serde_json::json!({ "role": role, "content": content })
}

fn speaker(from: &str) -> Option<&'static str> {
    match from {
        "system" => Some("system"),
        "human" | "user" => Some("user"),
        "gpt" | "assistant" | "chatgpt" | "model" => Some("assistant"),
        _ => None,
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(32).collect()
}
