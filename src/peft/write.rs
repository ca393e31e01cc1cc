//! An adapter to the files PEFT loads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::config::scaling;
use super::provenance::Provenance;
use super::read::{magnitude_name, saved_name, tensor_names};
use super::targets::{Targets, resolve_targets};
use super::{CONFIG_FILE, PROVENANCE_FILE, PeftError, WEIGHTS_FILE};
use crate::domain::{AdapterSite, AdapterWeights, BaseInfo, LoraSpec, SavedModule};

/// The contents of an adapter folder.
#[derive(Clone, Debug)]
pub struct AdapterFiles {
    /// `adapter_config.json`
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub tensors: Vec<u8>,
    /// `tandem.json`, where the adapter was made here.
    pub provenance: Option<Vec<u8>>,
}

impl AdapterFiles {
    /// Each file with its name, as they lie in the folder.
    pub fn entries(&self) -> Vec<(&'static str, &[u8])> {
        let mut entries = vec![(CONFIG_FILE, &self.config[..]), (WEIGHTS_FILE, &self.tensors[..])];
        entries.extend(self.provenance.as_deref().map(|bytes| (PROVENANCE_FILE, bytes)));
        entries
    }

    /// Puts a folder together from named contents, as an upload or a directory gives them.
    ///
    /// # Errors
    /// [`PeftError::MissingFile`] without configuration or weights.
    pub fn from_entries(
        entries: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<Self, PeftError> {
        let mut entries: BTreeMap<String, Vec<u8>> = entries.into_iter().collect();
        let mut take = |file: &'static str| entries.remove(file);
        Ok(Self {
            config: take(CONFIG_FILE).ok_or(PeftError::MissingFile { file: CONFIG_FILE })?,
            tensors: take(WEIGHTS_FILE).ok_or(PeftError::MissingFile { file: WEIGHTS_FILE })?,
            provenance: take(PROVENANCE_FILE),
        })
    }

    /// Reads a folder. Blocking.
    ///
    /// # Errors
    /// Whatever reading the files gives, a missing one included.
    pub fn from_dir(dir: &Path) -> std::io::Result<Self> {
        let optional = |file: &str| match std::fs::read(dir.join(file)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        Ok(Self {
            config: std::fs::read(dir.join(CONFIG_FILE))?,
            tensors: std::fs::read(dir.join(WEIGHTS_FILE))?,
            provenance: optional(PROVENANCE_FILE)?,
        })
    }
}

/// Writes `weights`, trained as `spec` says on `base`, in PEFT's layout, matrices as f32.
pub fn write(
    weights: &AdapterWeights,
    spec: &LoraSpec,
    base: &BaseInfo,
    provenance: &Provenance,
) -> AdapterFiles {
    let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
    let provenance = serde_json::to_value(provenance).expect("plain strings become JSON");
    AdapterFiles {
        config: pretty(&config(weights, spec, base)),
        tensors: tensors(weights, base),
        provenance: Some(pretty(&provenance)),
    }
}

/// Hex SHA-256 over modules, ranks, scalings and values: names the content, not the file.
pub fn content_key(sites: &[AdapterSite], saved: &[SavedModule]) -> String {
    let mut hash = Sha256::new();
    for site in sites {
        hash.update((site.module.len() as u64).to_le_bytes());
        hash.update(site.module.as_bytes());
        hash.update((site.r as u64).to_le_bytes());
        hash.update(site.scaling.to_le_bytes());
        hash.update(bytemuck::cast_slice::<f32, u8>(&site.a));
        hash.update(bytemuck::cast_slice::<f32, u8>(&site.b));
        if let Some(magnitude) = &site.magnitude {
            hash.update(b"magnitude");
            hash.update(bytemuck::cast_slice::<f32, u8>(magnitude));
        }
    }
    for module in saved {
        hash.update((module.module.len() as u64).to_le_bytes());
        hash.update(module.module.as_bytes());
        for values in &module.values {
            hash.update(bytemuck::cast_slice::<f32, u8>(values));
        }
    }
    hex::encode(hash.finalize())
}

fn config(weights: &AdapterWeights, spec: &LoraSpec, base: &BaseInfo) -> Value {
    let sites = &weights.sites;
    let mut config = json!({
        "alpha_pattern": alpha_pattern(sites, spec),
        "auto_mapping": null,
        "base_model_name_or_path": &*base.name,
        "bias": "none",
        "exclude_modules": null,
        "fan_in_fan_out": base.family == "gpt2",
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": short_number(spec.alpha),
        "lora_bias": false,
        "lora_dropout": spec.dropout,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": saved_names(weights),
        "peft_type": "LORA",
        "peft_version": "0.17.0",
        "r": spec.r,
        "rank_pattern": rank_pattern(sites, spec),
        "revision": null,
        "target_modules": target_names(sites, base),
        "target_parameters": null,
        "task_type": "CAUSAL_LM",
        "use_dora": sites.iter().any(|site| site.magnitude.is_some()),
        "use_rslora": spec.use_rslora,
    });
    config.sort_all_objects();
    config
}

/// The last segments of the modules that are saved whole; PEFT writes null for none.
fn saved_names(weights: &AdapterWeights) -> Option<Vec<&str>> {
    let names = weights.saved.iter().map(|saved| saved.module.rsplit('.').next().unwrap_or(""));
    (!weights.saved.is_empty()).then(|| names.collect())
}

/// PEFT writes whole alphas without a point.
fn short_number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn rank_pattern(sites: &[AdapterSite], spec: &LoraSpec) -> Map<String, Value> {
    let differing = sites.iter().filter(|site| site.r != spec.r);
    differing.map(|site| (regex::escape(&site.module), json!(site.r))).collect()
}

/// An alpha for each site whose scaling the common one does not give.
fn alpha_pattern(sites: &[AdapterSite], spec: &LoraSpec) -> Map<String, Value> {
    let differing =
        sites.iter().filter(|site| site.scaling != scaling(spec.alpha, site.r, spec.use_rslora));
    differing
        .map(|site| {
            let r = site.r as f64;
            let divisor = if spec.use_rslora { r.sqrt() } else { r };
            (regex::escape(&site.module), short_number(f64::from(site.scaling) * divisor))
        })
        .collect()
}

/// The last segments of the module names, where they choose exactly these modules; else the names.
/// In a model that sees the tower's modules have the same last segments.
fn target_names(sites: &[AdapterSite], base: &BaseInfo) -> Vec<String> {
    let full: Vec<String> = sites.iter().map(|site| site.module.clone()).collect();
    let last = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
    let short: Vec<String> = full.iter().map(last).collect::<BTreeSet<_>>().into_iter().collect();
    let chosen = resolve_targets(&Targets::Names(short.clone()).into(), base);
    let same = chosen.is_ok_and(|modules| {
        modules.len() == full.len() && modules.iter().all(|module| full.contains(&module.name))
    });
    if same && base.vision.is_none() { short } else { full }
}

fn tensors(weights: &AdapterWeights, base: &BaseInfo) -> Vec<u8> {
    let sites = weights.sites.iter().flat_map(|site| {
        let [a_name, b_name] = tensor_names(&site.module);
        let (input, output) = (site.a.len() / site.r, site.b.len() / site.r);
        let matrices = [
            (a_name, view(vec![site.r, input], &site.a)),
            (b_name, view(vec![output, site.r], &site.b)),
        ];
        let magnitude = site.magnitude.as_ref().map(|magnitude| {
            (magnitude_name(&site.module), view(vec![magnitude.len()], magnitude))
        });
        matrices.into_iter().chain(magnitude)
    });
    let saved = weights.saved.iter().flat_map(|saved| {
        let module = base.saveable.iter().find(|module| module.name == saved.module);
        let tensors = module.into_iter().flat_map(|module| &module.tensors);
        tensors.zip(&saved.values).map(|(tensor, values)| {
            (saved_name(&saved.module, &tensor.name), view(tensor.stored(), values))
        })
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(sites.chain(saved), Some(metadata)).expect("names and shapes are ours")
}

fn view(shape: Vec<usize>, numbers: &[f32]) -> TensorView<'_> {
    // Little-endian hosts only, as everywhere in this program.
    TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(numbers))
        .expect("the shape was computed from the length")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{adapter, fingerprints, tiny_base};
    use super::*;

    fn written(targets: &[&str], r: usize) -> Value {
        let (weights, spec) = adapter(targets, r);
        config(&weights, &spec, &tiny_base())
    }

    #[test]
    fn targets_are_written_short_where_that_is_unambiguous() {
        assert_eq!(written(&["q_proj"], 2)["target_modules"], json!(["q_proj"]));
        let one = written(&["layers.1.self_attn.q_proj"], 2);
        assert_eq!(one["target_modules"], json!(["model.layers.1.self_attn.q_proj"]));
    }

    #[test]
    fn the_keys_peft_needs_are_there() {
        let config = written(&["q_proj"], 2);
        for key in ["peft_type", "task_type", "r", "lora_alpha", "target_modules", "bias"] {
            assert!(!config[key].is_null(), "{key}");
        }
        assert_eq!(config["lora_alpha"], json!(4));
    }

    #[test]
    fn ranks_and_scalings_of_their_own_survive() {
        let (mut weights, spec) = adapter(&["q_proj"], 2);
        weights.sites[1].scaling = 0.7;
        let provenance = Provenance {
            base_model: "tiny".to_owned(),
            fingerprints: fingerprints(),
            job: None,
            step: None,
        };
        let files = write(&weights, &spec, &tiny_base(), &provenance);
        let read = super::super::read(&files, &tiny_base(), &fingerprints()).expect("ours");
        assert_eq!(read.weights.sites, weights.sites);
    }
}
