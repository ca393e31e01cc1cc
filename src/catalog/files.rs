//! Uploaded files: streamed to disk and hashed, checked line by line, then named by a row.

use std::fmt::Display;
use std::io::BufReader;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;

use super::Catalog;
use super::error::{CatalogError, CatalogResult};
use super::resolve::blocking;
use crate::artifacts::Blob;
use crate::domain::FileId;
use crate::store::{Created, File, IdempotencyKey, Listed, NewFile, Page};
use crate::text::dataset::{self, Limits, Problem, Report, TrainOn};

/// The largest file, as at OpenAI.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// Larger training files are checked by the job that reads them, so that an upload does not wait.
const CHECKED_AT_UPLOAD_BYTES: u64 = 16 << 20;

/// Bad lines that an answer lists; all are counted.
const LISTED_ERRORS: usize = 1000;

/// What a client says of a file it sends.
#[derive(Clone, Debug)]
pub struct Upload {
    pub tenant: String,
    pub purpose: String,
    /// Kept and shown, never used as a path.
    pub filename: String,
    pub expires_after: Option<Duration>,
}

/// A file's bytes, ready to be read.
#[derive(Debug)]
pub struct FileContent {
    pub file: File,
    pub content: tokio::fs::File,
}

impl Catalog {
    /// Keeps the bytes of a file, not yet named. If this value is dropped without
    /// [`Catalog::create_file`], the bytes are rubbish that the next deletion of the same content
    /// clears away.
    ///
    /// # Errors
    /// [`CatalogError::Artifacts`] with `TooLarge`, `Upload` or `Full`.
    pub async fn receive_file<E: Display>(
        &self,
        stream: impl Stream<Item = Result<Bytes, E>>,
    ) -> CatalogResult<Blob> {
        Ok(self.inner.artifacts.put_stream(stream, MAX_FILE_BYTES).await?)
    }

    /// Names received bytes, after checking what a training file says line by line. Makes room
    /// first: files whose time has passed go.
    ///
    /// # Errors
    /// [`CatalogError::BadLines`] with every bad line; the bytes are gone then.
    pub async fn create_file(
        &self,
        upload: &Upload,
        blob: Blob,
        key: Option<&IdempotencyKey>,
    ) -> CatalogResult<Created<File>> {
        self.delete_expired_files().await?;
        let checked = match upload.purpose.as_str() {
            "fine-tune" => self.check_training_file(upload, &blob).await,
            _ => Ok(()),
        };
        if let Err(error) = checked {
            self.discard(blob).await?;
            return Err(error);
        }
        let new = NewFile {
            id: FileId::generate(),
            tenant: upload.tenant.clone(),
            purpose: upload.purpose.clone(),
            filename: upload.filename.clone(),
            bytes: blob.bytes,
            sha256: blob.sha256.clone(),
            status: "processed".to_owned(),
            status_details: None,
            expires_after: upload.expires_after,
        };
        Ok(self.inner.store.insert_file(&new, key).await?)
    }

    /// Removes received bytes that nobody named.
    ///
    /// # Errors
    /// Those of store and artifacts.
    pub async fn discard(&self, blob: Blob) -> CatalogResult<()> {
        let sha256 = blob.sha256.clone();
        drop(blob);
        self.remove_unused(&sha256).await
    }

    /// The tenant's file of that id.
    ///
    /// # Errors
    /// [`CatalogError::Store`] with `NotFound`.
    pub async fn file(&self, tenant: &str, id: &FileId) -> CatalogResult<File> {
        Ok(self.inner.store.file(tenant, id).await?)
    }

    /// A page of the tenant's files.
    ///
    /// # Errors
    /// [`CatalogError::Store`] with `UnknownCursor`.
    pub async fn files(
        &self,
        tenant: &str,
        purpose: Option<&str>,
        page: &Page,
    ) -> CatalogResult<Listed<File>> {
        Ok(self.inner.store.files(tenant, purpose, page).await?)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`Catalog::file`].
    pub async fn file_content(&self, tenant: &str, id: &FileId) -> CatalogResult<FileContent> {
        let file = self.file(tenant, id).await?;
        let content = self.inner.artifacts.read(&file.sha256).await?;
        Ok(FileContent { file, content })
    }

    /// Forgets a file, and its bytes if no other file has the same.
    ///
    /// # Errors
    /// As [`Catalog::file`].
    pub async fn delete_file(&self, tenant: &str, id: &FileId) -> CatalogResult<()> {
        let file = self.inner.store.delete_file(tenant, id).await?;
        self.remove_unused(&file.sha256).await
    }

    /// Clears away the files whose time has passed.
    ///
    /// # Errors
    /// Those of store and artifacts.
    pub async fn delete_expired_files(&self) -> CatalogResult<usize> {
        let expired = self.inner.store.delete_expired_files().await?;
        for file in &expired {
            self.remove_unused(&file.sha256).await?;
        }
        Ok(expired.len())
    }

    async fn remove_unused(&self, sha256: &str) -> CatalogResult<()> {
        if !self.inner.store.content_in_use(sha256).await? {
            self.inner.artifacts.delete(sha256).await?;
        }
        Ok(())
    }

    async fn check_training_file(&self, upload: &Upload, blob: &Blob) -> CatalogResult<()> {
        if !upload.filename.to_ascii_lowercase().ends_with(".jsonl") {
            return Err(CatalogError::NotJsonLines);
        }
        let Some(base) = self.bases().first().cloned() else { return Ok(()) };
        if blob.bytes > CHECKED_AT_UPLOAD_BYTES {
            return Ok(());
        }
        let path = self.inner.artifacts.path(&blob.sha256)?;
        blocking(move || {
            let unreadable =
                |source| CatalogError::Folder { folder: path.display().to_string(), source };
            let open = || std::fs::File::open(&path).map_err(unreadable);
            let shelf = base.shelf(open()?);
            let limits = Limits {
                max_seq_length: base.info.context_length,
                vocab_size: base.info.vocab_size,
                max_findings: LISTED_ERRORS,
                ..Limits::of(shelf.is_some())
            };
            let reader = BufReader::new(open()?);
            let seeing = base.seeing(shelf.as_ref());
            let report =
                dataset::validate(reader, &base.text, &limits, TrainOn::Completion, seeing)
                    .map_err(unreadable)?;
            refuse_bad_lines(report)
        })
        .await
    }
}

/// Keeps the findings that hold for every model; a job finds the others with its own.
fn refuse_bad_lines(mut report: Report) -> CatalogResult<()> {
    let found = report.errors.len() as u64;
    report.errors.retain(|finding| !depends_on_model(&finding.problem));
    report.error_count -= found - report.errors.len() as u64;
    if report.errors.is_empty() { Ok(()) } else { Err(CatalogError::BadLines(Box::new(report))) }
}

fn depends_on_model(problem: &Problem) -> bool {
    match problem {
        // What is no whole number of at least 0 is a token of no model.
        Problem::IdOutOfVocabulary { id, .. } => id.parse::<u64>().is_ok(),
        Problem::SpecialToken { .. }
        | Problem::BadLabel { .. }
        | Problem::NoTemplate
        | Problem::Template { .. }
        | Problem::Tokenizer { .. }
        | Problem::NothingTrained { .. }
        | Problem::PicturePlaces { .. }
        | Problem::PreferenceData => true,
        Problem::Message(problem) => problem.depends_on_model(),
        _ => false,
    }
}
