//! Pictures in prompts and in training data.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Most bytes of a conversation with its pictures: of a chat request, or a line of training data.
pub const MAX_CONVERSATION_BYTES: usize = 32 << 20;

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

/// A picture of training data: known by its content, and read when it is needed.
pub trait StoredPicture: fmt::Debug + Send + Sync {
    /// As [`Picture::digest`].
    fn digest(&self) -> [u8; 32];

    /// The picture. Slow: it may be read from a file and decoded.
    ///
    /// # Errors
    /// A sentence, if it cannot be read any more.
    fn read(&self) -> Result<Arc<Picture>, String>;
}

/// Makes pictures of what the lines of one file call pictures.
pub trait PictureShelf {
    /// The picture that the bytes `line` of the file show at `url`, the line's picture `number`.
    /// Slow: it is decoded to be checked.
    ///
    /// # Errors
    /// A sentence, if it is no picture, or not one that may be used.
    fn take(
        &self,
        line: Range<u64>,
        number: usize,
        url: &str,
    ) -> Result<Arc<dyn StoredPicture>, String>;
}

/// What the upper half knows of a model that sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisionInfo {
    /// Stands in the prompt where features go.
    pub image_token: u32,
    pub tokens_per_image: usize,
    /// Values by which the tower describes each of these tokens.
    pub feature_width: usize,
    /// Width and height of the pictures it reads.
    pub image_size: usize,
}

impl VisionInfo {
    /// Repeats every image token as often as a picture has features; also where each run begins.
    pub fn make_room(&self, ids: &[u32]) -> (Vec<u32>, Vec<usize>) {
        let (mut room, mut starts) = (Vec::with_capacity(ids.len()), Vec::new());
        for &id in ids {
            match id == self.image_token {
                false => room.push(id),
                true => {
                    starts.push(room.len());
                    room.resize(room.len() + self.tokens_per_image, id);
                }
            }
        }
        (room, starts)
    }

    /// Bytes of what the tower sees of a picture.
    pub fn feature_bytes(&self) -> usize {
        self.tokens_per_image * self.feature_width * size_of::<f32>()
    }
}

impl StoredPicture for Arc<Picture> {
    fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn read(&self) -> Result<Arc<Picture>, String> {
        Ok(Arc::clone(self))
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({} values)", self.pixels.len())
    }
}
