//! How a model wants its pictures: `preprocessor_config.json`, or what the original code does.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// CLIP's mean and standard deviation of red, green and blue.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What happens to a picture before the tower sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureConfig {
    /// Side of what comes out.
    pub image_size: usize,
    /// Pads to a square with the mean colour first, as the original LLaVA does.
    pub pad: bool,
    pub size: Size,
    /// Multiplies the 8-bit values.
    pub rescale: f32,
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// The size before the centre is cut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    ShortestEdge(usize),
    Exact { width: usize, height: usize },
}

/// Why it cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum PictureConfigError {
    #[error("{path} could not be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{file} is not valid JSON: {source}")]
    Json { file: &'static str, source: serde_json::Error },
    #[error("{file}: `{key}` = {value} is not supported")]
    Unsupported { file: &'static str, key: &'static str, value: String },
    #[error(
        "{file}: pictures would not come out as {image_size} by {image_size}, which the vision tower reads"
    )]
    WrongSize { file: &'static str, image_size: usize },
}

const MODEL: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";

impl PictureConfig {
    /// Reads a model folder; `image_size` is what its tower reads.
    ///
    /// # Errors
    /// [`PictureConfigError`], naming file and key.
    pub fn from_folder(folder: &Path, image_size: usize) -> Result<Self, PictureConfigError> {
        if let Some(config) = json(folder, PREPROCESSOR)? {
            return Self::read(PREPROCESSOR, &config, image_size);
        }
        if let Some(config) = json(folder, PROCESSOR)?
            && config["image_processor"].is_object()
        {
            return Self::read(PROCESSOR, &config["image_processor"], image_size);
        }
        let model = json(folder, MODEL)?.unwrap_or_default();
        Ok(Self { pad: model["image_aspect_ratio"] == "pad", ..Self::clip(image_size) })
    }

    /// What CLIP does.
    fn clip(image_size: usize) -> Self {
        Self {
            image_size,
            pad: false,
            size: Size::ShortestEdge(image_size),
            rescale: 1.0 / 255.0,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    fn read(
        file: &'static str,
        config: &Value,
        image_size: usize,
    ) -> Result<Self, PictureConfigError> {
        let keys = Keys { file, config };
        for key in ["do_resize", "do_rescale", "do_normalize"] {
            keys.only(key, &[Value::Bool(true)])?;
        }
        keys.only("resample", &[Value::from(3)])?;
        let clip = Self::clip(image_size);
        let read = Self {
            image_size,
            pad: config["do_pad"] == true,
            size: keys.size("size")?.unwrap_or(clip.size),
            rescale: keys.number("rescale_factor")?.unwrap_or(clip.rescale),
            mean: keys.colour("image_mean")?.unwrap_or(clip.mean),
            std: keys.colour("image_std")?.unwrap_or(clip.std),
        };
        let crop = match config["do_center_crop"] == false {
            true => None,
            false => Some(keys.size("crop_size")?.unwrap_or(clip.size)),
        };
        if read.comes_out(crop) {
            Ok(read)
        } else {
            Err(PictureConfigError::WrongSize { file, image_size })
        }
    }

    /// Whether every picture comes out with the right size.
    fn comes_out(&self, crop: Option<Size>) -> bool {
        let side = self.image_size;
        let exact = Size::Exact { width: side, height: side };
        let large_enough = match self.size {
            Size::ShortestEdge(edge) => edge >= side,
            Size::Exact { width, height } => width.min(height) >= side,
        };
        match crop {
            Some(crop) => (crop == exact || crop == Size::ShortestEdge(side)) && large_enough,
            None => self.size == exact || (self.pad && self.size == Size::ShortestEdge(side)),
        }
    }
}

/// The keys of one file.
struct Keys<'a> {
    file: &'static str,
    config: &'a Value,
}

impl Keys<'_> {
    fn unsupported(&self, key: &'static str) -> PictureConfigError {
        let value = self.config[key].to_string();
        PictureConfigError::Unsupported { file: self.file, key, value }
    }

