//! What was found in a file of training data.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::format::Format;
use crate::text::messages::MessageProblem;

/// Whether a finding keeps the file from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Error,
    Warning,
}

/// What is wrong with a line; its text is the reason.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    #[error("the file holds no example")]
    Empty,
    #[error("the file begins with a byte order mark; it was skipped")]
    ByteOrderMark,
    #[error("the line is blank; it was skipped")]
    BlankLine,
    #[error("the line has more than {limit} bytes")]
    LineTooLong { limit: usize },
    #[error("the line is not valid UTF-8 from byte {at} on")]
    InvalidUtf8 { at: usize },
    #[error("the file is one JSON array, not JSONL")]
    WholeFileArray,
    #[error("the line is not valid JSON: {reason} (column {column})")]
    InvalidJson { reason: String, column: usize },
    #[error("the line is {found}, not an object")]
    NotAnObject { found: &'static str },
    #[error("no known format has these keys: {keys}")]
    UnknownFormat { keys: String },
    #[error("the line holds preferences, which supervised training does not read")]
    PreferenceData,
    #[error("the line is in the format {found}, but the file began in {expected}")]
    MixedFormats { expected: Format, found: Format },
    #[error("the key `{key}` is missing")]
    MissingKey { key: &'static str },
    #[error("the key `{key}` is not part of the format {format}; it is not used")]
    UnknownKey { key: String, format: Format },
    #[error("it must be {expected}")]
    WrongType { expected: &'static str },
    #[error("it is empty")]
    EmptyText,
    #[error("the list is empty")]
    EmptyList,
    #[error("{0}")]
    Message(MessageProblem),
    #[error("the system message is not the first")]
    SystemNotFirst,
    #[error("there is no assistant message")]
    NoAssistant,
    #[error("the last message is from `{role}`, not from the assistant")]
    LastNotAssistant { role: String },
    #[error("the weight must be 0 or 1")]
    Weight,
    #[error("`weight` is for assistant messages; this one is from `{role}`")]
    WeightOfOther { role: String },
    #[error("every assistant message has weight 0")]
    AllWeightsZero,
    #[error("the speaker `{from}` is unknown")]
    UnknownSpeaker { from: String },
    #[error("the speakers do not alternate: `{from}` speaks where `{expected}` should")]
    NotAlternating { from: String, expected: &'static str },
    #[error("the key `functions` is deprecated and not supported")]
    Functions,
    #[error("it contains the special token `{token}`, which only the template may write")]
    SpecialToken { token: String },
    #[error("the token id {id} is outside the vocabulary of {vocab_size}")]
    IdOutOfVocabulary { id: String, vocab_size: usize },
    #[error("there are {labels} labels for {ids} ids")]
    LabelsLength { ids: usize, labels: usize },
    #[error("the label is neither -100 nor a token id below {vocab_size}")]
    BadLabel { vocab_size: usize },
    #[error("the model has no chat template")]
    NoTemplate,
    #[error("{reason}")]
    Template { reason: String },
    #[error("it could not be tokenised: {reason}")]
    Tokenizer { reason: String },
    #[error("{reason}")]
    Picture { reason: String },
    #[error("{pictures} pictures are shown, and the chat template leaves {places} places for them")]
    PicturePlaces { pictures: usize, places: usize },
    #[error("the example has {tokens} tokens; {kept} are kept and the end is lost")]
    Truncated { tokens: usize, kept: usize },
    #[error("no token of the example bears loss")]
    NothingTrained { truncated: bool },
    #[error("the example is the same as line {first}")]
    Duplicate { first: u64 },
    #[error("no example ends with a token that ends an answer")]
    NeverStops,
    #[error("there are only {examples} examples")]
    FewExamples { examples: u64 },
}

impl Problem {
    /// Whether training can go on in spite of it.
    pub fn severity(&self) -> Severity {
        match self {
            Self::ByteOrderMark
            | Self::BlankLine
            | Self::UnknownKey { .. }
            | Self::SystemNotFirst
            | Self::Truncated { .. }
            | Self::Duplicate { .. }
            | Self::NeverStops
            | Self::FewExamples { .. } => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Empty => "write one JSON object per line",
            Self::ByteOrderMark => "save the file as UTF-8 without a byte order mark",
            Self::BlankLine => "remove the line",
            Self::LineTooLong { .. } => "split the example into shorter ones",
            Self::InvalidUtf8 { .. } => "save the file as UTF-8",
            Self::WholeFileArray => {
                "write each element of the array on a line of its own, without commas between them"
            }
            Self::InvalidJson { .. } => "write one complete JSON object on the line",
            Self::NotAnObject { .. } => {
                "write an object such as {\"prompt\": \"…\", \"completion\": \"…\"}"
            }
            Self::UnknownFormat { .. } => {
                "use messages, prompt and completion, instruction and output, conversations, text, or input_ids and labels"
            }
            Self::PreferenceData => {
                "use data with completions; preference pairs belong to other methods"
            }
            Self::MixedFormats { .. } => "put each format into a file of its own",
            Self::MissingKey { .. } => "add it",
            Self::UnknownKey { .. } => "remove it, or check its spelling",
            Self::WrongType { .. } => "change the value",
            Self::EmptyText | Self::EmptyList => "fill it in, or remove the line",
            Self::Message(_) => "correct the message",
            Self::SystemNotFirst => "move the system message to the front",
            Self::NoAssistant => "add the answer that the model shall learn",
            Self::LastNotAssistant { .. } => "end the conversation with an assistant message",
            Self::Weight => "write 0 for no loss, 1 for loss, or leave it out",
            Self::WeightOfOther { .. } => "remove it",
            Self::AllWeightsZero => "give at least one assistant message weight 1",
            Self::UnknownSpeaker { .. } => {
                "use system, human and gpt; for tools use the messages format"
            }
            Self::NotAlternating { .. } => "let human and gpt take turns, human first",
            Self::Functions => "use `tools`",
            Self::SpecialToken { .. } => {
                "take it out, or write the whole text yourself in the format prompt and completion"
            }
            Self::IdOutOfVocabulary { .. } | Self::BadLabel { .. } => {
                "tokenise with this model's tokenizer"
            }
            Self::LabelsLength { .. } => "give each id one label; -100 bears no loss",
            Self::NoTemplate => {
                "load the model with `template=` and a preset, or use prompt and completion"
            }
            Self::Template { .. } => "change the conversation, or choose another chat template",
            Self::Tokenizer { .. } => "shorten or remove the text",
            Self::Picture { .. } => "replace the picture, or remove the line",
            Self::PicturePlaces { .. } => {
                "show pictures in user messages alone, or choose another chat template"
            }
            Self::Truncated { .. } => "raise max_seq_length, or shorten the example",
            Self::NothingTrained { truncated: true } => {
                "raise max_seq_length, or shorten the prompt"
            }
            Self::NothingTrained { truncated: false } => {
                "add the answer that the model shall learn"
            }
            Self::Duplicate { .. } => "remove it, unless it shall count twice",
            Self::NeverStops => {
                "raise max_seq_length so that the ends of the answers are kept, or end each answer \
                 with the token that ends a turn; the model would not learn to stop"
            }
            Self::FewExamples { .. } => {
                "add examples; a few dozen are the least that teach something lasting"
            }
        }
    }
}

/// A problem and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Counted from 1; 0 concerns the whole file.
    pub line: u64,
    /// Where in the line: `$.messages[2].role`.
    pub path: String,
    pub problem: Problem,
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut finding = serializer.serialize_struct("Finding", 5)?;
        finding.serialize_field("line", &self.line)?;
        finding.serialize_field("path", &self.path)?;
        finding.serialize_field("severity", &self.problem.severity())?;
        finding.serialize_field("reason", &self.problem.to_string())?;
        finding.serialize_field("remedy", self.problem.remedy())?;
        finding.end()
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}; {}", self.problem, self.problem.remedy()),
            line => {
                write!(f, "line {line}, {}: {}; {}", self.path, self.problem, self.problem.remedy())
            }
        }
    }
}

