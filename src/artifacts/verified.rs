//! Folders this process has checked byte by byte, and how their files looked then.
//!
//! An adapter that was pushed out of memory and is named again costs one read of its file, not a
//! hash of it besides. A file that was written to since shows in its time or size and is checked
//! anew.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{ArtifactError, ArtifactResult, Manifest};

/// Times are coarse: a file younger than this may change once more without showing it.
const SETTLED: Duration = Duration::from_secs(2);

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
        if let Ok(stamp) = before
            && is_settled(&stamp)
        {
            known().insert(key, stamp);
        }
        Ok(())
    }
}

fn is_settled(stamp: &Stamp) -> bool {
    let old = |time: &SystemTime| time.elapsed().is_ok_and(|age| age > SETTLED);
    stamp.iter().all(|(_, _, time)| old(time))
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
        let write = |name: &str, bytes: &[u8], age: u64| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).expect("a file");
            let time = SystemTime::now() - Duration::from_secs(age);
            let file = fs::File::options().write(true).open(path).expect("a file");
            file.set_modified(time).expect("a time");
        };
        write("a", b"one", 0);
        write(MANIFEST, &manifest, 60);
        let verified = Verified::default();
        let check = |hash: &str| verified.check(folder.path(), hash).is_ok();
        let remembered = || verified.0.lock().expect("no panic").len();
        assert!(check(&sha256) && remembered() == 0, "too young to be taken for settled");
        write("a", b"one", 60);
        assert!(check(&sha256) && remembered() == 1 && check(&sha256));
        assert!(!check("another"));
        write("a", b"two", 30);
        assert!(!check(&sha256));
    }
}
