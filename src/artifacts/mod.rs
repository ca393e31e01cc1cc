//! Bytes that outlive the process: uploaded files by their hash, adapters and checkpoints as
//! folders with a manifest of hashes.
//!
//! Everything is written aside, synced, renamed and only then named by a row in `store`, so a crash
//! at any moment leaves at worst a file nobody refers to.
//! Pillai et al. 2014, "All File Systems Are Not Created Equal", on why each sync is needed.
//!
//! ```text
//! <root>/blobs/ab/abcd…          one file per content
//!        adapters/<hash>/        PEFT folder and its manifest
//!        checkpoints/<job>/<step>-<epoch>/
//!        tmp/                    what is being written; emptied at start
//! ```

mod blobs;
mod data_dir;
mod disk;
mod error;
mod folders;
mod manifest;
mod verified;

pub use blobs::Blob;
pub use data_dir::DataDir;
pub use error::{ArtifactError, ArtifactResult};
pub use folders::Folder;
pub use manifest::{MANIFEST, Manifest, ManifestEntry};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blobs::Pins;
use verified::Verified;

/// A folder of artifacts. Cheap to clone; every clone is the same folder.
#[derive(Clone, Debug)]
pub struct Artifacts {
    root: Arc<Path>,
    pins: Arc<Pins>,
    verified: Arc<Verified>,
    /// Nobody else writes here while this lives.
    _lock: Arc<DataDir>,
}

impl Artifacts {
    /// Opens the folder, made if missing, and clears away what a crash left half-written.
    ///
    /// # Errors
    /// [`ArtifactError::Unsupported`] for an address that is no folder (`s3://…`),
    /// [`ArtifactError::InUse`] if another server has it open.
    pub fn open(location: &str) -> ArtifactResult<Self> {
        if let Some((scheme, _)) = location.split_once("://") {
            return Err(ArtifactError::Unsupported { scheme: scheme.to_owned() });
        }
        let lock = DataDir::lock(Path::new(location))?;
        let root: Arc<Path> = lock.path().into();
        for folder in ["blobs", "adapters", "checkpoints"] {
            disk::create_folder(&root.join(folder))?;
        }
        disk::remove_folder(&root.join("tmp"))?;
        disk::create_folder(&root.join("tmp"))?;
        Ok(Self { root, pins: Arc::default(), verified: Arc::default(), _lock: Arc::new(lock) })
    }

    /// Where a running job may keep what it does not need after a restart.
    pub fn scratch(&self) -> PathBuf {
        self.tmp()
    }

    /// Where things are written before they are complete.
    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ArtifactResult<T> + Send + 'static,
) -> ArtifactResult<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ArtifactError::Stopping),
        },
    }
}
