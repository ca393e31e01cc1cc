//! From what a message calls a picture to the numbers a vision tower reads.
//!
//! ```text
//! data URL > bytes (url) > 8-bit RGB (decode) > resized and cropped (resize) > normalised (reader)
//! ```
//! Every step is bounded before it begins: the bytes, the sides, the pixels, the memory of the
//! decoder. Nothing is fetched: a picture is in its request or it is not there.

mod config;
mod decode;
mod jpeg;
mod reader;
mod resize;
mod url;

pub use config::{PictureConfig, PictureConfigError};
pub use decode::{MAX_PIXELS, MAX_SIDE};
pub use reader::PictureReader;
pub use url::MAX_PICTURE_BYTES;

/// What is wrong with a picture.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PictureError {
    #[error(
        "pictures are not fetched from other servers, so that nobody can make this one visit an \
         address; send the picture itself, as `data:image/png;base64,…`"
    )]
    Remote,
    #[error("a picture must be a data URL, `data:image/png;base64,…`")]
    NotADataUrl,
    #[error("the data URL does not hold base64")]
    Base64,
    #[error("the picture has more than {limit} bytes")]
    TooManyBytes { limit: usize },
    #[error("the picture is neither PNG, JPEG nor WebP")]
    UnknownFormat,
    #[error("the picture could not be decoded: {reason}")]
    Decode { reason: String },
    #[error(
        "the picture is {width} by {height}; no side may be longer than {max_side}, and there may be \
         {max_pixels} pixels at most, counting those that padding to a square adds"
    )]
    TooLarge { width: u32, height: u32, max_side: u32, max_pixels: u64 },
    #[error("decoding the picture would take {bytes} bytes; at most {limit} are spent on one")]
    TooMuchMemory { bytes: u64, limit: u64 },
}
