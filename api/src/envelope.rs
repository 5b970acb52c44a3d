//! Around every request: its id, its span in the log, its time limit, panics, and problems.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;

use crate::error::{Error, Failure};
use crate::problem::{MEDIA_TYPE, Problem};
use crate::state::AppState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a client.
const MAX_ID: usize = 128;

/// What a problem says about its request.
struct Origin {
    id: String,
    method: Method,
    path: String,
}

/// Runs a request inside its envelope.
pub(crate) async fn envelope(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let origin = Origin {
        id: request_id(request.headers()),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
    };
    let span = tracing::info_span!("request", id = %origin.id, method = %origin.method, path = %origin.path);
    async move {
        let start = Instant::now();
        let mut response = finish(run(&state, request, next).await, &origin);
        if let Ok(id) = HeaderValue::from_str(&origin.id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        tracing::info!(status = response.status().as_u16(), milliseconds, "answered");
        response
    }
    .instrument(span)
    .await
}

async fn run(state: &AppState, request: Request, next: Next) -> Response {
    let limit = state.settings().timeout;
    match tokio::time::timeout(limit, AssertUnwindSafe(next.run(request)).catch_unwind()).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => Error::Internal(format!("a handler panicked: {}", panic_text(&*panic))).into_response(),
        Err(_) => Error::Timeout(limit.as_secs()).into_response(),
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The client's id when it can be logged and sent back as it is, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(&REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|b| b.is_ascii_graphic()))
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// Gives an error its body: those of handlers, and those that axum answers by itself.
fn finish(response: Response, origin: &Origin) -> Response {
    if let Some(Failure(error)) = response.extensions().get::<Failure>().cloned() {
        log(&error);
        return as_problem(response, &error, origin);
    }
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let error = match status {
        StatusCode::METHOD_NOT_ALLOWED => Error::MethodNotAllowed {
            method: origin.method.to_string(),
            allow: response.headers().get(ALLOW).and_then(|v| v.to_str().ok()).unwrap_or("another path").to_owned(),
        },
        StatusCode::NOT_FOUND => Error::UnknownRoute(origin.path.clone()),
        other => Error::Internal(format!("an answer with status {other} has no problem")),
    };
    log(&error);
    as_problem(response, &error, origin)
}

fn log(error: &Error) {
    match error.status().is_server_error() {
        true => tracing::error!(code = error.code(), error = %chain(error), "failed"),
        false => tracing::debug!(code = error.code(), %error, "refused"),
    }
}

/// The error and all its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn as_problem(response: Response, error: &Error, origin: &Origin) -> Response {
    let mut problem = Problem::new(error.status(), error.code(), error.detail(), &origin.path, &origin.id);
    problem.field = error.field().map(str::to_owned);
    let (mut parts, _) = response.into_parts();
    parts.status = error.status();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    let body = match origin.method {
        Method::HEAD => Body::empty(),
        _ => serde_json::to_vec(&problem).map_or_else(|_| Body::empty(), Body::from),
    };
    Response::from_parts(parts, body)
}
