//! `Idempotency-Key` on every POST.
//!
//! The middleware claims the key before the handler runs and hands the claim on in the request's extensions; the
//! handler ends with [`crate::answer::Answer::commit`], which keeps the answer in the transaction of the change. A
//! failure gives the key back. The body is hashed while the handler reads it; it is never held for that.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use registry::idempotency::{self as keys, Claim, Key, LEASE};
use registry::{Caller, Registry};
use sha2::{Digest, Sha256};
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{OpenApi, Required};

use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::problem;
use crate::state::AppState;

/// The request header.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Marks an answer that was given before.
pub(crate) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longest key.
const MAX_KEY: usize = 255;
/// How often a claim is renewed.
const RENEWAL: Duration = Duration::from_secs(LEASE.as_secs() / 3);
/// Largest answer of a handler that changes nothing which is kept.
const MAX_KEPT: usize = 8 << 20;
/// How often expired answers are removed.
const SWEEP: Duration = Duration::from_secs(600);

/// The key of a request, when it has one; handlers that change something take it and give it to
/// [`crate::answer::Answer::commit`].
#[derive(Clone, Default)]
pub(crate) struct IdempotencyKey(Option<Arc<Held>>);

impl IdempotencyKey {
    pub(crate) fn held(&self) -> Option<&Held> {
        self.0.as_deref()
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// A claimed key and the body that comes with it.
pub(crate) struct Held {
    registry: Registry,
    claim: Claim,
    body: Arc<Mutex<Tapped>>,
    answered: AtomicBool,
}

impl Held {
    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Notes that the answer was kept.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// Digest of the whole body; what the handler left of it is read now.
    pub(crate) async fn body_digest(&self) -> Result<[u8; 32]> {
        while let Some(chunk) = poll_fn(|context| tapped(&self.body).poll(context)).await {
            chunk.map_err(|_| Error::BodyIncomplete)?;
        }
        Ok(tapped(&self.body).hash.clone().finalize().into())
    }
}

/// Gives the key back when the request ends without an answer, however it ends.
struct Returned {
    held: Arc<Held>,
    renewing: tokio::task::JoinHandle<()>,
}

impl Returned {
    fn new(held: Arc<Held>) -> Self {
        let (registry, claim) = (held.registry.clone(), held.claim.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWAL).await;
                match claim.renew(&registry).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => tracing::warn!(%error, "the lease of an idempotency key was not renewed"),
                }
            }
        });
        Self { held, renewing }
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.held.answered.load(Ordering::Acquire) {
            return;
        }
        let held = self.held.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { release(&held).await });
        }
    }
}

async fn release(held: &Held) {
    if let Err(error) = held.claim.release(&held.registry).await {
        tracing::warn!(%error, "an idempotency key was not given back; its lease will end");
    }
}

/// Says of every POST that it takes a key.
pub(crate) fn describe(document: &mut OpenApi) {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(MAX_KEY))
        .pattern(Some("^[!-~]+$"));
    let key = ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("Repeated with the same key, the request gets the first answer and changes nothing."))
        .schema(Some(schema))
        .example(Some("5f0c1f5e-5b8e-4a55-8a55-0f6d0c1b7b11".into()))
        .build();
    for post in document.paths.paths.values_mut().filter_map(|item| item.post.as_mut()) {
        post.parameters.get_or_insert_default().push(key.clone().into());
        problem::describe_post(&mut post.responses.responses);
    }
}

