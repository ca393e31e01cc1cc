//! Which tokens of a conversation bear loss.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use tandem::domain::{Example, IGNORE_INDEX};
use tandem::text::dataset::{Limits, Piece, TrainOn, load};
use tandem::text::{TextModel, dataset};

use super::{chatml_model, chatml_model_with, model};

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn example(model: &TextModel, messages: &[Value]) -> Example {
    let line = json!({ "messages": messages }).to_string();
    let dataset = load(line.as_bytes(), model, &Limits::default(), TrainOn::Completion, None);
    dataset.expect("a good line").examples.remove(0)
}

/// The text that bears loss, each stretch on its own.
fn trained(model: &TextModel, example: &Example) -> Vec<String> {
    let mut stretches: Vec<Vec<u32>> = Vec::new();
    let mut inside = false;
    for (&id, &label) in example.ids.iter().zip(&example.labels) {
        assert!(label == IGNORE_INDEX || label == id as i32, "labels repeat the ids");
        if label != IGNORE_INDEX {
            if !inside {
                stretches.push(Vec::new());
            }
            stretches.last_mut().expect("just pushed").push(id);
        }
        inside = label != IGNORE_INDEX;
    }
    let text = |ids: &Vec<u32>| model.tokenizer().decode(ids, false).expect("ids decode");
    stretches.iter().map(text).collect()
}

#[test]
fn answers_and_the_token_that_ends_them_bear_loss_and_nothing_else() {
    let model = chatml_model();
    let messages = [
        turn("system", "Be brief."),
        turn("user", "Hi"),
        turn("assistant", "Hello 🙂"),
        turn("user", "Bye"),
        turn("assistant", "See you"),
    ];
    let example = example(&model, &messages);
    assert_eq!(trained(&model, &example), ["Hello 🙂<|im_end|>", "See you<|im_end|>"]);
    let end = model.tokenizer().token_id("<|im_end|>").expect("a token");
    assert!(model.stop_ids().contains(&end), "an answer stops where its turn ends");
}

#[test]
fn an_answer_of_weight_zero_bears_none() {
    let model = chatml_model();
    let mut wrong = turn("assistant", "Wrong");
    wrong["weight"] = json!(0);
    let messages = [turn("user", "Hi"), wrong, turn("user", "No"), turn("assistant", "Right")];
    assert_eq!(trained(&model, &example(&model, &messages)), ["Right<|im_end|>"]);
}

#[test]
fn training_reads_the_ids_that_serving_will_read() {
    for (name, tokenizer) in [
        ("llama2", "metaspace"),
        ("llama2", "bytelevel"),
        ("vicuna", "metaspace"),
        ("gemma", "bytelevel"),
        ("llama3", "bytelevel"),
        ("alpaca", "metaspace"),
        ("dolly", "bytelevel"),
        ("mistral", "metaspace"),
        ("guanaco", "metaspace"),
        ("chatml", "bytelevel"),
    ] {
        let model = model(tokenizer, Some(name));
        let question = [turn("user", "What is the quick brown fox?")];
        let mut whole = question.to_vec();
        whole.push(turn("assistant", "It jumps over the lazy dog."));
        let example = example(&model, &whole);
        let prompt = model.chat_prompt(&question, None, &Map::new()).expect("a prompt");
        let first = example.labels.iter().position(|&label| label != IGNORE_INDEX);
        assert_eq!(example.ids[..first.expect("an answer")], prompt, "{name} on {tokenizer}");
        let answer = trained(&model, &example).concat();
        assert!(answer.trim_start().starts_with("It jumps over the lazy dog."), "{name}: {answer}");
        assert_eq!(example.ids.last(), model.tokenizer().eos_id().as_ref(), "{name} ends");
        assert_eq!(example.labels.last(), Some(&2), "{name} learns to end");
    }
}

/// Contents that begin and end in ways that join with what the template writes around them.
fn content(random: &mut StdRng) -> String {
    let scraps = ["\n", "\n\n", " ", "  ", "the", "fox", ".", "é", "🙂", "東", "\t", "assistant"];
    let length = random.random_range(1..7);
    (0..length).map(|_| scraps[random.random_range(0..scraps.len())]).collect()
}

