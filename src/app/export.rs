//! An adapter out of the server's keeping, as the PEFT folder it is.

use std::io;
use std::path::Path;

use super::{App, AppError};
use crate::artifacts::MANIFEST;

impl App {
    /// Copies the files of the adapter `name` into the folder `out`, after checking them against
    /// their hash.
    ///
    /// # Errors
    /// [`AppError::Catalog`] if there is no such adapter, [`AppError::Export`] if the folder cannot
    /// be written.
    pub async fn export_adapter(&self, name: &str, out: &Path) -> Result<(), AppError> {
        let row = self.catalog.adapter_row(name).await?;
        let folder = self.catalog.artifacts().verified_folder(&row.location, &row.sha256).await?;
        copy(&folder, out).map_err(|source| AppError::Export { folder: out.to_owned(), source })
    }
}

/// Every file but the manifest, which belongs to the keeping.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != MANIFEST {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
