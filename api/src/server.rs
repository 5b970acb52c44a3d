//! The router, and serving it.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::auth::{self, Guard};
use crate::envelope;
use crate::error::{Error, Result};
use crate::idempotency;
use crate::openapi::{described, openapi_json};
use crate::state::AppState;

/// The whole API: resources, `/openapi.json`, and Swagger UI at `/docs`.
pub fn router(state: AppState) -> Router {
    let document = bytes::Bytes::from(openapi_json());
    let (resources, description) = described().split_for_parts();
    let guard = Guard::new(state.clone(), &description);
    let timeout = state.settings().timeout;
    let router = resources
        .layer(from_fn_with_state(state.clone(), idempotency::layer))
        // Before the open routes: what is added after a layer is outside it.
        .layer(from_fn_with_state(guard, auth::authorise))
        .route("/openapi.json", get(|| async move { ([(CONTENT_TYPE, "application/json")], document) }))
        .merge(SwaggerUi::new("/docs").config(Config::from("/openapi.json")))
        .fallback(|request: Request| async move { Error::UnknownRoute(request.uri().path().to_owned()) })
        // The extractor of bodies has the limit, with an answer of its own.
        .layer(DefaultBodyLimit::disable())
        .with_state(state);
    envelope::wrap(router, timeout)
}

/// Serves on a listener until `shutdown` ends; requests under way then have [`crate::Settings::grace`] to end.
///
/// # Errors
/// [`Error::Serve`] when the listener fails.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (grace, registry) = (state.settings().grace, state.registry().clone());
    let (stopping, stopped) = watch::channel(false);
    let served = state.clone();
    let signal = async move {
        shutdown.await;
        tracing::info!("stopping");
        served.stop();
        // Nobody listens any more when the server has ended by itself.
        let _ = stopping.send(true);
    };
    let listener = listener.tap_io(|stream| {
        // Without it, an answer in two writes may wait for the client's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY is not possible");
        }
    });
    let server = axum::serve(listener, router(state).into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(signal);
    // Ends with this function, as its branch of the select does.
    tokio::select! {
        () = idempotency::sweep(registry) => Ok(()),
        ended = async { server.await } => ended.map_err(Error::Serve),
        () = after(stopped, grace) => {
            tracing::warn!("requests under way were cut off");
            Ok(())
        }
    }
}

/// Waits for the signal and then for the grace; forever when there is no signal.
async fn after(mut stopped: watch::Receiver<bool>, grace: Duration) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(grace).await;
}
