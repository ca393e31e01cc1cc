//! The border behind which a model turns keys otherwise than before it, and what that means for
//! keys that are kept.

use crate::backend::{Beyond, Stretch};

/// Long sequences have other rotary positions than short ones. They depend on the tokens that were
/// read as one: keys of the same tokens are worth the same only where that number means the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Border {
    tokens: usize,
    /// Every length has rotary positions of its own. Transformers keeps the keys of a text that
    /// grows in generation as they are, and so do we.
    grows: bool,
}

impl From<&Beyond> for Border {
    fn from(beyond: &Beyond) -> Self {
        let grows = matches!(beyond.stretch, Stretch::Growing { .. });
        Self { tokens: beyond.context, grows }
    }
}

impl Border {
    /// What sequences have in common whose keys can be shared: 0 for short ones.
    pub fn kind(self, read: usize) -> usize {
        match read > self.tokens {
            true if self.grows => read,
            beyond => usize::from(beyond),
        }
    }

    /// Whether a sequence of which `read` tokens were read as one has to be read anew, now that it
    /// has `tokens`.
    pub fn is_crossed(self, read: usize, tokens: usize) -> bool {
        !self.grows && read <= self.tokens && tokens > self.tokens
    }

    /// Guesses that such a sequence may make before it crosses.
    pub fn guesses(self, read: usize, tokens: usize) -> usize {
        match self.grows || read > self.tokens {
            true => usize::MAX,
            false => self.tokens.saturating_sub(tokens),
        }
    }
}
