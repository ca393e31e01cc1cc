//! Chat templates by name, for models that bring none and for data in a known form.

/// Every preset: its name and its source.
pub const PRESETS: [(&str, &str); 10] = [
    ("alpaca", include_str!("../presets/alpaca.jinja")),
    ("chatml", include_str!("../presets/chatml.jinja")),
    ("dolly", include_str!("../presets/dolly.jinja")),
    ("gemma", include_str!("../presets/gemma.jinja")),
    ("guanaco", include_str!("../presets/guanaco.jinja")),
    ("llama2", include_str!("../presets/llama2.jinja")),
    ("llama3", include_str!("../presets/llama3.jinja")),
    ("llava-v1", include_str!("../presets/llava-v1.jinja")),
    ("mistral", include_str!("../presets/mistral.jinja")),
    ("vicuna", include_str!("../presets/vicuna.jinja")),
];

/// The source of the preset `name`.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, source)| *source)
}
