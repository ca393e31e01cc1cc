//! A server of a command's own: nobody else can call it, and nothing of it remains.

use crate::app::App;
use crate::config::ServeOptions;

use super::Failure;
use super::client::Client;

/// Serves the `--model` source on a free loopback port, under a key only this process knows, with a
/// temporary data folder; stops it when `work` is done.
///
/// # Errors
/// Those of starting it, with their exit codes, and those of `work`.
pub async fn with_server<T>(
    model: Option<&str>,
    threads: Option<usize>,
    work: impl AsyncFnOnce(&App, &Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::new(1, format!("cannot make a temporary folder: {error}")))?;
    let key = hex::encode(rand::random::<[u8; 16]>());
    let options = ServeOptions {
        model: model.map(str::to_owned).into_iter().collect(),
        listen: Some("127.0.0.1:0".to_owned()),
        data: Some(folder.path().to_owned()),
        api_key: vec![key.clone()],
        threads,
        ..ServeOptions::default()
    };
    let config = options.resolve().map_err(|error| Failure::new(error.exit_code(), error))?;
    let app = App::start(&config).await.map_err(|error| Failure::new(error.exit_code(), error))?;
    let client = Client::new(&format!("http://{}", app.address()), Some(&key))?;
    let result = tokio::select! {
        result = work(&app, &client) => result,
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::new(1, "stopped; nothing was kept")),
    };
    app.shut_down().await;
    result
}

/// Runs a command that has a server of its own.
///
/// # Errors
/// Those of the command.
pub fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("cannot start the runtime: {error}")))?;
    runtime.block_on(work)
}
