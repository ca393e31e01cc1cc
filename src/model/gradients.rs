//! Where the backward puts what it finds about trained tensors.

use std::ops::Range;

use super::saved::Part;
use crate::backend::Backend;

/// Gradients of one site's adapter, of the shapes of its matrices.
pub(super) struct SiteGradient<B: Backend> {
    pub a: B::Rows,
    pub b: B::Rows,
    /// Of a DoRA site.
    pub magnitude: Option<B::Rows>,
}

/// The gradients of what a run trains; frozen tensors have none.
pub(super) enum Gradients<'a, B: Backend> {
    /// By site; and of modules replaced whole, by [`Part`], of every tensor.
    Adapter { sites: &'a mut [Option<SiteGradient<B>>], saved: [Vec<&'a mut B::Rows>; 3] },
    /// By slot: every tensor of the model.
    Full(&'a mut [B::Rows]),
}

impl<'a, B: Backend> Gradients<'a, B> {
    /// Of the adapter at `site`.
    pub fn site(&mut self, site: usize) -> &mut SiteGradient<B> {
        match self {
            Gradients::Adapter { sites, .. } => {
                sites[site].as_mut().expect("every site of the trained adapter has gradients")
            }
            Gradients::Full(_) => unreachable!("a run trains an adapter or every weight"),
        }
    }

    /// Of the embedding or the head, where the trained adapter replaces it.
    pub fn saved(&mut self, part: Part) -> Option<&mut B::Rows> {
        match self {
            Gradients::Adapter { saved, .. } => saved[part as usize].first_mut().map(|g| &mut **g),
            Gradients::Full(_) => None,
        }
    }

    /// Of every tensor of the projector, where the trained adapter replaces it.
    pub fn projector(&mut self) -> Option<&mut [&'a mut B::Rows]> {
        match self {
            Gradients::Adapter { saved, .. } => {
                Some(&mut saved[Part::Projector as usize][..]).filter(|all| !all.is_empty())
            }
            Gradients::Full(_) => None,
        }
    }

    /// Of the adapter at each of `sites`.
    pub fn sites(&mut self, sites: Range<usize>) -> &mut [Option<SiteGradient<B>>] {
        match self {
            Gradients::Adapter { sites: all, .. } => &mut all[sites],
            Gradients::Full(_) => unreachable!("a run trains an adapter or every weight"),
        }
    }

    /// Of the tensor in `slot`, if it is trained.
    pub fn tensor(&mut self, slot: usize) -> Option<&mut B::Rows> {
        match self {
            Gradients::Adapter { .. } => None,
            Gradients::Full(tensors) => Some(&mut tensors[slot]),
        }
    }

    /// Of the tensor in `slot` and, where it has one, of the bias in the slot after it.
    pub fn with_bias(
        &mut self,
        slot: usize,
        bias: bool,
    ) -> (Option<&mut B::Rows>, Option<&mut B::Rows>) {
        match self {
            Gradients::Adapter { .. } => (None, None),
            Gradients::Full(tensors) => {
                let (head, tail) = tensors.split_at_mut(slot + 1);
                (head.last_mut(), tail.first_mut().filter(|_| bias))
            }
        }
    }
}