    fn only(&self, key: &'static str, allowed: &[Value]) -> Result<(), PictureConfigError> {
        let value = &self.config[key];
        let fine = value.is_null() || allowed.contains(value);
        if fine { Ok(()) } else { Err(self.unsupported(key)) }
    }

    /// A number of pixels, or an object of them.
    fn size(&self, key: &'static str) -> Result<Option<Size>, PictureConfigError> {
        let value = &self.config[key];
        let pixels = |value: &Value| {
            let pixels = value.as_u64().filter(|pixels| (1..=4096).contains(pixels))?;
            usize::try_from(pixels).ok()
        };
        let size = match (pixels(value), pixels(&value["shortest_edge"])) {
            _ if value.is_null() => return Ok(None),
            (Some(edge), _) | (None, Some(edge)) => Some(Size::ShortestEdge(edge)),
            (None, None) => pixels(&value["width"])
                .zip(pixels(&value["height"]))
                .map(|(width, height)| Size::Exact { width, height }),
        };
        size.map(Some).ok_or_else(|| self.unsupported(key))
    }

    fn number(&self, key: &'static str) -> Result<Option<f32>, PictureConfigError> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => {
                let number = value.as_f64().map(|number| number as f32);
                let number = number.filter(|number| number.is_finite());
                number.map(Some).ok_or_else(|| self.unsupported(key))
            }
        }
    }

    /// Three numbers, none of them so small that dividing by it is meaningless.
    fn colour(&self, key: &'static str) -> Result<Option<[f32; 3]>, PictureConfigError> {
        if self.config[key].is_null() {
            return Ok(None);
        }
        let numbers = self.config[key].as_array().into_iter().flatten().map(Value::as_f64);
        let numbers: Option<Vec<f32>> = numbers.map(|n| n.map(|n| n as f32)).collect();
        let colour = numbers.and_then(|numbers| <[f32; 3]>::try_from(numbers).ok());
        let fine = |colour: &[f32; 3]| {
            colour.iter().all(|n| n.is_finite() && (key != "image_std" || *n > 1e-6))
        };
        colour.filter(fine).map(Some).ok_or_else(|| self.unsupported(key))
    }
}

fn json(folder: &Path, file: &'static str) -> Result<Option<Value>, PictureConfigError> {
    let path = folder.join(file);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PictureConfigError::Read { path, source }),
    };
    let json = serde_json::from_slice(&bytes);
    json.map(Some).map_err(|source| PictureConfigError::Json { file, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: Value) -> Result<PictureConfig, PictureConfigError> {
        let mut config = json!({"size": {"shortest_edge": 336}, "crop_size": 336, "do_pad": false});
        for (key, value) in change.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        PictureConfig::read(PREPROCESSOR, &config, 336)
    }

    #[test]
    fn older_and_newer_files_say_the_same() {
        let plain = read(json!({})).unwrap();
        assert_eq!(plain, PictureConfig::clip(336));
        let newer = json!({"size": 336, "crop_size": {"height": 336, "width": 336}});
        assert_eq!(read(newer).unwrap(), plain);
        assert!(read(json!({"do_pad": true, "do_center_crop": false})).unwrap().pad);
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_key() {
        for (key, value) in [
            ("resample", json!(2)),
            ("do_rescale", json!(false)),
            ("image_std", json!([1.0, 0.0, 1.0])),
            ("size", json!({"longest_edge": 336})),
        ] {
            let message = read(json!({key: value})).unwrap_err().to_string();
            assert!(message.contains(PREPROCESSOR) && message.contains(key), "{message}");
        }
        for change in
            [json!({"crop_size": 224}), json!({"size": 224}), json!({"do_center_crop": false})]
        {
            assert!(matches!(read(change), Err(PictureConfigError::WrongSize { .. })));
        }
    }

    #[test]
    fn without_a_file_the_configuration_tells_whether_to_pad() {
        let folder = tempfile::tempdir().unwrap();
        let pads = || PictureConfig::from_folder(folder.path(), 336).unwrap().pad;
        assert!(!pads());
        std::fs::write(folder.path().join(MODEL), r#"{"image_aspect_ratio": "pad"}"#).unwrap();
        assert!(pads());
    }
}
