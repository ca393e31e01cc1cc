//! The complete state of a run as one safetensors file: weights, moments and where it stands.
//!
//! Which examples come next, and every random number, are functions of seed and step (see
//! [`super::data`] and [`super::rng`]), so the step is the whole cursor.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::best::Best;
use super::optimizer::{Optimizer, State};
use super::paging;
use super::{TrainError, TrainRequest};
use crate::backend::Backend;
use crate::domain::{Example, Hyperparameters, LoraSpec};
use crate::model::{Parameter, Trainee};

/// The one metadata key; one key alone keeps the bytes of the file reproducible.
const HEADER: &str = "tandem_training_state";
const VERSION: u32 = 1;
/// Leads the names of the best adapter's tensors.
const BEST: &str = "best.";

/// What a run is: a state file of one run is never mistaken for another's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub seed: u64,
    /// Fingerprint of the base model.
    pub base: String,
    /// Hex SHA-256 over ids, labels and pictures of the training examples.
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: usize,
    /// Tokens that bore loss so far.
    pub trained_tokens: u64,
    /// The best validation so far.
    #[serde(default)]
    pub best: Option<Best>,
    /// Ended before its last step, because validation had stopped improving.
    #[serde(default)]
    pub stopped: bool,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    identity: Identity,
    progress: Progress,
}

/// One tensor on its way to the file.
struct Entry<'a, B: Backend> {
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content<'a, B>,
}

/// Where its bytes are. What the device holds is brought over when its turn comes, so that the file
/// is the only copy of the whole.
enum Content<'a, B: Backend> {
    Device(&'a B, &'a B::Rows),
    Values(&'a [f32]),
    Bytes(Vec<u8>),
}

impl<'a, B: Backend> Entry<'a, B> {
    fn f32((rows, width): (usize, usize), content: Content<'a, B>) -> Self {
        Self { dtype: Dtype::F32, shape: vec![rows, width], content }
    }

    /// A part of moments in the host's memory: codes in bytes, everything else in `f32`.
    fn part(len: usize, bytes: &[u8]) -> Self {
        let dtype = if bytes.len() == len { Dtype::U8 } else { Dtype::F32 };
        let shape = vec![bytes.len() / if dtype == Dtype::U8 { 1 } else { 4 }];
        Self { dtype, shape, content: Content::Bytes(bytes.to_vec()) }
    }
}

impl<B: Backend> View for Entry<'_, B> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.content {
            Content::Device(b, rows) => bytemuck::cast_slice(&b.download(rows)).to_vec().into(),
            Content::Values(values) => bytemuck::cast_slice(values).into(),
            Content::Bytes(bytes) => bytes.into(),
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.dtype == Dtype::U8 { 1 } else { 4 }
    }
}

/// Writes the state of a run; `best` is the best adapter's tensors where they are kept. The same
/// state gives the same bytes.
///
/// # Errors
/// If a paged optimiser's state cannot be read.
pub fn write<B: Backend>(
    b: &B,
    trainee: &mut Trainee<B>,
    optimizer: &Optimizer<B>,
    identity: &Identity,
    progress: &Progress,
    best: &[Vec<f32>],
) -> std::io::Result<Vec<u8>> {
    let mut entries = Vec::new();
    for (index, Parameter { name, value, .. }) in trainee.parameters_mut().enumerate() {
        let shape = b.shape(value);
        entries.push((name.to_owned(), Entry::f32(shape, Content::Device(b, value))));
        match optimizer.state() {
            State::Device(moments) => {
                let moments = &moments[index];
                for (part, rows) in [("exp_avg", &moments.first), ("exp_avg_sq", &moments.second)] {
                    let entry = Entry::f32(shape, Content::Device(b, rows));
                    entries.push((format!("{name}.{part}"), entry));
                }
            }
            State::Host(state) => {
                for (part, bytes) in state.get(index)?.parts() {
                    let entry = Entry::part(shape.0 * shape.1, bytes);
                    entries.push((format!("{name}.{part}"), entry));
                }
            }
        }
        if let Some(values) = best.get(index) {
            entries.push((format!("{BEST}{name}"), Entry::f32(shape, Content::Values(values))));
        }
    }
    let header =
        Header { version: VERSION, identity: identity.clone(), progress: progress.clone() };
    let header = serde_json::to_string(&header).expect("plain data has a JSON form");
    Ok(safetensors::serialize(entries, Some(HashMap::from([(HEADER.to_owned(), header)])))
        .expect("names are unique and sizes add up"))
}

