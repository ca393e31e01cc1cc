//! Projections of a trained adapter out of the waist's plain operations, for devices and weight
//! formats that do not fuse them.

use super::{Backend, LowRank, LowRankGradient, Part};

/// See [`Backend::project`].
pub(super) fn project<B: Backend>(
    device: &mut B,
    x: &B::Rows,
    parts: &[Part<'_, B>],
    y: &mut B::Rows,
) {
    let (t, _) = device.shape(x);
    for part in parts {
        device.matmul(x, part.weight, part.bias, y, part.at);
        if let Some(LowRank { a, b, scaling }) = &part.low_rank {
            device.add_low_rank(x, 0..t, a, b, *scaling, y, part.at);
        }
    }
}

/// See [`Backend::project_backward`].
pub(super) fn project_backward<B: Backend>(
    device: &mut B,
    dy: &B::Rows,
    x: &B::Rows,
    parts: &[Part<'_, B>],
    gradients: &mut [Option<LowRankGradient<'_, B::Rows>>],
    dx: Option<&mut B::Rows>,
) {
    let (t, width) = device.shape(x);
    let wanted = dx.is_some();
    let mut sum = device.zeros(t, width);
    for (part, gradient) in parts.iter().zip(gradients) {
        if wanted {
            device.matmul_backward(dy, part.at, part.weight, &mut sum);
        }
        if let (Some(LowRank { a, b, scaling }), Some(to)) = (&part.low_rank, gradient) {
            device.low_rank_backward(dy, part.at, x, a, b, *scaling, to.a, to.b, &mut sum);
        }
    }
    let unused = match dx {
        Some(dx) => std::mem::replace(dx, sum),
        None => sum,
    };
    device.recycle(unused);
}
