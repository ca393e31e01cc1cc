//! Modules an adapter replaces whole: the token embedding and the output head. PEFT's
//! `modules_to_save`.

use super::{Model, ModelError};
use crate::backend::{Backend, HostWeight, WeightFormat};
use crate::domain::{ModuleShape, SavedModule};

/// Which table is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Embedding,
    Head,
}

impl Table {
    pub const ALL: [Self; 2] = [Self::Embedding, Self::Head];
}

impl<B: Backend> Model<B> {
    /// The values `(out, in)` of one of [`crate::domain::BaseInfo::tables`], as they are resident.
    ///
    /// # Errors
    /// [`ModelError::UnknownModule`].
    pub fn table_values(&self, b: &B, module: &str) -> Result<Vec<f32>, ModelError> {
        let (table, _) = self.table(module)?;
        Ok(match (table, &self.head.projection) {
            (Table::Head, Some(head)) => b.unpack(&head.linears[0].weight),
            _ => b.unpack(&self.embedding.table),
        })
    }

    /// Which table `module` names, and its shape.
    pub(super) fn table(&self, module: &str) -> Result<(Table, &ModuleShape), ModelError> {
        let tables = Table::ALL.into_iter().zip(&self.info.tables);
        tables.into_iter().find(|(_, shape)| shape.name == module).ok_or_else(|| {
            ModelError::UnknownModule {
                module: module.to_owned(),
                model: self.info.name.to_string(),
            }
        })
    }

    /// Checks a replacement and packs it.
    pub(super) fn pack_saved(
        &self,
        b: &mut B,
        saved: &SavedModule,
    ) -> Result<(Table, B::Weight), ModelError> {
        let (table, shape) = self.table(&saved.module)?;
        let (module, expected) = (saved.module.clone(), shape.in_features * shape.out_features);
        if saved.values.len() != expected {
            return Err(ModelError::SavedShape { module, expected, found: saved.values.len() });
        }
        if !saved.values.iter().all(|value| value.is_finite()) {
            return Err(ModelError::AdapterNotFinite { module, matrix: "weight" });
        }
        Ok((table, pack(b, &saved.values, (shape.out_features, shape.in_features))))
    }
}

/// Values `(out, in)` as a weight, not rounded.
pub(super) fn pack<B: Backend>(b: &mut B, values: &[f32], shape: (usize, usize)) -> B::Weight {
    let (out_features, in_features) = shape;
    b.pack(HostWeight { values, out_features, in_features }, WeightFormat::F32)
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
