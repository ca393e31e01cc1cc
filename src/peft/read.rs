//! Files to an adapter the device may be given, or the reason why not.

use super::config::AdapterConfig;
use super::error::{PeftError, Result};
use super::provenance::{Fingerprints, Provenance};
use super::targets::{by_pattern, compile_patterns, resolve_saved, resolve_targets};
use super::tensors::Tensors;
use super::write::{AdapterFiles, content_key};
use crate::domain::{
    AdapterSite, AdapterWeights, BaseInfo, ModuleShape, SaveableModule, SavedModule, TensorShape,
};

/// An adapter that fits its base model.
#[derive(Clone, Debug)]
pub struct CheckedAdapter {
    pub weights: AdapterWeights,
    pub config: AdapterConfig,
    pub provenance: Option<Provenance>,
    /// Sentences for whoever registered it; none of them prevents its use.
    pub notes: Vec<String>,
}

/// Reads an adapter for `base`, whose fingerprints are `served`.
///
/// Costs two passes over the matrices: call it away from async threads.
///
/// # Errors
/// [`PeftError`] names the first thing that does not fit.
pub fn read(
    files: &AdapterFiles,
    base: &BaseInfo,
    served: &Fingerprints,
) -> Result<CheckedAdapter> {
    let mut checked = read_known(files, base, served, "")?;
    checked.weights.key = content_key(&checked.weights.sites, &checked.weights.saved);
    Ok(checked)
}

/// The same for files that were verified against a hash: `hash` names their content, and nothing
/// is hashed again.
///
/// # Errors
/// As [`read`].
pub fn read_known(
    files: &AdapterFiles,
    base: &BaseInfo,
    served: &Fingerprints,
    hash: &str,
) -> Result<CheckedAdapter> {
    let config = AdapterConfig::parse(&files.config)?;
    let provenance = files.provenance.as_deref().map(Provenance::parse).transpose()?;
    let mut notes = config.notes.clone();
    match &provenance {
        Some(provenance) => provenance.check(served)?,
        None => notes.push(
            "the adapter carries no fingerprints; it was accepted because its modules and shapes fit"
                .to_owned(),
        ),
    }
    let (sites, saved) = read_weights(&config, base, &files.tensors, &mut notes)?;
    let key = hash.to_owned();
    let weights = AdapterWeights { key, sites, saved, dropout: config.lora_dropout };
    Ok(CheckedAdapter { weights, config, provenance, notes })
}

fn read_weights(
    config: &AdapterConfig,
    base: &BaseInfo,
    bytes: &[u8],
    notes: &mut Vec<String>,
) -> Result<(Vec<AdapterSite>, Vec<SavedModule>)> {
    let ranks = compile_patterns(&config.rank_pattern)?;
    let alphas = compile_patterns(&config.alpha_pattern)?;
    let mut tensors = Tensors::open(bytes)?;
    if base.vision.is_some() {
        tensors.rename(todays_name);
    }
    let modules = targets(config, base, &tensors, notes)?;
    skip_base_layers(&modules, base, &mut tensors, notes);
    let sites = modules
        .into_iter()
        .map(|module| {
            let r = by_pattern(&ranks, &module.name).unwrap_or(config.r);
            let alpha = by_pattern(&alphas, &module.name).unwrap_or(config.lora_alpha);
            let scaling = config.scaling(alpha, r);
            read_site(&mut tensors, module, r, scaling, config.use_dora)
        })
        .collect::<Result<Vec<_>>>()?;
    let saved = saved_modules(config, base, &tensors)?
        .into_iter()
        .map(|module| read_saved(&mut tensors, module))
        .collect::<Result<Vec<_>>>()?;
    match tensors.left_over() {
        None => Ok((sites, saved)),
        Some(tensor) => Err(PeftError::UnexpectedTensor {
            tensor: tensor.to_owned(),
            base: base.name.to_string(),
        }),
    }
}

/// The modules that carry matrices. A pattern of Python's that goes beyond ours chose those that the
/// file has matrices of.
fn targets<'a>(
    config: &AdapterConfig,
    base: &'a BaseInfo,
    tensors: &Tensors<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<&'a ModuleShape>> {
    match resolve_targets(&config.filter(&base.default_targets), base) {
        Err(PeftError::Pattern { pattern, source }) => {
            let covered = |module: &&ModuleShape| tensors.has(&tensor_names(&module.name)[0]);
            let modules: Vec<_> = base.modules.iter().filter(covered).collect();
            if modules.is_empty() {
                return Err(PeftError::Pattern { pattern, source });
            }
            notes.push(format!(
                "the pattern `{pattern}` is none that is read here; the adapter covers the modules \
                 that its file has matrices of"
            ));
            Ok(modules)
        }
        resolved => resolved,
    }
}

