//! Chat templates against the reference implementation, and within their bounds.

use serde_json::{Map, Value, json};
use tandem::text::dataset::alpaca_prompt;
use tandem::text::template::PRESETS;
use tandem::text::{ChatTemplate, Rendering, TemplateError};

use super::{golden, golden_json};

const GOLDEN: [&str; 10] = [
    "alpaca",
    "chatml",
    "chatml_default_system",
    "chatml_tools",
    "gemma",
    "guanaco",
    "llama2",
    "llama3",
    "mistral",
    "vicuna",
];

#[test]
fn every_golden_conversation_renders_exactly() {
    for rendering in [Rendering::Here, apart()] {
        assert_eq!(GOLDEN.map(|name| check_case(name, &rendering)).iter().sum::<usize>(), 226);
    }
}

/// The number of its rows.
fn check_case(name: &str, rendering: &Rendering) -> usize {
    let case = golden_json(&format!("chat/{name}/case.json"));
    let source = std::fs::read_to_string(golden(&format!("chat/{name}/template.jinja")));
    let token = |key: &str| case[key].as_str().expect("a token").to_owned();
    let template = ChatTemplate::compile(
        name,
        &source.expect("a template"),
        &token("bos_token"),
        &token("eos_token"),
        rendering,
    )
    .expect("golden templates compile");
    let rows = case["rows"].as_array().expect("rows");
    rows.iter().for_each(|row| check_row(name, &template, row));
    rows.len()
}

fn check_row(name: &str, template: &ChatTemplate, row: &Value) {
    let known = [
        "conversation",
        "messages",
        "add_generation_prompt",
        "expected",
        "error",
        "error_type",
        "tools",
    ];
    let mut extra = row.as_object().expect("an object").clone();
    extra.retain(|key, _| !known.contains(&key.as_str()));
    let messages = row["messages"].as_array().expect("messages");
    let tools = row["tools"].as_array().map(Vec::as_slice);
    let prompt = row["add_generation_prompt"] == true;
    let what = format!("{name}, {}, prompt {prompt}", row["conversation"]);
    match (template.render(messages, tools, prompt, &extra), &row["error"]) {
        (Ok(text), Value::Null) => assert_eq!(text, row["expected"], "{what}"),
        (Err(TemplateError::Raised { message }), error) => assert_eq!(message, *error, "{what}"),
        (result, _) => panic!("{what}: {result:?}"),
    }
}

fn render(source: &str, messages: &[Value]) -> Result<String, TemplateError> {
    let template = ChatTemplate::compile("test", source, "<s>", "</s>", &Rendering::Here)?;
    template.render(messages, None, false, &Map::new())
}

#[test]
fn tojson_writes_as_python_does() {
    let value = json!({"b": [1, 1.0, true, null, {}], "a": "é<\"🙂\n"});
    let written = |filter: &str| {
        render(&format!("{{{{ messages[0] | {filter} }}}}"), std::slice::from_ref(&value))
    };
    let plain = r#"{"b": [1, 1.0, true, null, {}], "a": "é<\"🙂\n"}"#;
    assert_eq!(written("tojson").unwrap(), plain);
    assert_eq!(
        written("tojson(indent=2)").unwrap(),
        "{\n  \"b\": [\n    1,\n    1.0,\n    true,\n    null,\n    {}\n  ],\n  \"a\": \"é<\\\"🙂\\n\"\n}"
    );
    assert_eq!(
        written("tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':'))").unwrap(),
        r#"{"a":"\u00e9<\"\ud83d\ude42\n","b":[1,1.0,true,null,{}]}"#
    );
}

