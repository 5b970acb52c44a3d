//! What HTTP offers every answer: entity tags and 304 for JSON, HEAD, compression, and CORS.

use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::openapi::{OpenApi, RefOr, ResponseBuilder};

use crate::error::Error;
use crate::files::matches_none;
use crate::idempotency::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED};

/// Smaller answers are not compressed.
const WORTH_COMPRESSING: u16 = 1024;
/// Largest JSON answer that gets an entity tag: all of it is hashed first.
const MAX_TAGGED: u64 = 32 << 20;

/// Entity tags, HEAD and compression around a router.
pub(crate) fn wrap(router: Router) -> Router {
    let compression = CompressionLayer::new().compress_when(SizeAbove::new(WORTH_COMPRESSING).and(compressible));
    router.layer(from_fn(conditional)).layer(compression).layer(from_fn(name_encoding))
}

/// Says of every GET of JSON that it may answer 304.
pub(crate) fn describe(document: &mut OpenApi) {
    let unchanged = ResponseBuilder::new().description("The answer is the one that `If-None-Match` names.").build();
    for get in document.paths.paths.values_mut().filter_map(|item| item.get.as_mut()) {
        let json = |response: &RefOr<utoipa::openapi::Response>| matches!(response, RefOr::T(response) if response.content.contains_key("application/json"));
        if get.responses.responses.get("200").is_some_and(json) {
            get.responses.responses.entry("304".into()).or_insert(unchanged.clone().into());
        }
    }
}

fn compressible(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Not files, whose bytes and ranges are those of their digests, and not streams of events.
    (is_json(kind) || kind.starts_with("text/") || kind.starts_with("application/javascript"))
        && !kind.starts_with("text/event-stream")
        && !headers.contains_key(CONTENT_DISPOSITION)
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Answers HEAD as GET without its body, and gives JSON a strong entity tag, with 304 for who has it.
async fn conditional(mut request: Request, next: Next) -> Response {
    let head = request.method() == Method::HEAD;
    if head {
        // The handler answers as for GET, so that every header is the same; a range is for GET only.
        *request.method_mut() = Method::GET;
        request.headers_mut().remove(RANGE);
    }
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    let conditions = request.headers().get_all(IF_NONE_MATCH).iter().cloned().map(|value| (IF_NONE_MATCH, value));
    let conditions: HeaderMap = conditions.collect();
    let response = next.run(request).await;
    let response = tagged(response, &conditions).await.unwrap_or_else(Error::into_response);
    if head { without_body(response) } else { response }
}

async fn tagged(response: Response, conditions: &HeaderMap) -> crate::Result<Response> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let known = response.body().size_hint().exact().is_some_and(|size| size <= MAX_TAGGED);
    let tagged = response.headers().contains_key(ETAG);
    if response.status() != StatusCode::OK || !is_json(kind) || !known {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    let broken = |error: axum::Error| Error::Internal(format!("an answer could not be read: {error}"));
    let bytes = axum::body::to_bytes(body, usize::MAX).await.map_err(broken)?;
    if !tagged {
        let digest = format!("\"{}\"", hex::encode(&Sha256::digest(&bytes)[..16]));
        parts.headers.insert(ETAG, HeaderValue::try_from(digest).map_err(|e| Error::Internal(e.to_string()))?);
        if !parts.headers.contains_key(CACHE_CONTROL) {
            // To be asked about each time: what a caller sees is the caller's.
            parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        }
    }
    let etag = parts.headers.get(ETAG).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if matches_none(conditions, etag) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(CONTENT_TYPE);
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

fn without_body(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if let Some(size) = body.size_hint().exact().filter(|size| *size > 0) {
        parts.headers.entry(CONTENT_LENGTH).or_insert(HeaderValue::from(size));
    }
    Response::from_parts(parts, Body::empty())
}

/// A compressed answer is another representation, so its strong entity tag is another too: `"x"` becomes `"x-gzip"`.
async fn name_encoding(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    if let (Some(encoding), Some(etag)) = (text(CONTENT_ENCODING), text(ETAG))
        && let Some(opaque) = etag.strip_suffix('"')
        && let Ok(named) = HeaderValue::try_from(format!("{opaque}-{encoding}\""))
    {
        response.headers_mut().insert(ETAG, named);
    }
    response
}

/// The origin of web pages, such as `https://app.example`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = Error;

    /// An origin is a scheme, a host and perhaps a port; nothing follows.
    fn from_str(text: &str) -> crate::Result<Self> {
        let wrong = || Error::Origin(text.to_owned());
        if text == "*" {
            return Ok(Self(HeaderValue::from_static("*")));
        }
        let (scheme, place) = text.split_once("://").ok_or_else(wrong)?;
        let host = !place.is_empty() && place.bytes().all(|b| b.is_ascii_graphic() && !b"/?#*@".contains(&b));
        if !host || !matches!(scheme, "http" | "https") {
            return Err(wrong());
        }
        HeaderValue::try_from(text).map(Self).map_err(|_| wrong())
    }
}

/// Lets pages of these origins use the API. Without origins, browsers keep pages of others out.
pub(crate) fn cors(origins: &[Origin]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let all = origins.iter().any(|origin| origin.0 == "*");
    let listed = || AllowOrigin::list(origins.iter().map(|origin| origin.0.clone()));
    let origin = if all { AllowOrigin::any() } else { listed() };
    let name = HeaderName::from_static;
    Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers([
                ACCEPT,
                AUTHORIZATION,
                CONTENT_TYPE,
                IDEMPOTENCY_KEY,
                IF_MATCH,
                IF_NONE_MATCH,
                IF_RANGE,
                RANGE,
                name("prefer"),
                name("last-event-id"),
                name("x-request-id"),
            ])
            .expose_headers([
                CONTENT_DISPOSITION,
                CONTENT_RANGE,
                ETAG,
                LOCATION,
                RETRY_AFTER,
                IDEMPOTENCY_REPLAYED,
                name("preference-applied"),
                name("ratelimit"),
                name("ratelimit-policy"),
                name("x-request-id"),
            ])
            .max_age(Duration::from_secs(3600)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let of = |text: &str| text.parse::<Origin>();
        assert!(cors(&[]).is_none() && cors(&[of("https://a.example").unwrap()]).is_some());
        for good in ["*", "https://a.example", "http://localhost:3000", "http://[::1]:80"] {
            of(good).unwrap();
        }
        for bad in ["a.example", "https://", "https://a.example/", "ftp://a", "https://*.a", "null", "https://a b", ""]
        {
            assert_eq!(of(bad).unwrap_err().code(), "origin_invalid", "{bad}");
        }
    }

    #[test]
    fn kinds() {
        assert!(is_json("application/json; charset=utf-8") && is_json("application/problem+json"));
        assert!(!is_json("text/json") && !is_json("application/x-tar"));
        let of = |kind: &'static str| {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            compressible(StatusCode::OK, Version::HTTP_11, &headers, &Extensions::new())
        };
        assert!(of("application/json") && of("text/html"));
        assert!(!of("application/vnd.safetensors") && !of("text/event-stream") && !of("application/x-tar"));
    }
}
