//! An adapter into the weight it attaches to.

use crate::domain::AdapterSite;

/// `W += scaling · B A`, `W (out, in)`. Hu et al. 2021, "LoRA", section 4.1: merged, an adapter
/// costs nothing. With a magnitude each row is then brought to that length: Liu et al. 2024, "DoRA".
pub(super) fn merge(weight: &mut [f32], site: &AdapterSite, (out, inner): (usize, usize)) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = out.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (part, weight) in weight.chunks_mut(rows * inner).enumerate() {
            scope.spawn(move || {
                for (row, weight) in weight.chunks_exact_mut(inner).enumerate() {
                    let b = &site.b[(part * rows + row) * site.r..][..site.r];
                    for (factor, a) in b.iter().zip(site.a.chunks_exact(inner)) {
                        let factor = site.scaling * factor;
                        weight.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
                    }
                    if let Some(magnitude) = &site.magnitude {
                        stretch(weight, magnitude[part * rows + row]);
                    }
                }
            });
        }
    });
}

/// Brings a row to a length.
fn stretch(row: &mut [f32], length: f32) {
    let squares: f64 = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    let factor = length / (squares.sqrt() as f32).max(f32::MIN_POSITIVE);
    row.iter_mut().for_each(|w| *w *= factor);
}
