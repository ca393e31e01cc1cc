//! The cache of the hub's clients: `models--ORG--NAME/{refs, blobs, snapshots}`.
//!
//! `refs/REVISION` holds a commit, `snapshots/COMMIT/FILE` is a link to `blobs/DIGEST`. A reference
//! is written when all files are there, so one that exists leads to something whole.

use std::fs;
use std::path::{Path, PathBuf};

use super::name::plain;
use super::{HubError, HubModel, HubSettings};

/// The part of the cache that belongs to one model.
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub fn of(model: &HubModel, settings: &HubSettings) -> Self {
        let name = format!("models--{}--{}", model.organization, model.name);
        Self { folder: settings.cache.join(name) }
    }

    /// The files of that branch, tag or commit, if there are any.
    pub fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let commit = match fs::read_to_string(self.folder.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let snapshot = self.snapshot(&commit);
        (plain(&commit) && snapshot.is_dir()).then_some(snapshot)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where a file of that digest lies.
    pub fn blob(&self, key: &str) -> PathBuf {
        self.folder.join("blobs").join(key)
    }

    /// Where it grows while it is downloaded.
    pub fn part(&self, key: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{key}.incomplete"))
    }

    /// Makes `snapshots/COMMIT/FILE` lead to the blob.
    ///
    /// # Errors
    /// [`HubError::Write`].
    pub fn link(&self, commit: &str, file: &str, key: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        let aside = path.with_file_name(format!(".{file}.{}", std::process::id()));
        let target = Path::new("../../blobs").join(key);
        std::os::unix::fs::symlink(target, &aside).map_err(HubError::write(&aside))?;
        fs::rename(&aside, &path).map_err(HubError::write(&path))
    }

    /// Writes that the revision is this commit.
    ///
    /// # Errors
    /// [`HubError::Write`].
    pub fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(HubError::write(&path))
    }
}

pub fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(HubError::write(parent))
}
