//! Phi-3 (Abdin et al. 2024): Llama with q, k, v fused into one projection, and gate and up too.

use super::*;
use crate::model::config::LinearConfig;

pub fn phi3(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = super::llama::base(fields, false, false)?;
    let qkv = config.attention_width() + 2 * config.kv_width();
    config.names.qkv = vec![LinearConfig::new("self_attn.qkv_proj", qkv, false)];
    let up = 2 * config.intermediate_size;
    config.names.up = vec![LinearConfig::new("mlp.gate_up_proj", up, false)];
    let window = fields.optional_usize("sliding_window")?;
    config.layers.iter_mut().for_each(|layer| layer.window = window);
    config.default_targets = &["qkv_proj"];
    Ok(config)
}
