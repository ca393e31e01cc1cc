//! Giving adapters their names: from an upload, from a folder a request names, from the command
//! line. The files are checked, copied into `artifacts`, and only then named.

use std::path::{Path, PathBuf};

use super::error::{CatalogError, CatalogResult};
use super::names::check_adapter_name;
use super::resolve::blocking;
use super::{Catalog, ServedBase};
use crate::domain::AdapterId;
use crate::peft::{self, AdapterFiles, CheckedAdapter, PeftError};
use crate::store::{Adapter, AdapterSource, IfTaken, NewAdapter};

/// The files of an adapter folder, as a request sends them.
pub type AdapterBytes = Vec<(String, Vec<u8>)>;

/// A registered adapter, and what was noticed on the way.
#[derive(Clone, Debug)]
pub struct Registered {
    pub adapter: Adapter,
    pub notes: Vec<String>,
}

impl Catalog {
    /// Registers uploaded files under `name`. Without `base` the adapter goes to the base it fits.
    ///
    /// # Errors
    /// [`CatalogError`] with the reason; nothing is kept then.
    pub async fn register_upload(
        &self,
        name: &str,
        base: Option<&str>,
        files: AdapterBytes,
        if_taken: IfTaken,
    ) -> CatalogResult<Registered> {
        self.check_name(name)?;
        let files = AdapterFiles::from_entries(files)?;
        self.register(name, base, files, AdapterSource::Upload, if_taken).await
    }

    /// Registers a folder that a request names; it must lie beneath the adapter root.
    ///
    /// # Errors
    /// As [`Catalog::register_upload`]; [`CatalogError::OutsideRoot`] whatever the reason.
    pub async fn register_path(
        &self,
        name: &str,
        base: Option<&str>,
        path: &str,
        if_taken: IfTaken,
    ) -> CatalogResult<Registered> {
        self.check_name(name)?;
        let folder = self.beneath_root(path).await?;
        let files = read_folder(folder).await?;
        self.register(name, base, files, AdapterSource::Folder, if_taken).await
    }

    /// Registers a folder that the operator names on the command line.
    ///
    /// # Errors
    /// As [`Catalog::register_upload`].
    pub async fn register_folder(
        &self,
        name: &str,
        base: Option<&str>,
        folder: &Path,
    ) -> CatalogResult<Registered> {
        self.check_name(name)?;
        let files = read_folder(folder.to_owned()).await?;
        self.register(name, base, files, AdapterSource::Folder, IfTaken::Replace).await
    }

    /// Registers files that the operator's option became, as [`Catalog::register_folder`].
    ///
    /// # Errors
    /// As [`Catalog::register_upload`].
    pub async fn register_files(
        &self,
        name: &str,
        base: Option<&str>,
        files: AdapterFiles,
    ) -> CatalogResult<Registered> {
        self.check_name(name)?;
        self.register(name, base, files, AdapterSource::Folder, IfTaken::Replace).await
    }

    async fn register(
        &self,
        name: &str,
        base: Option<&str>,
        files: AdapterFiles,
        source: AdapterSource,
        if_taken: IfTaken,
    ) -> CatalogResult<Registered> {
        let candidates = self.candidates(base)?;
        let (files, base, checked) = blocking(move || fit(files, candidates)).await?;
        let entries = files.entries().into_iter();
        let entries = entries.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        let _changing = self.inner.changing.lock().await;
        let folder = self.inner.artifacts.put_adapter(entries).await?;
        let new = NewAdapter {
            id: AdapterId::generate(),
            name: name.to_owned(),
            base: base.info.name.to_string(),
            base_fingerprint: checked.provenance.map(|from| from.fingerprints.base),
            location: folder.location,
            sha256: folder.sha256,
            r: checked.config.r,
            size_bytes: folder.size_bytes,
            source,
            job: None,
            step: None,
        };
        let adapter = self.inner.store.insert_adapter(&new, if_taken).await?;
        Ok(Registered { adapter, notes: checked.notes })
    }

    fn check_name(&self, name: &str) -> CatalogResult<()> {
        check_adapter_name(name)?;
        match self.base(name) {
            Some(_) => Err(CatalogError::NameOfBase(name.to_owned())),
            None => Ok(()),
        }
    }

    fn candidates(&self, base: Option<&str>) -> CatalogResult<Vec<ServedBase>> {
        let Some(name) = base else { return Ok(self.bases().to_vec()) };
        let base = self.base(name).ok_or_else(|| CatalogError::UnknownBase(name.to_owned()))?;
        Ok(vec![base.clone()])
    }

    /// The folder a request names, links followed, if it is beneath the adapter root.
    async fn beneath_root(&self, path: &str) -> CatalogResult<PathBuf> {
        let root = self.inner.options.adapter_root.clone().ok_or(CatalogError::NoAdapterRoot)?;
        let path = path.to_owned();
        blocking(move || {
            let outside = || CatalogError::OutsideRoot(path.clone());
            let root = root.canonicalize().map_err(|_| CatalogError::NoAdapterRoot)?;
            let folder = root.join(&path).canonicalize().map_err(|_| outside())?;
            let inside = folder.starts_with(&root) && folder != root && folder.is_dir();
            if inside { Ok(folder) } else { Err(outside()) }
        })
        .await
    }
}

async fn read_folder(folder: PathBuf) -> CatalogResult<AdapterFiles> {
    blocking(move || {
        AdapterFiles::from_dir(&folder)
            .map_err(|source| CatalogError::Folder { folder: folder.display().to_string(), source })
    })
    .await
}

/// The first base the adapter fits. If it fits none, the reason given is that of the first base,
/// or of the one whose fingerprint the adapter carries.
fn fit(
    files: AdapterFiles,
    candidates: Vec<ServedBase>,
) -> CatalogResult<(AdapterFiles, ServedBase, CheckedAdapter)> {
    let mut reason: Option<PeftError> = None;
    for base in candidates {
        match peft::read(&files, &base.info, &base.fingerprints()) {
            Ok(checked) => return Ok((files, base, checked)),
            Err(error) => {
                let better = matches!(reason, None | Some(PeftError::Mismatch { .. }));
                if better {
                    reason = Some(error);
                }
            }
        }
    }
    Err(reason.map_or_else(|| CatalogError::UnknownBase("(none)".to_owned()), Into::into))
}
