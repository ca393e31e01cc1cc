//! Modules an adapter replaces whole: the token embedding, the output head, the projector of
//! pictures. PEFT's `modules_to_save`.

use super::adapter::Adapter;
use super::{Model, ModelError};
use crate::backend::{Backend, HostWeight, WeightFormat};
use crate::domain::{SaveableModule, SavedModule};

/// Which of them is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Embedding,
    Head,
    Projector,
}

impl Part {
    /// In the order of [`crate::domain::BaseInfo::saveable`].
    pub const ALL: [Self; 3] = [Self::Embedding, Self::Head, Self::Projector];
}

impl<B: Backend> Model<B> {
    /// The values of one of [`crate::domain::BaseInfo::saveable`], as they are resident.
    ///
    /// # Errors
    /// [`ModelError::UnknownModule`].
    pub fn saved_values(&self, b: &B, module: &str) -> Result<Vec<Vec<f32>>, ModelError> {
        let (part, _) = self.saveable(module)?;
        Ok(match (part, &self.head.projection, self.projector()) {
            (Part::Projector, _, Some(projector)) => projector.values(b),
            (Part::Head, Some(head), _) => vec![b.unpack(&head.linears[0].weight)],
            _ => vec![b.unpack(&self.embedding.table)],
        })
    }

    /// Which part `module` names, and its tensors.
    pub(super) fn saveable(&self, module: &str) -> Result<(Part, &SaveableModule), ModelError> {
        let mut parts = Part::ALL.into_iter().zip(&self.info.saveable);
        parts.find(|(_, saveable)| saveable.name == module).ok_or_else(|| {
            ModelError::UnknownModule {
                module: module.to_owned(),
                model: self.info.name.to_string(),
            }
        })
    }

    /// Checks a replacement and gives it, packed, to `adapter`; the bytes it takes.
    ///
    /// # Errors
    /// If it is no module of this model, of another shape, not finite, or there already.
    pub(super) fn attach_saved(
        &self,
        b: &mut B,
        saved: &SavedModule,
        adapter: &mut Adapter<B>,
    ) -> Result<usize, ModelError> {
        let (part, saveable) = self.saveable(&saved.module)?;
        check(saved, saveable)?;
        let there = match part {
            Part::Projector => adapter.projector.is_some(),
            _ => adapter.saved(part).is_some(),
        };
        if there {
            return Err(ModelError::RepeatedModule { module: saved.module.clone() });
        }
        self.renew_saved(b, part, saveable, &saved.values, adapter);
        Ok(match (part, &adapter.projector, adapter.saved(part)) {
            (Part::Projector, Some(projector), _) => projector.weight_bytes(b),
            (_, _, Some(weight)) => b.weight_bytes(weight),
            _ => 0,
        })
    }

    /// Gives `adapter` new values of a part.
    pub(super) fn renew_saved(
        &self,
        b: &mut B,
        part: Part,
        saveable: &SaveableModule,
        values: &[Vec<f32>],
        adapter: &mut Adapter<B>,
    ) {
        match (part, self.projector()) {
            (Part::Projector, Some(base)) => {
                let old = adapter.projector.replace(base.with_values(b, values));
                old.into_iter().for_each(|old| old.release(b));
            }
            _ => {
                let shape = saveable.tensors[0].shape;
                adapter.saved[part as usize] = Some(pack(b, &values[0], shape));
            }
        }
    }
}

fn check(saved: &SavedModule, saveable: &SaveableModule) -> Result<(), ModelError> {
    let expected: Vec<usize> = saveable.tensors.iter().map(|tensor| tensor.parameters()).collect();
    let found: Vec<usize> = saved.values.iter().map(Vec::len).collect();
    let module = saved.module.clone();
    if found != expected {
        let [expected, found] = [expected, found].map(|counts| counts.iter().sum());
        return Err(ModelError::SavedShape { module, expected, found });
    }
    if !saved.values.iter().flatten().all(|value| value.is_finite()) {
        return Err(ModelError::AdapterNotFinite { module, matrix: "weight" });
    }
    Ok(())
}

/// Values `(out, in)` as a weight, not rounded.
pub(super) fn pack<B: Backend>(b: &mut B, values: &[f32], shape: (usize, usize)) -> B::Weight {
    let (out_features, in_features) = shape;
    b.pack(HostWeight { values: values.into(), out_features, in_features }, WeightFormat::F32)
}

/// Puts `new` in the place of `rows` of `y`.
pub(super) fn replace_rows<B: Backend>(
    b: &mut B,
    y: &mut B::Rows,
    rows: std::ops::Range<usize>,
    new: B::Rows,
) {
    let rows: Vec<usize> = rows.collect();
    let mut old = b.zeros(rows.len(), b.shape(y).1);
    b.gather(y, &rows, &mut old);
    b.scale(&mut old, -1.0);
    // x + (−x) is zero to the bit.
    b.scatter_add(&old, &rows, y);
    b.scatter_add(&new, &rows, y);
    [old, new].into_iter().for_each(|rows| b.recycle(rows));
}
