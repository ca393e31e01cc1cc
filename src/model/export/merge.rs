//! An adapter into the weight it attaches to.

use crate::domain::AdapterSite;

/// `W += scaling · B A`, `W (out, in)`. Hu et al. 2021, "LoRA", section 4.1: merged, an adapter
/// costs nothing.
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
                }
            });
        }
    });
}
