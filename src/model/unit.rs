//! The units a micro-batch is cut into, and what each works on.

use super::head::Scored;
use super::layer::{BackAtQkv, BackAtUp, Begun, Kept, KeptAttention, Raised};
use crate::backend::Backend;

/// The kinds of unit; those of one micro-batch that are of one kind take about equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassUnit {
    /// The input of the first layer.
    Embed,
    /// A layer's attention, forward.
    Attention,
    /// The two products of a layer's MLP, forward.
    Up,
    Down,
    /// Logits of some rows, their loss, and back.
    Head,
    Loss,
    HeadBackward,
    /// What is computed anew of a layer for its backward.
    AttentionAgain,
    UpAgain,
    BackwardDown,
    BackwardUp,
    BackwardAttention,
    BackwardQkv,
}

/// What the next unit works on.
pub(super) enum State<B: Backend> {
    Embed,
    /// `x (t, d)` is the input of `layer`.
    Forward {
        layer: usize,
        x: B::Rows,
    },
    /// The layer's attention is done; `input` is the layer's, if a backward comes.
    ForwardUp {
        layer: usize,
        input: Option<B::Rows>,
        begun: Begun<B>,
    },
    ForwardDown {
        layer: usize,
        input: Option<B::Rows>,
        raised: Raised<B>,
    },
    /// `x (t, d)` is the last layer's output; `dx` its gradient as far as the chunks have come.
    Head {
        chunk: usize,
        x: B::Rows,
        dx: B::Rows,
    },
    /// The chunk's logits are there.
    Loss {
        chunk: usize,
        x: B::Rows,
        dx: B::Rows,
        scored: Scored<B>,
    },
    /// The chunk's logits have become their gradient.
    HeadBackward {
        chunk: usize,
        x: B::Rows,
        dx: B::Rows,
        scored: Scored<B>,
    },
    /// `dx (t, d)` is the gradient of the output of the last layer whose input is left; that input
    /// is `x`. Where nothing was kept beside it, the layer is computed again.
    Backward {
        x: B::Rows,
        kept: Option<Kept<B>>,
        dx: B::Rows,
    },
    /// The layer's attention is done again.
    UpAgain {
        x: B::Rows,
        begun: Begun<B>,
        dx: B::Rows,
    },
    BackwardUp {
        x: B::Rows,
        back: BackAtUp<B>,
    },
    /// `dx` is the gradient of the output of the layer's attention block.
    BackwardAttention {
        x: B::Rows,
        kept: KeptAttention<B>,
        dx: B::Rows,
    },
    BackwardQkv {
        x: B::Rows,
        back: BackAtQkv<B>,
    },
    Done,
}

impl<B: Backend> State<B> {
    /// The kind of the next unit; `None` if none is left.
    pub fn next(&self) -> Option<PassUnit> {
        Some(match self {
            Self::Embed => PassUnit::Embed,
            Self::Forward { .. } => PassUnit::Attention,
            Self::ForwardUp { .. } => PassUnit::Up,
            Self::ForwardDown { .. } => PassUnit::Down,
            Self::Head { .. } => PassUnit::Head,
            Self::Loss { .. } => PassUnit::Loss,
            Self::HeadBackward { .. } => PassUnit::HeadBackward,
            Self::Backward { kept: None, .. } => PassUnit::AttentionAgain,
            Self::UpAgain { .. } => PassUnit::UpAgain,
            Self::Backward { kept: Some(_), .. } => PassUnit::BackwardDown,
            Self::BackwardUp { .. } => PassUnit::BackwardUp,
            Self::BackwardAttention { .. } => PassUnit::BackwardAttention,
            Self::BackwardQkv { .. } => PassUnit::BackwardQkv,
            Self::Done => return None,
        })
    }
}
