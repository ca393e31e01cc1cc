//! Tokenising, detokenising and stop strings.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tandem::gguf::{Metadata, Writer};
use tandem::text::special::SpecialTokens;
use tandem::text::stop::StopMatcher;
use tandem::text::{Detokenizer, Rendering, Start, TextModel, TextSource, Tokenizer, gguf};

use super::{TOKENIZERS, golden, golden_json};

fn tokenizer(name: &str) -> Arc<Tokenizer> {
    let folder = golden(&format!("tokenizers/{name}"));
    Arc::new(Tokenizer::from_folder(&folder).expect("the golden tokenizer loads"))
}

fn ids(row: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(row["ids"].clone()).expect("ids")
}

#[test]
fn golden_texts_become_their_ids_and_back() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let case = golden_json(&format!("tokenizers/{name}/case.json"));
        for row in case["rows"].as_array().expect("rows") {
            let text = row["text"].as_str().expect("a text");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(row), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids(row), false).unwrap(), row["decoded"], "{text:?}");
            let skipped = tokenizer.decode(&ids(row), true).unwrap();
            assert_eq!(skipped, row["decoded_skip_special"], "{text:?}");
        }
    }
}

/// From the lists of ggml alone, as other converters write them.
#[test]
fn a_tokenizer_survives_gguf() {
    let folder = tempfile::tempdir().unwrap();
    for name in TOKENIZERS {
        let source = TextSource::from_folder(&golden(&format!("tokenizers/{name}"))).unwrap();
        let text = TextModel::new(source.clone(), None, &Rendering::Here).unwrap();
        let metadata = gguf::metadata(&text, &source, text.tokenizer().vocab_size()).unwrap();
        let values = metadata.into_iter().filter(|(key, _)| key != "tokenizer.huggingface.json");
        let path = folder.path().join(format!("{name}.gguf"));
        let metadata = Metadata { file: name.to_owned(), values: values.collect() };
        Writer::create(&path, &metadata, &[]).unwrap().finish().unwrap();
        let read = TextModel::from_gguf(&path, None).unwrap();
        let (before, after) = (text.tokenizer(), read.tokenizer());
        assert_eq!((before.bos_id(), before.eos_ids()), (after.bos_id(), after.eos_ids()));
        let case = golden_json(&format!("tokenizers/{name}/case.json"));
        for row in case["rows"].as_array().expect("rows") {
            let text = row["text"].as_str().expect("a text");
            assert_eq!(after.encode(text, false).unwrap(), ids(row), "{name}: {text:?}");
            assert_eq!(after.decode(&ids(row), false).unwrap(), row["decoded"], "{text:?}");
        }
    }
}

#[test]
fn every_golden_prefix_streams_to_its_text() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let case = golden_json(&format!("tokenizers/{name}/case.json"));
        let text = case["prefix_text"].as_str().expect("a text");
        let ids = tokenizer.encode(text, false).unwrap();
        let prefixes = case["prefix_decodes"].as_array().expect("prefixes");
        let offset = ids.len() - prefixes.len(); // the metaspace case leaves out empty beginnings
        for (at, expected) in prefixes.iter().enumerate() {
            let prefix = &ids[..at + 1 + offset];
            assert_eq!(stream(&tokenizer, prefix, Start::Text), *expected, "{name}, prefix {at}");
        }
    }
}

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32], start: Start) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), start, false);
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn streamed_text_is_the_text_decoded_at_once_whatever_the_ids() {
    for name in TOKENIZERS {
        assert_streams_as_it_decodes(&tokenizer(name), name);
    }
}

#[test]
fn text_of_whole_words_streams_as_it_is_decoded_at_once() {
    let vocabulary = serde_json::json!({
        "[UNK]": 0, "a": 1, "##b": 2, ".": 3, "do": 4, "n't": 5, "c</w>": 6, "</w>": 7, "_d__": 8,
    });
    let expression =
        serde_json::json!({"type": "Replace", "pattern": {"Regex": "_+"}, "content": " "});
    let ends = serde_json::json!({"type": "BPEDecoder", "suffix": "</w>"});
    let fuse = serde_json::json!({"type": "Fuse"});
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": false});
    let strip = serde_json::json!({"type": "Strip", "content": "a", "start": 0, "stop": 1});
    let sequence =
        |steps: &[&serde_json::Value]| serde_json::json!({"type": "Sequence", "decoders": steps});
    let decoders = [
        serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        serde_json::json!({"type": "CTC", "pad_token": "do", "word_delimiter_token": "_d__",
            "cleanup": true}),
        sequence(&[&ends, &expression, &fuse]),
        sequence(&[&fuse, &expression, &strip]),
        sequence(&[&bytes, &strip]),
        expression,
        ends,
    ];
    for decoder in decoders {
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "decoder": decoder, "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary,
                "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        });
        let json = json.to_string();
        let tokenizer = Tokenizer::from_bytes(json.as_bytes(), SpecialTokens::default()).unwrap();
        assert_eq!(tokenizer.encode("ab do.", false).unwrap(), [1, 2, 4, 3]);
        assert_streams_as_it_decodes(&Arc::new(tokenizer), &decoder.to_string());
    }
}

fn assert_streams_as_it_decodes(tokenizer: &Arc<Tokenizer>, name: &str) {
    let mut random = StdRng::seed_from_u64(11);
    for _ in 0..2000 {
        let length = random.random_range(0..24);
        let top = tokenizer.vocab_size() as u32 + 3; // ids outside decode to nothing
        let ids: Vec<u32> = (0..length).map(|_| random.random_range(0..top)).collect();
        let whole = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(stream(tokenizer, &ids, Start::Text), whole, "{name}: {ids:?}");
    }
}

