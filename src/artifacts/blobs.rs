//! Files by their content: the name is the SHA-256, the same bytes are kept once.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use super::{ArtifactError, ArtifactResult, Artifacts, blocking, disk};

/// Contents somebody is about to name in a row: they must not be deleted meanwhile.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<HashMap<String, usize>>);

/// Bytes that are safely on disk. While this value lives, [`Artifacts::delete`] leaves them alone:
/// keep it until the row that names them is written.
#[derive(Debug)]
pub struct Blob {
    /// Hex; the content's name.
    pub sha256: String,
    pub bytes: u64,
    pins: Arc<Pins>,
}

impl Artifacts {
    /// Stores a stream of at most `limit` bytes in bounded memory.
    ///
    /// A stream that breaks off leaves nothing behind, and neither does dropping this future.
    ///
    /// # Errors
    /// [`ArtifactError::TooLarge`], [`ArtifactError::Upload`] if the stream itself fails,
    /// [`ArtifactError::Full`].
    pub async fn put_stream<E: Display>(
        &self,
        stream: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> ArtifactResult<Blob> {
        let tmp = self.tmp();
        let aside = blocking(move || {
            NamedTempFile::new_in(&tmp).map_err(ArtifactError::io("create a file in", &tmp))
        })
        .await?;
        let path = aside.path().to_owned();
        let file = aside.reopen().map_err(ArtifactError::io("open", &path))?;
        let mut file = tokio::fs::File::from_std(file);
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        let mut stream = pin!(stream);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| ArtifactError::Upload(error.to_string()))?;
            bytes += chunk.len() as u64;
            if bytes > limit {
                return Err(ArtifactError::TooLarge { limit });
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(ArtifactError::io("write", &path))?;
        }
        file.flush().await.map_err(ArtifactError::io("write", &path))?;
        file.sync_all().await.map_err(ArtifactError::io("sync", &path))?;
        self.keep(aside, hex::encode(hasher.finalize()), bytes).await
    }

    /// Stores bytes that are in memory.
    ///
    /// # Errors
    /// As [`Artifacts::put_stream`].
    pub async fn put_bytes(&self, bytes: impl Into<Bytes>) -> ArtifactResult<Blob> {
        let whole = futures::stream::iter([Ok::<_, std::convert::Infallible>(bytes.into())]);
        self.put_stream(whole, u64::MAX).await
    }

    async fn keep(&self, aside: NamedTempFile, sha256: String, bytes: u64) -> ArtifactResult<Blob> {
        let target = self.path(&sha256)?;
        let pins = Arc::clone(&self.pins);
        blocking(move || {
            // One lock over "publish and pin" and "not pinned, so remove": neither sees the other
            // half done.
            let mut held = pins.lock();
            disk::publish(aside.path(), &target)?;
            // Its name is gone; nothing is left for the guard to remove.
            let _ = aside.keep();
            *held.entry(sha256.clone()).or_default() += 1;
            drop(held);
            Ok(Blob { sha256, bytes, pins })
        })
        .await
    }

    /// Where the content of that hash lies, or would lie.
    ///
    /// # Errors
    /// [`ArtifactError::BadName`] if it is no hash.
    pub fn path(&self, sha256: &str) -> ArtifactResult<PathBuf> {
        let is_hash = sha256.len() == 64
            && sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hash {
            return Err(ArtifactError::BadName(sha256.to_owned()));
        }
        Ok(self.root.join("blobs").join(&sha256[..2]).join(sha256))
    }

    /// Opens the content of that hash for reading.
    ///
    /// # Errors
    /// [`ArtifactError::Io`] if it is not there.
    pub async fn read(&self, sha256: &str) -> ArtifactResult<tokio::fs::File> {
        let path = self.path(sha256)?;
        tokio::fs::File::open(&path).await.map_err(ArtifactError::io("open", &path))
    }

    /// Removes a content that no row names any more. `false` if somebody is just about to name it:
    /// then it stays.
    ///
    /// # Errors
    /// [`ArtifactError::Io`].
    pub async fn delete(&self, sha256: &str) -> ArtifactResult<bool> {
        let path = self.path(sha256)?;
        let (pins, sha256) = (Arc::clone(&self.pins), sha256.to_owned());
        blocking(move || {
            let held = pins.lock();
            if held.contains_key(&sha256) {
                return Ok(false);
            }
            disk::remove_file(&path)?;
            Ok(true)
        })
        .await
    }
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        let mut held = self.pins.lock();
        if let Some(count) = held.get_mut(&self.sha256) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.sha256);
            }
        }
    }
}
