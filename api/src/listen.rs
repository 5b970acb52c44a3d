//! Connections: accepted, given time to send their requests, and ended when the server stops.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

/// How long to wait when no connection can be accepted, such as for want of file descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// A router that takes another's place while connections are open.
#[derive(Clone)]
pub(crate) struct Switch {
    first: Router,
    then: Arc<OnceLock<Router>>,
}

impl Switch {
    /// Begins with a router.
    pub(crate) fn new(first: Router) -> Self {
        Self { first, then: Arc::default() }
    }

    /// Puts the final router in its place.
    pub(crate) fn turn(&self, then: Router) {
        // A second call has nothing to say.
        let _ = self.then.set(then);
    }

    fn current(&self) -> Router {
        self.then.get().unwrap_or(&self.first).clone()
    }
}

/// Accepts connections until `stopped` ends; then those that are open may end what they are at.
pub(crate) async fn accept(
    listener: TcpListener,
    switch: Switch,
    header_timeout: Duration,
    stopped: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let connection = connection(stream, peer, switch.clone(), header_timeout, graceful.watcher());
                    tokio::spawn(connection);
                }
                Err(error) => {
                    // One client's failure, or a want that may pass: never a reason to end.
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(RETRY).await;
                }
            },
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, switch: Switch, header_timeout: Duration, watcher: Watcher) {
    // Without it, an answer in two writes may wait for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY is not possible");
    }
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = switch.current();
        async move { answer(router, request, peer).await }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(served).await {
        // Clients go away; what they missed is in the log of their requests.
        tracing::debug!(%error, %peer, "a connection broke off");
    }
}

async fn answer(router: Router, request: Request<Incoming>, peer: SocketAddr) -> Result<Response, Infallible> {
    let mut request = request.map(axum::body::Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    router.oneshot(request).await
}
