//! The router, and serving it.

use std::future::Future;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::auth::{self, Guard};
use crate::envelope;
use crate::error::{Error, Result};
use crate::listen::{self, Switch};
use crate::openapi::{described, openapi_json};
use crate::state::{AppState, Settings};
use crate::{health, idempotency, manners, metrics};

/// The whole API: resources, `/openapi.json`, and Swagger UI at `/docs`.
pub fn router(state: AppState) -> Router {
    let document = bytes::Bytes::from(openapi_json());
    let (resources, description) = described().split_for_parts();
    let guard = Guard::new(state.clone(), &description);
    let (limits, cors) = (limits(state.settings()), manners::cors(&state.settings().cors_origins));
    metrics::start();
    let router = resources
        .layer(from_fn_with_state(state.clone(), idempotency::layer))
        // Before the open routes: what is added after a layer is outside it.
        .layer(from_fn_with_state(guard, auth::authorise))
        .route("/openapi.json", get(|| async move { ([(CONTENT_TYPE, "application/json")], document) }))
        .merge(SwaggerUi::new("/docs").config(Config::from("/openapi.json")))
        .fallback(|request: Request| async move { Error::UnknownRoute(request.uri().path().to_owned()) })
        // The extractor of bodies has the limit, with an answer of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(metrics::note_route))
        .with_state(state);
    let router = envelope::wrap(manners::wrap(router), limits);
    match cors {
        // Outermost: a preflight has no token, and errors too are for the page to read.
        Some(cors) => router.layer(cors),
        None => router,
    }
}

fn limits(settings: &Settings) -> envelope::Limits {
    envelope::Limits { answer: settings.timeout, pause: settings.body_timeout }
}

/// Serves on a listener until `shutdown` ends; requests under way then have [`crate::Settings::grace`] to end.
///
/// # Errors
/// `open_needs_loopback` in open mode on another address than loopback.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let settings = state.settings().clone();
    let switch = Switch::new(router(state.clone()));
    serve_on(listener, settings, switch, async { Ok(state) }, || {}, shutdown).await
}

/// Serves on a listener from now on: while `start` makes the state, `/health/live` answers and all else is 503.
/// `ready` is called when the state has taken its place.
///
/// # Errors
/// Those of `start`; `open_needs_loopback` in open mode on another address than loopback.
pub async fn serve_when_ready<E: From<Error>>(
    listener: TcpListener,
    settings: Settings,
    start: impl Future<Output = std::result::Result<AppState, E>>,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::result::Result<(), E> {
    let switch = Switch::new(envelope::wrap(health::starting(), limits(&settings)));
    serve_on(listener, settings, switch, start, ready, shutdown).await
}

async fn serve_on<E: From<Error>>(
    listener: TcpListener,
    settings: Settings,
    switch: Switch,
    start: impl Future<Output = std::result::Result<AppState, E>>,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::result::Result<(), E> {
    settings.auth.check(listener.local_addr().map_err(Error::Serve)?)?;
    let (stopping, stopped) = watch::channel(false);
    let signal = Task(tokio::spawn(async move {
        shutdown.await;
        tracing::info!("stopping");
        // Nobody listens any more when the server has ended by itself.
        let _ = stopping.send(true);
    }));
    let accepting = listen::accept(listener, switch.clone(), settings.header_timeout, told(stopped.clone()));
    let mut accepting = Task(tokio::spawn(accepting));
    let served = tokio::select! {
        () = told(stopped.clone()) => Ok(()),
        started = start => match started {
            Ok(state) => {
                switch.turn(router(state.clone()));
                ready();
                tokio::select! {
                    () = idempotency::sweep(state.registry().clone()) => {}
                    () = told(stopped) => {}
                }
                state.stop();
                Ok(())
            }
            Err(error) => return Err(error),
        }
    };
    if tokio::time::timeout(settings.grace, &mut accepting.0).await.is_err() {
        tracing::warn!("requests under way were cut off");
    }
    drop(signal);
    served
}

/// A task that ends with its handle.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends when the server is told to stop; never, when nobody can tell it any more.
async fn told(mut stopped: watch::Receiver<bool>) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Serves `/metrics` alone, on a listener of its own, for as long as it is polled.
pub async fn serve_metrics(listener: TcpListener, state: AppState) {
    let limits = limits(state.settings());
    let header_timeout = state.settings().header_timeout;
    let get = get(|State(state): State<AppState>| async move { metrics::answer(&state).await });
    let unknown = |request: Request| async move { Error::UnknownRoute(request.uri().path().to_owned()) };
    let router = Router::new().route("/metrics", get).fallback(unknown).with_state(state);
    let switch = Switch::new(envelope::wrap(router, limits));
    listen::accept(listener, switch, header_timeout, std::future::pending()).await;
}
