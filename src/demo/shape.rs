//! The demo model's architecture, its first weights, and the files it is kept in.

use std::borrow::Cow;
use std::collections::HashMap;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::DemoError;
use super::tokenizer::{END_OF_TEXT_ID, PAD_ID, TURN_END_ID};
use crate::model::ModelSource;
use crate::train::rng::{Site, Stream};

/// Sizes of a small Llama: RMSNorm, RoPE, SwiGLU, grouped queries, tied embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub context_length: usize,
}

impl Shape {
    /// The demo model: 1.8 million parameters, 3.6 MB in bf16.
    pub const DEMO: Self = Self {
        vocab_size: 2048,
        hidden_size: 192,
        intermediate_size: 448,
        num_layers: 4,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        context_length: 512,
    };

    /// `config.json`, as transformers reads it.
    pub fn config(&self, dtype: &str) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context_length,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": true,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": [END_OF_TEXT_ID, TURN_END_ID],
            "pad_token_id": PAD_ID,
            "torch_dtype": dtype,
        })
    }

    /// `generation_config.json`.
    pub fn generation_config() -> Value {
        json!({
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": [END_OF_TEXT_ID, TURN_END_ID],
            "pad_token_id": PAD_ID,
        })
    }

    /// Name and shape of every tensor, as in the checkpoint; a norm's shape has one axis.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, ff) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for layer in 0..self.num_layers {
            let mut push = |name: &str, shape| {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            };
            push("input_layernorm", vec![d]);
            push("self_attn.q_proj", vec![q, d]);
            push("self_attn.k_proj", vec![kv, d]);
            push("self_attn.v_proj", vec![kv, d]);
            push("self_attn.o_proj", vec![d, q]);
            push("post_attention_layernorm", vec![d]);
            push("mlp.gate_proj", vec![ff, d]);
            push("mlp.up_proj", vec![ff, d]);
            push("mlp.down_proj", vec![d, ff]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![d]));
        tensors
    }

    /// Numbers in all tensors together.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The model before its first step: norms 1, matrices normal with deviation 0.7 / √in, those
    /// that write to the residual stream smaller by √(2 layers) (Radford et al. 2019, section 2.3).
    ///
    /// # Errors
    /// [`DemoError::Weights`] if the tensors cannot be laid out.
    pub fn initial(&self, seed: u64) -> Result<ModelSource, DemoError> {
        let mut values = Vec::new();
        for (number, (name, shape)) in self.tensors().into_iter().enumerate() {
            let count: usize = shape.iter().product();
            let stream = Stream::new(seed, 0, Site::Init(number));
            let deviation = self.deviation(&name, &shape);
            let norm = shape.len() == 1;
            let draw = |i| if norm { 1.0 } else { deviation * stream.normal(i) };
            values.push((name, shape, (0..count as u64).map(draw).collect()));
        }
        let tensors = safetensors(&values, Dtype::F32)?;
        let config = self.config("float32").to_string().into_bytes();
        Ok(ModelSource::Embedded { config: Cow::Owned(config), tensors: Cow::Owned(tensors) })
    }

    fn deviation(&self, name: &str, shape: &[usize]) -> f32 {
        let inputs = *shape.last().expect("a shape has an axis") as f32;
        let residual = name.contains("o_proj") || name.contains("down_proj");
        let layers = if residual { (2.0 * self.num_layers as f32).sqrt() } else { 1.0 };
        0.7 / inputs.sqrt() / layers
    }
}

/// Tensors as a safetensors file, in bf16 or f32.
///
/// # Errors
/// [`DemoError::Weights`] if a shape does not fit its values.
pub fn safetensors(
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    dtype: Dtype,
) -> Result<Vec<u8>, DemoError> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| match dtype {
            Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
        .collect();
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, shape, _), bytes) in tensors.iter().zip(&bytes) {
        let view = TensorView::new(dtype, shape.clone(), bytes)
            .map_err(|error| DemoError::Weights(error.to_string()))?;
        views.push((name, view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata))
        .map_err(|error| DemoError::Weights(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_model_stays_under_four_megabytes() {
        let parameters = Shape::DEMO.parameters();
        assert!((1_500_000..1_950_000).contains(&parameters), "{parameters}");
        let ModelSource::Embedded { tensors, .. } = Shape::DEMO.initial(1).expect("weights") else {
            panic!("in memory");
        };
        assert!(tensors.len() / 2 < 4_000_000);
    }
}
