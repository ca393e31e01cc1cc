//! From lines to examples: reads, checks, renders, tokenises, masks, cuts and counts.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead};
use std::ops::Range;

use serde_json::{Map, Value};

use super::format::{Format, is_preference};
use super::lines::{Line, Lines};
use super::pictures::{self, Seeing};
use super::records::{self, Findings, Record};
use super::report::{Finding, Piece, Problem, Report, Sample};
use super::{Limits, TrainOn};
use crate::domain::{Example, IGNORE_INDEX};
use crate::text::detokenizer::{Detokenizer, Start};
use crate::text::mask::{self, MaskError};
use crate::text::messages::PictureUrl;
use crate::text::model::TextModel;
use crate::text::template::TemplateError;
use crate::text::tokenizer::TokenizerError;

/// Examples shown in a report.
const SAMPLES: usize = 3;
/// Tokens shown of each.
const SAMPLE_TOKENS: usize = 512;
/// Examples remembered to find duplicates, 16 bytes each.
const REMEMBERED: usize = 1 << 20;
/// The byte order mark.
pub(super) const MARK: &str = "\u{feff}";
/// Fewer examples than this deserve a word.
const FEW_EXAMPLES: u64 = 10;

/// Reads `reader` to its end, hands every good example to `take`, and reports the rest.
pub(super) fn run(
    reader: impl BufRead,
    model: &TextModel,
    (limits, train_on, seeing): (&Limits, TrainOn, Option<Seeing<'_>>),
    mut take: impl FnMut(Example),
) -> io::Result<Report> {
    let mut lines = Lines::new(reader, limits.max_line_bytes);
    let mut builder = Builder::new(model, limits, train_on, seeing);
    loop {
        let start = lines.position();
        let Some(line) = lines.next()? else { return Ok(builder.finish()) };
        builder.report.lines += 1;
        match builder.line(line, start) {
            Outcome::Example(example) => take(example),
            Outcome::Nothing => {}
            Outcome::Stop => return Ok(builder.finish()),
        }
    }
}

struct Builder<'a> {
    model: &'a TextModel,
    limits: &'a Limits,
    train_on: TrainOn,
    seeing: Option<Seeing<'a>>,
    report: Report,
    /// Blank lines that are only worth a word if a line follows.
    blanks: u64,
    /// Whether a line with content was seen.
    begun: bool,
    seen: HashMap<u64, u64>,
    /// Examples whose last trained token ends an answer.
    closed: u64,
}

enum Outcome {
    Example(Example),
    Nothing,
    Stop,
}

impl<'a> Builder<'a> {
    fn new(
        model: &'a TextModel,
        limits: &'a Limits,
        train_on: TrainOn,
        seeing: Option<Seeing<'a>>,
    ) -> Self {
        Self {
            model,
            limits,
            train_on,
            seeing,
            report: Report::default(),
            blanks: 0,
            begun: false,
            seen: HashMap::new(),
            closed: 0,
        }
    }

    /// The line that begins at byte `start` of the file.
    fn line(&mut self, line: Line<'_>, start: u64) -> Outcome {
        let (bytes, place) = match line {
            Line::Bytes(bytes) => (self.without_mark(bytes), start..start + bytes.len() as u64),
            Line::TooLong => {
                self.begun = true;
                self.find("$", Problem::LineTooLong { limit: self.limits.max_line_bytes });
                return Outcome::Nothing;
            }
        };
        if bytes.trim_ascii().is_empty() {
            self.blanks += 1;
            return Outcome::Nothing;
        }
        self.report_blanks();
        let first = !std::mem::replace(&mut self.begun, true);
        if first && bytes.trim_ascii_start().starts_with(b"[") {
            self.find("$", Problem::WholeFileArray);
            return Outcome::Stop;
        }
        let mut findings = Findings::default();
        let example = self.parse(bytes, &mut findings).and_then(|(object, format)| {
            let record = records::read(format, &object, self.model, self.train_on, &mut findings)?;
            self.example(record, (&pictures::shown(&object), place), &mut findings)
        });
        for (path, problem) in findings.0 {
            self.find(path, problem);
        }
        example.map_or(Outcome::Nothing, Outcome::Example)
    }

