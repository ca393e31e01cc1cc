//! LoRA adapters in GGUF: one alpha for all, and beside each matrix of the base that is adapted a
//! `.lora_a (r, in)` and a `.lora_b (out, r)`.
//!
//! As `convert_lora_to_gguf.py` of llama.cpp writes them and its `llama-adapter.cpp` reads them.

use std::path::Path;
use std::sync::Arc;

use super::super::checkpoint::{Checkpoint, Stored};
use super::super::config::DecoderConfig;
use super::super::load::{config_bytes, parse};
use super::super::tensors::{TensorKind, TensorSpec};
use super::super::{ModelError, ModelSource, families};
use super::describe::not_exportable;
use super::names::{interleave_halves, interleaved_heads, split_halves, stored_name};
use crate::backend::{HostThreads, WeightFormat};
use crate::domain::{AdapterSite, AdapterWeights, BaseInfo, ModuleShape};
use crate::gguf::{Gguf, Metadata, NewTensor, TensorType, Value as Meta, Writer};

const ALPHA: &str = "adapter.lora.alpha";

/// The adapter in the file at `path`, for `base`, which was loaded from `source`.
///
/// # Errors
/// If the file is no adapter, or holds a tensor that does not fit the base.
pub fn read_adapter(
    path: &Path,
    source: &ModelSource,
    base: &BaseInfo,
) -> Result<AdapterWeights, ModelError> {
    let gguf = Gguf::open(path)?;
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = gguf.metadata.text(key)?.unwrap_or("nothing");
        if found != expected {
            return Err(gguf.metadata.unsupported(key, found, expected).into());
        }
    }
    let alpha = gguf.metadata.number(ALPHA)?.ok_or_else(|| gguf.metadata.missing(ALPHA))?;
    let config = families::read(&parse("config.json", &config_bytes(source)?)?)?;
    let file = ModelSource::Gguf(path.to_owned());
    let mut checkpoint =
        Checkpoint::open(&file, &[], &config.family, Arc::new(HostThreads::new(1)))?;
    let mut sites = Vec::new();
    for module in &base.modules {
        let Some(name) = stored_name(&config, &format!("{}.weight", module.name)) else { continue };
        let first = format!("{name}.lora_a");
        let info = gguf.tensors.iter().find(|tensor| tensor.name == first);
        if let Some(&r) = info.and_then(|info| info.shape.first()) {
            sites.push(read_site(&mut checkpoint, &config, module, &name, (r, alpha))?);
        }
    }
    checkpoint.finish(|_| false)?;
    match sites.is_empty() {
        true => Err(ModelError::EmptyAdapter),
        false => Ok(AdapterWeights { key: String::new(), sites, saved: Vec::new(), dropout: 0.0 }),
    }
}

fn read_site(
    checkpoint: &mut Checkpoint,
    config: &DecoderConfig,
    module: &ModuleShape,
    name: &str,
    (r, alpha): (usize, f32),
) -> Result<AdapterSite, ModelError> {
    let (rows, width) = (module.out_features, module.in_features);
    let a = matrix(checkpoint, format!("{name}.lora_a"), (r, width))?;
    let mut b = matrix(checkpoint, format!("{name}.lora_b"), (rows, r))?;
    if let Some(heads) = interleaved_heads(config, name) {
        let stored = std::mem::replace(&mut b, vec![0.0; rows * r]);
        split_halves(bytemuck::cast_slice(&stored), rows, heads, bytemuck::cast_slice_mut(&mut b));
    }
    // An alpha of 0 stands for none.
    let scaling = if alpha == 0.0 { 1.0 } else { alpha / r as f32 };
    Ok(AdapterSite { module: module.name.clone(), r, scaling, a, b, magnitude: None })
}

