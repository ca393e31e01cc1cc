//! A model to another format, with or without an adapter merged into it: written aside, read back,
//! compared with what it was made from, and only then put in its place.

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::bases;
use super::comparison::{Comparison, Row, compare, logits, rows};
use super::error::ConvertError;
use super::gguf_adapter::{self, is_gguf};
use super::targets::{Targets, aside, remove};
use crate::backend::cpu::CpuBackend;
use crate::config::{ModelOption, Source};
use crate::domain::AdapterWeights;
use crate::gguf::TensorType;
use crate::model::{LoadOptions, Model, ModelSource, Normalisation, Written, write_adapter};
use crate::peft::{self, AdapterFiles, Fingerprints};
use crate::pictures::PictureConfig;
use crate::text::{TextModel, TextSource};

/// What to convert, and into what.
#[derive(Clone, Debug)]
pub struct Conversion {
    pub source: ModelOption,
    /// What to merge: a PEFT folder, or a GGUF file.
    pub adapter: Option<PathBuf>,
    /// A folder for safetensors, or a file that ends in `.gguf`.
    pub out: PathBuf,
    /// The type of the matrices; `None`: bf16 for a folder, q8_0 for GGUF.
    pub kind: Option<String>,
    pub threads: usize,
}

/// What was written, and how it compares.
#[derive(Clone, Debug)]
pub struct Converted {
    pub written: Written,
    /// The tower and the projector of a model that sees, which have a GGUF file of their own.
    pub eyes: Option<(PathBuf, Written)>,
    pub kind: TensorType,
    pub comparison: Comparison,
}

/// Converts, calling `compared` before the result takes its place.
///
/// # Errors
/// [`ConvertError`] naming what is wrong; then nothing is left behind at the target.
pub fn convert(
    conversion: &Conversion,
    compared: impl FnOnce(&Comparison),
) -> Result<Converted, ConvertError> {
    let out = &conversion.out;
    if out.exists() {
        return Err(ConvertError::Exists(out.clone()));
    }
    let kind = kind_of(conversion)?;
    let targets = Targets::new(out);
    let result = write_and_compare(conversion, kind, &targets);
    let converted = result.inspect_err(|_| targets.remove())?;
    compared(&converted.comparison);
    targets.put_in_place().map_err(|source| write_error(out, source))?;
    Ok(converted)
}

/// Writes the adapter by itself: as a GGUF file, or as a PEFT folder. Returns its bytes.
///
/// # Errors
/// As [`convert`]; [`ConvertError::NoAdapter`] if none is named.
pub fn convert_adapter(conversion: &Conversion) -> Result<u64, ConvertError> {
    let out = &conversion.out;
    if out.exists() {
        return Err(ConvertError::Exists(out.clone()));
    }
    let adapter = conversion.adapter.as_ref().ok_or(ConvertError::NoAdapter)?;
    let option = &conversion.source;
    let (source, text) = (bases::model_source(&option.source), text_of(&option.source)?);
    let mut b = CpuBackend::new(conversion.threads);
    let options = LoadOptions { name: option.name.clone(), format: option.format() };
    let model = Model::load(&mut b, &source, &options)?;
    let files = adapter_files(adapter, &source, &model)?;
    let checked = peft::read(&files, &model.info, &served(&model, text.as_ref()))?;
    let aside = aside(out);
    remove(&aside);
    let written = match is_gguf(out) {
        true => write_adapter(&aside, &option.name, &source, &checked.weights)?,
        false => write_folder(&aside, &files)?,
    };
    std::fs::rename(&aside, out).map_err(|source| write_error(out, source))?;
    Ok(written)
}

fn write_folder(folder: &Path, files: &AdapterFiles) -> Result<u64, ConvertError> {
    std::fs::create_dir_all(folder).map_err(|source| write_error(folder, source))?;
    let mut written = 0;
    for (name, bytes) in files.entries() {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| write_error(&path, source))?;
        written += bytes.len() as u64;
    }
    Ok(written)
}

fn kind_of(conversion: &Conversion) -> Result<TensorType, ConvertError> {
    let gguf = is_gguf(&conversion.out);
    let usual = if gguf { "q8_0" } else { "bf16" };
    let name = conversion.kind.as_deref().unwrap_or(usual);
    let known = TensorType::from_name(name);
    known
        .filter(|kind| gguf || matches!(kind, TensorType::F32 | TensorType::F16 | TensorType::BF16))
        .ok_or_else(|| ConvertError::Kind { name: name.to_owned(), gguf })
}

fn write_error(path: &Path, source: std::io::Error) -> ConvertError {
    ConvertError::Write { path: path.to_owned(), source }
}

