//! The units a micro-batch is cut into, and what each works on.

use super::head::Scored;
use super::layer::{BackAtUp, Begun, Kept, KeptAttention, Raised};
use crate::backend::Backend;

/// The kinds of unit; those of one micro-batch that are of one kind take about equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassUnit {
    /// A layer's attention, forward.
    Attention,
    /// The two products of a layer's MLP, forward.
    Up,
    Down,
    /// Logits and loss of some rows.
    Head,
    HeadBackward,
    /// What is computed anew of a layer for its backward.
    AttentionAgain,
    UpAgain,
    BackwardDown,
    BackwardUp,
    BackwardAttention,
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
    Done,
}

impl<B: Backend> State<B> {
    /// The kind of the next unit; `None` if none is left.
    pub fn next(&self) -> Option<PassUnit> {
        Some(match self {
            Self::Embed | Self::Forward { .. } => PassUnit::Attention,
            Self::ForwardUp { .. } => PassUnit::Up,
            Self::ForwardDown { .. } => PassUnit::Down,
            Self::Head { .. } => PassUnit::Head,
            Self::HeadBackward { .. } => PassUnit::HeadBackward,
            Self::Backward { kept: None, .. } => PassUnit::AttentionAgain,
            Self::UpAgain { .. } => PassUnit::UpAgain,
            Self::Backward { kept: Some(_), .. } => PassUnit::BackwardDown,
            Self::BackwardUp { .. } => PassUnit::BackwardUp,
            Self::BackwardAttention { .. } => PassUnit::BackwardAttention,
            Self::Done => return None,
        })
    }
}