fn matrix(
    checkpoint: &mut Checkpoint,
    name: String,
    shape: (usize, usize),
) -> Result<Vec<f32>, ModelError> {
    let kind = TensorKind::Weight(WeightFormat::F32);
    let spec =
        TensorSpec { name: name.clone(), stored: name.clone(), shape, kind, transposed: false };
    match checkpoint.read(&spec)? {
        Stored::Values { values, .. } => Ok(values.to_vec(&HostThreads::new(1))),
        Stored::Blocks(blocks) => Err(ModelError::TensorType {
            file: "the adapter".to_owned(),
            tensor: name,
            dtype: blocks.format().name().to_owned(),
        }),
    }
}

/// Writes `adapter`, of a base that was loaded from `source`, to a file at `path`; returns its bytes.
///
/// Sites whose scaling the one alpha does not give have the rest of it in their `B`.
///
/// # Errors
/// [`ModelError::NotExportable`] for DoRA and modules saved whole, which the format has no place
/// for; or if the file cannot be written.
pub fn write_adapter(
    path: &Path,
    name: &str,
    source: &ModelSource,
    adapter: &AdapterWeights,
) -> Result<u64, ModelError> {
    let json = parse("config.json", &config_bytes(source)?)?;
    let config = families::read(&json)?;
    if adapter.sites.iter().any(|site| site.magnitude.is_some()) {
        return Err(not_exportable("use_dora", true));
    }
    if let Some(saved) = adapter.saved.first() {
        return Err(not_exportable("modules_to_save", &saved.module));
    }
    let alpha = adapter.sites.first().map_or(0.0, |site| site.scaling * site.r as f32);
    let architecture = super::described(&config, &json)?.metadata.remove("general.architecture");
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut metadata = Metadata { file, ..Metadata::default() };
    metadata.values.extend(architecture.map(|value| ("general.architecture".to_owned(), value)));
    for (key, value) in [("type", "adapter"), ("name", name)] {
        metadata.values.insert(format!("general.{key}"), Meta::Text(value.to_owned()));
    }
    metadata.values.insert("general.file_type".to_owned(), Meta::Int(TensorType::F32.file_type()));
    metadata.values.insert("adapter.type".to_owned(), Meta::Text("lora".to_owned()));
    metadata.values.insert(ALPHA.to_owned(), Meta::Float(alpha));
    let mut tensors = Vec::new();
    let mut matrices = Vec::new();
    for site in &adapter.sites {
        let name = stored_name(&config, &format!("{}.weight", site.module))
            .ok_or_else(|| not_exportable("the module", &site.module))?;
        let b = stored_b(site, alpha, interleaved_heads(&config, &name));
        let (width, rows) = (site.a.len() / site.r, site.b.len() / site.r);
        for (end, shape) in [("lora_a", [site.r, width]), ("lora_b", [rows, site.r])] {
            let name = format!("{name}.{end}");
            tensors.push(NewTensor { name, shape: shape.to_vec(), kind: TensorType::F32 });
        }
        matrices.extend([bytemuck::cast_slice(&site.a).to_vec(), b]);
    }
    let mut writer = Writer::create(path, &metadata, &tensors)?;
    for bytes in &matrices {
        writer.tensor(bytes)?;
    }
    writer.finish()?;
    Ok(matrices.iter().map(|bytes| bytes.len() as u64).sum())
}

/// `B` as the file has it: what the one alpha leaves of the scaling multiplied in, halves
/// interleaved.
fn stored_b(site: &AdapterSite, alpha: f32, heads: Option<usize>) -> Vec<u8> {
    let rest = if alpha == 0.0 { site.scaling } else { site.scaling * site.r as f32 / alpha };
    // Divided and multiplied again, a scaling may be off by its last bit.
    let rest = if (rest - 1.0).abs() < 1e-6 { 1.0 } else { rest };
    let b: Vec<f32> = site.b.iter().map(|value| value * rest).collect();
    let bytes = bytemuck::cast_slice(&b);
    match heads {
        Some(heads) => interleave_halves(bytes, b.len() / site.r, heads),
        None => bytes.to_vec(),
    }
}
