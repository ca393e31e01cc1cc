//! What a `config.json` means by a key it leaves out: the value that the family's configuration
//! class in `transformers` has. Files were written by programs that leave out whatever does not
//! differ from it. A key that stands there as null keeps its null.
//!
//! End tokens are no part of it: where a model's files name none, its tokenizer does.

use serde_json::{Map, Value, json};

/// `values` with all that `family` adds to them, its keys in the spelling that is read here.
pub fn completed(family: &str, values: Map<String, Value>) -> Map<String, Value> {
    let Value::Object(mut all) = defaults(family) else { return values };
    all.extend(values);
    for (other, key) in spellings(family) {
        // Where both stand, `transformers` sets this one last.
        if let Some(value) = all.get(*other).filter(|value| !value.is_null()).cloned() {
            all.insert((*key).to_owned(), value);
        }
    }
    all
}

/// Names that a key has besides the one read here.
fn spellings(family: &str) -> &'static [(&'static str, &'static str)] {
    match family {
        "gpt2" => &[
            ("hidden_size", "n_embd"),
            ("max_position_embeddings", "n_positions"),
            ("num_attention_heads", "n_head"),
            ("num_hidden_layers", "n_layer"),
        ],
        "mpt" => &[
            ("hidden_size", "d_model"),
            ("num_attention_heads", "n_heads"),
            ("num_hidden_layers", "n_layers"),
        ],
        "llava" => &[("image_token_id", "image_token_index")],
        _ => &[],
    }
}

fn defaults(family: &str) -> Value {
    match family {
        "gpt2" => json!({
            "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        }),
        "llama" => json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32,
            "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        }),
        "mistral" | "ministral" => json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "hidden_act": "silu", "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        }),
        "qwen2" => qwen(),
        "qwen3" => {
            let mut all = qwen();
            all["head_dim"] = 128.into();
            all
        }
        "phi3" => json!({
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 32, "num_attention_heads": 32,
            "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "original_max_position_embeddings": 4096,
        }),
        "gemma2" => {
            let mut all = gemma();
            all["vocab_size"] = 256_000.into();
            all["max_position_embeddings"] = 8192.into();
            all["attn_logit_softcapping"] = 50.0.into();
            all["final_logit_softcapping"] = 30.0.into();
            all
        }
        "gemma3_text" => {
            let mut all = gemma();
            all["vocab_size"] = 262_208.into();
            all["max_position_embeddings"] = 131_072.into();
            all["rope_theta"] = 1e6.into();
            all["rope_local_base_freq"] = 1e4.into();
            all
        }
        "mpt" => json!({
            "vocab_size": 50368, "d_model": 2048, "n_heads": 16, "n_layers": 24,
            "expansion_ratio": 4, "max_seq_len": 2048, "layer_norm_epsilon": 1e-5,
        }),
        "llava" => json!({
            "image_token_index": 32000, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
        }),
        "clip_vision_model" => json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        }),
        _ => json!({}),
    }
}

fn qwen() -> Value {
    json!({
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "sliding_window": 4096, "max_window_layers": 28,
    })
}

fn gemma() -> Value {
    json!({
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256, "sliding_window": 4096,
    })
}

