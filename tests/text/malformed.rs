//! What comes from outside may be anything: it is refused, and nothing panics.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tandem::text::dataset::{Limits, TrainOn, validate};
use tandem::text::special::SpecialTokens;
use tandem::text::{TextFiles, TextModel, Tokenizer};

use super::{chatml_model, golden};

/// Valid lines, to be damaged.
const LINES: [&str; 6] = [
    r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "é"}]}, {"role": "assistant", "content": "A", "weight": 1}], "tools": [{"type": "function"}]}"#,
    r#"{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "content": ""}, {"role": "assistant", "content": "🙂"}]}"#,
    r#"{"prompt": "a", "completion": " b"}"#,
    r#"{"instruction": "a", "input": "b", "output": "c"}"#,
    r#"{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"}"#,
    r#"{"input_ids": [1, 2, 300], "labels": [-100, 2, 300]}"#,
];

#[test]
fn damaged_training_data_is_reported_and_never_panics() {
    let model = chatml_model();
    let mut random = StdRng::seed_from_u64(3);
    let scraps: [&[u8]; 12] =
        [b"null", b"[", b"]", b"{", b"}", b"\"", b"-1", b"1e999", b"\xff", b"\n", b",", b"\\ud800"];
    for round in 0..4000 {
        let mut line = LINES[round % LINES.len()].as_bytes().to_vec();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..=line.len());
            let end = (at + random.random_range(0..6)).min(line.len());
            let scrap = scraps[random.random_range(0..scraps.len())];
            line.splice(at..end, scrap.iter().copied());
        }
        let limits = Limits { max_seq_length: 64, ..Limits::default() };
        let report = validate(&line[..], &model, &limits, TrainOn::Completion, None).unwrap();
        assert!(report.examples > 0 || report.error_count > 0, "{}", line.escape_ascii());
    }
}

#[test]
fn damaged_tokenizers_are_refused_and_never_panic() {
    let json = std::fs::read(golden("tokenizers/metaspace/tokenizer.json")).unwrap();
    for cut in (0..json.len()).step_by(97) {
        assert!(Tokenizer::from_bytes(&json[..cut], SpecialTokens::default()).is_err());
    }
    let special = SpecialTokens { eos: Some("<nowhere>".into()), ..SpecialTokens::default() };
    let error = Tokenizer::from_bytes(&json, special).unwrap_err().to_string();
    assert!(error.contains("<nowhere>"), "{error}");
}

#[test]
fn a_tokenizer_that_multiplies_texts_is_refused() {
    let json = std::fs::read(golden("tokenizers/bytelevel/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let tenfold = serde_json::json!({
        "type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa",
    });
    let mut load = |times: usize| {
        json["normalizer"] =
            serde_json::json!({"type": "Sequence", "normalizers": vec![&tenfold; times]});
        Tokenizer::from_bytes(json.to_string().as_bytes(), SpecialTokens::default())
    };
    assert!(load(1).is_ok());
    let Err(error) = load(9) else { panic!("a letter would become a gigabyte") };
    let error = error.to_string();
    assert!(error.contains("normalizer") && error.contains("1000000000"), "{error}");
}

#[test]
fn a_missing_folder_or_template_is_named() {
    let error = TextModel::from_folder(&golden("nowhere"), None).unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("tokenizer.json"), "{error}");
    let folder = golden("tokenizers/bytelevel");
    let error = TextModel::from_folder(&folder, Some("no-such-preset")).unwrap_err().to_string();
    assert!(error.contains("no-such-preset"), "{error}");
}

#[test]
fn a_model_without_a_tokenizer_writes_and_reads_ids_only() {
    let text = TextModel::from_folder(&golden("models/gpt2/model"), None).expect("a bare model");
    let tokenizer = text.tokenizer();
    assert!(tokenizer.is_bare() && tokenizer.vocab_size() == 256);
    assert_eq!(tokenizer.eos_ids(), [2]);
    let written = tokenizer.decode(&[7, 255], false).expect("ids are written");
    assert_eq!(written, "token_id:7 token_id:255");
    assert_eq!(tokenizer.encode(&written, true).expect("and read"), [7, 255]);
    for unread in ["a word", "token_id:256"] {
        let error = tokenizer.encode(unread, true).unwrap_err().to_string();
        assert!(error.contains("no tokenizer") && error.contains("token ids"), "{error}");
    }
}

#[test]
fn templates_are_found_in_every_place_they_are_kept() {
    let tokenizer = std::fs::read(golden("tokenizers/bytelevel/tokenizer.json")).unwrap();
    let load = |config: &str| {
        let files = TextFiles {
            tokenizer: &tokenizer,
            tokenizer_config: Some(config.as_bytes()),
            ..TextFiles::default()
        };
        TextModel::from_bytes(&files, None)
    };
    let render = |model: TextModel| model.chat_text(&[], None, &serde_json::Map::new());
    assert_eq!(render(load(r#"{"chat_template": "one"}"#).unwrap()).unwrap(), "one");
    let named = r#"{"chat_template": [{"name": "rag", "template": "two"}, {"name": "default", "template": "three"}]}"#;
    assert_eq!(render(load(named).unwrap()).unwrap(), "three");
    assert!(load(r#"{"chat_template": [{"name": "rag", "template": "two"}]}"#).is_err());
    assert!(render(load("{}").unwrap()).unwrap_err().to_string().contains("no chat template"));
}
