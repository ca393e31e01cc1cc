//! A `config.json` from the metadata of a file.

use serde_json::{Map, Value, json};

use super::super::ModelError;
use super::rope;
use crate::gguf::{Gguf, Metadata, Value as Meta};

/// GGUF's architectures and the `model_type` each becomes.
const ARCHITECTURES: [(&str, &str); 8] = [
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("phi3", "phi3"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("gpt2", "gpt2"),
    ("mpt", "mpt"),
];

/// What `transformers` calls the class of each family.
const CLASSES: [(&str, &str); 6] = [
    ("llama", "LlamaForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3_text", "Gemma3ForCausalLM"),
];

/// The metadata of one architecture: `block_count` is found as `llama.block_count`.
pub(super) struct Keys<'a> {
    pub gguf: &'a Gguf,
    pub architecture: &'a str,
}

impl<'a> Keys<'a> {
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    pub fn metadata(&self) -> &'a Metadata {
        &self.gguf.metadata
    }

    pub fn required(&self, name: &str) -> Result<usize, ModelError> {
        Ok(self.metadata().required_count(&self.key(name))?)
    }

    pub fn count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        Ok(self.metadata().count(&self.key(name))?)
    }

    pub fn number(&self, name: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.metadata().number(&self.key(name))?)
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors.iter().any(|info| info.name == tensor)
    }
}

/// The `config.json` that `gguf` was made from, as far as the decoder reads it. `factors` hands out
/// the one-dimensional tensor of a name, if there is one.
///
/// # Errors
/// If the architecture is unknown, a value is missing or has the wrong type.
pub fn config(
    gguf: &Gguf,
    factors: impl Fn(&str) -> Result<Option<Vec<f32>>, ModelError>,
) -> Result<Value, ModelError> {
    const KEY: &str = "general.architecture";
    let metadata = &gguf.metadata;
    let architecture = metadata.text(KEY)?.ok_or_else(|| metadata.missing(KEY))?;
    let Some((_, family)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        let known = ARCHITECTURES.map(|(name, _)| name).join(", ");
        return Err(metadata.unsupported(KEY, architecture, &known).into());
    };
    let keys = Keys { gguf, architecture };
    if keys.count("expert_count")?.is_some_and(|experts| experts > 0) {
        return Err(metadata.unsupported(&keys.key("expert_count"), "a mixture", "0").into());
    }
    let mut config = match *family {
        "gpt2" => gpt2(&keys)?,
        "mpt" => mpt(&keys)?,
        family => transformer(&keys, family, factors)?,
    };
    config.insert("tie_word_embeddings".to_owned(), json!(!keys.has("output.weight")));
    config.insert("vocab_size".to_owned(), json!(vocabulary(&keys)?));
    tokens(metadata, &mut config)?;
    Ok(Value::Object(config))
}

/// Rows of the embedding.
fn vocabulary(keys: &Keys<'_>) -> Result<usize, ModelError> {
    let embedding = keys.gguf.tensors.iter().find(|info| info.name == "token_embd.weight");
    match embedding.and_then(|info| info.shape.first()) {
        Some(rows) => Ok(*rows),
        None => Err(ModelError::MissingTensor {
            tensor: "token_embd.weight".to_owned(),
            place: keys.metadata().file.clone(),
        }),
    }
}

fn tokens(metadata: &Metadata, config: &mut Map<String, Value>) -> Result<(), ModelError> {
    let id = |name: &str| metadata.count(&format!("tokenizer.ggml.{name}_token_id"));
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(id(name)?.filter(|id| !ends.contains(id)));
    }
    config.insert("eos_token_id".to_owned(), json!(ends));
    if let Some(bos) = id("bos")? {
        config.insert("bos_token_id".to_owned(), json!(bos));
    }
    // Said even where there is none: some families have one of their own that tiny models lack.
    config.insert("pad_token_id".to_owned(), json!(id("padding")?));
    Ok(())
}

