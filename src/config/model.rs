//! `--model [NAME=]SOURCE[,quantize=…][,dtype=…][,template=…]` and `--adapter NAME=DIR[@BASE]`.

use std::path::{Path, PathBuf};

use super::ConfigError;
use crate::domain::WeightFormat;
use crate::hub::{self, HubModel, HubSettings};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The toy inside the binary.
    Demo,
    /// A Hugging Face folder: `config.json`, `*.safetensors`, `tokenizer.json`.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// 4- and 8-bit formats a model may be packed into while loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantize {
    /// With double quantisation, 4.127 bits per weight.
    Nf4,
    Fp4,
    Q8_0,
    Q4_0,
    Q4K,
}

/// A chat template that replaces the model's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateChoice {
    File(PathBuf),
    Preset(String),
}

/// One base model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOption {
    /// The name requests use.
    pub name: String,
    pub source: Source,
    pub quantize: Option<Quantize>,
    /// How dense weights are held; `None`: as the checkpoint stores them.
    pub dtype: Option<WeightFormat>,
    pub template: Option<TemplateChoice>,
}

/// One adapter to register at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterOption {
    pub name: String,
    /// A PEFT folder, or a GGUF file.
    pub folder: PathBuf,
    /// The base it belongs to; `None`: the first one.
    pub base: Option<String>,
}

fn invalid(place: &'static str, value: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { place, value: value.to_owned(), reason: reason.into() }
}

impl ModelOption {
    /// The embedded demo model.
    pub fn demo() -> Self {
        let name = "demo".to_owned();
        Self { name, source: Source::Demo, quantize: None, dtype: None, template: None }
    }

    /// Reads one `--model` value, and has the model downloaded if it is one of the hub that is not
    /// in its cache.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for a source that is not here, or an unknown key or value.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Wanted::parse(text)?.locate(&HubSettings::from_environment())
    }

    fn set(&mut self, text: &str, extra: &str) -> Result<(), ConfigError> {
        let wrong = |reason: String| invalid("--model", text, reason);
        let (key, value) = extra
            .split_once('=')
            .ok_or_else(|| wrong(format!("`{extra}` is not of the form key=value")))?;
        match key {
            "quantize" => self.quantize = Some(parse_quantize(value).map_err(wrong)?),
            "dtype" => self.dtype = Some(parse_dtype(value).map_err(wrong)?),
            "template" => self.template = Some(parse_template(value)),
            _ => return Err(wrong(format!("`{key}` is none of quantize, dtype, template"))),
        }
        Ok(())
    }

    /// The format its linear layers will be held in; `None`: as the checkpoint stores them.
    pub fn format(&self) -> Option<WeightFormat> {
        self.quantize.map(Quantize::format).or(self.dtype)
    }
}

/// A `--model` value that has been read, before its model is looked for on the hub.
pub(super) struct Wanted {
    text: String,
    /// Its source is settled, unless it is one of the hub.
    pub option: ModelOption,
    hub: Option<HubModel>,
}

impl Wanted {
    /// Reads one `--model` value; asks nobody.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for a folder or file that is not here, or an unknown key or value.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let (source, extras) = text.split_once(',').unwrap_or((text, ""));
        let (name, source) = split_name(source);
        let mut wanted = Self { text: text.to_owned(), option: ModelOption::demo(), hub: None };
        let given = match source.strip_prefix("hf:") {
            Some(hub) => {
                let model = HubModel::parse(hub).map_err(|error| wanted.wrong(error))?;
                wanted.hub.insert(model).short_name().to_owned()
            }
            None => {
                wanted.option.source = parse_source(text, source)?;
                short_name(text, &wanted.option.source)?
            }
        };
        wanted.option.name = name.map_or(given, str::to_owned);
        for extra in extras.split(',').filter(|extra| !extra.is_empty()) {
            wanted.option.set(text, extra)?;
        }
        Ok(wanted)
    }

    /// The option with its source: the hub's cache, after a download if there must be one.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if it cannot be had.
    pub fn locate(mut self, settings: &HubSettings) -> Result<ModelOption, ConfigError> {
        if let Some(model) = &self.hub {
            let path = hub::locate(model, settings).map_err(|error| self.wrong(error))?;
            self.option.source = found(&self.text, path)?;
        }
        Ok(self.option)
    }

    fn wrong(&self, reason: impl ToString) -> ConfigError {
        invalid("--model", &self.text, reason.to_string())
    }
}

/// `NAME=SOURCE`: a name holds no `/`, so a path with `=` in it is not mistaken for one.
fn split_name(source: &str) -> (Option<&str>, &str) {
    match source.split_once('=') {
        Some((name, rest)) if !name.is_empty() && !name.contains('/') => (Some(name), rest),
        _ => (None, source),
    }
}

fn parse_source(text: &str, source: &str) -> Result<Source, ConfigError> {
    match source {
        "demo" => Ok(Source::Demo),
        path => found(text, path.into()),
    }
}

/// The folder or file at `path`.
fn found(text: &str, path: PathBuf) -> Result<Source, ConfigError> {
    let wrong = |reason: &str| Err(invalid("--model", text, reason));
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return match path.is_file() {
            true => Ok(Source::Gguf(path)),
            false => wrong("there is no such file"),
        };
    }
    match missing_model(&path) {
        Some(reason) => wrong(reason),
        None => Ok(Source::Folder(path)),
    }
}

