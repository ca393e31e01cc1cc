//! A folder that belongs to one running server.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{ArtifactError, ArtifactResult, disk};

/// A locked data folder. The lock ends with the process, however it ends, so whoever holds it knows
/// that every earlier holder is dead.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    server_id: String,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if needed and takes it for this process.
    ///
    /// # Errors
    /// [`ArtifactError::InUse`] if another process has it.
    pub fn lock(path: &Path) -> ArtifactResult<Self> {
        let path = std::path::absolute(path).map_err(ArtifactError::io("find", path))?;
        disk::create_folder(&path)?;
        let name = path.join("lock");
        let mut options = File::options();
        let lock = options.create(true).truncate(false).write(true).open(&name);
        let lock = lock.map_err(ArtifactError::io("open", &name))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ArtifactError::InUse(path)),
            Err(TryLockError::Error(error)) => {
                return Err(ArtifactError::io("lock", &name)(error));
            }
        }
        let server_id = server_id(&path.join("server-id"))?;
        Ok(Self { path, server_id, _lock: lock })
    }

    /// The folder, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of whoever holds this folder, the same after each restart: a lease under this name
    /// that is found at start belonged to a process that is gone.
    pub fn server_id(&self) -> &str {
        &self.server_id
    }
}

fn server_id(path: &Path) -> ArtifactResult<String> {
    if let Ok(id) = fs::read_to_string(path)
        && Uuid::parse_str(id.trim()).is_ok()
    {
        return Ok(id.trim().to_owned());
    }
    let id = Uuid::now_v7().to_string();
    let aside = path.with_extension("new");
    disk::remove_file(&aside)?;
    disk::write_synced(&aside, id.as_bytes())?;
    disk::publish(&aside, path)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::{ArtifactError, DataDir};

    #[test]
    fn a_folder_has_one_holder_at_a_time_and_the_same_name_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = DataDir::lock(folder.path()).expect("a free folder");
        let name = first.server_id().to_owned();
        assert!(matches!(DataDir::lock(folder.path()), Err(ArtifactError::InUse(_))));
        drop(first);
        let second = DataDir::lock(folder.path()).expect("a free folder");
        assert_eq!(second.server_id(), name);
    }
}