/// Each line a template and what `jinja2` makes of it, or `null` where that fails.
#[test]
fn what_templates_find_in_python_they_find_here() {
    let cases = std::fs::read_to_string(golden("chat/jinja.jsonl")).expect("the cases");
    let messages = [json!({"role": "user", "content": "a, b, c", "items": 3})];
    let mut wrong = Vec::new();
    for line in cases.lines() {
        let (source, expected): (String, Option<String>) =
            serde_json::from_str(line).expect("a case");
        match (render(&source, &messages), expected) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(TemplateError::Render { .. }), None) => {}
            (found, expected) => wrong.push(format!("{source}\n {found:?}\n {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn special_tokens_are_known_by_their_names() {
    let tokens = json!({"pad_token": "<pad>", "additional_special_tokens": ["<a>"]});
    let source = "{{ pad_token }}{{ additional_special_tokens[0] }}{{ eos_token }}\
                  {{ sep_token is defined }}";
    for rendering in [Rendering::Here, apart()] {
        let tokens = tokens.as_object().expect("an object");
        let template =
            ChatTemplate::compile_with("test", source, "<s>", "</s>", tokens, &rendering);
        let text = template.expect("compiled").render(&[], None, false, &Map::new());
        assert_eq!(text.expect("rendered"), "<pad><a></s>False");
    }
}

#[test]
fn methods_that_make_strings_pay_for_them() {
    for source in [
        "{{ 'a'.ljust(1000000000000) }}",
        "{{ 'a'.center(1000000000) | length }}",
        "{% for i in range(100000) %}{% set x = 'a'.zfill(100000) %}{% endfor %}",
        "{% for i in range(100000) %}{% set x = range(10000) | list %}{{ x.index(9999) }}{% endfor %}",
    ] {
        let stopped = render(source, &[]);
        assert!(matches!(stopped, Err(TemplateError::OutOfFuel { .. })), "{source}: {stopped:?}");
    }
}

#[test]
fn python_idioms_of_real_templates_work() {
    let source = "{%- set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}\
                  {% if m.content.startswith('b') and m.content.split('-')[-1] is string %}\
                  {{ m.content.split('-')[-1].strip() | upper }}{% break %}{% endif %}{% endfor %}\
                  {{ ns.n }}{{ strftime_now('%Y') | length }}{{ none }}{{ undefined_name }}";
    let messages = [json!({"content": "b- x "}), json!({"content": "a"})];
    assert_eq!(render(source, &messages).unwrap(), "X24None");
}

#[test]
fn tests_of_kind_answer_as_in_python() {
    let source = "{% for v in [none, 'a', [1], {'k': 1}, 1] %}{{ '1' if v is iterable else '0' }}\
                  {{ '1' if v is sequence else '0' }} {% endfor %}{{ nothing is iterable }}";
    assert_eq!(render(source, &[]).unwrap(), "00 11 11 11 00 True");
}

#[test]
fn the_tags_of_training_templates_change_nothing() {
    let source = "{% for m in messages %}\n  {%- generation -%}\n  {{ m.content }}\n  {%- endgeneration %}\n{% endfor %}";
    assert_eq!(render(source, &[json!({"content": "A"})]).unwrap(), "A");
}

#[test]
fn a_template_that_does_not_compile_names_the_line() {
    let error = render("one\ntwo {% if %}\n", &[]).unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error}");
}

#[test]
fn templates_without_end_are_stopped() {
    let forever = "{% for a in range(100000) %}{% for b in range(100000) %}{% set x = a %}{% endfor %}{% endfor %}";
    assert!(matches!(render(forever, &[]), Err(TemplateError::OutOfFuel { .. })));
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(deep, &[]), Err(TemplateError::Render { .. })));
    let endless = json!("x".repeat(1 << 20));
    let long = "{% for a in range(1000) %}{{ messages[0] }}{% endfor %}";
    assert!(matches!(render(long, &[endless]), Err(TemplateError::TooLong { .. })));
}

#[test]
fn templates_that_grow_are_stopped_long_before_memory_is() {
    let growing = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(s={start}) %}}{{% for a in range(60) %}}\
             {{% set ns.s = {step} %}}{{% endfor %}}{{{{ ns.s | length }}}}"
        )
    };
    for (start, step) in [
        ("'x'", "ns.s ~ ns.s"),
        ("'x'", "[ns.s, ns.s] | join('')"),
        ("'a'", "ns.s.replace('a', 'aaaa')"),
        ("'\"'", "ns.s | tojson"),
    ] {
        let stopped = render(&growing(start, step), &[]);
        assert!(matches!(stopped, Err(TemplateError::OutOfFuel { .. })), "{step}: {stopped:?}");
    }
}