/// PEFT writes the base's own matrix beside those of an adapted embedding or head. The base that is
/// served has one already, which is taken for the same.
fn skip_base_layers(
    modules: &[&ModuleShape],
    base: &BaseInfo,
    tensors: &mut Tensors<'_>,
    notes: &mut Vec<String>,
) {
    for module in modules {
        let Some(table) = base.saveable.iter().find(|table| table.name == module.name) else {
            continue;
        };
        for tensor in &table.tensors {
            let name = saved_name(&module.name, &format!("base_layer.{}", tensor.name));
            if tensors.skip(&name, &tensor.stored()) {
                notes.push(format!(
                    "`{name}`, the base model's own weight as PEFT stores it, is left out; the one \
                     that is served is used"
                ));
            }
        }
    }
}

/// The modules replaced whole: those the configuration names, and embeddings and heads that PEFT
/// saved by themselves (`save_embedding_layers`).
fn saved_modules<'a>(
    config: &AdapterConfig,
    base: &'a BaseInfo,
    tensors: &Tensors<'_>,
) -> Result<Vec<&'a SaveableModule>> {
    let mut modules = resolve_saved(&config.modules_to_save, base)?;
    for module in &base.saveable {
        let stored = |tensor: &TensorShape| tensors.has(&saved_name(&module.name, &tensor.name));
        if module.tensors.iter().all(stored) && modules.iter().all(|m| m.name != module.name) {
            modules.push(module);
        }
    }
    Ok(modules)
}

/// The name of today for a tensor of a LLaVA that transformers before 4.52 put together: decoder and
/// projector stood beside each other then, and now stand inside of one model.
fn todays_name(name: &str) -> Option<String> {
    const ALL: &str = "base_model.model.";
    let rest = name.strip_prefix(ALL)?;
    let today = |from: &str, to: &str| Some(format!("{ALL}{to}{}", rest.strip_prefix(from)?));
    today("language_model.model.", "model.language_model.")
        .or_else(|| today("language_model.lm_head.", "lm_head."))
        .or_else(|| today("multi_modal_projector.", "model.multi_modal_projector."))
}

fn read_site(
    tensors: &mut Tensors<'_>,
    module: &ModuleShape,
    r: usize,
    scaling: f32,
    use_dora: bool,
) -> Result<AdapterSite> {
    let [a_name, b_name] = tensor_names(&module.name);
    let magnitude = magnitude_name(&module.name);
    Ok(AdapterSite {
        module: module.name.clone(),
        r,
        scaling,
        a: tensors.take(a_name, &[r, module.in_features])?,
        b: tensors.take(b_name, &[module.out_features, r])?,
        magnitude: match use_dora {
            true => Some(tensors.take(magnitude, &[module.out_features])?),
            false => None,
        },
    })
}

fn read_saved(tensors: &mut Tensors<'_>, module: &SaveableModule) -> Result<SavedModule> {
    let read = |tensor: &TensorShape| {
        tensors.take(saved_name(&module.name, &tensor.name), &tensor.stored())
    };
    let values = module.tensors.iter().map(read).collect::<Result<_>>()?;
    Ok(SavedModule { module: module.name.clone(), values })
}

/// The name PEFT gives to DoRA's magnitudes of a module.
pub(super) fn magnitude_name(module: &str) -> String {
    format!("base_model.model.{module}.lora_magnitude_vector")
}

/// The name PEFT gives to a tensor of a module that is saved whole.
pub(super) fn saved_name(module: &str, tensor: &str) -> String {
    format!("base_model.model.{module}.{tensor}")
}