/// The tower of a file that does not describe one; a description leaves out what is CLIP's own.
pub fn vision_of_llava() -> Value {
    json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Activation::{self, Gelu, GeluTanh, QuickGelu, Silu};
    use crate::model::config::DecoderConfig;
    use crate::model::families::read;

    /// Vocabulary, hidden and intermediate size, layers, heads, key-value heads, size of a head,
    /// context; epsilon; activation; whether the head is the embedding.
    type Row = (&'static str, [usize; 8], f32, Activation, bool);

    /// Written down from the objects that `transformers` 5.24 makes of no arguments.
    const CLASSES: [Row; 9] = [
        ("gpt2", [50257, 768, 3072, 12, 12, 12, 64, 1024], 1e-5, GeluTanh, true),
        ("llama", [32000, 4096, 11008, 32, 32, 32, 128, 2048], 1e-6, Silu, false),
        ("mistral", [32000, 4096, 14336, 32, 32, 8, 128, 131_072], 1e-6, Silu, false),
        ("qwen2", [151_936, 4096, 22016, 32, 32, 32, 128, 32768], 1e-6, Silu, false),
        ("qwen3", [151_936, 4096, 22016, 32, 32, 32, 128, 32768], 1e-6, Silu, false),
        ("phi3", [32064, 3072, 8192, 32, 32, 32, 96, 4096], 1e-5, Silu, false),
        ("gemma2", [256_000, 2304, 9216, 26, 8, 4, 256, 8192], 1e-6, GeluTanh, true),
        ("gemma3_text", [262_208, 2304, 9216, 26, 8, 4, 256, 131_072], 1e-6, GeluTanh, true),
        ("mpt", [50368, 2048, 8192, 24, 16, 16, 128, 2048], 1e-5, Gelu, true),
    ];

    fn of(config: Value) -> DecoderConfig {
        read(&config).expect("a configuration")
    }

    fn row(config: &DecoderConfig) -> ([usize; 8], f32, Activation, bool) {
        let sizes = [
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            config.layers.len(),
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.context_length,
        ];
        (sizes, config.norm.eps, config.activation, config.tied)
    }

    /// The base of a layer's frequencies.
    fn theta(config: &DecoderConfig, layer: usize) -> f64 {
        let frequencies = &config.layers[layer].rope.frequencies;
        f64::from(frequencies[1]).powf(-(frequencies.len() as f64)).round()
    }

    #[test]
    fn a_file_that_names_its_family_alone_is_that_of_its_class() {
        for (family, sizes, eps, activation, tied) in CLASSES {
            let config = of(json!({"model_type": family}));
            assert_eq!(row(&config), (sizes, eps, activation, tied), "{family}");
            let window = config.layers[0].window;
            let slides = matches!(family, "mistral" | "gemma2" | "gemma3_text");
            assert_eq!(window, slides.then_some(4096), "{family}");
            if !matches!(family, "gpt2" | "mpt") {
                let near = |layer, base: f64| (theta(&config, layer) / base - 1.0).abs() < 1e-3;
                assert!(near(0, 1e4), "{family}");
                assert!(near(5, if family == "gemma3_text" { 1e6 } else { 1e4 }), "{family}");
            }
        }
    }

    #[test]
    fn what_is_gemmas_own_is_taken_from_its_class_as_well() {
        for (family, caps) in [("gemma2", [Some(50.0), Some(30.0)]), ("gemma3_text", [None, None])]
        {
            let config = of(json!({"model_type": family}));
            assert_eq!([config.attention_softcap, config.logit_softcap], caps);
            assert_eq!(config.attention_scale, 256f32.powf(-0.5));
            let slide = config.layers.iter().filter(|layer| layer.window.is_some()).count();
            assert_eq!(slide, if family == "gemma2" { 13 } else { 22 });
        }
    }

    #[test]
    fn null_is_derived_where_the_class_derives_it() {
        let small = |family: &str, key: &str| {
            let mut config = json!({
                "model_type": family, "hidden_size": 64, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 30,
                "use_sliding_window": family == "qwen2",
            });
            config[key] = Value::Null;
            of(config)
        };
        for family in ["llama", "mistral", "qwen2", "qwen3", "phi3"] {
            assert_eq!(small(family, "num_key_value_heads").kv_heads, 4, "{family}");
            assert_eq!(small(family, "head_dim").head_dim, 16, "{family}");
            assert_eq!(small(family, "eos_token_id").head_dim, 32, "{family}");
            let free = small(family, "sliding_window");
            assert!(free.layers.iter().all(|layer| layer.window.is_none()), "{family}");
        }
        let slides = small("qwen2", "eos_token_id");
        assert_eq!(slides.layers.iter().filter(|layer| layer.window == Some(4096)).count(), 2);
        for (family, key) in [("llama", "rms_norm_eps"), ("gpt2", "activation_function")] {
            let refused = read(&json!({"model_type": family, key: null})).expect_err("refused");
            assert!(refused.to_string().contains(key), "{refused}");
        }
    }

    #[test]
    fn the_other_spellings_of_sizes_are_read() {
        let sizes = json!({"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3});
        for family in ["gpt2", "mpt"] {
            let mut config = sizes.clone();
            config["model_type"] = family.into();
            let config = of(config);
            assert_eq!((config.hidden_size, config.heads, config.layers.len()), (64, 4, 3));
        }
    }

    #[test]
    fn rotary_positions_have_their_base_wherever_it_stands() {
        let gemma = |keys: Value| {
            let mut config = json!({"model_type": "gemma3_text"});
            config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            let config = of(config);
            [0, 5].map(|layer| (theta(&config, layer) / 10.0).round() * 10.0)
        };
        let half = json!({"full_attention": {"rope_type": "default", "rope_theta": 500.0}});
        assert_eq!(gemma(json!({"rope_parameters": half})), [10_000.0, 500.0]);
        assert_eq!(gemma(json!({"rope_local_base_freq": 70.0, "rope_theta": 90.0})), [70.0, 90.0]);
        let llama = |keys: Value| {
            let mut config = json!({"model_type": "llama", "head_dim": 8});
            config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            theta(&of(config), 0)
        };
        let plain = json!({"rope_type": "default"});
        assert_eq!(llama(json!({"rope_parameters": plain})), 10_000.0);
        assert_eq!(llama(json!({"rope_parameters": plain, "rope_theta": 70.0})), 70.0);
        let older = json!({"type": "default", "rope_theta": 90.0});
        assert_eq!(llama(json!({"rope_scaling": older, "rope_theta": 70.0})), 90.0);
        assert_eq!(llama(json!({"rope_scaling": {}, "rope_theta": 70.0})), 70.0);
    }

    #[test]
    fn a_model_that_sees_is_llava_1_5_where_nothing_is_said() {
        let seeing = |keys: Value| {
            let mut config = json!({"model_type": "llava", "text_config": {"vocab_size": 32064}});
            config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            of(config)
        };
        let config = seeing(json!({}));
        let (_, sizes, ..) = CLASSES[1];
        assert_eq!(row(&config).0[1..], sizes[1..]);
        let vision = config.vision.expect("a tower");
        assert_eq!((vision.image_token, vision.image_size, vision.patch_size), (32000, 336, 14));
        let tower = [1024, 4096, 23, 16, 16, 64, 577];
        assert_eq!((&row(&vision.tower).0[1..], vision.tower.activation), (&tower[..], QuickGelu));
        assert!(!vision.keep_class && vision.projector_activation == Gelu);

        let clip = seeing(json!({"vision_config": {}, "image_token_id": 7}));
        let vision = clip.vision.expect("a tower");
        assert_eq!((vision.image_token, vision.image_size, vision.patch_size), (7, 224, 32));
        assert_eq!(row(&vision.tower).0[1..], [768, 3072, 11, 12, 12, 64, 50]);

        let tied = |top: bool, text: Value| {
            seeing(json!({"tie_word_embeddings": top, "text_config": text})).tied
        };
        let vocab = 32064;
        assert!(tied(true, json!({"vocab_size": vocab})));
        assert!(tied(false, json!({"vocab_size": vocab, "tie_word_embeddings": true})));
        assert!(!tied(false, json!({"vocab_size": vocab})));
    }
}
