//! `adapter_model.safetensors`: bytes to checked f32 matrices.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::error::{PeftError, Result};

/// A header beyond this is refused before anything reads it.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// The tensors of one file, by name; each is taken once, and none may be left over.
pub(super) struct Tensors<'a>(BTreeMap<String, TensorView<'a>>);

impl<'a> Tensors<'a> {
    /// Reads the header; no tensor is copied yet.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self> {
        check_header_size(bytes)?;
        let file =
            SafeTensors::deserialize(bytes).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self(file.tensors().into_iter().collect()))
    }

    /// Takes `name` out as row-major f32, its shape, type and numbers checked.
    pub(super) fn take(&mut self, name: String, expected: &[usize]) -> Result<Vec<f32>> {
        let Some(view) = self.0.remove(&name) else {
            return Err(PeftError::MissingTensor { tensor: name });
        };
        if view.shape() != expected {
            let (found, expected) = (view.shape().into(), expected.into());
            return Err(PeftError::Shape { tensor: name, found, expected });
        }
        to_f32(&name, &view)?.ok_or(PeftError::NotFinite { tensor: name })
    }

    /// Whether `name` is there and was not taken.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Leaves `name` out, if it is there with this shape.
    pub(super) fn skip(&mut self, name: &str, shape: &[usize]) -> bool {
        let fits = self.0.get(name).is_some_and(|view| view.shape() == shape);
        fits && self.0.remove(name).is_some()
    }

    /// Calls tensors by other names, where `name` has one.
    pub(super) fn rename(&mut self, name: impl Fn(&str) -> Option<String>) {
        let tensors = std::mem::take(&mut self.0).into_iter();
        self.0 = tensors.map(|(old, view)| (name(&old).unwrap_or(old), view)).collect();
    }

    /// The first tensor nobody took.
    pub(super) fn left_over(&self) -> Option<&str> {
        self.0.keys().next().map(String::as_str)
    }
}

fn check_header_size(bytes: &[u8]) -> Result<()> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(unreadable("it is shorter than its own header".to_owned()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(unreadable(format!(
            "its header claims {length} bytes and at most {MAX_HEADER_BYTES} are read"
        )));
    }
    if length > rest.len() as u64 {
        return Err(unreadable("it ends inside its header".to_owned()));
    }
    Ok(())
}

/// `None` if one of the numbers is not finite.
fn to_f32(name: &str, view: &TensorView<'_>) -> Result<Option<Vec<f32>>> {
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => Ok(widen(data, f32::from_le_bytes)),
        Dtype::F16 => Ok(widen(data, |bytes| f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => Ok(widen(data, |bytes| bf16::from_le_bytes(bytes).to_f32())),
        other => Err(PeftError::Dtype { tensor: name.to_owned(), found: format!("{other:?}") }),
    }
}

/// Widens and checks in one pass: the matrices are larger than the processor's caches.
fn widen<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f32) -> Option<Vec<f32>> {
    let mut finite = true;
    let checked = |&bytes: &[u8; N]| {
        let number = number(bytes);
        finite &= number.is_finite();
        number
    };
    let numbers = data.as_chunks().0.iter().map(checked).collect();
    finite.then_some(numbers)
}

fn unreadable(reason: String) -> PeftError {
    PeftError::Tensors { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_claims_too_much_is_refused_unread() {
        let mut bomb = (u64::MAX).to_le_bytes().to_vec();
        bomb.extend_from_slice(b"{}");
        assert!(matches!(Tensors::open(&bomb), Err(PeftError::Tensors { .. })));
    }

    #[test]
    fn a_truncated_file_is_an_error_at_every_length() {
        let weights = [1.0f32, 2.0];
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![1, 2], &bytes).expect("a view");
        let file = safetensors::serialize([("w", view)], None).expect("a file");
        assert!(Tensors::open(&file).is_ok());
        for length in 0..file.len() {
            assert!(Tensors::open(&file[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn half_precision_is_widened_exactly() {
        for (dtype, bytes) in [
            (Dtype::F16, f16::from_f32(1.5).to_le_bytes()),
            (Dtype::BF16, bf16::from_f32(1.5).to_le_bytes()),
        ] {
            let view = TensorView::new(dtype, vec![1, 1], &bytes).expect("a view");
            assert_eq!(to_f32("w", &view).expect("a number"), Some(vec![1.5]));
        }
    }
}
