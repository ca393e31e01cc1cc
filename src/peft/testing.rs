//! A tiny base model and adapters for it, for the tests of this module and its neighbours.

use super::config::scaling;
use super::targets::{Targets, resolve_targets};
use super::{Fingerprints, content_key};
use crate::domain::{
    AdapterSite, AdapterWeights, BaseInfo, LoraSpec, ModuleShape, SaveableModule, TrainingCost,
};

/// Two Llama layers of width 8, MLP 12, and an output head.
pub(crate) fn tiny_base() -> BaseInfo {
    let shape = |layer: Option<usize>, name: &str, in_features, out_features| ModuleShape {
        name: match layer {
            Some(layer) => format!("model.layers.{layer}.{name}"),
            None => name.to_owned(),
        },
        in_features,
        out_features,
        layer,
    };
    let mut modules: Vec<_> = (0..2)
        .flat_map(|layer| {
            [
                shape(Some(layer), "self_attn.q_proj", 8, 8),
                shape(Some(layer), "self_attn.v_proj", 8, 4),
                shape(Some(layer), "mlp.down_proj", 12, 8),
            ]
        })
        .collect();
    modules.push(shape(None, "lm_head", 8, 16));
    let saveable = ["model.embed_tokens", "lm_head"];
    BaseInfo {
        saveable: saveable.map(|name| SaveableModule::table(name, 16, 8)).to_vec(),
        name: "tiny".into(),
        family: "llama".to_owned(),
        context_length: 64,
        vocab_size: 16,
        hidden_size: 8,
        num_layers: 2,
        parameters: 1000,
        dtype: "f32".to_owned(),
        size_bytes: 4000,
        fingerprint: fingerprints().base,
        modules,
        default_targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
        vision: None,
        training: TrainingCost::default(),
    }
}

/// What [`tiny_base`] is served with.
pub(crate) fn fingerprints() -> Fingerprints {
    Fingerprints { base: "b".repeat(64), tokenizer: "t".repeat(64), template: None }
}

/// An adapter on these modules of [`tiny_base`], alpha twice the rank, numbers all different.
pub(crate) fn adapter(targets: &[&str], r: usize) -> (AdapterWeights, LoraSpec) {
    let base = tiny_base();
    let names = Targets::Names(targets.iter().map(|&name| name.to_owned()).collect());
    let modules = resolve_targets(&names.into(), &base).expect("modules of the tiny base");
    let mut next = 0.0f32;
    let mut numbers = |count: usize| {
        let fill = (0..count).map(|i| (next + i as f32) / 64.0).collect();
        next += count as f32;
        fill
    };
    let alpha = 2.0 * r as f64;
    let sites: Vec<_> = modules
        .iter()
        .map(|module| AdapterSite {
            module: module.name.clone(),
            r,
            scaling: scaling(alpha, r, false),
            a: numbers(r * module.in_features),
            b: numbers(r * module.out_features),
            magnitude: None,
        })
        .collect();
    let spec = LoraSpec {
        r,
        alpha,
        dropout: 0.0,
        modules: sites.iter().map(|site| site.module.clone()).collect(),
        ranks: Vec::new(),
        use_rslora: false,
        ..LoraSpec::default()
    };
    (AdapterWeights { key: content_key(&sites, &[]), sites, saved: Vec::new(), dropout: 0.0 }, spec)
}
