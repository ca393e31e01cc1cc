//! Folders this process has checked byte by byte, and how their files looked then.
//!
//! An adapter that was pushed out of memory and is named again costs one read of its file, not a
//! hash of it besides. A file that was written to since shows in its time or size and is checked
//! anew.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::{ArtifactError, ArtifactResult, Manifest};

/// Name, size and time of each file of a folder.
type Stamp = Vec<(PathBuf, u64, SystemTime)>;

/// What was found whole, by folder and hash.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<(PathBuf, String), Stamp>>);

impl Verified {
    /// Checks every byte of `folder`, unless that was done and nothing has changed since.
    ///
    /// # Errors
    /// As [`Manifest::verify`].
    pub fn check(&self, folder: &Path, sha256: &str) -> ArtifactResult<()> {
        let (before, key) = (stamp(folder), (folder.to_owned(), sha256.to_owned()));
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(stamp) = &before
            && known().get(&key) == Some(stamp)
        {
            return Ok(());
        }
        Manifest::verify(folder, sha256)?;
        if let Ok(stamp) = before {
            known().insert(key, stamp);
        }
        Ok(())
    }
}

fn stamp(folder: &Path) -> ArtifactResult<Stamp> {
    let read = |error| ArtifactError::io("list", folder)(error);
    let file = |entry: fs::DirEntry| {
        let metadata = entry.metadata()?;
        Ok((entry.path(), metadata.len(), metadata.modified()?))
    };
    let files = fs::read_dir(folder).map_err(read)?.map(|entry| entry.and_then(file));
    let mut stamp = files.collect::<Result<Stamp, _>>().map_err(read)?;
    stamp.sort();
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::MANIFEST;

    #[test]
    fn what_changed_after_it_was_checked_is_checked_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = vec![("a".to_owned(), b"one".to_vec())];
        let manifest = Manifest::of(&files).to_bytes();
        let sha256 = super::super::manifest::sha256_hex(&manifest);
        fs::write(folder.path().join("a"), b"one").expect("a file");
        fs::write(folder.path().join(MANIFEST), manifest).expect("a file");
        let verified = Verified::default();
        assert!(verified.check(folder.path(), &sha256).is_ok());
        assert!(verified.check(folder.path(), &sha256).is_ok());
        assert!(verified.check(folder.path(), "another").is_err());
        fs::write(folder.path().join("a"), b"four").expect("a file");
        assert!(verified.check(folder.path(), &sha256).is_err());
    }
}
