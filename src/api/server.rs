//! The listener: connections with limits and deadlines, and a shutdown that ends every stream.
//!
//! `axum::serve` has no limit on the time a client takes for its headers, and its shutdown waits
//! for open streams for ever; both are settled here on hyper itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Lifecycle;
use super::guesses::Peer;
use super::stall::StallGuard;

const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 32 << 10;
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// How long streams have to say goodbye once the time for draining is over.
const FAREWELL: Duration = Duration::from_secs(2);
/// A request that is on its way while the server begins to drain, or ends, is heard for so long:
/// it gets its 503 and not a connection that breaks off.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Limits of the listener.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Connections at the same time; more wait in the backlog.
    pub max_connections: usize,
    /// How long requests at work may go on after the signal to stop.
    pub shutdown_timeout: Duration,
    /// How long a client may take for its headers.
    pub header_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub write_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            shutdown_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Serves until `shutdown` is cancelled and every request at work has ended, or its time is over.
///
/// While it drains, new requests get a 503, and probes say so.
///
/// # Errors
/// None once it listens; the type leaves room.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    lifecycle: Lifecycle,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let server = Server {
        router,
        lifecycle: lifecycle.clone(),
        options,
        places: Arc::new(Semaphore::new(options.max_connections)),
        connections: TaskTracker::new(),
        latecomers: TaskTracker::new(),
    };
    tokio::select! {
        () = server.accept(&listener, true) => {}
        () = shutdown.cancelled() => {}
    }
    lifecycle.drain();
    server.connections.close();
    tokio::select! {
        () = server.accept(&listener, false) => {}
        () = server.connections.wait() => {
            server.latecomers.close();
            let _ = tokio::time::timeout(LAST_WORDS, server.latecomers.wait()).await;
            return Ok(());
        }
        () = tokio::time::sleep(options.shutdown_timeout) => {}
    }
    tracing::warn!("requests at work are ended: the time to drain is over");
    lifecycle.end();
    let _ = tokio::time::timeout(FAREWELL, server.connections.wait()).await;
    Ok(())
}

struct Server {
    router: Router,
    lifecycle: Lifecycle,
    options: ServerOptions,
    places: Arc<Semaphore>,
    connections: TaskTracker,
    /// Connections that came while draining; nobody waits long for them.
    latecomers: TaskTracker,
}

impl Server {
    /// Accepts for ever.
    async fn accept(&self, listener: &TcpListener, welcome: bool) {
        loop {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let Ok(place) = place else { return };
            match listener.accept().await {
                Ok((socket, from)) => self.spawn(socket, Peer(from.ip()), place, welcome),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn spawn(&self, socket: TcpStream, peer: Peer, place: OwnedSemaphorePermit, welcome: bool) {
        let _ = socket.set_nodelay(true);
        let io = TokioIo::new(StallGuard::new(socket, self.options.write_timeout));
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            router.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.header_timeout)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEADER_BYTES)
            .max_buf_size(MAX_BUFFER_BYTES)
            .keep_alive(welcome)
            .serve_connection(io, service);
        let lifecycle = self.lifecycle.clone();
        let closing = async move {
            lifecycle.draining().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let task = async move {
            let _place = place;
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = closing, if welcome => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        };
        match welcome {
            true => self.connections.spawn(task),
            false => self.latecomers.spawn(task),
        };
    }
}
