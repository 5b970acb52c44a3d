//! Around every request: its id, its span in the log, its time limit, panics, and problems.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;

use crate::error::{Error, Failure};
use crate::metrics::{self, InFlight, Route};
use crate::problem::{MEDIA_TYPE, Problem};
use crate::slow::{self, Progress};
use crate::spans;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a client.
const MAX_ID: usize = 128;

/// Id of the request, in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// What a problem says about its request.
struct Origin {
    id: String,
    method: Method,
    path: String,
}

/// Puts the envelope around a whole router: a layer of the router itself would not see what the router adds to answers,
/// such as `Allow`.
pub(crate) fn wrap(router: Router, limits: Limits) -> Router {
    Router::new().fallback_service(router).layer(from_fn_with_state(limits, envelope))
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the last piece of the body to the answer.
    pub(crate) answer: Duration,
    /// From one piece of the body to the next.
    pub(crate) pause: Duration,
}

/// Runs a request inside its envelope, within the limits.
async fn envelope(State(limits): State<Limits>, mut request: Request, next: Next) -> Response {
    let origin = Origin {
        id: request_id(request.headers()),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
    };
    request.extensions_mut().insert(RequestId(origin.id.clone()));
    let span = spans::begin(&origin.id, &origin.method, &origin.path, request.headers());
    async move {
        let start = Instant::now();
        let (route, _in_flight) = (Route::default(), InFlight::begin());
        request.extensions_mut().insert(route.clone());
        let progress = Progress::new();
        let mut response = finish(run(limits, request, next, &progress).await, &origin);
        if let Ok(id) = HeaderValue::from_str(&origin.id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        metrics::answered(&origin.method, &route, response.status(), start.elapsed());
        metrics::received(&origin.method, &route, progress.received());
        spans::answered(&origin.method, &route, response.status());
        tracing::info!(status = response.status().as_u16(), route = route.name(), milliseconds, "answered");
        response
    }
    .instrument(span)
    .await
}

async fn run(limits: Limits, request: Request, next: Next, progress: &Arc<Progress>) -> Response {
    let request = request.map(|body| slow::watched(body, limits.pause, progress.clone()));
    let work = AssertUnwindSafe(next.run(request)).catch_unwind();
    match slow::limited(limits.answer, progress, work).await {
        // Whatever the handler made of a body that broke off.
        Some(Ok(response)) if progress.stalled() && !response.status().is_success() => {
            Error::BodyStalled(limits.pause.as_secs()).into_response()
        }
        Some(Ok(response)) => response,
        Some(Err(panic)) => Error::Internal(format!("a handler panicked: {}", panic_text(&*panic))).into_response(),
        None => Error::Timeout(limits.answer.as_secs()).into_response(),
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
    // A server that starts is no failure, and whoever asks whether it is ready asks often.
    let expected = matches!(error, Error::Starting | Error::NotReady(_));
    match error.status().is_server_error() && !expected {
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
    if let Error::NotReady(checks) = error {
        problem.checks = Some(checks.clone());
    }
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn ask(method: Method, path: &str, id: Option<&str>) -> (StatusCode, HeaderMap, Value) {
        let sleep = || async { tokio::time::sleep(Duration::from_secs(60)).await };
        let router: Router = Router::new()
            .route(
                "/panic",
                get(|| async {
                    if true {
                        panic!("secret")
                    }
                }),
            )
            .route("/slow", get(sleep))
            .route("/plain", get(|| async { (StatusCode::IM_A_TEAPOT, "secret") }))
            .route("/good", get(|| async { "good" }));
        let router = wrap(router, Limits { answer: Duration::from_millis(50), pause: Duration::from_secs(10) });
        let mut request = Request::builder().method(method).uri(path);
        if let Some(id) = id {
            request = request.header(REQUEST_ID, id);
        }
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_that_tells_nothing() {
        let (status, headers, problem) = ask(Method::GET, "/panic", None).await;
        assert_eq!(status, 500);
        assert_eq!(headers[CONTENT_TYPE], MEDIA_TYPE);
        assert_eq!(problem["code"], "internal");
        assert_eq!(problem["request_id"], headers[REQUEST_ID].to_str().unwrap());
        assert_eq!(problem["instance"], "/panic");
        assert!(!problem.to_string().contains("secret"), "{problem}");
    }

    #[tokio::test]
    async fn slow_requests_end() {
        let (status, _, problem) = ask(Method::GET, "/slow", None).await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (503, Some("timeout")));
    }

    #[tokio::test]
    async fn errors_of_others_become_problems() {
        let (status, _, problem) = ask(Method::GET, "/nothing", None).await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (404, Some("unknown_route")));
        let (status, headers, problem) = ask(Method::POST, "/good", None).await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (405, Some("method_not_allowed")));
        assert_eq!(headers[ALLOW], "GET,HEAD");
        assert!(problem["detail"].as_str().unwrap().contains("use GET,HEAD"), "{problem}");
        let (status, _, problem) = ask(Method::GET, "/plain", None).await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (500, Some("internal")));
        assert!(!problem.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn ids_come_back_when_they_are_harmless() {
        let id = |headers: &HeaderMap| headers[REQUEST_ID].to_str().unwrap().to_owned();
        let (_, headers, _) = ask(Method::GET, "/good", Some("abc-123")).await;
        assert_eq!(id(&headers), "abc-123");
        for bad in ["", "a b", &"x".repeat(129)] {
            let (_, headers, _) = ask(Method::GET, "/good", Some(bad)).await;
            assert!(uuid::Uuid::parse_str(&id(&headers)).is_ok(), "{bad:?}");
        }
    }
}
