//! Folders that appear whole or not at all: adapters and checkpoints.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::{ArtifactError, ArtifactResult, Artifacts, MANIFEST, Manifest, blocking, disk};

/// A folder that is safely on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Its place under the root, as rows name it.
    pub location: String,
    /// Hex SHA-256 of its manifest: it stands for every byte of the folder.
    pub sha256: String,
    /// Of all its files together.
    pub size_bytes: u64,
}

impl Artifacts {
    /// Stores an adapter's files under their common hash; the same content is kept once.
    ///
    /// # Errors
    /// [`ArtifactError::Full`], [`ArtifactError::Io`].
    pub async fn put_adapter(&self, files: Vec<(String, Vec<u8>)>) -> ArtifactResult<Folder> {
        let sha256 = super::manifest::sha256_hex(&Manifest::of(&files).to_bytes());
        self.put_folder(format!("adapters/{sha256}"), files).await
    }

    /// Stores the state of a run after `step`, written under the lease `epoch`.
    ///
    /// # Errors
    /// As [`Artifacts::put_adapter`].
    pub async fn put_checkpoint(
        &self,
        job: &str,
        step: usize,
        epoch: i64,
        files: Vec<(String, Vec<u8>)>,
    ) -> ArtifactResult<Folder> {
        self.put_folder(format!("checkpoints/{job}/{step}-{epoch}"), files).await
    }

    /// Writes files and manifest aside, syncs each, then gives the folder its name.
    async fn put_folder(
        &self,
        location: String,
        files: Vec<(String, Vec<u8>)>,
    ) -> ArtifactResult<Folder> {
        let target = self.folder_path(&location)?;
        for (name, _) in &files {
            check_file_name(name)?;
        }
        let tmp = self.tmp();
        blocking(move || {
            let manifest = Manifest::of(&files);
            let bytes = manifest.to_bytes();
            let sha256 = super::manifest::sha256_hex(&bytes);
            let size_bytes = manifest.size_bytes();
            let folder = Folder { location, sha256, size_bytes };
            if target.exists() && Manifest::verify(&target, &folder.sha256).is_ok() {
                return Ok(folder);
            }
            let aside = tmp.join(Uuid::now_v7().to_string());
            disk::create_folder(&aside)?;
            for (name, bytes) in &files {
                disk::write_synced(&aside.join(name), bytes)?;
            }
            disk::write_synced(&aside.join(MANIFEST), &bytes)?;
            disk::sync_folder(&aside)?;
            if target.exists() {
                disk::publish(&target, &tmp.join(Uuid::now_v7().to_string()))?;
            }
            disk::publish(&aside, &target)?;
            Ok(folder)
        })
        .await
    }

    /// The folder at a location, every byte of it checked against the recorded hash, once per
    /// process unless its files change.
    ///
    /// # Errors
    /// [`ArtifactError::Corrupt`] at the first difference.
    pub async fn verified_folder(&self, location: &str, sha256: &str) -> ArtifactResult<PathBuf> {
        let (path, sha256) = (self.folder_path(location)?, sha256.to_owned());
        let verified = Arc::clone(&self.verified);
        blocking(move || verified.check(&path, &sha256).map(|()| path)).await
    }

    /// Where the folder of that location lies, or would lie.
    ///
    /// # Errors
    /// [`ArtifactError::BadName`] if it leads out of the root.
    pub fn folder_path(&self, location: &str) -> ArtifactResult<PathBuf> {
        let plain =
            Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || location.is_empty() {
            return Err(ArtifactError::BadName(location.to_owned()));
        }
        Ok(self.root.join(location))
    }

    /// Sets a damaged folder aside, so that nobody meets it again; a checkpoint's is cleared away at
    /// the next start.
    ///
    /// # Errors
    /// [`ArtifactError::Io`].
    pub async fn quarantine(&self, location: &str) -> ArtifactResult<()> {
        let path = self.folder_path(location)?;
        let aside = self.folder_path(&format!("{location}.corrupt"))?;
        blocking(move || {
            disk::remove_folder(&aside)?;
            if path.exists() { disk::publish(&path, &aside) } else { Ok(()) }
        })
        .await
    }

    /// Removes a folder; none there is fine.
    ///
    /// # Errors
    /// [`ArtifactError::Io`].
    pub async fn delete_folder(&self, location: &str) -> ArtifactResult<()> {
        let path = self.folder_path(location)?;
        let aside = self.tmp().join(Uuid::now_v7().to_string());
        blocking(move || {
            if path.exists() {
                disk::publish(&path, &aside)?;
            }
            disk::remove_folder(&aside)
        })
        .await
    }

    /// Removes every checkpoint whose location is not among `live`. For the start of the server:
    /// a checkpoint that is written but not yet recorded would go, too.
    ///
    /// # Errors
    /// [`ArtifactError::Io`].
    pub async fn sweep_checkpoints(&self, live: Vec<String>) -> ArtifactResult<()> {
        let root = self.root.clone();
        blocking(move || {
            for job in entries(&root.join("checkpoints"))? {
                for state in entries(&job)? {
                    let location = state.strip_prefix(&root).unwrap_or(&state);
                    if !live.iter().any(|kept| Path::new(kept) == location) {
                        disk::remove_folder(&state)?;
                    }
                }
                if entries(&job)?.is_empty() {
                    disk::remove_folder(&job)?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn entries(folder: &Path) -> ArtifactResult<Vec<PathBuf>> {
    let listed = std::fs::read_dir(folder).map_err(ArtifactError::io("list", folder))?;
    let paths = listed.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(ArtifactError::io("list", folder))
}

fn check_file_name(name: &str) -> ArtifactResult<()> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) if name != MANIFEST => Ok(()),
        _ => Err(ArtifactError::BadName(name.to_owned())),
    }
}