/// Why there is no model in the folder `path`.
fn missing_model(path: &Path) -> Option<&'static str> {
    match std::fs::metadata(path.join("config.json")) {
        Ok(found) if found.is_file() => None,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("that folder may not be read by this user")
        }
        _ if path.is_file() => Some("that is a file; give the folder it lies in, or a .gguf file"),
        _ if !path.is_dir() => Some("there is no such folder"),
        _ => Some("there is no `config.json` in that folder; give a Hugging Face model folder"),
    }
}

/// What a model is called where no name is given.
fn short_name(text: &str, source: &Source) -> Result<String, ConfigError> {
    match source {
        Source::Demo => Ok("demo".to_owned()),
        Source::Folder(path) => folder_name(text, path),
        Source::Gguf(path) => Ok(path.file_stem().unwrap_or_default().to_string_lossy().into()),
    }
}

fn folder_name(text: &str, path: &Path) -> Result<String, ConfigError> {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = full.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name.ok_or_else(|| invalid("--model", text, "the folder has no name; write NAME=FOLDER"))
}

fn parse_quantize(value: &str) -> Result<Quantize, String> {
    match value {
        "nf4" => Ok(Quantize::Nf4),
        "fp4" => Ok(Quantize::Fp4),
        "q8_0" => Ok(Quantize::Q8_0),
        "q4_0" => Ok(Quantize::Q4_0),
        "q4_k" => Ok(Quantize::Q4K),
        _ => Err(format!("quantize={value} is none of nf4, fp4, q8_0, q4_0, q4_k")),
    }
}

fn parse_dtype(value: &str) -> Result<WeightFormat, String> {
    match value {
        "f32" => Ok(WeightFormat::F32),
        "bf16" => Ok(WeightFormat::Bf16),
        "f16" => Ok(WeightFormat::F16),
        _ => Err(format!("dtype={value} is none of f32, f16, bf16")),
    }
}

fn parse_template(value: &str) -> TemplateChoice {
    if Path::new(value).is_file() {
        TemplateChoice::File(value.into())
    } else {
        TemplateChoice::Preset(value.to_owned())
    }
}

impl AdapterOption {
    /// Reads one `--adapter` value.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if it is not `NAME=DIR[@BASE]` or there is no adapter.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: &str| invalid("--adapter", text, reason);
        let (name, rest) =
            text.split_once('=').ok_or_else(|| wrong("it is not of the form NAME=DIR[@BASE]"))?;
        let (folder, base) = match rest.rsplit_once('@') {
            Some((folder, base)) if !base.contains('/') => (folder, Some(base.to_owned())),
            _ => (rest, None),
        };
        let folder = PathBuf::from(folder);
        let gguf = folder.extension().is_some_and(|extension| extension == "gguf");
        if gguf && !folder.is_file() {
            return Err(wrong("there is no such file"));
        }
        if !gguf && !folder.join("adapter_config.json").is_file() {
            return Err(wrong("there is no `adapter_config.json` in that folder"));
        }
        Ok(Self { name: name.to_owned(), folder, base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("config.json"), "{}").expect("a file");
        folder
    }

    #[test]
    fn a_model_has_a_name_a_source_and_options() {
        let folder = folder();
        let text = format!("tiny={},quantize=nf4,template=chatml", folder.path().display());
        let model = ModelOption::parse(&text).expect("a valid option");
        assert_eq!(model.name, "tiny");
        assert_eq!(model.format(), Some(WeightFormat::Nf4 { double: true }));
        assert_eq!(model.template, Some(TemplateChoice::Preset("chatml".to_owned())));
    }

    #[test]
    fn a_model_without_a_name_is_called_after_its_folder() {
        let folder = folder();
        let inner = folder.path().join("my-model");
        std::fs::create_dir(&inner).expect("a folder");
        std::fs::write(inner.join("config.json"), "{}").expect("a file");
        let model = ModelOption::parse(inner.to_str().expect("utf-8")).expect("a valid option");
        assert_eq!(model.name, "my-model");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let at = folder();
        let at = at.path().display();
        for (text, word) in [
            (format!("{at},quantize=q3"), "q3"),
            (format!("{at},colour=red"), "colour"),
            (format!("{at},dtype"), "key=value"),
            ("/nowhere/at/all".to_owned(), "no such folder"),
            (format!("{at}/config.json"), "that is a file"),
            ("x.gguf".to_owned(), "no such file"),
            ("hf:name".to_owned(), "hf:ORG/NAME"),
        ] {
            let error = ModelOption::parse(&text).expect_err("must be refused").to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_adapter_needs_a_name_and_a_folder_that_holds_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = folder.path().display();
        assert!(AdapterOption::parse(&format!("a={at}")).is_err());
        std::fs::write(folder.path().join("adapter_config.json"), "{}").expect("a file");
        let adapter = AdapterOption::parse(&format!("a={at}@demo")).expect("a valid option");
        assert_eq!((adapter.name.as_str(), adapter.base.as_deref()), ("a", Some("demo")));
    }
}
