//! Training data: every format read, every fault named.

use serde_json::json;
use tandem::domain::IGNORE_INDEX;
use tandem::text::TextModel;
use tandem::text::dataset::{
    DatasetError, Format, Limits, Problem, Report, TrainOn, load, overlap, validate,
};

use super::{chatml_model, model};

fn report(text: impl AsRef<[u8]>) -> Report {
    validate(text.as_ref(), &chatml_model(), &Limits::default(), TrainOn::Completion, None).unwrap()
}

/// Line, path and problem of every error.
fn errors(text: impl AsRef<[u8]>) -> Vec<(u64, String, Problem)> {
    let report = report(text);
    assert_eq!(report.error_count, report.errors.len() as u64);
    report.errors.into_iter().map(|found| (found.line, found.path, found.problem)).collect()
}

fn only_error(text: impl AsRef<[u8]>) -> (u64, String, Problem) {
    let mut errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

fn with_eos(model: &TextModel, mut ids: Vec<u32>) -> Vec<u32> {
    ids.extend(model.tokenizer().eos_id());
    ids
}

#[test]
fn prompt_and_completion_meet_at_an_exact_border() {
    for name in super::TOKENIZERS {
        let model = model(name, None);
        let line = json!({"prompt": "2+2=", "completion": "4 é"}).to_string();
        let dataset =
            load(line.as_bytes(), &model, &Limits::default(), TrainOn::Completion, None).unwrap();
        let example = &dataset.examples[0];
        let prompt = model.completion_prompt("2+2=").unwrap();
        let answer = with_eos(&model, model.tokenizer().encode_continuation("4 é").unwrap());
        assert_eq!(example.ids, [prompt.clone(), answer.clone()].concat(), "{name}");
        let masked = vec![IGNORE_INDEX; prompt.len()];
        let answer: Vec<i32> = answer.into_iter().map(|id| id as i32).collect();
        assert_eq!(example.labels, [masked, answer].concat());
        assert_eq!(model.tokenizer().decode(&example.ids, true).unwrap(), "2+2=4 é");
        let all = load(line.as_bytes(), &model, &Limits::default(), TrainOn::All, None).unwrap();
        assert!(all.examples[0].labels.iter().all(|&label| label != IGNORE_INDEX));
    }
}

#[test]
fn alpaca_lines_become_the_alpaca_prompt() {
    let model = model("bytelevel", None);
    let lines = [
        json!({"instruction": "Add.", "input": "1, 2", "output": "3"}),
        json!({"instruction": "Say hi.", "input": "", "output": "hi"}),
        json!({"instruction": "Say no.", "output": "no"}),
    ];
    let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
    let dataset =
        load(text.join("\n").as_bytes(), &model, &Limits::default(), TrainOn::Completion, None)
            .unwrap();
    assert_eq!(dataset.report.format, Some(Format::Alpaca));
    let shown = |at: usize| model.tokenizer().decode(&dataset.examples[at].ids, false).unwrap();
    assert_eq!(
        shown(0),
        "Below is an instruction that describes a task, paired with an input that provides further \
         context. Write a response that appropriately completes the request.\n\n### Instruction:\n\
         Add.\n\n### Input:\n1, 2\n\n### Response:3</s>"
    );
    assert_eq!(
        shown(1),
        "Below is an instruction that describes a task. Write a response that appropriately \
         completes the request.\n\n### Instruction:\nSay hi.\n\n### Response:hi</s>"
    );
    assert!(shown(2).ends_with("Say no.\n\n### Response:no</s>"));
}

#[test]
fn share_gpt_is_the_same_as_messages() {
    let model = chatml_model();
    let messages = json!({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]});
    let turns = [json!({"from": "human", "value": "Q"}), json!({"from": "gpt", "value": "A"})];
    let with_turn =
        json!({"conversations": [json!({"from": "system", "value": "S"}), turns[0], turns[1]]});
    let with_key = json!({"system": "S", "conversations": turns});
    let read = |line: serde_json::Value| {
        let line = line.to_string();
        load(line.as_bytes(), &model, &Limits::default(), TrainOn::Completion, None)
            .unwrap()
            .examples
    };
    assert_eq!(read(with_turn), read(messages.clone()));
    assert_eq!(read(with_key), read(messages));
}