fn write_and_compare(
    conversion: &Conversion,
    kind: TensorType,
    targets: &Targets,
) -> Result<Converted, ConvertError> {
    let (option, aside) = (&conversion.source, targets.aside.as_path());
    let source = bases::model_source(&option.source);
    let text = text_of(&option.source)?;
    let mut b = CpuBackend::new(conversion.threads);
    let options = LoadOptions { name: option.name.clone(), format: option.format() };
    let model = Model::load(&mut b, &source, &options)?;
    let sees = is_gguf(&conversion.out) && model.info.vision.is_some();
    if sees && targets.eyes.exists() {
        return Err(ConvertError::Exists(targets.eyes.clone()));
    }
    let adapter = match &conversion.adapter {
        Some(adapter) => {
            let files = adapter_files(adapter, &source, &model)?;
            Some(peft::read(&files, &model.info, &served(&model, text.as_ref()))?.weights)
        }
        None => None,
    };
    let mut rows: Vec<Row> = rows(text.as_ref().map(|(_, text)| text), &model.info);
    // Of a GGUF file the decoder alone is read back.
    rows.retain(|row| !sees || row.shown.is_empty());
    let before = logits(&mut b, &model, &rows, adapter.as_ref())?;
    let weights = model.weights(&source, adapter.as_ref())?;
    targets.remove();
    let eyes = sees.then(|| write_eyes(conversion, &model, kind, adapter.as_ref(), targets));
    let eyes = eyes.transpose()?.map(|written| (targets.eyes.clone(), written));
    let written = if is_gguf(&conversion.out) {
        let vocab_size = model.info.vocab_size;
        let text =
            text.map(|(source, text)| crate::text::gguf::metadata(&text, &source, vocab_size));
        let text = text.transpose().map_err(crate::text::TextError::from)?;
        let text = text.unwrap_or_else(crate::text::gguf::without_tokenizer);
        weights.write_gguf(aside, &option.name, kind, text)?
    } else {
        std::fs::create_dir_all(aside).map_err(|source| write_error(aside, source))?;
        copy_text(&option.source, text.as_ref(), aside)?;
        weights.write_safetensors(aside, kind)?
    };
    drop(model);
    let result = match is_gguf(&conversion.out) {
        true => ModelSource::Gguf(aside.to_owned()),
        false => ModelSource::Folder(aside.to_owned()),
    };
    let options = LoadOptions { format: None, ..options };
    let model = Model::load(&mut b, &result, &options)?;
    let after = logits(&mut b, &model, &rows, None)?;
    let comparison = compare(&before, &after, model.info.vocab_size);
    if !comparison.kl.is_finite() {
        return Err(ConvertError::NotFinite);
    }
    Ok(Converted { written, eyes, kind, comparison })
}

/// Tower and projector to a GGUF file of their own.
fn write_eyes(
    conversion: &Conversion,
    model: &Model<CpuBackend>,
    kind: TensorType,
    adapter: Option<&AdapterWeights>,
    targets: &Targets,
) -> Result<Written, ConvertError> {
    let option = &conversion.source;
    let (Source::Folder(folder), Some(vision)) = (&option.source, &model.info.vision) else {
        unreachable!("models that see are read from folders");
    };
    let pictures = PictureConfig::from_folder(folder, vision.image_size)?;
    let weights = model.weights(&bases::model_source(&option.source), adapter)?;
    let normalisation = Normalisation { mean: pictures.mean, std: pictures.std };
    Ok(weights.write_mmproj(&targets.eyes_aside, &option.name, kind, &normalisation)?)
}

/// The text side, if the source has one: a bare checkpoint can be converted too.
fn text_of(source: &Source) -> Result<Option<(TextSource, TextModel)>, ConvertError> {
    if let Source::Folder(folder) = source
        && !folder.join("tokenizer.json").is_file()
    {
        return Ok(None);
    }
    let own = bases::text_source(source)?;
    let text = TextModel::new(own.clone(), None, &bases::rendering(source, None))?;
    Ok(Some((own, text)))
}

fn adapter_files(
    adapter: &Path,
    source: &ModelSource,
    model: &Model<CpuBackend>,
) -> Result<AdapterFiles, ConvertError> {
    if is_gguf(adapter) {
        return Ok(gguf_adapter::files(adapter, source, &model.info)?);
    }
    AdapterFiles::from_dir(adapter)
        .map_err(|source| ConvertError::Adapter { folder: adapter.to_owned(), source })
}

fn served(model: &Model<CpuBackend>, text: Option<&(TextSource, TextModel)>) -> Fingerprints {
    Fingerprints {
        base: model.info.fingerprint.clone(),
        tokenizer: text.map_or("", |(_, text)| text.tokenizer_fingerprint()).to_owned(),
        template: text.and_then(|(_, text)| text.template_fingerprint()).map(str::to_owned),
    }
}

/// Puts the files of the text side beside the weights.
fn copy_text(
    source: &Source,
    text: Option<&(TextSource, TextModel)>,
    out: &Path,
) -> Result<(), ConvertError> {
    if let Source::Folder(folder) = source {
        const FILES: [&str; 10] = [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "generation_config.json",
            "chat_template.jinja",
            "chat_template.json",
            "tokenizer.model",
            "preprocessor_config.json",
            "processor_config.json",
            "LICENSE",
        ];
        for file in FILES.into_iter().filter(|file| folder.join(file).is_file()) {
            let copied = std::fs::copy(folder.join(file), out.join(file));
            copied.map_err(|source| write_error(&out.join(file), source))?;
        }
        return Ok(());
    }
    let Some((source, text)) = text else { return Ok(()) };
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    let tokenizer = text.tokenizer();
    for (key, token) in [("bos_token", tokenizer.bos_token()), ("eos_token", tokenizer.eos_token())]
    {
        if !token.is_empty() {
            config.insert(key.into(), token.into());
        }
    }
    if let Some((_, template)) = &source.template {
        config.insert("chat_template".into(), template.as_str().into());
    }
    let generation = json!({"eos_token_id": tokenizer.eos_ids()});
    let put = |file: &str, bytes: &[u8]| {
        std::fs::write(out.join(file), bytes).map_err(|source| write_error(&out.join(file), source))
    };
    put("tokenizer.json", &source.tokenizer)?;
    put("tokenizer_config.json", format!("{:#}\n", json!(config)).as_bytes())?;
    put("generation_config.json", format!("{generation:#}\n").as_bytes())
}
