//! 4-bit tensors as bitsandbytes writes them into safetensors: `X.weight` holds the codes, and
//! names behind it what else is needed (`.absmax`, `.quant_map`, `.quant_state.bitsandbytes__nf4`).

use serde::Deserialize;

use super::{Checkpoint, Encoding, Entry, ModelError, Stored, bad_file};
use crate::backend::{Absmax, FourBitBlocks, FourBitCode, HostBlocks, HostValues, WeightFormat};
use crate::gguf::TensorType;
use crate::model::tensors::TensorSpec;

/// Values that share one absmax in a product; a tensor's blocks are whole ones of these.
const BLOCK: usize = 64;

/// The JSON of `.quant_state.*`.
#[derive(Deserialize)]
struct QuantState {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// Its word in the names of bitsandbytes, and the code.
type Kind = (&'static str, FourBitCode);

/// The name of what says how the tensor `name` is quantised.
fn state_of(name: &str, kind: &str) -> String {
    format!("{name}.quant_state.bitsandbytes__{kind}")
}

impl Checkpoint {
    /// Which code the tensor is in, if it is one of bitsandbytes'. Its codes may be declared as wider
    /// numbers (`bnb_4bit_quant_storage`); the bytes are the same.
    pub(super) fn bitsandbytes_kind(&self, name: &str) -> Option<Kind> {
        let kinds = [("nf4", FourBitCode::Nf4), ("fp4", FourBitCode::Fp4)];
        kinds.into_iter().find(|(k, _)| self.tensors.contains_key(&state_of(name, k)))
    }

    /// A tensor of bitsandbytes'.
    pub(super) fn bitsandbytes(
        &mut self,
        spec: &TensorSpec,
        name: &str,
        entry: &Entry,
        (kind, code): Kind,
    ) -> Result<Stored<'_>, ModelError> {
        let file = self.files[entry.file].name.clone();
        let wrong = |reason: String| bad_file(&file, format!("the tensor {name}: {reason}"));

        let state = self.part(spec, &state_of(name, kind))?;
        let state: QuantState =
            serde_json::from_slice(&state).map_err(|error| wrong(error.to_string()))?;
        // `(out, in)` also where a dense file has it the other way: GPT-2's are turned before they
        // are quantised.
        let (expected, count) = (vec![spec.shape.0, spec.shape.1], spec.parameters());
        if state.shape != expected {
            let (tensor, found) = (name.to_owned(), state.shape);
            return Err(ModelError::Misshapen { file, tensor, expected, found });
        }
        let fits = state.blocksize.is_power_of_two() && entry.bytes == count.div_ceil(2);
        if !fits || state.nested_blocksize.is_some_and(|size| size != 256) {
            return Err(wrong("its blocks and bytes do not fit together".to_owned()));
        }
        let levels = self.floats(spec, &format!("{name}.quant_map"), 16)?;
        if levels.iter().zip(code.levels()).any(|(found, level)| (found - level).abs() > 1e-6) {
            return Err(wrong(format!("its levels are not those of {kind}")));
        }
        let absmax = self.absmax(spec, name, &state, count.div_ceil(state.blocksize))?;
        self.bytes(name, spec, entry)?;
        let bytes = self.room.bytes().to_vec();
        let blocks =
            FourBitBlocks { code, block: state.blocksize, bytes, absmax, exact: self.exact };
        let whole = [state.blocksize, spec.shape.1].iter().all(|size| size.is_multiple_of(BLOCK));
        if whole && self.as_stored {
            return Ok(Stored::Blocks(HostBlocks::FourBit(blocks)));
        }
        let values: Vec<f32> = (0..count).map(|i| blocks.value(i)).collect();
        let held = self.as_stored.then_some(WeightFormat::F32);
        Ok(Stored::Values { values: self.room.put_values(values), held, stored: kind })
    }

    fn absmax(
        &mut self,
        spec: &TensorSpec,
        name: &str,
        state: &QuantState,
        blocks: usize,
    ) -> Result<Absmax, ModelError> {
        let part = |suffix: &str| format!("{name}.{suffix}");
        let Some(offset) = state.nested_offset else {
            return Ok(Absmax::F32(self.floats(spec, &part("absmax"), blocks)?));
        };
        let map = self.floats(spec, &part("nested_quant_map"), 256)?;
        let second = self.floats(spec, &part("nested_absmax"), blocks.div_ceil(256))?;
        let codes = self.part(spec, &part("absmax"))?;
        if codes.len() != blocks || !offset.is_finite() {
            return Err(bad_file(&part("absmax"), format!("it must hold {blocks} bytes")));
        }
        let map = Box::new(map.try_into().expect("256 values were asked for"));
        Ok(Absmax::Double { codes, map, second, offset })
    }

    /// The bytes of a tensor that belongs to another.
    fn part(&mut self, spec: &TensorSpec, name: &str) -> Result<Vec<u8>, ModelError> {
        match self.tensors.remove(name) {
            Some(entry) => {
                self.bytes(name, spec, &entry)?;
                Ok(self.room.bytes().to_vec())
            }
            None => Err(ModelError::MissingTensor {
                tensor: name.to_owned(),
                place: "the checkpoint".to_owned(),
            }),
        }
    }

    fn floats(
        &mut self,
        spec: &TensorSpec,
        name: &str,
        count: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let known = self.tensors.get(name).map(|entry| (entry.file, entry.encoding));
        let bytes = self.part(spec, name)?;
        let (file, encoding) = known.expect("a part that was read was there");
        let file = self.files[file].name.clone();
        if encoding != Encoding::Known(TensorType::F32) || bytes.len() != 4 * count {
            return Err(bad_file(&file, format!("the tensor {name} must hold {count} f32 values")));
        }
        let values = HostValues::F32Bytes(bytes.as_chunks().0).to_vec(&self.threads);
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(ModelError::NotFinite { file, tensor: name.to_owned() }),
        }
    }
}
