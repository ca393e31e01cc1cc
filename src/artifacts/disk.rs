//! The few file operations durability is made of.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::{ArtifactError, ArtifactResult};

/// Writes a new file and waits until the disk has it.
pub fn write_synced(path: &Path, bytes: &[u8]) -> ArtifactResult<()> {
    let mut file = File::create_new(path).map_err(ArtifactError::io("create", path))?;
    file.write_all(bytes).map_err(ArtifactError::io("write", path))?;
    file.sync_all().map_err(ArtifactError::io("sync", path))
}

/// Makes the names in a folder survive a power cut.
pub fn sync_folder(path: &Path) -> ArtifactResult<()> {
    let folder = File::open(path).map_err(ArtifactError::io("open", path))?;
    folder.sync_all().map_err(ArtifactError::io("sync", path))
}

/// Makes a folder and those above it; one that is there is fine.
pub fn create_folder(path: &Path) -> ArtifactResult<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(ArtifactError::io("create", path))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => Ok(()),
    }
}

/// Gives a complete file or folder its final name, durably.
pub fn publish(from: &Path, to: &Path) -> ArtifactResult<()> {
    let parent = to.parent().unwrap_or(to);
    create_folder(parent)?;
    fs::rename(from, to).map_err(ArtifactError::io("rename to", to))?;
    sync_folder(parent)
}

/// Removes a folder with all it holds; none there is fine.
pub fn remove_folder(path: &Path) -> ArtifactResult<()> {
    ignore_missing(fs::remove_dir_all(path)).map_err(ArtifactError::io("remove", path))
}

/// Removes a file; none there is fine.
pub fn remove_file(path: &Path) -> ArtifactResult<()> {
    ignore_missing(fs::remove_file(path)).map_err(ArtifactError::io("remove", path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