/// Llama and its relatives.
fn transformer(
    keys: &Keys<'_>,
    family: &str,
    factors: impl Fn(&str) -> Result<Option<Vec<f32>>, ModelError>,
) -> Result<Map<String, Value>, ModelError> {
    let (hidden, heads) =
        (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    let head_dim = keys.count("attention.key_length")?;
    let head_dim = head_dim.unwrap_or(hidden / heads.max(1));
    if keys.count("attention.value_length")?.is_some_and(|length| length != head_dim) {
        let key = keys.key("attention.value_length");
        return Err(keys.metadata().unsupported(&key, "another width", "that of keys").into());
    }
    let activation = if family.starts_with("gemma") { "gelu_pytorch_tanh" } else { "silu" };
    let eps = keys.number("attention.layer_norm_rms_epsilon")?;
    let Some(eps) = eps else {
        return Err(keys.metadata().missing(&keys.key("attention.layer_norm_rms_epsilon")).into());
    };
    let mut config = object(json!({
        "model_type": family,
        "architectures": [CLASSES.iter().find(|(name, _)| *name == family).map(|(_, class)| class)],
        "hidden_size": hidden,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": keys.required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.required("context_length")?,
        "rms_norm_eps": eps,
        "hidden_act": activation,
        "hidden_activation": activation,
    }));
    if matches!(family, "llama" | "qwen3") {
        config.insert("attention_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
        config.insert("mlp_bias".into(), json!(keys.has("blk.0.ffn_up.bias")));
    }
    let window = keys.count("attention.sliding_window")?.filter(|&window| window > 0);
    match family {
        "llama" if window.is_some() => {
            config.insert("model_type".into(), "mistral".into());
            config.insert("architectures".into(), json!(["MistralForCausalLM"]));
        }
        "gemma2" | "gemma3_text" => gemma(keys, family, head_dim, &mut config)?,
        "qwen2" | "qwen3" => {
            config.insert("use_sliding_window".into(), json!(window.is_some()));
            config.insert(
                "max_window_layers".into(),
                json!(keys.count("max_window_layers")?.unwrap_or(0)),
            );
        }
        _ => {}
    }
    config.insert("sliding_window".into(), json!(window));
    pattern(keys, &mut config)?;
    rope::read(keys, head_dim, &mut config, factors)?;
    Ok(config)
}

/// Which layers slide: every layer by itself, or all but every so many-th.
fn pattern(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<(), ModelError> {
    let key = keys.key("attention.sliding_window_pattern");
    match keys.metadata().get(&key) {
        Some(Meta::Bools(slides)) => {
            let kind = |&slides: &bool| if slides { "sliding_attention" } else { "full_attention" };
            config.insert("layer_types".into(), slides.iter().map(kind).collect());
        }
        Some(_) => {
            let pattern = keys.metadata().count(&key)?;
            config.insert("sliding_window_pattern".into(), json!(pattern));
        }
        None => {}
    }
    Ok(())
}

fn gemma(
    keys: &Keys<'_>,
    family: &str,
    head_dim: usize,
    config: &mut Map<String, Value>,
) -> Result<(), ModelError> {
    let (layers, hidden) = (keys.required("block_count")?, keys.required("embedding_length")?);
    // The largest of each generation scales by the hidden size's share of a head.
    let largest = layers == if family == "gemma2" { 46 } else { 62 };
    let usual = if largest { hidden / keys.required("attention.head_count")? } else { head_dim };
    let scalar = keys.number("attention.scale")?.map_or(usual as f32, |scale| scale.powi(-2));
    config.insert("query_pre_attn_scalar".into(), number(scalar));
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        config.insert(key.into(), json!(keys.number(key)?));
    }
    Ok(())
}

fn gpt2(keys: &Keys<'_>) -> Result<Map<String, Value>, ModelError> {
    Ok(object(json!({
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": keys.required("embedding_length")?,
        "n_inner": keys.count("feed_forward_length")?,
        "n_head": keys.required("attention.head_count")?,
        "n_layer": keys.required("block_count")?,
        "n_positions": keys.required("context_length")?,
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        "activation_function": "gelu_new",
    })))
}

fn mpt(keys: &Keys<'_>) -> Result<Map<String, Value>, ModelError> {
    let hidden = keys.required("embedding_length")?;
    let inner = keys.count("feed_forward_length")?.unwrap_or(4 * hidden);
    if hidden == 0 || !inner.is_multiple_of(hidden) {
        let key = keys.key("feed_forward_length");
        let multiple = "multiples of the embedding length";
        return Err(keys.metadata().unsupported(&key, &inner.to_string(), multiple).into());
    }
    let clip = keys.number("attention.clamp_kqv")?.filter(|&clip| clip > 0.0);
    Ok(object(json!({
        "model_type": "mpt",
        "architectures": ["MptForCausalLM"],
        "d_model": hidden,
        "expansion_ratio": inner / hidden,
        "n_heads": keys.required("attention.head_count")?,
        "n_layers": keys.required("block_count")?,
        "max_seq_len": keys.required("context_length")?,
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        "attn_config": {
            "alibi": true,
            "alibi_bias_max": number(keys.number("attention.max_alibi_bias")?.unwrap_or(8.0)),
            "clip_qkv": clip,
            "qk_ln": keys.has("blk.0.attn_q_norm.weight"),
        },
    })))
}

/// A number that `transformers` wants whole: the nearest whole one, where only rounding lies between.
fn number(x: f32) -> Value {
    match (x - x.round()).abs() <= 1e-4 * x.abs() {
        true => json!(x.round() as i64),
        false => json!(x),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
