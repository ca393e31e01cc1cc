//! `hf:ORG/NAME[@REVISION]`: a model in the local cache of the Hugging Face hub.

use std::path::{Path, PathBuf};

/// The folder of a model that was downloaded before.
///
/// # Errors
/// A sentence with what to do, if it is not there.
pub(super) fn snapshot(name: &str) -> Result<PathBuf, String> {
    snapshot_in(&cache(), name)
}

/// Where `huggingface-cli` and its relatives keep downloads.
fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = variable("HF_HUB_CACHE") {
        return cache.into();
    }
    let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))?;
        Some(cache.join("huggingface"))
    });
    home.unwrap_or_else(|| "huggingface".into()).join("hub")
}

fn snapshot_in(cache: &Path, name: &str) -> Result<PathBuf, String> {
    let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = repository.split('/').collect();
    if parts.len() != 2 || !parts.iter().chain([&revision]).all(|part| plain(part)) {
        return Err("write hf:ORG/NAME or hf:ORG/NAME@REVISION".to_owned());
    }
    let folder = cache.join(format!("models--{}--{}", parts[0], parts[1]));
    let commit = match std::fs::read_to_string(folder.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    let snapshot = folder.join("snapshots").join(&commit);
    match plain(&commit) && snapshot.is_dir() {
        true => Ok(snapshot),
        false => Err(format!(
            "{repository} is not in the cache {}; download it first: \
             huggingface-cli download {repository} --revision {revision}",
            cache.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_through_its_revision_to_a_snapshot() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let model = cache.path().join("models--org--name");
        std::fs::create_dir_all(model.join("refs")).expect("a folder");
        std::fs::create_dir_all(model.join("snapshots/abc123")).expect("a folder");
        std::fs::write(model.join("refs/main"), "abc123\n").expect("a file");
        for name in ["org/name", "org/name@main", "org/name@abc123"] {
            let found = snapshot_in(cache.path(), name).expect("a snapshot");
            assert!(found.ends_with("snapshots/abc123"));
        }
        let missing = snapshot_in(cache.path(), "org/other").expect_err("it is not there");
        assert!(missing.contains("huggingface-cli download org/other"), "{missing}");
        for name in ["name", "../x/y", "org/..", "org/name@../../etc"] {
            let refused = snapshot_in(cache.path(), name).expect_err("no plain name");
            assert!(refused.contains("hf:ORG/NAME"), "{refused}");
        }
    }
}
