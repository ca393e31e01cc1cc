//! A LoRA adapter in memory, checked and ready for the device.

/// `ΔW = scaling · B A` for one linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSite {
    /// The module it attaches to, as [`super::ModuleShape::name`].
    pub module: String,
    pub r: usize,
    /// `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    pub scaling: f32,
    /// `A (r, in)`, row-major.
    pub a: Vec<f32>,
    /// `B (out, r)`, row-major.
    pub b: Vec<f32>,
    /// DoRA: the length of each row of `W + scaling · B A`, `(out)`.
    pub magnitude: Option<Vec<f32>>,
}

impl AdapterSite {
    /// Trainable numbers it holds.
    pub fn parameters(&self) -> usize {
        self.a.len() + self.b.len() + self.magnitude.as_ref().map_or(0, Vec::len)
    }
}

/// A module that an adapter replaces whole: PEFT's `modules_to_save`.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedModule {
    /// As one of [`super::BaseInfo::saveable`].
    pub module: String,
    /// Of each of its tensors, row-major.
    pub values: Vec<Vec<f32>>,
}

impl SavedModule {
    /// Numbers it holds.
    pub fn parameters(&self) -> usize {
        self.values.iter().map(Vec::len).sum()
    }
}

/// One immutable generation of an adapter: the value every request that names it pins.
#[derive(Clone, Debug)]
pub struct AdapterWeights {
    /// Names the content: two generations never share a key, and caches are keyed by it.
    pub key: String,
    /// In forward order, at most one per module.
    pub sites: Vec<AdapterSite>,
    /// Modules replaced whole.
    pub saved: Vec<SavedModule>,
    /// `lora_dropout` as trained; serving ignores it.
    pub dropout: f32,
}

impl AdapterWeights {
    /// Trainable numbers it holds.
    pub fn parameters(&self) -> usize {
        let low_rank = self.sites.iter().map(AdapterSite::parameters);
        low_rank.chain(self.saved.iter().map(SavedModule::parameters)).sum()
    }

    /// Bytes its matrices take in memory.
    pub fn size_bytes(&self) -> usize {
        self.parameters() * size_of::<f32>()
    }
}
