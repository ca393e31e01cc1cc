//! The journey of a download: list, choose, bring the small files, then the weights they name.

use std::io::Write;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use super::cache::Cache;
use super::choice::{INDEX, NEEDED, WEIGHTS, WELCOME, shards};
use super::remote::{Listing, Remote, RemoteFile};
use super::transfer::bring;
use super::{HubError, HubModel, HubSettings};

/// Downloads what the model needs; returns the folder of its snapshot.
///
/// # Errors
/// [`HubError`].
pub fn download(
    model: &HubModel,
    settings: &HubSettings,
    cache: &Cache,
) -> Result<PathBuf, HubError> {
    let remote = Remote::new(model, settings)?;
    let listing = remote.listing()?;
    let fetch = |names: &[&str]| {
        let files = chosen(model, &listing, names)?;
        let bar = bar(model, &files);
        for file in files {
            bar.set_message(file.name.clone());
            bring(&remote, cache, &listing.commit, file, settings, &bar)?;
        }
        bar.finish_and_clear();
        Ok(())
    };
    if let Some(file) = &model.file {
        fetch(&[file])?;
    } else {
        fetch(&small(model, &listing)?)?;
        let weights = weights(model, cache, &listing)?;
        fetch(&weights.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    cache.remember(&model.revision, &listing.commit)?;
    Ok(cache.snapshot(&listing.commit))
}

fn has(listing: &Listing, name: &str) -> bool {
    listing.files.iter().any(|file| file.name == name)
}

/// The configuration, and the index of weights in several files.
fn small<'a>(model: &HubModel, listing: &Listing) -> Result<Vec<&'a str>, HubError> {
    if !has(listing, WEIGHTS) && !has(listing, INDEX) {
        return Err(no_safetensors(model, listing));
    }
    let index = if has(listing, WEIGHTS) { None } else { Some(INDEX) };
    let welcome = WELCOME.into_iter().filter(|name| has(listing, name));
    Ok(NEEDED.into_iter().chain(welcome).chain(index).collect())
}

/// `model.safetensors`, else the shards that the index names.
fn weights(model: &HubModel, cache: &Cache, listing: &Listing) -> Result<Vec<String>, HubError> {
    if has(listing, WEIGHTS) {
        return Ok(vec![WEIGHTS.to_owned()]);
    }
    let path = cache.snapshot(&listing.commit).join(INDEX);
    let index = std::fs::read(&path).map_err(HubError::write(&path))?;
    let shards = shards(&index)
        .map_err(|reason| HubError::Answer { url: format!("`{INDEX}` of {model}"), reason })?;
    Ok(shards.into_iter().collect())
}

/// The files of those names, each of which there must be.
fn chosen<'a>(
    model: &HubModel,
    listing: &'a Listing,
    names: &[&str],
) -> Result<Vec<&'a RemoteFile>, HubError> {
    let find = |name: &&str| {
        let file = listing.files.iter().find(|file| file.name == *name);
        file.ok_or_else(|| HubError::NoFile {
            model: model.clone().into(),
            file: (*name).to_owned(),
            remedy: match name.ends_with(".gguf") {
                true => gguf_files(listing),
                false => "choose a model that has, or add it in a folder of your own".to_owned(),
            },
        })
    };
    names.iter().map(find).collect()
}

fn no_safetensors(model: &HubModel, listing: &Listing) -> HubError {
    let remedy = match listing.files.iter().any(|file| file.name.ends_with(".gguf")) {
        true => gguf_files(listing),
        false => "other formats of weights are not read".to_owned(),
    };
    HubError::NoFile { model: model.clone().into(), file: WEIGHTS.to_owned(), remedy }
}

fn gguf_files(listing: &Listing) -> String {
    let names = listing.files.iter().map(|file| file.name.as_str());
    let names: Vec<&str> = names.filter(|name| name.ends_with(".gguf")).take(20).collect();
    match names.is_empty() {
        true => "there are no GGUF files".to_owned(),
        false => {
            format!("name one of its GGUF files, as in hf:ORG/NAME/FILE: {}", names.join(", "))
        }
    }
}

/// Bytes of all files; a line instead where stderr is no terminal.
fn bar(model: &HubModel, files: &[&RemoteFile]) -> ProgressBar {
    let total = files.iter().filter_map(|file| file.size).sum();
    let bar = ProgressBar::new(total);
    let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if bar.is_hidden() {
        let (count, megabytes) = (files.len(), total as f64 / 1e6);
        // A log line would need tracing, which starts after the settings are known.
        let line = format!("downloading {model}: {count} file(s), {megabytes:.1} MB");
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    bar
}
