//! Pictures in a prompt.

use std::fmt;
use std::sync::Arc;

/// A picture as a vision tower reads it.
#[derive(PartialEq)]
pub struct Picture {
    /// SHA-256 of the pixels: where these agree the pictures do.
    pub digest: [u8; 32],
    /// `(3, side, side)`: red, green and blue planes, normalised.
    pub pixels: Vec<f32>,
}

/// A picture and its place: a run of image tokens that its features take the place of.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedPicture {
    /// The first of them, counted from the beginning of the prompt.
    pub start: usize,
    pub picture: Arc<Picture>,
}

/// What the upper half knows of a model that sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisionInfo {
    /// Stands in the prompt where features go.
    pub image_token: u32,
    pub tokens_per_image: usize,
    /// Width and height of the pictures it reads.
    pub image_size: usize,
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({} values)", self.pixels.len())
    }
}