#[test]
fn deltas_are_whole_characters_and_special_tokens_stay_out() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let mut ids = tokenizer.encode("été 🙂 東京", false).unwrap();
        ids.insert(2, tokenizer.eos_id().expect("an end"));
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), Start::Text, true);
        let deltas: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
        assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')), "{deltas:?}");
        assert_eq!(deltas.concat() + &detokenizer.finish(), "été 🙂 東京");
    }
}

#[test]
fn an_answer_keeps_the_space_between_prompt_and_answer() {
    let tokenizer = tokenizer("metaspace");
    let answer = tokenizer.encode("the fox", false).unwrap();
    assert_eq!(stream(&tokenizer, &answer, Start::Text), "the fox");
    assert_eq!(stream(&tokenizer, &answer, Start::Continuation), " the fox");
}

#[test]
fn a_continuation_is_tokenised_without_a_space_before_it() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        for (prompt, answer) in [("the quick", " brown fox"), ("2+2=", "4"), ("a", "é🙂")] {
            let mut ids = tokenizer.encode(prompt, true).unwrap();
            ids.extend(tokenizer.encode_continuation(answer).unwrap());
            assert_eq!(
                tokenizer.decode(&ids, true).unwrap(),
                format!("{prompt}{answer}"),
                "{name}"
            );
        }
    }
}

#[test]
fn every_way_of_putting_a_space_first_is_undone_for_continuations() {
    let mut json = golden_json("tokenizers/metaspace/tokenizer.json");
    for scheme in ["first", "always", "never"] {
        json["normalizer"] = serde_json::Value::Null;
        json["pre_tokenizer"] = serde_json::json!({"type": "Metaspace", "replacement": "▁",
            "prepend_scheme": scheme, "split": false});
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), Default::default());
        let tokenizer = Arc::new(tokenizer.expect("it loads"));
        let ids = tokenizer.encode_continuation("the fox").unwrap();
        assert_eq!(stream(&tokenizer, &ids, Start::Continuation), "the fox", "{scheme}");
        let spaced = tokenizer.encode("the fox", false).unwrap();
        let expected = if scheme == "never" { "the fox" } else { " the fox" };
        assert_eq!(stream(&tokenizer, &spaced, Start::Continuation), expected, "{scheme}");
    }
}

#[test]
fn the_bytes_of_single_tokens_join_to_the_text() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let text = "déjà vu in 東京 🙂";
        let ids = tokenizer.encode(text, false).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
        assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), text, "{name}");
    }
}

#[test]
fn special_tokens_come_from_the_configuration() {
    let tokenizer = tokenizer("bytelevel");
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!((tokenizer.pad_id(), tokenizer.eos_ids()), (Some(0), &[2][..]));
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), ("<s>", "</s>"));
    assert_eq!(tokenizer.vocab_size(), 320);
    assert_eq!(tokenizer.fingerprint().len(), 64);
    assert!(tokenizer.check_ids(&[319]).is_ok() && tokenizer.check_ids(&[320]).is_err());
}

#[test]
fn a_padding_token_that_the_vocabulary_lacks_gives_way_to_the_id() {
    let json = std::fs::read(golden("tokenizers/bytelevel/tokenizer.json")).unwrap();
    for (id, expected) in [(Some(3), Some(3)), (Some(320), None), (None, None)] {
        let pad = Some("[PAD]".to_owned());
        let special = SpecialTokens { pad, pad_id: id, ..SpecialTokens::default() };
        assert_eq!(Tokenizer::from_bytes(&json, special).unwrap().pad_id(), expected);
    }
    let eos = Some("[END]".to_owned());
    let refused = Tokenizer::from_bytes(&json, SpecialTokens { eos, ..SpecialTokens::default() });
    assert!(refused.unwrap_err().to_string().contains("the end-of-sequence token `[END]`"));
}

/// The text before the stop string that is completed first, of two at once the longer.
fn cut_by_hand(text: &str, stops: &[String]) -> String {
    let ends = (1..=text.len()).filter(|&end| text.is_char_boundary(end));
    for end in ends {
        let longest =
            stops.iter().filter(|stop| text[..end].ends_with(*stop)).map(String::len).max();
        if let Some(length) = longest {
            return text[..end - length].to_owned();
        }
    }
    text.to_owned()
}

#[test]
fn stop_strings_cut_the_same_however_the_text_is_split() {
    let mut random = StdRng::seed_from_u64(5);
    let alphabet: Vec<char> = "aabbé🙂".chars().collect();
    let draw = |random: &mut StdRng, length: usize| -> String {
        (0..length).map(|_| alphabet[random.random_range(0..alphabet.len())]).collect()
    };
    for _ in 0..3000 {
        let count = random.random_range(1..=4);
        let stops: Vec<String> = (0..count)
            .map(|_| {
                let length = random.random_range(1..6);
                draw(&mut random, length)
            })
            .collect();
        let length = random.random_range(0..40);
        let text = draw(&mut random, length);
        let mut matcher = StopMatcher::new(&stops).unwrap();
        let mut shown = String::new();
        let mut delta = String::new();
        for c in text.chars() {
            delta.push(c);
            if random.random_bool(0.4) {
                shown.push_str(&matcher.push(&std::mem::take(&mut delta)));
                let expected = cut_by_hand(&text, &stops);
                assert!(
                    expected.starts_with(&shown),
                    "{stops:?} leaked into {shown:?} of {text:?}"
                );
            }
        }
        shown.push_str(&matcher.push(&delta));
        shown.push_str(&matcher.finish());
        assert_eq!(shown, cut_by_hand(&text, &stops), "{stops:?} in {text:?}");
    }
}
