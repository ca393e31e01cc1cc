//! The complete state of a run as one safetensors file: weights, moments and where it stands.
//!
//! Which examples come next, and every random number, are functions of seed and step (see
//! [`super::data`] and [`super::rng`]), so the step is the whole cursor.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::optimizer::Optimizer;
use super::{TrainError, TrainRequest};
use crate::backend::Backend;
use crate::domain::{Example, Hyperparameters, LoraSpec};
use crate::model::Trainee;

/// The one metadata key; one key alone keeps the bytes of the file reproducible.
const HEADER: &str = "tandem_training_state";
const VERSION: u32 = 1;

/// What a run is: a state file of one run is never mistaken for another's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub seed: u64,
    /// Fingerprint of the base model.
    pub base: String,
    /// Hex SHA-256 over ids and labels of the training examples.
    pub dataset: String,
    pub lora: LoraSpec,
    pub hyperparameters: Hyperparameters,
}

impl Identity {
    /// The identity of what `request` asks for on the base with this fingerprint.
    pub fn of(request: &TrainRequest, fingerprint: &str) -> Self {
        Self {
            seed: request.seed,
            base: fingerprint.to_owned(),
            dataset: hash(&request.examples),
            lora: request.lora.clone(),
            hyperparameters: request.hyperparameters.clone(),
        }
    }

    /// The first thing in which `other` differs.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("another seed", self.seed == other.seed),
            ("another base model", self.base == other.base),
            ("other training data", self.dataset == other.dataset),
            ("other LoRA settings", self.lora == other.lora),
            ("other hyperparameters", self.hyperparameters == other.hyperparameters),
        ];
        pairs.into_iter().find(|(_, same)| !same).map(|(name, _)| name)
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: usize,
    /// Tokens that bore loss so far.
    pub trained_tokens: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    identity: Identity,
    progress: Progress,
}

/// Writes the state of a run. The same state gives the same bytes.
pub fn write<B: Backend>(
    b: &B,
    trainee: &mut Trainee<B>,
    optimizer: &Optimizer<B>,
    identity: &Identity,
    progress: Progress,
) -> Vec<u8> {
    let mut tensors: Vec<(String, (usize, usize), Vec<f32>)> = Vec::new();
    let mut keep = |name: String, x: &B::Rows| tensors.push((name, b.shape(x), b.download(x)));
    for (parameter, moments) in trainee.parameters_mut().zip(optimizer.moments()) {
        keep(parameter.name.to_owned(), parameter.value);
        keep(format!("{}.exp_avg", parameter.name), &moments.first);
        keep(format!("{}.exp_avg_sq", parameter.name), &moments.second);
    }
    let views = tensors.iter().map(|(name, (rows, width), values)| {
        let bytes = bytemuck::cast_slice(values);
        let view = TensorView::new(Dtype::F32, vec![*rows, *width], bytes);
        (name, view.expect("the shape is that of the values"))
    });
    let header = Header { version: VERSION, identity: identity.clone(), progress };
    let header = serde_json::to_string(&header).expect("plain data has a JSON form");
    safetensors::serialize(views, Some(HashMap::from([(HEADER.to_owned(), header)])))
        .expect("names are unique and sizes add up")
}

/// Reads a state back into `trainee` and `optimizer`.
///
/// # Errors
/// [`TrainError::Read`], or [`TrainError::Resume`] if the file is damaged or belongs to another run.
pub fn read<B: Backend>(
    b: &mut B,
    path: &Path,
    identity: &Identity,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
) -> Result<Progress, TrainError> {
    let bytes =
        std::fs::read(path).map_err(|source| TrainError::Read { path: path.to_owned(), source })?;
    restore(b, &bytes, identity, trainee, optimizer)
        .map_err(|reason| TrainError::Resume { path: path.to_owned(), reason })
}

fn restore<B: Backend>(
    b: &mut B,
    bytes: &[u8],
    identity: &Identity,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
) -> Result<Progress, String> {
    let header = header(bytes)?;
    if let Some(what) = header.identity.difference(identity) {
        return Err(format!("it was written by a run with {what}"));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let expected = 3 * optimizer.moments().len();
    if file.len() != expected {
        return Err(format!("it holds {} tensors and this run has {expected}", file.len()));
    }
    for (parameter, moments) in trainee.parameters_mut().zip(optimizer.moments_mut()) {
        let name = parameter.name;
        load(b, &file, name, parameter.value)?;
        load(b, &file, &format!("{name}.exp_avg"), &mut moments.first)?;
        load(b, &file, &format!("{name}.exp_avg_sq"), &mut moments.second)?;
    }
    Ok(header.progress)
}

fn header(bytes: &[u8]) -> Result<Header, String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let text = metadata.metadata().as_ref().and_then(|entries| entries.get(HEADER));
    let text = text.ok_or("it is not a training state of this server")?;
    let header: Header = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if header.version != VERSION {
        return Err(format!("its version is {} and this server reads {VERSION}", header.version));
    }
    Ok(header)
}

fn load<B: Backend>(
    b: &mut B,
    file: &SafeTensors<'_>,
    name: &str,
    into: &mut B::Rows,
) -> Result<(), String> {
    let view = file.tensor(name).map_err(|_| format!("the tensor {name} is missing"))?;
    let (rows, width) = b.shape(into);
    if view.dtype() != Dtype::F32 || view.shape() != [rows, width] {
        return Err(format!("the tensor {name} has another type or shape than in this run"));
    }
    // The file's bytes may lie unaligned, so they are copied rather than cast.
    let values: Vec<f32> = view
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    if !values.iter().all(|value| value.is_finite()) {
        return Err(format!("the tensor {name} holds a value that is not a finite number"));
    }
    b.overwrite(into, &values);
    Ok(())
}

/// Hex SHA-256 over ids and labels, each list led by its length.
fn hash(examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    for example in examples {
        hasher.update((example.ids.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&example.ids));
        hasher.update(bytemuck::cast_slice(&example.labels));
    }
    hex::encode(hasher.finalize())
}