/// The middleware: after authentication, for keys belong to callers.
pub(crate) async fn layer(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    match key_of(request.headers()) {
        Ok(None) => next.run(request).await,
        Ok(Some(key)) => keyed(&state, &key, request, next).await.unwrap_or_else(Error::into_response),
        Err(error) => error.into_response(),
    }
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>> {
    let refused = || Error::HeaderInvalid {
        name: "Idempotency-Key",
        rule: "send it once, with 1 to 255 visible ASCII characters, such as a UUID",
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let bytes = value.as_bytes();
    let good = (1..=MAX_KEY).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    match (good, values.next()) {
        (true, None) => value.to_str().map(|key| Some(key.to_owned())).map_err(|_| refused()),
        _ => Err(refused()),
    }
}

async fn keyed(state: &AppState, key: &str, request: Request, next: Next) -> Result<Response> {
    let registry = state.registry();
    let nobody = Caller { administrator: false, ..Caller::system("anonymous") };
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or(nobody);
    let target = format!("{} {}", request.method(), request.uri().path_and_query().map_or("/", |path| path.as_str()));
    match keys::claim(registry, &caller, key, &target).await? {
        Key::Claimed(claim) => first(registry, &caller, claim, request, next).await,
        Key::InFlight => Err(Error::IdempotencyInFlight),
        Key::OtherTarget => Err(Error::IdempotencyKeyReused("another path or query")),
        Key::Answered(answer) => again(answer, request).await,
    }
}

/// Runs the handler under a claim.
async fn first(registry: &Registry, caller: &Caller, claim: Claim, request: Request, next: Next) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(Tapped::new(body)));
    let tap = Body::from_stream(Tap(body.clone()));
    let held = Arc::new(Held { registry: registry.clone(), claim, body, answered: AtomicBool::new(false) });
    let returned = Returned::new(held.clone());
    let mut request = Request::from_parts(parts, tap);
    let key = IdempotencyKey(Some(held.clone()));
    request.extensions_mut().insert(key.clone());
    let response = next.run(request).await;
    let failed = response.status().is_client_error() || response.status().is_server_error();
    let kept = held.answered.load(Ordering::Acquire);
    let response = if failed || kept { Ok(response) } else { keep(registry, caller, &key, response).await };
    if !held.answered.load(Ordering::Acquire) {
        // Before the answer is sent: its reader may try again at once.
        release(&held).await;
        held.answered();
    }
    drop(returned);
    response
}

/// Keeps the answer of a handler that changed nothing.
async fn keep(registry: &Registry, caller: &Caller, key: &IdempotencyKey, response: Response) -> Result<Response> {
    let (parts, body) = response.into_parts();
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| Error::Internal(format!("an answer broke off: {error}")))?);
        if bytes.len() > MAX_KEPT {
            // Too large to keep: the answer goes out, and a repeated request is answered anew.
            let begun = futures::stream::iter([Ok(Bytes::from(bytes))]);
            return Ok(Response::from_parts(parts, Body::from_stream(begun.chain(chunks))));
        }
    }
    let bytes = Bytes::from(bytes);
    let answer = Answer::of(parts.status, parts.headers.clone(), bytes.clone());
    let write = registry.write(caller).await?;
    answer.commit(write, key).await?;
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

/// Gives an answer once more to a request with the same body.
async fn again(answer: keys::Answer, request: Request) -> Result<Response> {
    let mut hash = Sha256::new();
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        hash.update(chunk.map_err(|_| Error::BodyIncomplete)?);
    }
    if <[u8; 32]>::from(hash.finalize()) != answer.body_sha256 {
        return Err(Error::IdempotencyKeyReused("another body"));
    }
    let damaged = |what: &str| Error::Internal(format!("a kept answer has {what}"));
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).map_err(|_| damaged("no status"))?;
    for (name, value) in answer.headers {
        let name = HeaderName::try_from(name).map_err(|_| damaged("a header without a name"))?;
        response.headers_mut().append(name, HeaderValue::try_from(value).map_err(|_| damaged("a broken header"))?);
    }
    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// Removes expired answers now and then, for as long as the server runs.
pub(crate) async fn sweep(registry: Registry) {
    loop {
        match keys::sweep(&registry).await {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "expired idempotency keys are gone"),
            Err(error) => tracing::warn!(%error, "expired idempotency keys could not be removed"),
        }
        tokio::time::sleep(SWEEP).await;
    }
}

/// A body that is hashed while it is read.
struct Tapped {
    chunks: BodyDataStream,
    hash: Sha256,
    ended: bool,
}

fn tapped(body: &Mutex<Tapped>) -> std::sync::MutexGuard<'_, Tapped> {
    body.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tapped {
    fn new(body: Body) -> Self {
        Self { chunks: body.into_data_stream(), hash: Sha256::new(), ended: false }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<std::result::Result<Bytes, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = self.chunks.poll_next_unpin(context);
        match &next {
            Poll::Ready(Some(Ok(chunk))) => self.hash.update(chunk),
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        next
    }
}

/// The handler's side of the body.
struct Tap(Arc<Mutex<Tapped>>);

impl Stream for Tap {
    type Item = std::result::Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        tapped(&self.0).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            }
            key_of(&headers)
        };
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[b"a"]).unwrap().as_deref(), Some("a"));
        assert!(of(&["~".repeat(255).as_bytes()]).is_ok());
        for bad in [&[b"".as_slice()][..], &[b"a b"], &["x".repeat(256).as_bytes()], &[b"\xff"], &[b"a", b"a"]] {
            assert_eq!(of(bad).unwrap_err().code(), "header_invalid", "{bad:?}");
        }
    }
}