/// Reads a state back into `trainee`, `optimizer` and, where it was kept, `best`.
///
/// # Errors
/// [`TrainError::Read`], or [`TrainError::Resume`] if the file is damaged or belongs to another run.
pub fn read<B: Backend>(
    b: &mut B,
    path: &Path,
    identity: &Identity,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
    best: &mut Vec<Vec<f32>>,
) -> Result<Progress, TrainError> {
    let bytes =
        std::fs::read(path).map_err(|source| TrainError::Read { path: path.to_owned(), source })?;
    restore(b, &bytes, identity, trainee, optimizer, best)
        .map_err(|reason| TrainError::Resume { path: path.to_owned(), reason })
}

fn restore<B: Backend>(
    b: &mut B,
    bytes: &[u8],
    identity: &Identity,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
    best: &mut Vec<Vec<f32>>,
) -> Result<Progress, String> {
    let header = header(bytes)?;
    if let Some(what) = header.identity.difference(identity) {
        return Err(format!("it was written by a run with {what}"));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut met = 0;
    for (index, parameter) in trainee.parameters_mut().enumerate() {
        let (name, shape) = (parameter.name, b.shape(parameter.value));
        b.overwrite(parameter.value, &floats(&file, name, shape)?);
        met += 1;
        match optimizer.state_mut() {
            State::Device(moments) => {
                let moments = &mut moments[index];
                let parts = [("exp_avg", &mut moments.first), ("exp_avg_sq", &mut moments.second)];
                for (part, rows) in parts {
                    b.overwrite(rows, &floats(&file, &format!("{name}.{part}"), shape)?);
                    met += 1;
                }
            }
            State::Host(state) => {
                let mut outcome = Ok(0);
                let read = |moments: &mut paging::Moments| outcome = parts(&file, name, moments);
                state.edit(index, read).map_err(|error| error.to_string())?;
                met += outcome?;
            }
        }
        let name = format!("{BEST}{name}");
        if file.tensor(&name).is_ok() {
            best.push(floats(&file, &name, shape)?);
            met += 1;
        }
    }
    if met != file.len() {
        return Err(format!("it holds {} tensors and this run has {met}", file.len()));
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

fn view<'a>(file: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, String> {
    file.tensor(name).map_err(|_| format!("the tensor {name} is missing"))
}

fn floats(
    file: &SafeTensors<'_>,
    name: &str,
    (rows, width): (usize, usize),
) -> Result<Vec<f32>, String> {
    let view = view(file, name)?;
    if view.dtype() != Dtype::F32 || view.shape() != [rows, width] {
        return Err(format!("the tensor {name} has another type or shape than in this run"));
    }
    // The file's bytes may lie unaligned, so they are copied rather than cast.
    let chunks = view.data().as_chunks().0.iter();
    let values: Vec<f32> = chunks.map(|&bytes| f32::from_le_bytes(bytes)).collect();
    if !values.iter().all(|value| value.is_finite()) {
        return Err(format!("the tensor {name} holds a value that is not a finite number"));
    }
    Ok(values)
}

/// Fills moments in the host's memory, and says how many tensors that took.
fn parts(
    file: &SafeTensors<'_>,
    name: &str,
    moments: &mut paging::Moments,
) -> Result<usize, String> {
    let mut parts = moments.parts_mut();
    for (part, bytes) in &mut parts {
        let name = format!("{name}.{part}");
        let data = view(file, &name)?.data();
        if data.len() != bytes.len() {
            return Err(format!("the tensor {name} has another type or shape than in this run"));
        }
        bytes.copy_from_slice(data);
    }
    Ok(parts.len())
}

/// Hex SHA-256 over ids and labels, each list led by its length, and over what pictures show.
fn hash(examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    for example in examples {
        hasher.update((example.ids.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&example.ids));
        hasher.update(bytemuck::cast_slice(&example.labels));
        for placed in &example.pictures {
            hasher.update((placed.tokens.start as u64).to_le_bytes());
            hasher.update(placed.picture.digest());
        }
    }
    hex::encode(hasher.finalize())
}
