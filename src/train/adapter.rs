//! The adapter a run begins with.

use super::TrainError;
use super::rng::{Site, Stream};
use crate::backend::Backend;
use crate::domain::{AdapterSite, AdapterWeights, BaseInfo, LoraSpec, ModuleShape, SavedModule};
use crate::model::Model;

/// Fresh matrices as PEFT makes them: `A ~ U(−1/√in, 1/√in)`, `B = 0`, so that `ΔW` begins at zero.
///
/// # Errors
/// [`TrainError::UnknownModule`], or [`TrainError::Hyperparameter`] for a rank of zero or ranks
/// that do not match the modules.
pub fn fresh(base: &BaseInfo, lora: &LoraSpec, seed: u64) -> Result<AdapterWeights, TrainError> {
    check(lora)?;
    let mut sites = Vec::with_capacity(lora.modules.len());
    for (number, name) in lora.modules.iter().enumerate() {
        let module = find(base, name)?;
        sites.push(site(
            module,
            rank(lora, number),
            scaling(lora, number),
            Stream::new(seed, 0, Site::Init(number)),
        ));
    }
    let dropout = lora.dropout as f32;
    Ok(AdapterWeights { key: format!("fresh-{seed}"), sites, saved: Vec::new(), dropout })
}

/// The adapter to go on from, held against what the run asks for.
///
/// # Errors
/// [`TrainError::InitAdapter`] if modules, ranks or scalings differ.
pub fn checked(init: &AdapterWeights, lora: &LoraSpec) -> Result<AdapterWeights, TrainError> {
    check(lora)?;
    let refuse = |problem: String| Err(TrainError::InitAdapter { problem });
    if init.sites.len() != lora.modules.len() {
        let (has, asked) = (init.sites.len(), lora.modules.len());
        return refuse(format!("covers {has} modules and this run asks for {asked}"));
    }
    for (number, name) in lora.modules.iter().enumerate() {
        let Some(site) = init.sites.iter().find(|site| site.module == *name) else {
            return refuse(format!("does not cover the module {name}"));
        };
        if site.magnitude.is_some() != lora.use_dora {
            return refuse(format!("and this run do not both use DoRA at {name}"));
        }
        let (r, scaling) = (rank(lora, number), scaling(lora, number));
        if site.r != r || (site.scaling - scaling).abs() > 1e-6 * scaling.abs() {
            return refuse(format!(
                "has rank {} and scaling {} at {name}, and this run asks for {r} and {scaling}",
                site.r, site.scaling,
            ));
        }
    }
    Ok(AdapterWeights { dropout: lora.dropout as f32, ..init.clone() })
}

/// What only the resident base can say of an adapter that is to be trained: DoRA's first
/// magnitudes, and the modules that are trained whole.
///
/// # Errors
/// [`TrainError::Model`] if the base does not have such modules.
pub fn completed<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    mut weights: AdapterWeights,
    lora: &LoraSpec,
) -> Result<AdapterWeights, TrainError> {
    for site in weights.sites.iter_mut().filter(|site| lora.use_dora && site.magnitude.is_none()) {
        site.magnitude = Some(model.first_magnitudes(b, site)?);
    }
    for module in &lora.modules_to_save {
        if !weights.saved.iter().any(|saved| saved.module == *module) {
            let values = model.saved_values(b, module)?;
            weights.saved.push(SavedModule { module: module.clone(), values });
        }
    }
    Ok(weights)
}

fn site(module: &ModuleShape, r: usize, scaling: f32, stream: Stream) -> AdapterSite {
    let bound = 1.0 / (module.in_features as f32).sqrt();
    AdapterSite {
        module: module.name.clone(),
        r,
        scaling,
        a: (0..r * module.in_features).map(|i| stream.symmetric(i as u64, bound)).collect(),
        b: vec![0.0; module.out_features * r],
        magnitude: None,
    }
}

/// `alpha / r`; rsLoRA (Kalajdzievski 2023): `alpha / √r`.
fn scaling(lora: &LoraSpec, number: usize) -> f32 {
    let r = rank(lora, number) as f64;
    let alpha = lora.alphas.get(number).copied().unwrap_or(lora.alpha);
    (alpha / if lora.use_rslora { r.sqrt() } else { r }) as f32
}

fn rank(lora: &LoraSpec, number: usize) -> usize {
    lora.ranks.get(number).copied().unwrap_or(lora.r)
}

fn find<'a>(base: &'a BaseInfo, name: &str) -> Result<&'a ModuleShape, TrainError> {
    base.modules.iter().find(|module| module.name == name).ok_or_else(|| {
        TrainError::UnknownModule { base: base.name.to_string(), module: name.to_owned() }
    })
}

fn check(lora: &LoraSpec) -> Result<(), TrainError> {
    let refuse =
        |name, expected, found: String| Err(TrainError::Hyperparameter { name, expected, found });
    if lora.r == 0 || lora.ranks.contains(&0) {
        return refuse("r", "at least 1", "0".into());
    }
    if !(0.0..1.0).contains(&lora.dropout) {
        return refuse("dropout", "at least 0 and below 1", lora.dropout.to_string());
    }
    if !lora.alphas.is_empty() && lora.alphas.len() != lora.modules.len() {
        let found = format!("{} alphas for {} modules", lora.alphas.len(), lora.modules.len());
        return refuse("alpha_pattern", "one alpha per module", found);
    }
    if !lora.ranks.is_empty() && lora.ranks.len() != lora.modules.len() {
        let found = format!("{} ranks for {} modules", lora.ranks.len(), lora.modules.len());
        return refuse("rank_pattern", "one rank per module", found);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{base_info, lora};
    use super::*;

    #[test]
    fn a_fresh_adapter_changes_nothing_yet_and_depends_on_the_seed() {
        let (base, lora) = (base_info(), lora());
        let one = fresh(&base, &lora, 1).expect("an adapter");
        assert_eq!(one.sites, fresh(&base, &lora, 1).expect("an adapter").sites);
        assert_ne!(one.sites, fresh(&base, &lora, 2).expect("an adapter").sites);
        for site in &one.sites {
            assert!(site.b.iter().all(|&b| b == 0.0));
            let bound = 1.0 / 8f32.sqrt();
            let widest = site.a.iter().fold(0f32, |max, a| max.max(a.abs()));
            assert!(widest <= bound && widest > 0.8 * bound, "{widest}");
            assert_eq!(site.scaling, 2.0);
        }
    }

    #[test]
    fn rank_stabilised_scaling_divides_by_the_root() {
        let lora = LoraSpec { use_rslora: true, ranks: vec![4, 16], ..lora() };
        let adapter = fresh(&base_info(), &lora, 1).expect("an adapter");
        let scalings: Vec<f32> = adapter.sites.iter().map(|site| site.scaling).collect();
        assert_eq!(scalings, [4.0, 2.0]);
    }

    #[test]
    fn an_adapter_of_another_shape_is_not_gone_on_from() {
        let init = fresh(&base_info(), &lora(), 1).expect("an adapter");
        assert!(checked(&init, &lora()).is_ok());
        let told = checked(&init, &LoraSpec { alpha: 3.0, ..lora() }).expect_err("refused");
        assert!(told.to_string().contains("scaling"), "{told}");
        let told = fresh(&base_info(), &LoraSpec { modules: vec!["x".into()], ..lora() }, 1);
        assert!(told.expect_err("refused").to_string().contains("no module x"));
    }
}
