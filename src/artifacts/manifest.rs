//! The list of a folder's files with their sizes and hashes, itself a file of the folder.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ArtifactError, ArtifactResult};

/// The manifest's own name.
pub const MANIFEST: &str = "manifest.json";

/// Every file of a folder but the manifest, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub files: Vec<ManifestEntry>,
}

/// One file as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    pub name: String,
    pub size_bytes: u64,
    /// Hex.
    pub sha256: String,
}

impl Manifest {
    /// The manifest of files in memory.
    pub fn of(files: &[(String, Vec<u8>)]) -> Self {
        let entry = |(name, bytes): &(String, Vec<u8>)| ManifestEntry {
            name: name.clone(),
            size_bytes: bytes.len() as u64,
            sha256: sha256_hex(bytes),
        };
        let mut files: Vec<_> = files.iter().map(entry).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self { files }
    }

    /// The bytes of the manifest file; their hash stands for the whole folder.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest is plain JSON")
    }

    /// Reads a folder's manifest, checks it against its hash, and every file against it.
    ///
    /// # Errors
    /// [`ArtifactError::Corrupt`] at the first difference.
    pub fn verify(folder: &Path, sha256: &str) -> ArtifactResult<Self> {
        let path = folder.join(MANIFEST);
        let bytes = read(&path)?;
        if sha256_hex(&bytes) != sha256 {
            return Err(corrupt(&path, "its hash is not the one recorded"));
        }
        let manifest: Self = serde_json::from_slice(&bytes)
            .map_err(|error| corrupt(&path, &format!("it is no manifest: {error}")))?;
        for entry in &manifest.files {
            entry.verify(folder)?;
        }
        Ok(manifest)
    }

    /// Bytes of all files together.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

impl ManifestEntry {
    fn verify(&self, folder: &Path) -> ArtifactResult<()> {
        let path = folder.join(&self.name);
        let mut file = File::open(&path).map_err(|error| missing(&path, error))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = file.read(&mut buffer).map_err(ArtifactError::io("read", &path))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        if hex::encode(hasher.finalize()) != self.sha256 {
            return Err(corrupt(&path, "its hash is not the one in the manifest"));
        }
        Ok(())
    }
}

/// Hex SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn read(path: &Path) -> ArtifactResult<Vec<u8>> {
    fs::read(path).map_err(|error| missing(path, error))
}

/// A file that should be there and is not was damaged, too.
fn missing(path: &Path, error: std::io::Error) -> ArtifactError {
    match error.kind() {
        std::io::ErrorKind::NotFound => corrupt(path, "it is missing"),
        _ => ArtifactError::io("read", path)(error),
    }
}

fn corrupt(path: &Path, reason: &str) -> ArtifactError {
    ArtifactError::Corrupt { path: path.to_owned(), reason: reason.to_owned() }
}
