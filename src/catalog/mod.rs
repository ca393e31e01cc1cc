//! What exists: base models, adapters and their names, uploaded files.
//!
//! The rows live in `store`, the bytes in `artifacts`; what both mean together is decided here.
//! A name is settled once per request into values that the request keeps ([`ResolvedModel`]), so
//! registering, replacing and deleting adapters never disturbs whoever already runs.

mod cache;
mod error;
mod files;
mod names;
mod register;
mod resolve;
mod shelf;

pub use error::{CatalogError, CatalogResult};
pub use files::{FileContent, MAX_FILE_BYTES, Upload};
pub use names::{check_adapter_name, check_suffix, checkpoint_name, fine_tuned_name};
pub use register::{AdapterBytes, Registered};
pub use resolve::{LoadedAdapter, ModelCard, ResolvedModel};
pub use shelf::FileShelf;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cache::AdapterCache;

use crate::artifacts::Artifacts;
use crate::domain::BaseInfo;
use crate::peft::Fingerprints;
use crate::pictures::PictureReader;
use crate::store::Store;
use crate::text::TextModel;

/// Bytes of adapters kept in host memory beyond those in use.
const CACHE_BYTES: usize = 512 << 20;

/// A resident base model and what stands beside it.
#[derive(Clone, Debug)]
pub struct ServedBase {
    pub info: Arc<BaseInfo>,
    pub text: Arc<TextModel>,
    /// Reads its pictures, if it sees.
    pub pictures: Option<Arc<PictureReader>>,
}

impl ServedBase {
    /// What adapters of this base are checked against.
    pub fn fingerprints(&self) -> Fingerprints {
        Fingerprints {
            base: self.info.fingerprint.clone(),
            tokenizer: self.text.tokenizer_fingerprint().to_owned(),
            template: self.text.template_fingerprint().map(str::to_owned),
        }
    }
}

/// What the operator decided about names and folders.
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    /// The organisation in `ft:<base>:<organisation>:<suffix>:<id>`.
    pub organization: String,
    /// The folder beneath which requests may name adapter folders; `None`: nowhere.
    pub adapter_root: Option<PathBuf>,
}

impl Default for CatalogOptions {
    fn default() -> Self {
        Self { organization: "tandem".to_owned(), adapter_root: None }
    }
}

/// Everything that has a name. Cheap to clone; every clone is the same catalog.
#[derive(Clone, Debug)]
pub struct Catalog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    artifacts: Artifacts,
    bases: Vec<ServedBase>,
    options: CatalogOptions,
    adapters: AdapterCache,
    /// Held from a folder's writing to its row, and from a row's end to its folder's: two adapters
    /// of the same content share a folder.
    changing: tokio::sync::Mutex<()>,
    started_at: i64,
}

impl Catalog {
    /// The catalog over these bases, in the order they were given.
    pub fn new(
        store: Store,
        artifacts: Artifacts,
        bases: Vec<ServedBase>,
        options: CatalogOptions,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let inner = Inner {
            store,
            artifacts,
            bases,
            options,
            adapters: AdapterCache::new(CACHE_BYTES),
            changing: tokio::sync::Mutex::default(),
            started_at: now.as_secs() as i64,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The resident base models.
    pub fn bases(&self) -> &[ServedBase] {
        &self.inner.bases
    }

    /// The base of that name.
    pub fn base(&self, name: &str) -> Option<&ServedBase> {
        self.inner.bases.iter().find(|base| &*base.info.name == name)
    }

    /// The organisation in the names of fine-tuned models.
    pub fn organization(&self) -> &str {
        &self.inner.options.organization
    }

    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    pub fn artifacts(&self) -> &Artifacts {
        &self.inner.artifacts
    }
}