/// What fuel does not count ends the process that renders, and the next rendering finds another.
#[test]
fn templates_that_nest_or_fill_memory_end_only_their_process() {
    let steps = |count: usize, start: &str, step: &str, end: &str| {
        format!(
            "{{% if messages[0].content == 'go' %}}{{% set ns = namespace(v={start}) %}}\
             {{% for a in range({count}) %}}{{% set ns.v = {step} %}}{{% endfor %}}\
             {{% if {end} %}}{{% endif %}}{{% endif %}}{{{{ messages[0].content }}}}"
        )
    };
    let hostile = [
        ("nested", steps(90_000, "[1]", "[ns.v]", "ns.v | string | length"), false),
        ("nested and dropped", steps(90_000, "[1]", "[ns.v]", "true"), false),
        ("sliced", steps(90_000, "[1]", "ns.v[:]", "ns.v == 1"), false),
        ("doubled", steps(60, "[1]", "ns.v + ns.v", "ns.v | length"), true),
        ("shared", steps(40, "[1]", "[ns.v, ns.v]", "ns.v == [1]"), false),
        ("shared and written", steps(40, "[1]", "[ns.v, ns.v]", "ns.v | tojson"), true),
    ];
    for (name, source, must_end) in hostile {
        let template = ChatTemplate::compile(name, &source, "", "", &apart()).expect("compiled");
        let said = |content: &str| {
            template.render(&[json!({"content": content})], None, false, &Map::new())
        };
        assert_eq!(said("before").unwrap(), "before", "{name}");
        match said("go") {
            Err(TemplateError::OutOfFuel { .. } | TemplateError::Overgrown { .. }) => {}
            Ok(_) | Err(TemplateError::Render { .. }) if !must_end => {}
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(said("after").unwrap(), "after", "{name}");
    }
}

#[test]
fn a_template_that_breaks_its_bounds_when_it_is_tried_is_refused() {
    let source = "{% set ns = namespace(s=[1]) %}{% for a in range(60) %}\
        {% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}";
    let tried = ChatTemplate::compile("a/chat_template.jinja", source, "", "", &apart());
    assert!(
        matches!(tried, Err(TemplateError::OutOfFuel { .. } | TemplateError::Overgrown { .. })),
        "{tried:?}"
    );
    let wrong = ChatTemplate::compile("t", "one\n{% if %}", "", "", &apart()).unwrap_err();
    assert!(matches!(wrong, TemplateError::Syntax { line: 2, .. }), "{wrong}");
    let nowhere = Rendering::Apart("/nowhere/tandem".into());
    let wrong = ChatTemplate::compile("t", "", "", "", &nowhere).unwrap_err().to_string();
    assert!(wrong.contains("no process") && wrong.contains("No such file"), "{wrong}");
}

/// In a process of the program under test.
fn apart() -> Rendering {
    Rendering::Apart(env!("CARGO_BIN_EXE_tandem").into())
}

#[test]
fn every_preset_compiles_and_opens_the_next_answer_after_a_question() {
    let messages = [json!({"role": "user", "content": "QUESTION"})];
    for (name, _) in PRESETS {
        let template = ChatTemplate::from_preset(name, "<s>", "</s>").unwrap();
        let text = template.render(&messages, None, true, &Map::new()).unwrap();
        assert!(text.contains("QUESTION") && !text.ends_with("QUESTION"), "{name}: {text}");
    }
    let error = ChatTemplate::from_preset("chatm", "", "").unwrap_err().to_string();
    assert!(error.contains("chatm") && error.contains("chatml"), "{error}");
}

#[test]
fn the_alpaca_preset_writes_the_alpaca_prompt() {
    let messages = [json!({"role": "user", "content": "Name a colour."})];
    let template = ChatTemplate::from_preset("alpaca", "", "</s>").unwrap();
    let text = template.render(&messages, None, true, &Map::new()).unwrap();
    assert_eq!(text, alpaca_prompt("Name a colour.", ""));
}

/// The template of `llava-hf/llava-1.5-7b-hf`, which reads parts and no strings.
const LLAVA: &str = "{% for message in messages %}{% if message['role'] != 'system' %}\
    {{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}\
    {% for content in message['content'] | selectattr('type', 'equalto', 'image') %}\
    {{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}\
    {% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
    {{ content['text'] + ' '}}{% endfor %}{% else %}\
    {% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}\
    {{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

#[test]
fn templates_of_models_that_see_place_their_pictures() {
    let parts = json!([{"type": "text", "text": "What?"}, {"type": "image"}, {"type": "image"}]);
    let render = |template: &ChatTemplate, content: Value| {
        let message = json!({"role": "user", "content": content});
        template.render(&[message], None, true, &Map::new()).expect("rendered")
    };
    let hub =
        ChatTemplate::compile("hub", LLAVA, "<s>", "</s>", &Rendering::Here).expect("compiled");
    assert!(hub.takes().parts && !hub.takes().text);
    assert_eq!(render(&hub, parts.clone()), "USER: <image>\n<image>\nWhat? ASSISTANT:");
    let preset = ChatTemplate::from_preset("llava-v1", "<s>", "</s>").expect("a preset");
    assert!(preset.takes().parts && preset.takes().text);
    let vicuna = ChatTemplate::from_preset("vicuna", "<s>", "</s>").expect("a preset");
    assert!(!vicuna.takes().parts && vicuna.takes().text);
    let words = render(&vicuna, "What?".into());
    assert_eq!(render(&preset, "What?".into()), format!("<s>{words}"));
    let pictures = words.replace("What?", "<image>\n<image>\nWhat?");
    assert_eq!(render(&preset, parts), format!("<s>{pictures}"));
}