/// The names PEFT gives to the matrices A and B of a module.
pub(super) fn tensor_names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|matrix| format!("base_model.model.{module}.{matrix}.weight"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{adapter, fingerprints, tiny_base};
    use super::super::{Provenance, write};
    use super::*;
    use safetensors::tensor::TensorView;

    fn written() -> AdapterFiles {
        let (weights, spec) = adapter(&["q_proj", "down_proj"], 2);
        let provenance = Provenance {
            base_model: "tiny".to_owned(),
            fingerprints: fingerprints(),
            job: None,
            step: None,
        };
        write(&weights, &spec, &tiny_base(), &provenance)
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let (weights, _) = adapter(&["q_proj", "down_proj"], 2);
        let read = read(&written(), &tiny_base(), &fingerprints()).expect("our own adapter");
        assert_eq!(read.weights.sites, weights.sites);
        assert_eq!(read.weights.key, content_key(&weights.sites, &weights.saved));
        assert!(read.notes.is_empty(), "{:?}", read.notes);
    }

    #[test]
    fn adapters_of_older_llavas_are_read_under_todays_names() {
        for (old, new) in [
            ("language_model.model.layers.0.q_proj", "model.language_model.layers.0.q_proj"),
            ("language_model.lm_head.lora_A", "lm_head.lora_A"),
            ("multi_modal_projector.linear_1", "model.multi_modal_projector.linear_1"),
        ] {
            let [old, new] = [old, new].map(|name| format!("base_model.model.{name}.weight"));
            assert_eq!((todays_name(&old), todays_name(&new)), (Some(new), None));
        }
    }

    #[test]
    fn without_fingerprints_it_is_accepted_with_a_note() {
        let files = AdapterFiles { provenance: None, ..written() };
        let read = read(&files, &tiny_base(), &fingerprints()).expect("a foreign adapter");
        assert!(read.notes[0].contains("no fingerprints"));
    }

    #[test]
    fn another_base_is_refused() {
        let served = Fingerprints { base: "other".to_owned(), ..fingerprints() };
        let error = read(&written(), &tiny_base(), &served).expect_err("another base");
        assert!(matches!(error, PeftError::Mismatch { what: "base model", .. }));
    }

    #[test]
    fn a_wrong_shape_names_tensor_and_both_shapes() {
        let mut base = tiny_base();
        base.modules[0].in_features += 1;
        let error = read(&written(), &base, &fingerprints()).expect_err("a wrong shape");
        assert!(matches!(error, PeftError::Shape { ref tensor, .. } if tensor.contains("q_proj")));
    }

    #[test]
    fn missing_and_superfluous_tensors_are_named() {
        let rename = |from: &str, to: &str| {
            let config = String::from_utf8(written().config).expect("JSON");
            AdapterFiles { config: config.replace(from, to).into_bytes(), ..written() }
        };
        let more = rename("\"q_proj\"", "\"q_proj\", \"v_proj\"");
        let error = read(&more, &tiny_base(), &fingerprints()).expect_err("a missing tensor");
        assert!(matches!(error, PeftError::MissingTensor { .. }), "{error}");
        let fewer = rename("\"q_proj\"", "\"nothing\"");
        let error = read(&fewer, &tiny_base(), &fingerprints()).expect_err("a tensor too many");
        assert!(matches!(error, PeftError::UnexpectedTensor { .. }), "{error}");
    }

    /// The adapter of `written` with a word of its configuration replaced, and with more tensors.
    fn changed(from: &str, to: &str, more: &[(&str, [usize; 2])]) -> AdapterFiles {
        let files = written();
        let config = String::from_utf8(files.config).expect("JSON").replace(from, to);
        let old = safetensors::SafeTensors::deserialize(&files.tensors).expect("tensors");
        let zeros = vec![0u8; 16 * 8 * 4];
        let view = |shape: &[usize]| {
            TensorView::new(
                safetensors::Dtype::F32,
                shape.to_vec(),
                &zeros[..shape.iter().product::<usize>() * 4],
            )
            .expect("a view")
        };
        let more = more.iter().map(|(name, shape)| ((*name).to_owned(), view(shape)));
        let tensors = safetensors::serialize(old.tensors().into_iter().chain(more), None)
            .expect("serialised");
        AdapterFiles { config: config.into_bytes(), tensors, provenance: None }
    }

    #[test]
    fn copies_of_the_base_that_peft_writes_beside_a_head_are_left_out() {
        let more = [
            ("base_model.model.lm_head.lora_A.weight", [2, 8]),
            ("base_model.model.lm_head.lora_B.weight", [16, 2]),
            ("base_model.model.lm_head.base_layer.weight", [16, 8]),
        ];
        let files = changed("\"q_proj\"", "\"q_proj\",\"lm_head\"", &more);
        let read = read(&files, &tiny_base(), &fingerprints()).expect("as PEFT writes it");
        assert!(read.notes.iter().any(|note| note.contains("base_layer")), "{:?}", read.notes);
        assert!(read.weights.sites.iter().any(|site| site.module == "lm_head"));
    }

    #[test]
    fn an_embedding_that_peft_saved_by_itself_is_used() {
        let more = [("base_model.model.model.embed_tokens.weight", [16, 8])];
        let files = changed("\"q_proj\"", "\"q_proj\"", &more);
        let read = read(&files, &tiny_base(), &fingerprints()).expect("as PEFT writes it");
        assert_eq!(read.weights.saved[0].module, "model.embed_tokens");
    }

    #[test]
    fn a_pattern_that_looks_around_covers_what_the_file_has() {
        let pattern = r#""^(?!.*lm_head).*(q|down)_proj$""#;
        let config = String::from_utf8(written().config).expect("JSON");
        let names: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        let mut names = names.as_object().expect("an object").clone();
        names.insert("target_modules".to_owned(), serde_json::from_str(pattern).expect("JSON"));
        let config = serde_json::to_vec(&names).expect("JSON");
        let files = AdapterFiles { config, ..written() };
        let read = read(&files, &tiny_base(), &fingerprints()).expect("matrices are there");
        assert_eq!(read.weights.sites.len(), adapter(&["q_proj", "down_proj"], 2).0.sites.len());
        let none = safetensors::serialize(Vec::<(&str, TensorView<'_>)>::new(), None);
        let files = AdapterFiles { tensors: none.expect("an empty file"), ..files };
        let error = super::read(&files, &tiny_base(), &fingerprints()).expect_err("nothing in it");
        assert!(matches!(error, PeftError::Pattern { .. }), "{error}");
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused() {
        let (mut weights, spec) = adapter(&["q_proj"], 2);
        weights.sites[0].a[0] = f32::NAN;
        let provenance = Provenance::parse(&written().provenance.expect("written")).expect("ours");
        let files = write(&weights, &spec, &tiny_base(), &provenance);
        let error = read(&files, &tiny_base(), &fingerprints()).expect_err("a NaN");
        assert!(matches!(error, PeftError::NotFinite { .. }));
    }
}