    /// Skips a byte order mark at the very beginning.
    fn without_mark<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        match bytes.strip_prefix(MARK.as_bytes()) {
            Some(rest) if self.report.lines == 1 => {
                self.find("$", Problem::ByteOrderMark);
                rest
            }
            _ => bytes,
        }
    }

    fn parse(
        &mut self,
        bytes: &[u8],
        findings: &mut Findings,
    ) -> Option<(Map<String, Value>, Format)> {
        let object = match parse_object(bytes) {
            Ok(object) => object,
            Err(problem) => {
                findings.add("$", problem);
                return None;
            }
        };
        if is_preference(&object) {
            findings.add("$", Problem::PreferenceData);
            return None;
        }
        let Some(found) = Format::of(&object) else {
            let keys: Vec<&str> = object.keys().map(String::as_str).collect();
            let keys = keys.join(", ").chars().take(200).collect();
            findings.add("$", Problem::UnknownFormat { keys });
            return None;
        };
        let expected = *self.report.format.get_or_insert(found);
        if expected != found {
            findings.add("$", Problem::MixedFormats { expected, found });
            return None;
        }
        Some((object, found))
    }

    /// The example of a record that has `shown` pictures and stands at `place` in the file.
    fn example(
        &mut self,
        record: Record,
        (shown, place): (&[PictureUrl<'_>], Range<u64>),
        findings: &mut Findings,
    ) -> Option<Example> {
        let mut example = match to_example(self.model, record) {
            Ok(example) => example,
            Err(problem) => {
                findings.add("$", problem);
                return None;
            }
        };
        let vocab_size = self.limits.vocab_size;
        if let Some(id) = example.ids.iter().find(|&&id| id as usize >= vocab_size) {
            let id = id.to_string();
            findings.add("$", Problem::IdOutOfVocabulary { id, vocab_size });
            return None;
        }
        if self.train_on == TrainOn::All {
            example.labels = example.ids.iter().map(|&id| id as i32).collect();
        }
        let rooms = pictures::make_room(self.seeing, &mut example, shown.len());
        let rooms = rooms.map_err(|problem| findings.add("$.messages", problem)).ok()?;
        let tokens = example.ids.len();
        self.report.count_length(tokens);
        let most = tokens.min(self.limits.max_seq_length);
        // A picture is shown whole or, with all that follows, not at all.
        let halved = rooms.iter().find(|room| room.contains(&most) && room.start < most);
        let kept = halved.map_or(most, |room| room.start);
        example.ids.truncate(kept);
        example.labels.truncate(kept);
        let rooms = rooms.into_iter().filter(|room| room.end <= kept);
        example.pictures = pictures::take(self.seeing, shown, place, rooms, findings)?;
        if example.trained_tokens() == 0 {
            findings.add("$", Problem::NothingTrained { truncated: kept < tokens });
            return None;
        }
        if kept < tokens {
            self.report.truncated += 1;
            findings.add("$", Problem::Truncated { tokens, kept });
        }
        if let Some(first) = self.first_with(&example) {
            self.report.duplicates += 1;
            findings.add("$", Problem::Duplicate { first });
        }
        self.count(&example);
        Some(example)
    }

    fn count(&mut self, example: &Example) {
        self.report.examples += 1;
        self.report.tokens += example.ids.len() as u64;
        self.report.trained_tokens += example.trained_tokens() as u64;
        // A template may write a line break after the end of a turn; what is learned counts.
        let last = example.labels.iter().rev().find(|&&label| label != IGNORE_INDEX);
        let closes = |&label: &i32| self.model.stop_ids().contains(&(label as u32));
        self.closed += u64::from(last.is_some_and(closes));
        if self.report.samples.len() < SAMPLES {
            let pieces = pieces(self.model, example);
            self.report.samples.push(Sample { line: self.report.lines, pieces });
        }
    }

    /// The line of an earlier example with the same tokens and pictures.
    fn first_with(&mut self, example: &Example) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        example.ids.hash(&mut hasher);
        example.pictures.iter().for_each(|placed| placed.picture.digest().hash(&mut hasher));
        let key = hasher.finish();
        let first = self.seen.get(&key).copied();
        if first.is_none() && self.seen.len() < REMEMBERED {
            self.seen.insert(key, self.report.lines);
        }
        first
    }

    fn report_blanks(&mut self) {
        let blanks = std::mem::take(&mut self.blanks);
        for line in self.report.lines - blanks..self.report.lines {
            self.find_at(line, "$", Problem::BlankLine);
        }
    }

    fn find(&mut self, path: impl Into<String>, problem: Problem) {
        self.find_at(self.report.lines, path, problem);
    }

    fn find_at(&mut self, line: u64, path: impl Into<String>, problem: Problem) {
        let finding = Finding { line, path: path.into(), problem };
        self.report.add(finding, self.limits.max_findings);
    }

    fn finish(mut self) -> Report {
        let examples = self.report.examples;
        let tokens = self.report.tokens.max(1) as f64;
        self.report.trained_share = self.report.trained_tokens as f64 / tokens;
        if examples == 0 && self.report.error_count == 0 {
            self.find_at(0, "$", Problem::Empty);
        }
        if examples > 0 && self.closed == 0 && !self.model.stop_ids().is_empty() {
            self.find_at(0, "$", Problem::NeverStops);
        }
        if (1..FEW_EXAMPLES).contains(&examples) {
            self.find_at(0, "$", Problem::FewExamples { examples });
        }
        self.report
    }
}

