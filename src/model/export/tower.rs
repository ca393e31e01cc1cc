//! What a vision tower has behind the block whose output is taken. Nothing is computed with it, and
//! still other programs look for it in a file.

use crate::model::checkpoint::Checkpoint;
use crate::model::config::DecoderConfig;
use crate::model::tensors::TensorSpec;

/// The blocks and the norm of a tower that are not among `used`, as far as `checkpoint` has them.
pub(super) fn unused(
    tower: &DecoderConfig,
    used: &[TensorSpec],
    checkpoint: &Checkpoint,
) -> Vec<TensorSpec> {
    let names = &tower.names;
    let block = |index: usize| format!("{}{}.{index}.", names.prefix, names.layer);
    // Blocks are alike, and so are the norms at both ends.
    let blocks = (tower.layers.len()..)
        .map(|index| alike(used, &block(0), &block(index)))
        .take_while(|specs| specs.iter().any(|spec| checkpoint.has(&spec.name)));
    let [first, last] =
        ["pre_layrnorm", names.final_norm].map(|norm| format!("{}{norm}.", names.prefix));
    let norm = alike(used, &first, &last);
    blocks.flatten().chain(norm).filter(|spec| checkpoint.has(&spec.name)).collect()
}

/// The tensors below `from`, their names below `to`.
fn alike(specs: &[TensorSpec], from: &str, to: &str) -> Vec<TensorSpec> {
    let moved = |spec: &TensorSpec| {
        let name = format!("{to}{}", spec.name.strip_prefix(from)?);
        Some(TensorSpec { stored: name.clone(), name, ..spec.clone() })
    };
    specs.iter().filter_map(moved).collect()
}
