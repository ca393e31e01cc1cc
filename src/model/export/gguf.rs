//! A GGUF file, its tensors named and laid out as ggml's tools expect them.

use std::path::Path;

use super::{Meta, ModelError, TensorType, Weights, Written, encode};
use crate::gguf::{Metadata, NewTensor, Writer};
use crate::model::gguf::{described, interleave_halves, interleaved_heads, stored_name};
use crate::model::tensors::{TensorKind, TensorSpec};

/// Everything about a tensor that is known before its values are.
struct Plan<'a> {
    spec: &'a TensorSpec,
    tensor: NewTensor,
}

pub(super) fn write(
    weights: &mut Weights<'_>,
    path: &Path,
    name: &str,
    kind: TensorType,
    text: Vec<(String, Meta)>,
) -> Result<Written, ModelError> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let described = described(weights.config, &weights.json)?;
    let mut metadata = Metadata { file, values: described.metadata };
    metadata.values.extend(text);
    metadata.values.insert("general.name".into(), Meta::Text(name.to_owned()));
    metadata.values.insert("general.file_type".into(), Meta::Int(kind.file_type()));
    if kind.block() > 1 {
        metadata.values.insert("general.quantization_version".into(), Meta::Int(2));
    }
    let specs = std::mem::take(&mut weights.specs);
    let plans: Vec<Plan<'_>> =
        specs.iter().map(|spec| plan(weights, spec, kind)).collect::<Result<_, _>>()?;
    let vectors = described.vectors.iter().map(|(name, values)| NewTensor {
        name: (*name).to_owned(),
        shape: vec![values.len()],
        kind: TensorType::F32,
    });
    let tensors: Vec<NewTensor> =
        vectors.chain(plans.iter().map(|plan| plan.tensor.clone())).collect();
    let mut writer = Writer::create(path, &metadata, &tensors)?;
    let mut written = Written { tensors: tensors.len(), ..Written::default() };
    for (_, values) in &described.vectors {
        put(&mut writer, TensorType::F32, values, &mut written)?;
    }
    for plan in plans {
        let values = weights.values(plan.spec)?;
        let bytes = laid_out(weights, &plan, values)?;
        written.bytes += bytes.len() as u64;
        writer.tensor(&bytes)?;
        let wanted = matches!(plan.spec.kind, TensorKind::Weight(_)) && plan.tensor.kind != kind;
        if wanted && plan.tensor.name != POSITIONS {
            written.fallbacks.push((plan.tensor.name, plan.tensor.kind));
        }
    }
    writer.finish()?;
    Ok(written)
}

/// Other readers look up positions in f32 alone.
const POSITIONS: &str = "position_embd.weight";

fn plan<'a>(
    weights: &Weights<'_>,
    spec: &'a TensorSpec,
    kind: TensorType,
) -> Result<Plan<'a>, ModelError> {
    let name = stored_name(weights.config, &spec.name)
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
    weights: &Weights<'_>,
    plan: &Plan<'_>,
    mut values: Vec<f32>,
) -> Result<Vec<u8>, ModelError> {
    if let TensorKind::Norm { minus } = plan.spec.kind {
        values.iter_mut().for_each(|value| *value += minus);
    }
    let name = &plan.tensor.name;
    let bytes = encode::encode(plan.tensor.kind, &values)
        .map_err(|reason| super::unsupported(name, reason))?;
    Ok(match interleaved_heads(weights.config, name) {
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