pub(super) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Problem::InvalidUtf8 { at: error.valid_up_to() })?;
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let sentence = error.to_string();
        let reason = sentence.split(" at line ").next().unwrap_or(&sentence).to_owned();
        Problem::InvalidJson { reason, column: error.column() }
    })?;
    match value {
        Value::Object(object) => Ok(object),
        Value::Array(_) => Err(Problem::NotAnObject { found: "an array" }),
        Value::String(_) => Err(Problem::NotAnObject { found: "a string" }),
        Value::Number(_) => Err(Problem::NotAnObject { found: "a number" }),
        Value::Bool(_) | Value::Null => Err(Problem::NotAnObject { found: "a single value" }),
    }
}

/// Ids and labels of a record, before any cut.
fn to_example(model: &TextModel, record: Record) -> Result<Example, Problem> {
    match record {
        Record::Conversation(conversation) => {
            let template = model.template().ok_or(Problem::NoTemplate)?;
            let rendered = mask::render(model, template, &conversation).map_err(mask_problem)?;
            let last_trained = conversation.trained.last() == Some(&true);
            mask::example(model, &rendered, last_trained).map_err(mask_problem)
        }
        Record::Pair { prompt, completion } => {
            pair(model, &prompt, &completion).map_err(tokenizer_problem)
        }
        Record::Text(text) => {
            let mut ids = model.tokenizer().encode(&text, true).map_err(tokenizer_problem)?;
            ids.extend(model.tokenizer().eos_id());
            let labels = ids.iter().map(|&id| id as i32).collect();
            Ok(Example::new(ids, labels))
        }
        Record::Tokens { ids, labels } => Ok(Example::new(ids, labels)),
    }
}

/// Prompt and completion are tokenised apart, so that the border between them is exact and the
/// prompt has the very ids it has when served; the completion gets no space put before it.
fn pair(model: &TextModel, prompt: &str, completion: &str) -> Result<Example, TokenizerError> {
    let tokenizer = model.tokenizer();
    let mut ids = tokenizer.encode(prompt, true)?;
    let mut labels = vec![IGNORE_INDEX; ids.len()];
    let mut answer = tokenizer.encode_continuation(completion)?;
    answer.extend(tokenizer.eos_id());
    labels.extend(answer.iter().map(|&id| id as i32));
    ids.extend(answer);
    Ok(Example::new(ids, labels))
}

fn mask_problem(error: MaskError) -> Problem {
    match error {
        MaskError::Template(TemplateError::Raised { message }) => {
            Problem::Template { reason: format!("the chat template refuses it: {message}") }
        }
        MaskError::Tokenizer(error) => tokenizer_problem(error),
        other => Problem::Template { reason: other.to_string() },
    }
}

fn tokenizer_problem(error: TokenizerError) -> Problem {
    Problem::Tokenizer { reason: error.to_string() }
}

/// An example as text, cut where loss begins and ends; of a picture's tokens only the first is shown.
fn pieces(model: &TextModel, example: &Example) -> Vec<Piece> {
    let mut detokenizer = Detokenizer::new(model.tokenizer().clone(), Start::Text, false);
    let mut pieces: Vec<Piece> = Vec::new();
    let pictured =
        |at: usize| example.pictures.iter().any(|p| p.tokens.contains(&at) && p.tokens.start < at);
    let tokens = example.ids.iter().zip(&example.labels).enumerate();
    let tokens = tokens.filter(|(at, _)| !pictured(*at)).map(|(_, token)| token);
    for (&id, &label) in tokens.take(SAMPLE_TOKENS) {
        let trained = label != IGNORE_INDEX;
        let text = detokenizer.push(id);
        match pieces.last_mut() {
            Some(piece) if piece.trained == trained => piece.text.push_str(&text),
            _ => pieces.push(Piece { text, trained }),
        }
    }
    if let Some(piece) = pieces.last_mut() {
        piece.text.push_str(&detokenizer.finish());
    }
    pieces
}
