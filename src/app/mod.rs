//! The composition root: builds every part, and stops them in reverse order.
//!
//! Order of building: the data folder is locked, the store opened, the port bound; then the models
//! are loaded on the device thread, and what serves requests and jobs is put around its handle.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{self, AppState, Guesses, Keys, Lifecycle, Metrics, ServerOptions};
use crate::artifacts::{Artifacts, DataDir};
use crate::catalog::{Catalog, CatalogOptions, ServedBase};
use crate::config::{Config, Database};
use crate::engine::Engine;
use crate::jobs::{LeaseTiming, Preparation, Runner};
use crate::store::Store;
use crate::worker::{Worker, WorkerHandle};

mod adapters;
mod bases;
mod comparison;
mod convert;
mod device;
mod error;
mod export;
mod gguf_adapter;
mod signals;
mod targets;

pub use crate::text::template::{COMMAND as RENDER_TEMPLATES, answer_parent as render_templates};
pub use bases::source as base_source;
pub use comparison::Comparison;
pub use convert::{Conversion, Converted, convert, convert_adapter};
pub use error::{AppError, ConvertError};
use signals::StopSignals;

/// A running server.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    signals: StopSignals,
    /// Ends the listener and the runner.
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
    runner: JoinHandle<()>,
    worker: Worker,
    store: Store,
    catalog: Catalog,
    /// Held to the end, so that no second server uses the folder.
    _data: DataDir,
}

impl App {
    /// Builds every part and begins to serve.
    ///
    /// # Errors
    /// [`AppError`], with the exit code that fits it.
    pub async fn start(config: &Config) -> Result<Self, AppError> {
        let data = DataDir::lock(&config.data)?;
        let artifacts = Artifacts::open(&config.storage.display().to_string())?;
        let store = Store::open(&database_url(config)).await?;
        let listener = bind(config.listen).await?;
        let address = listener.local_addr().map_err(|source| in_use(config.listen, source))?;
        let (handle, worker, served) = bases::load(config).await?;

        let catalog = catalog(config, &store, &artifacts, served);
        adapters::register(&catalog, config).await?;
        let engine = Engine::new(handle.clone(), catalog.clone());
        let lifecycle = Lifecycle::default();
        let state = AppState {
            engine,
            keys: Keys::new(&config.api_keys),
            guesses: Guesses::default(),
            metrics: Metrics::default(),
            lifecycle: lifecycle.clone(),
        };
        let stop = CancellationToken::new();
        let runner = runner(&store, &artifacts, handle, catalog.clone(), &data);
        let runner = tokio::spawn(runner.run(stop.clone()));
        let options =
            ServerOptions { shutdown_timeout: config.shutdown_timeout, ..Default::default() };
        // Before anyone is told that the server is ready: whoever knows may ask it to stop.
        let signals = StopSignals::listen();
        lifecycle.set_ready();
        let server = api::serve(listener, api::router(state), lifecycle, options, stop.clone());
        let server = tokio::spawn(server);
        Ok(Self { address, signals, stop, server, runner, worker, store, catalog, _data: data })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until SIGINT or SIGTERM, then lets running answers end and saves the job at work. A
    /// second signal ends the process at once.
    ///
    /// # Errors
    /// [`AppError::DeviceLost`] if the device thread ended by itself.
    pub async fn run(mut self) -> Result<(), AppError> {
        let worker_lost = loop {
            tokio::select! {
                () = self.signals.requested() => break false,
                () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {
                    if self.worker.is_finished() {
                        break true;
                    }
                }
            }
        };
        if !worker_lost {
            tracing::info!("stopping: running answers may end, the job at work is saved");
            signals::end_at_once_on_the_next();
        }
        self.shut_down().await;
        if worker_lost { Err(AppError::DeviceLost) } else { Ok(()) }
    }

    /// Stops every part: the listener, the runner, the device thread, the store.
    pub async fn shut_down(self) {
        self.stop.cancel();
        let _ = self.runner.await;
        let _ = self.server.await;
        self.worker.stop();
        let worker = self.worker;
        let _ = tokio::task::spawn_blocking(move || worker.join()).await;
        self.store.close().await;
    }
}

fn database_url(config: &Config) -> String {
    match &config.database {
        Database::Sqlite(path) => format!("sqlite://{}", path.display()),
        Database::Postgres(url) => url.clone(),
    }
}

async fn bind(listen: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(listen).await.map_err(|source| in_use(listen, source))
}

fn in_use(listen: SocketAddr, source: std::io::Error) -> AppError {
    AppError::Listen { listen, source }
}

fn catalog(
    config: &Config,
    store: &Store,
    artifacts: &Artifacts,
    served: Vec<ServedBase>,
) -> Catalog {
    let options = CatalogOptions {
        organization: config.organization.clone(),
        adapter_root: config.adapter_root.clone(),
    };
    Catalog::new(store.clone(), artifacts.clone(), served, options)
}

fn runner(
    store: &Store,
    artifacts: &Artifacts,
    worker: WorkerHandle,
    catalog: Catalog,
    data: &DataDir,
) -> Runner {
    Runner {
        store: store.clone(),
        artifacts: artifacts.clone(),
        prepare: Arc::new(Preparation::new(catalog, worker.clone())),
        worker,
        server_id: data.server_id().to_owned(),
        timing: LeaseTiming::default(),
    }
}