/// Examples whose length in tokens is at most `up_to` and above the bucket before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bucket {
    pub up_to: usize,
    pub examples: u64,
}

/// A stretch of an example as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    pub text: String,
    /// Whether it bears loss.
    pub trained: bool,
}

/// One example, shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    pub line: u64,
    pub pieces: Vec<Piece>,
}

/// Everything found in one file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// `None` if no line told.
    pub format: Option<Format>,
    /// Lines read, blank ones included.
    pub lines: u64,
    /// Lines that became examples.
    pub examples: u64,
    /// Tokens of all examples, after cutting.
    pub tokens: u64,
    /// Those that bear loss.
    pub trained_tokens: u64,
    /// `trained_tokens / tokens`; 0 for an empty file.
    pub trained_share: f64,
    /// The longest example before cutting.
    pub longest_tokens: usize,
    /// Lengths before cutting, in powers of two.
    pub histogram: Vec<Bucket>,
    pub truncated: u64,
    pub duplicates: u64,
    /// All errors counted; the first of them listed.
    pub error_count: u64,
    pub errors: Vec<Finding>,
    pub warning_count: u64,
    pub warnings: Vec<Finding>,
    /// The first examples, with what bears loss.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Whether a job may train on the file.
    pub fn is_usable(&self) -> bool {
        self.error_count == 0 && self.examples > 0
    }

    /// One sentence: what is wrong first, and how much more there is.
    pub fn summary(&self) -> String {
        match (self.errors.first(), self.error_count) {
            (Some(first), 1) => format!("the training data has an error: {first}"),
            (Some(first), count) => {
                format!("the training data has {count} errors, the first of them: {first}")
            }
            (None, _) => format!("the training data is sound: {} examples", self.examples),
        }
    }

    pub(super) fn add(&mut self, finding: Finding, keep: usize) {
        let (count, list) = match finding.problem.severity() {
            Severity::Error => (&mut self.error_count, &mut self.errors),
            Severity::Warning => (&mut self.warning_count, &mut self.warnings),
        };
        *count += 1;
        if list.len() < keep {
            list.push(finding);
        }
    }

    pub(super) fn count_length(&mut self, tokens: usize) {
        self.longest_tokens = self.longest_tokens.max(tokens);
        let up_to = tokens.next_power_of_two().max(16);
        let at = self.histogram.partition_point(|bucket| bucket.up_to < up_to);
        match self.histogram.get_mut(at) {
            Some(bucket) if bucket.up_to == up_to => bucket.examples += 1,
            _ => self.histogram.insert(at, Bucket { up_to, examples: 1 }),
        }
    }
}
