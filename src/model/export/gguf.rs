//! A GGUF file, its tensors named and laid out as ggml's tools expect them.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Meta, ModelError, TensorType, Weights, Written, encode};
use crate::gguf::{Metadata, NewTensor, Writer};
use crate::model::config::DecoderConfig;
use crate::model::families::{PROJECTOR, TOWER, decoder_alone};
use crate::model::gguf::{Described, described, interleave_halves, interleaved_heads, stored_name};
use crate::model::tensors::{TensorKind, TensorSpec};

/// Everything about a tensor that is known before its values are.
pub(super) struct Plan<'a> {
    pub spec: &'a TensorSpec,
    pub tensor: NewTensor,
}

/// A file about to be written.
pub(super) struct File<'a> {
    pub path: &'a Path,
    pub metadata: BTreeMap<String, Meta>,
    /// Tensors that the source has no values for.
    pub vectors: Vec<(&'static str, Vec<f32>)>,
    pub plans: Vec<Plan<'a>>,
}

pub(super) fn write(
    weights: &mut Weights<'_>,
    path: &Path,
    name: &str,
    kind: TensorType,
    text: Vec<(String, Meta)>,
) -> Result<Written, ModelError> {
    let (config, json) = decoder_alone(weights.config, &weights.json)?;
    let Described { mut metadata, vectors } = described(&config, &json)?;
    metadata.extend(text);
    metadata.insert("general.name".into(), Meta::Text(name.to_owned()));
    metadata.insert("general.file_type".into(), Meta::Int(kind.file_type()));
    if kind.block() > 1 {
        metadata.insert("general.quantization_version".into(), Meta::Int(2));
    }
    let mut specs = std::mem::take(&mut weights.specs);
    specs.retain(|spec| ![TOWER, PROJECTOR].iter().any(|part| spec.name.starts_with(part)));
    let plans: Vec<Plan<'_>> =
        specs.iter().map(|spec| plan(&config, spec, kind)).collect::<Result<_, _>>()?;
    let wanted = |plan: &&Plan<'_>| {
        let other = matches!(plan.spec.kind, TensorKind::Weight(_)) && plan.tensor.kind != kind;
        other && plan.tensor.name != POSITIONS
    };
    let fallbacks = plans.iter().filter(wanted);
    let fallbacks = fallbacks.map(|plan| (plan.tensor.name.clone(), plan.tensor.kind)).collect();
    let written = File { path, metadata, vectors, plans }.write(weights, &config)?;
    Ok(Written { fallbacks, ..written })
}

impl File<'_> {
    /// Writes all of it; `config` tells how the rows of attention are ordered.
    pub fn write(
        self,
        weights: &mut Weights<'_>,
        config: &DecoderConfig,
    ) -> Result<Written, ModelError> {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let metadata = Metadata { file, values: self.metadata };
        let vectors = self.vectors.iter().map(|(name, values)| NewTensor {
            name: (*name).to_owned(),
            shape: vec![values.len()],
            kind: TensorType::F32,
        });
        let tensors: Vec<NewTensor> =
            vectors.chain(self.plans.iter().map(|plan| plan.tensor.clone())).collect();
        let mut writer = Writer::create(self.path, &metadata, &tensors)?;
        let mut written = Written { tensors: tensors.len(), ..Written::default() };
        for (_, values) in &self.vectors {
            put(&mut writer, TensorType::F32, values, &mut written)?;
        }
        for plan in &self.plans {
            let values = weights.values(plan.spec)?;
            let bytes = laid_out(config, plan, values)?;
            written.bytes += bytes.len() as u64;
            writer.tensor(&bytes)?;
        }
        writer.finish()?;
        Ok(written)
    }
}

/// Other readers look up positions in f32 alone.
const POSITIONS: &str = "position_embd.weight";

fn plan<'a>(
    config: &DecoderConfig,
    spec: &'a TensorSpec,
    kind: TensorType,
) -> Result<Plan<'a>, ModelError> {
    let name = stored_name(config, &spec.name)
        .ok_or_else(|| super::unsupported("the tensor", &spec.name))?;
    let (kind, shape) = match spec.kind {
        TensorKind::Weight(_) if name == POSITIONS => {
            (TensorType::F32, vec![spec.shape.0, spec.shape.1])
        }
        TensorKind::Weight(_) => {
            (encode::or_fallback(kind, spec.shape.1), vec![spec.shape.0, spec.shape.1])
        }
        _ => (TensorType::F32, vec![spec.shape.1]),
    };
    Ok(Plan { spec, tensor: NewTensor { name, shape, kind } })
}

fn laid_out(
    config: &DecoderConfig,
    plan: &Plan<'_>,
    mut values: Vec<f32>,
) -> Result<Vec<u8>, ModelError> {
    if let TensorKind::Norm { minus } = plan.spec.kind {
        values.iter_mut().for_each(|value| *value += minus);
    }
    let name = &plan.tensor.name;
    let bytes = encode::encode(plan.tensor.kind, &values)
        .map_err(|reason| super::unsupported(name, reason))?;
    Ok(match interleaved_heads(config, name) {
        Some(heads) => interleave_halves(&bytes, plan.tensor.shape[0], heads),
        None => bytes,
    })
}

fn put(
    writer: &mut Writer,
    kind: TensorType,
    values: &[f32],
    written: &mut Written,
) -> Result<(), ModelError> {
    let bytes =
        encode::encode(kind, values).map_err(|reason| super::unsupported("a vector", reason))?;
    written.bytes += bytes.len() as u64;
    Ok(writer.tensor(&bytes)?)
}