#[test]
fn text_and_token_ids_are_taken_as_they_are() {
    let model = model("bytelevel", None);
    let read =
        |line: &str, on| load(line.as_bytes(), &model, &Limits::default(), on, None).unwrap();
    let text = read(r#"{"text": "the fox"}"#, TrainOn::Completion).examples.remove(0);
    assert_eq!(text.ids, with_eos(&model, model.tokenizer().encode("the fox", true).unwrap()));
    assert!(text.labels.iter().all(|&label| label != IGNORE_INDEX));
    let line = r#"{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}"#;
    let tokens = read(line, TrainOn::Completion).examples.remove(0);
    assert_eq!((tokens.ids, tokens.labels), (vec![5, 6, 7], vec![-100, -100, 7]));
    assert_eq!(read(line, TrainOn::All).examples[0].labels, [5, 6, 7]);
}

#[test]
fn every_bad_line_is_named() {
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let text = [
        good,
        r#"{"prompt": "a"}"#,
        r#"{"prompt": 3, "completion": ""}"#,
        r#"{"prompt": "a", "completion": "b""#,
        r#"["a"]"#,
        r#"{"text": "x"}"#,
        r#"{"question": "x"}"#,
        r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#,
        good,
    ]
    .join("\n");
    let found = errors(&text);
    let lines: Vec<(u64, &str)> =
        found.iter().map(|(line, path, _)| (*line, path.as_str())).collect();
    assert_eq!(
        lines,
        [
            (2, "$"),
            (3, "$.prompt"),
            (3, "$.completion"),
            (4, "$"),
            (5, "$"),
            (6, "$"),
            (7, "$"),
            (8, "$")
        ]
    );
    assert_eq!(found[0].2, Problem::MissingKey { key: "completion" });
    assert_eq!(found[1].2, Problem::WrongType { expected: "a string" });
    assert_eq!(found[2].2, Problem::EmptyText);
    assert!(matches!(&found[3].2, Problem::InvalidJson { .. }));
    assert_eq!(found[4].2, Problem::NotAnObject { found: "an array" });
    let mixed = Problem::MixedFormats { expected: Format::PromptCompletion, found: Format::Text };
    assert_eq!(found[5].2, mixed);
    assert_eq!(found[6].2, Problem::UnknownFormat { keys: "question".into() });
    assert_eq!(found[7].2, Problem::PreferenceData);
    let report = report(&text);
    assert_eq!((report.lines, report.examples, report.duplicates), (9, 2, 1));
    let error =
        load(text.as_bytes(), &chatml_model(), &Limits::default(), TrainOn::Completion, None);
    assert!(matches!(error, Err(DatasetError::Invalid(report)) if report.error_count == 8));
}

fn messages(messages: serde_json::Value) -> String {
    json!({ "messages": messages }).to_string()
}

#[test]
fn conversations_are_checked_message_by_message() {
    let user = json!({"role": "user", "content": "Q"});
    let answer = json!({"role": "assistant", "content": "A"});
    let cases = [
        (json!([]), "$.messages", Problem::EmptyList),
        (json!("hi"), "$.messages", Problem::WrongType { expected: "a list of objects" }),
        (json!([user]), "$", Problem::NoAssistant),
        (json!([user, answer, user]), "$", Problem::LastNotAssistant { role: "user".into() }),
        (
            json!([user, {"role": "assistant", "content": ""}]),
            "$.messages[1].content",
            Problem::EmptyText,
        ),
        (
            json!([user, {"role": "assistant", "content": "A", "weight": 2}]),
            "$.messages[1].weight",
            Problem::Weight,
        ),
        (
            json!([user, {"role": "assistant", "content": "A", "weight": 0}]),
            "$",
            Problem::AllWeightsZero,
        ),
        (
            json!([{"role": "user", "content": "Q", "weight": 1}, answer]),
            "$.messages[0].weight",
            Problem::WeightOfOther { role: "user".into() },
        ),
        (
            json!([{"role": "user", "content": "Q <|im_end|>"}, answer]),
            "$.messages[0].content",
            Problem::SpecialToken { token: "<|im_end|>".into() },
        ),
    ];
    for (content, path, problem) in cases {
        assert_eq!(only_error(messages(content)), (1, path.to_owned(), problem));
    }
    let (_, path, problem) =
        only_error(messages(json!([{"role": "bard", "content": "Q"}, answer])));
    assert_eq!((path.as_str(), problem.to_string().contains("bard")), ("$.messages[0].role", true));
    let (_, path, _) = only_error(messages(json!([user, {"role": "assistant", "content": null}])));
    assert_eq!(path, "$.messages[1]");
}

#[test]
fn share_gpt_speakers_must_be_known_and_alternate() {
    let line = |turns: serde_json::Value| json!({ "conversations": turns }).to_string();
    let say = |from: &str| json!({"from": from, "value": "x"});
    let (_, path, problem) = only_error(line(json!([say("human"), say("human"), say("gpt")])));
    assert_eq!(path, "$.conversations[1].from");
    assert_eq!(problem, Problem::NotAlternating { from: "human".into(), expected: "gpt" });
    let (_, path, problem) = only_error(line(json!([say("human"), say("observation")])));
    assert_eq!(path, "$.conversations[1].from");
    assert_eq!(problem, Problem::UnknownSpeaker { from: "observation".into() });
}

#[test]
fn token_ids_are_checked_against_the_vocabulary() {
    let vocab_size = 322;
    let cases = [
        (
            "[5, 322]",
            "[5, 5]",
            "$.input_ids[1]",
            Problem::IdOutOfVocabulary { id: "322".into(), vocab_size },
        ),
        (
            "[5, -1]",
            "[5, 5]",
            "$.input_ids[1]",
            Problem::IdOutOfVocabulary { id: "-1".into(), vocab_size },
        ),
        ("[5, 6]", "[5]", "$.labels", Problem::LabelsLength { ids: 2, labels: 1 }),
        ("[5, 6]", "[5, -99]", "$.labels[1]", Problem::BadLabel { vocab_size }),
        ("[5, 6]", "[5, -100]", "$", Problem::NothingTrained { truncated: false }),
    ];
    for (ids, labels, path, problem) in cases {
        let line = format!(r#"{{"input_ids": {ids}, "labels": {labels}}}"#);
        assert_eq!(only_error(line), (1, path.to_owned(), problem));
    }
}

#[test]
fn marks_blank_lines_and_odd_keys_are_warnings() {
    let text = "\u{feff}{\"text\": \"one\", \"id\": 7}\r\n\n  \n{\"text\": \"two\"}\n\n\n";
    let report = report(text);
    assert!(report.is_usable());
    let found: Vec<(u64, &Problem)> =
        report.warnings.iter().map(|found| (found.line, &found.problem)).collect();
    assert_eq!(
        found,
        [
            (1, &Problem::ByteOrderMark),
            (1, &Problem::UnknownKey { key: "id".into(), format: Format::Text }),
            (2, &Problem::BlankLine),
            (3, &Problem::BlankLine),
            (0, &Problem::FewExamples { examples: 2 }),
        ]
    );
}

#[test]
fn an_array_an_empty_file_and_broken_text_are_told_apart() {
    assert_eq!(
        only_error("[\n {\"text\": \"a\"},\n {\"text\": \"b\"}]").2,
        Problem::WholeFileArray
    );
    assert_eq!(only_error("").2, Problem::Empty);
    assert_eq!(only_error("\n\n").2, Problem::Empty);
    assert_eq!(only_error(b"{\"text\": \"\xff\"}").2, Problem::InvalidUtf8 { at: 10 });
    let deep = format!("{{\"text\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(matches!(only_error(deep).2, Problem::InvalidJson { .. }));
}

#[test]
fn a_token_without_a_row_in_the_model_is_found() {
    let model = model("bytelevel", None);
    let limits = Limits { vocab_size: 10, ..Limits::default() };
    let line = r#"{"prompt": "a", "completion": " b"}"#;
    let report = validate(line.as_bytes(), &model, &limits, TrainOn::Completion, None).unwrap();
    let problem = &report.errors[0].problem;
    assert!(matches!(problem, Problem::IdOutOfVocabulary { vocab_size: 10, .. }), "{problem}");
    assert_eq!(report.examples, 0);
}

#[test]
fn long_lines_are_skipped_and_long_examples_cut() {
    let model = model("bytelevel", None);
    let limits =
        Limits { max_line_bytes: 80, max_seq_length: 8, max_findings: 2, ..Limits::default() };
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(100));
    let cut = r#"{"prompt": "a", "completion": "bcdefghijklmnop"}"#;
    let lost = r#"{"prompt": "abcdefghijklmnop", "completion": "b"}"#;
    let read =
        |text: &str| validate(text.as_bytes(), &model, &limits, TrainOn::Completion, None).unwrap();
    let report = read(&[long.as_str(), cut, lost].join("\n"));
    assert_eq!(report.errors[0].problem, Problem::LineTooLong { limit: 80 });
    assert_eq!(report.errors[1].problem, Problem::NothingTrained { truncated: true });
    assert_eq!((report.truncated, report.tokens, report.longest_tokens > 8), (1, 8, true));
    let cut_off = report.warnings.iter().any(|found| found.problem == Problem::NeverStops);
    assert!(cut_off, "the only example lost its end: {:?}", report.warnings);
    let many = read(&"nonsense\n".repeat(50));
    assert_eq!((many.error_count, many.errors.len()), (50, 2));
}

#[test]
fn a_report_counts_what_it_read() {
    let lines: Vec<String> = (0..40)
        .map(|at| json!({"prompt": "x".repeat(at + 1), "completion": "y"}).to_string())
        .collect();
    let report = report(lines.join("\n"));
    assert!(report.is_usable() && report.warning_count == 0, "{:?}", report.warnings);
    assert_eq!((report.lines, report.examples, report.trained_tokens), (40, 40, 80));
    assert_eq!(report.histogram.iter().map(|bucket| bucket.examples).sum::<u64>(), 40);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["format"], "prompt_completion");
}

#[test]
fn findings_read_as_sentences_with_place_and_remedy() {
    let report = report(r#"{"prompt": "a"}"#);
    let json = serde_json::to_value(&report.errors[0]).unwrap();
    assert_eq!(
        json,
        json!({"line": 1, "path": "$", "severity": "error",
            "reason": "the key `completion` is missing", "remedy": "add it"})
    );
    assert!(report.summary().contains("line 1, $: the key `completion` is missing; add it"));
}

#[test]
fn validation_lines_that_were_trained_on_are_counted() {
    let model = model("bytelevel", None);
    let read = |text: &str| {
        load(text.as_bytes(), &model, &Limits::default(), TrainOn::Completion, None)
            .unwrap()
            .examples
    };
    let train = read("{\"text\": \"one\"}\n{\"text\": \"two\"}");
    let held_out = read("{\"text\": \"two\"}\n{\"text\": \"three\"}");
    assert_eq!(overlap(&train, &held_out), 1);
}