#[test]
fn borders_are_exact_whatever_the_answers_begin_with() {
    let mut random = StdRng::seed_from_u64(17);
    for model in
        [chatml_model(), model("bytelevel", Some("chatml")), model("metaspace", Some("chatml"))]
    {
        let closed = model.tokenizer().token_id("<|im_end|>").is_some();
        for _ in 0..300 {
            let turns = 2 * random.random_range(1..4);
            let messages: Vec<Value> = (0..turns)
                .map(|at| turn(["user", "assistant"][at % 2], &content(&mut random)))
                .collect();
            let example = example(&model, &messages);
            let first = example.labels.iter().position(|&label| label != IGNORE_INDEX);
            let prompt = model.chat_prompt(&messages[..1], None, &Map::new()).unwrap();
            assert_eq!(example.ids[..first.unwrap()], prompt, "{messages:?}");
            let whole: String = messages
                .iter()
                .map(|m| {
                    format!(
                        "<|im_start|>{}\n{}<|im_end|>\n",
                        m["role"].as_str().unwrap(),
                        m["content"].as_str().unwrap()
                    )
                })
                .collect();
            let decoded = model.tokenizer().decode(&example.ids, false).unwrap();
            let end = if closed { "" } else { "</s>" };
            assert_eq!(decoded, whole + end, "{messages:?}");
            if closed {
                let answers = messages.iter().skip(1).step_by(2);
                let expected: Vec<String> = answers
                    .map(|m| format!("{}<|im_end|>", m["content"].as_str().unwrap()))
                    .collect();
                assert_eq!(trained(&model, &example), expected);
            }
        }
    }
}

#[test]
fn a_template_that_rewrites_history_is_refused_by_name() {
    let model = model("bytelevel", Some("mistral"));
    let messages = [turn("system", "S"), turn("user", "A"), turn("assistant", "B")];
    let line = json!({ "messages": messages }).to_string();
    let report =
        dataset::validate(line.as_bytes(), &model, &Limits::default(), TrainOn::Completion, None)
            .unwrap();
    let reason = report.errors[0].to_string();
    assert!(reason.contains("mistral") && reason.contains("messages[2]"), "{reason}");
}

#[test]
fn a_template_that_ends_turns_in_text_tells_where_to_stop() {
    assert_eq!(model("metaspace", Some("guanaco")).turn_stop(), Some("### Human:"));
    for closed in ["vicuna", "llama2", "alpaca", "dolly", "mistral"] {
        assert_eq!(model("metaspace", Some(closed)).turn_stop(), None, "{closed}");
    }
    assert_eq!(chatml_model().turn_stop(), None);
    assert_eq!(model("metaspace", Some("chatml")).turn_stop(), Some("<|im_end|>"));
}

#[test]
fn a_token_that_only_the_end_of_a_rendering_has_is_no_obstacle() {
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}\
                  {{ '<|im_start|>assistant\\n' if add_generation_prompt else eos_token }}";
    let model = chatml_model_with(source);
    let messages =
        [turn("user", "A"), turn("assistant", "B"), turn("user", "C"), turn("assistant", "D")];
    let trained = trained(&model, &example(&model, &messages));
    assert_eq!(trained, ["B<|im_end|>", "D<|im_end|></s>"]);
}

#[test]
fn tool_calls_are_answers_too() {
    let tools = r#"{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tools.jinja");
    std::fs::write(&path, tools).unwrap();
    let model = model("bytelevel", path.to_str());
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]});
    let messages = [turn("user", "Do it"), call, turn("tool", "done"), turn("assistant", "Done.")];
    let trained = trained(&model, &example(&model, &messages));
    assert!(trained[0].contains(r#""arguments": {"x": 1}"#), "{trained:?}");
    assert_eq!(trained.len(), 2);
}

#[test]
fn samples_show_what_bears_loss() {
    let model = chatml_model();
    let line = json!({"messages": [turn("user", "Hi"), turn("assistant", "Hé")]}).to_string();
    let report =
        dataset::validate(line.as_bytes(), &model, &Limits::default(), TrainOn::Completion, None)
            .unwrap();
    let piece = |text: &str, trained| Piece { text: text.to_owned(), trained };
    assert_eq!(
        report.samples[0].pieces,
        [
            piece("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", false),
            piece("Hé<|im_end|>", true),
            piece("\n", false)
        ]
    );
}
