//! Files to 8-bit RGB, their size looked at first.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbaImage};

use super::{PictureError, jpeg};

/// Longest side of a picture.
pub const MAX_SIDE: u32 = 16_384;
/// Most pixels of a picture.
pub const MAX_PIXELS: u64 = 1 << 25;
/// Most memory one decoder may take.
const MAX_DECODED_BYTES: u64 = 1 << 27;

/// Rows of red, green and blue.
#[derive(Clone, Debug, PartialEq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    pub bytes: Vec<u8>,
}

/// Decodes PNG, JPEG or WebP, of an animation the first picture. What is transparent lies on white, as
/// in `transformers` from 5 on. `padded`: the picture will be padded to a square.
///
/// # Errors
/// [`PictureError`]: what it is, or that it is too large, before any pixel is decoded.
pub fn decode(bytes: &[u8], padded: bool) -> Result<Rgb, PictureError> {
    let format = image::guess_format(bytes).map_err(|_| PictureError::UnknownFormat)?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) {
        return Err(PictureError::UnknownFormat);
    }
    if format == ImageFormat::Jpeg && !jpeg::ends(bytes) {
        return Err(PictureError::Decode { reason: "it is cut off".to_owned() });
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    let decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, padded)?;
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        let (bytes, limit) = (decoder.total_bytes(), MAX_DECODED_BYTES);
        return Err(PictureError::TooMuchMemory { bytes, limit });
    }
    let picture = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let bytes = match picture.color().has_alpha() {
        true => on_white(&picture.into_rgba8()),
        false => picture.into_rgb8().into_raw(),
    };
    Ok(Rgb { width: width as usize, height: height as usize, bytes })
}

/// The picture before a white ground, rounded as PIL's `alpha_composite` rounds.
fn on_white(picture: &RgbaImage) -> Vec<u8> {
    let blend = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        let sum = (value * alpha + 255 * (255 - alpha) + 128) << 7;
        (((sum >> 8) + sum) >> 15) as u8
    };
    let pixels = picture.pixels();
    pixels.flat_map(|pixel| [0, 1, 2].map(|at| blend(pixel.0[at], pixel.0[3]))).collect()
}

fn check_size(width: u32, height: u32, padded: bool) -> Result<(), PictureError> {
    let side = u64::from(width.max(height));
    let pixels = if padded { side * side } else { u64::from(width) * u64::from(height) };
    if width == 0 || height == 0 {
        return Err(PictureError::Decode { reason: "it has no pixels".to_owned() });
    }
    if side > u64::from(MAX_SIDE) || pixels > MAX_PIXELS {
        let (max_side, max_pixels) = (MAX_SIDE, MAX_PIXELS);
        return Err(PictureError::TooLarge { width, height, max_side, max_pixels });
    }
    Ok(())
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    // The sides are checked above, with a better sentence.
    limits.max_alloc = Some(2 * MAX_DECODED_BYTES);
    limits
}

fn failed(error: ImageError) -> PictureError {
    let reason: String = error.to_string().chars().take(200).collect();
    PictureError::Decode { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_transparent_lies_on_white() {
        let pixels = vec![200, 100, 0, 0, 200, 100, 0, 128, 200, 100, 0, 255];
        let picture = RgbaImage::from_raw(3, 1, pixels).expect("three pixels");
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).expect("written");
        let found = decode(png.get_ref(), false).expect("decoded").bytes;
        // As `Image.alpha_composite` of Pillow has it.
        assert_eq!(found, [255, 255, 255, 227, 177, 127, 200, 100, 0]);
    }
}
