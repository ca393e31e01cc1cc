//! Pictures as one model wants them.

use sha2::{Digest, Sha256};

use super::config::{PictureConfig, Size};
use super::decode::{Rgb, decode};
use super::resize::resize;
use super::{PictureError, url};
use crate::domain::Picture;

/// Reads the pictures of one model.
#[derive(Clone, Debug)]
pub struct PictureReader {
    config: PictureConfig,
}

impl PictureReader {
    pub fn new(config: PictureConfig) -> Self {
        Self { config }
    }

    /// The picture that a data URL holds. Slow: not for an async thread.
    ///
    /// # Errors
    /// [`PictureError`] if it is no picture, too large, or elsewhere.
    pub fn read_url(&self, url: &str) -> Result<Picture, PictureError> {
        self.read(&url::bytes(url)?)
    }

    /// The picture of a file's bytes.
    ///
    /// # Errors
    /// As [`PictureReader::read_url`].
    pub fn read(&self, bytes: &[u8]) -> Result<Picture, PictureError> {
        let picture = self.fit(decode(bytes, self.config.pad)?);
        let pixels = self.normalise(&picture);
        let mut digest = Sha256::new();
        pixels.iter().for_each(|pixel| digest.update(pixel.to_le_bytes()));
        Ok(Picture { digest: digest.finalize().into(), pixels })
    }

    /// Padded if the model wants it, resized, and the centre cut out.
    fn fit(&self, picture: Rgb) -> Rgb {
        let picture = if self.config.pad { self.pad(picture) } else { picture };
        let (width, height) = self.resized(&picture);
        let side = self.config.image_size;
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        resize(&picture, (width, height), left..left + side, top..top + side)
    }

    fn resized(&self, picture: &Rgb) -> (usize, usize) {
        let (width, height) = (picture.width, picture.height);
        match self.config.size {
            Size::Exact { width, height } => (width, height),
            Size::ShortestEdge(edge) if width <= height => (edge, edge * height / width),
            Size::ShortestEdge(edge) => (edge * width / height, edge),
        }
    }

    /// To a square, with the mean colour on both sides.
    fn pad(&self, picture: Rgb) -> Rgb {
        let Rgb { width, height, .. } = picture;
        if width == height {
            return picture;
        }
        let side = width.max(height);
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        let colour = self.config.mean.map(|mean| (f64::from(mean) * 255.0) as u8);
        let mut bytes = colour.repeat(side * side);
        for (y, row) in picture.bytes.chunks_exact(3 * width).enumerate() {
            let at = 3 * ((top + y) * side + left);
            bytes[at..at + row.len()].copy_from_slice(row);
        }
        Rgb { width: side, height: side, bytes }
    }

    /// Planes of red, green and blue, centred and scaled.
    fn normalise(&self, picture: &Rgb) -> Vec<f32> {
        let PictureConfig { rescale, mean, std, .. } = &self.config;
        let plane = |colour: usize| {
            let values = picture.bytes.iter().skip(colour).step_by(3);
            values.map(move |&value| (f32::from(value) * rescale - mean[colour]) / std[colour])
        };
        (0..3).flat_map(plane).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use safetensors::SafeTensors;

    use super::*;

    fn golden(file: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava/clip_default").join(file)
    }

    fn tensor(name: &str) -> (Vec<usize>, Vec<u8>) {
        let bytes = std::fs::read(golden("io.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    fn reader(pad: bool) -> PictureReader {
        let config = PictureConfig::from_folder(&golden("model"), 32).unwrap();
        PictureReader::new(PictureConfig { pad, ..config })
    }

    #[test]
    fn resizing_agrees_with_pil_in_every_byte() {
        let picture = decode(&std::fs::read(golden("image.png")).unwrap(), false).unwrap();
        let size = reader(false).resized(&picture);
        let resized = resize(&picture, size, 0..size.0, 0..size.1);
        let (shape, expected) = tensor("resized_u8");
        assert_eq!(shape, [resized.height, resized.width, 3]);
        assert_eq!(resized.bytes, expected);
    }

    #[test]
    fn pixels_agree_with_those_of_transformers() {
        let picture = reader(false).read(&std::fs::read(golden("image.png")).unwrap()).unwrap();
        let expected = tensor("pixel_values").1;
        let expected = expected.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let errors = picture.pixels.iter().zip(expected).map(|(x, y)| (x - y).abs());
        assert!(errors.fold(0.0, f32::max) <= 1e-6);
    }

    #[test]
    fn padding_puts_the_mean_colour_on_both_sides() {
        let white = Rgb { width: 4, height: 1, bytes: vec![255; 12] };
        let padded = reader(true).pad(white);
        let mean = [122, 116, 104];
        assert_eq!((padded.width, padded.height), (4, 4));
        assert!(padded.bytes[..12].chunks(3).all(|pixel| pixel == mean));
        assert!(padded.bytes[12..24].iter().all(|&value| value == 255));
        assert!(padded.bytes[24..].chunks(3).all(|pixel| pixel == mean));
    }

    #[test]
    fn a_picture_of_odd_proportions_costs_no_more_than_another() {
        let line = Rgb { width: 16_384, height: 1, bytes: vec![9; 3 * 16_384] };
        // Whole it would be 524,288 by 32.
        let fitted = reader(false).fit(line);
        assert_eq!((fitted.width, fitted.height), (32, 32));
        assert!(fitted.bytes.iter().all(|&value| value == 9));
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_decoded() {
        // A PNG of 40 bytes that claims 100,000 by 100,000 pixels.
        let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        let header = [&100_000u32.to_be_bytes()[..], &100_000u32.to_be_bytes(), &[8, 2, 0, 0, 0]];
        bomb.extend(header.concat());
        bomb.extend(crc32(&bomb[12..]).to_be_bytes());
        bomb.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        let error = reader(false).read(&bomb).unwrap_err();
        assert!(matches!(error, PictureError::TooLarge { width: 100_000, .. }), "{error}");
        assert_eq!(reader(false).read(b"GIF89a").unwrap_err(), PictureError::UnknownFormat);
        let whole = std::fs::read(golden("image.png")).unwrap();
        let cut = reader(false).read(&whole[..whole.len() / 2]);
        assert!(matches!(cut, Err(PictureError::Decode { .. })), "{cut:?}");
    }

    /// The check sum of PNG chunks.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc: u32, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        })
    }
}
