//! What loading did.

use std::collections::BTreeMap;
use std::fmt;

use crate::backend::WeightFormat;

/// The matrices of a model by what was stored and what is held, and their size.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Matrices and values, by stored type and held format.
    weights: BTreeMap<(&'static str, WeightFormat), (usize, u64)>,
    pub size_bytes: usize,
}

impl Report {
    pub(super) fn weight(
        &mut self,
        stored: &'static str,
        held: WeightFormat,
        values: usize,
        bytes: usize,
    ) {
        let entry = self.weights.entry((stored, held)).or_default();
        *entry = (entry.0 + 1, entry.1 + values as u64);
        self.size_bytes += bytes;
    }

    pub(super) fn vector(&mut self, width: usize) {
        self.size_bytes += size_of::<f32>() * width;
    }

    /// The format that holds most of the model.
    pub fn format(&self) -> Option<WeightFormat> {
        let mut by_held: BTreeMap<WeightFormat, u64> = BTreeMap::new();
        for ((_, held), (_, values)) in &self.weights {
            *by_held.entry(*held).or_default() += values;
        }
        by_held.into_iter().max_by_key(|(_, values)| *values).map(|(held, _)| held)
    }
}

/// `24 q4_0, 2 q6_k as q8_0`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ((stored, held), (matrices, _))) in self.weights.iter().enumerate() {
            let (comma, held) = (if i > 0 { ", " } else { "" }, held.name());
            match *stored == held {
                true => write!(f, "{comma}{matrices} {held}")?,
                false => write!(f, "{comma}{matrices} {stored} as {held}")?,
            }
        }
        Ok(())
    }
}
