//! What a job would do, found out without starting it.

use serde::Serialize;

use super::fields::InvalidRequest;
use super::forecast::{Forecast, Load, forecast};
use super::preparation::{LoadError, load};
use super::request::JobRequest;
use super::service::{JobsError, JobsResult};
use super::spec::JobSpec;
use crate::catalog::{Catalog, CatalogError, ServedBase};
use crate::domain::{BaseInfo, Example, FileId, Hyperparameters, LoraSpec, SaveableModule};
use crate::store::StoreError;
use crate::text::dataset::{self, Dataset, Report};
use crate::worker::WorkerHandle;

/// The answer to a dry run.
#[derive(Debug, Serialize)]
pub struct Preflight {
    /// Whether a job with this request would start.
    pub ok: bool,
    pub base_model: String,
    pub training: Report,
    pub validation: Option<Report>,
    /// Validation examples that are also in the training file; `None` without two good files.
    pub overlap: Option<usize>,
    /// What "auto" would become; `None` where the data is not usable.
    pub hyperparameters: Option<Hyperparameters>,
    pub total_steps: Option<usize>,
    pub trainable_parameters: Option<usize>,
    /// What it would take; `None` where the data is not usable.
    pub forecast: Option<Forecast>,
}

impl Preflight {
    pub(super) async fn of(
        catalog: &Catalog,
        worker: &WorkerHandle,
        tenant: &str,
        base: &ServedBase,
        spec: &JobSpec,
        request: &JobRequest,
    ) -> JobsResult<Self> {
        let read = |id: FileId| async move { read(catalog, tenant, base, spec, &id).await };
        let (training, rows) = read(request.training_file.clone()).await?;
        let (validation, others) = match &request.validation_file {
            Some(file) => {
                let (report, others) = read(file.clone()).await?;
                (Some(report), others)
            }
            None => (None, Vec::new()),
        };
        let ok = training.is_usable() && validation.as_ref().is_none_or(Report::is_usable);
        let overlap = (ok && validation.is_some()).then(|| dataset::overlap(&rows, &others));
        let examples = training.examples as usize;
        let longest = training.longest_tokens.min(spec.hyperparameters.max_seq_length(&base.info));
        let hyperparameters =
            ok.then(|| spec.hyperparameters.resolve(&base.info, examples, longest));
        let total_steps = hyperparameters.as_ref().map(|settled| {
            let steps = examples.div_ceil(settled.batch_size) * settled.n_epochs;
            settled.max_steps.unwrap_or(steps)
        });
        let trainable_parameters = trainable(catalog, base, spec).await?;
        let forecast = match (&hyperparameters, trainable_parameters) {
            (Some(hyperparameters), Some(parameters)) => {
                let (base, examples, validation) = (&base.info, &*rows, &*others);
                let load = Load { base, hyperparameters, parameters, examples, validation };
                forecast(worker, &load).await
            }
            _ => None,
        };
        Ok(Self {
            ok: ok && forecast.as_ref().is_none_or(|forecast| forecast.room.fits),
            base_model: base.info.name.to_string(),
            training,
            validation,
            overlap,
            hyperparameters,
            total_steps,
            trainable_parameters,
            forecast,
        })
    }
}

/// What was found in a file, and its examples if it is good.
async fn read(
    catalog: &Catalog,
    tenant: &str,
    base: &ServedBase,
    spec: &JobSpec,
    id: &FileId,
) -> JobsResult<(Report, Vec<Example>)> {
    match load(catalog, tenant, base, spec, id).await {
        Ok(Dataset { report, examples }) => Ok((report, examples)),
        Err(LoadError::Invalid(report)) => Ok((*report, Vec::new())),
        Err(LoadError::Missing) => {
            let id = id.to_string();
            Err(StoreError::NotFound { kind: "file", id }.into())
        }
        Err(LoadError::Damaged) => {
            let reason = format!("the stored content of `{id}` is damaged; upload it again");
            Err(InvalidRequest::value("training_file", reason).into())
        }
        Err(LoadError::Other(reason)) => Err(JobsError::Catalog(CatalogError::Folder {
            folder: id.to_string(),
            source: std::io::Error::other(reason),
        })),
    }
}

/// Numbers a run would train.
async fn trainable(
    catalog: &Catalog,
    base: &ServedBase,
    spec: &JobSpec,
) -> JobsResult<Option<usize>> {
    if let Some(id) = &spec.init_adapter {
        let row = catalog.store().adapter_by_id(id).await?;
        return Ok(Some(catalog.load(&row).await?.weights.parameters()));
    }
    let lora = spec.lora.resolve(&base.info)?;
    Ok(Some(trainable_parameters(&lora, &base.info)))
}

/// `r (in + out)` over the modules the adapter covers, DoRA's magnitudes, and what is trained whole.
pub(super) fn trainable_parameters(lora: &LoraSpec, base: &BaseInfo) -> usize {
    let low_rank = lora.modules.iter().enumerate().filter_map(|(number, name)| {
        let module = base.modules.iter().find(|module| module.name == *name)?;
        let r = lora.ranks.get(number).copied().unwrap_or(lora.r);
        let magnitude = if lora.use_dora { module.out_features } else { 0 };
        Some(r * (module.in_features + module.out_features) + magnitude)
    });
    let saved = base.saveable.iter().filter(|module| lora.modules_to_save.contains(&module.name));
    low_rank.chain(saved.map(SaveableModule::parameters)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ModuleShape;
    use crate::jobs::spec::RequestedLora;
    use crate::peft::Targets;
    use crate::peft::testing::tiny_base;

    /// The linear layers of a Llama with 7 billion weights.
    fn seven_billion() -> BaseInfo {
        let layer = |index: usize| {
            let module = move |name: &str, in_features, out_features| ModuleShape {
                name: format!("model.layers.{index}.{name}"),
                in_features,
                out_features,
                layer: Some(index),
            };
            let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| module(n, 4096, 4096));
            let up = ["gate_proj", "up_proj"].map(|name| module(name, 4096, 11008));
            attention.into_iter().chain(up).chain([module("down_proj", 11008, 4096)])
        };
        BaseInfo { modules: (0..32).flat_map(layer).collect(), ..tiny_base() }
    }

    #[test]
    fn the_trainable_parameters_of_a_7b_model_are_those_of_the_papers() {
        let base = seven_billion();
        let count = |lora: &RequestedLora| {
            trainable_parameters(&lora.resolve(&base).expect("modules"), &base)
        };
        let all = RequestedLora { r: Some(64), ..RequestedLora::default() };
        assert_eq!(count(&all), 159_907_840);
        let names = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
        let targets = Some(Targets::Names(names));
        let few = RequestedLora { r: Some(8), target_modules: targets, ..RequestedLora::default() };
        assert_eq!(count(&few), 4_194_304);
        let outputs = 32 * (5 * 4096 + 2 * 11008);
        assert_eq!(count(&RequestedLora { use_dora: Some(true), ..all }), 159_907_840 + outputs);
    }
}
