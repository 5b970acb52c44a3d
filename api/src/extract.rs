//! Extractors whose rejections are [`Error`]s.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::request::Parts;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::error::{Error, Result};
use crate::state::AppState;

/// A refused body is read on for this many times the limit, for this long: a client that is still sending sees the
/// answer only when it has sent all.
const DRAIN_FACTOR: usize = 8;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self> {
        check_media_type(request.headers())?;
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, state.settings().body_limit).await?;
        parse(&bytes).map(Self)
    }
}

/// A JSON body, and the object as it was sent: for what is kept.
pub(crate) struct Raw<T>(pub(crate) T, pub(crate) serde_json::Map<String, serde_json::Value>);

impl<T: DeserializeOwned> FromRequest<AppState> for Raw<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self> {
        check_media_type(request.headers())?;
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, state.settings().body_limit).await?;
        Ok(Self(parse(&bytes)?, parse(&bytes)?))
    }
}

fn check_media_type(headers: &HeaderMap) -> Result<()> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Err(Error::MediaType("missing".into()));
    };
    let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json { Ok(()) } else { Err(Error::MediaType(essence.chars().take(100).collect())) }
}

async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    let mut chunks = body.into_data_stream();
    if announced.is_some_and(|length| length > limit) {
        // A client that asks first has not begun to send.
        if !headers.contains_key(EXPECT) {
            drain(chunks, limit).await;
        }
        return Err(Error::BodyTooLarge(limit));
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Error::BodyIncomplete)?;
        if bytes.len() + chunk.len() > limit {
            drain(chunks, limit).await;
            return Err(Error::BodyTooLarge(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads on for a while what a refused client still sends.
pub(crate) async fn drain(mut chunks: axum::body::BodyDataStream, limit: usize) {
    let reading = async {
        let mut left = limit.saturating_mul(DRAIN_FACTOR);
        while let Some(Ok(chunk)) = chunks.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    // Whether it ended or not, the answer is the same.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

/// Parses JSON; an error names the part that is wrong.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            Category::Data if path == "." => Error::JsonInvalid(inner.to_string()),
            Category::Data => Error::JsonInvalid(format!("{path}: {inner}")).in_field(path),
            Category::Syntax | Category::Eof | Category::Io => Error::JsonMalformed(inner.to_string()),
        }
    })?;
    deserializer.end().map_err(|error| Error::JsonMalformed(error.to_string()))?;
    Ok(value)
}

/// Parameters in the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<AppState> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Error::PathInvalid(rejection.body_text())),
        }
    }
}

/// Parameters in the query.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Error::QueryInvalid(rejection.body_text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        size: u32,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        items: Vec<Inner>,
    }

    #[test]
    fn errors_name_the_path() {
        let error = parse::<Outer>(br#"{"items": [{"size": 1}, {"size": -1}]}"#).unwrap_err();
        assert_eq!((error.code(), error.field()), ("json_invalid", Some("items[1].size")));
        let error = parse::<Outer>(br#"{"items": [{"size": 1, "sise": 2}]}"#).unwrap_err();
        assert_eq!(error.field(), Some("items[0].sise"));
        assert!(error.to_string().contains("unknown field `sise`, expected `size`"), "{error}");
        let error = parse::<Outer>(b"{}").unwrap_err();
        assert_eq!((error.status().as_u16(), error.field()), (422, None));
    }

    #[test]
    fn syntax_is_another_error() {
        for bad in ["", "{", "nope", r#"{"items": []} x"#, "\u{feff}{}"] {
            let error = parse::<Outer>(bad.as_bytes()).unwrap_err();
            assert_eq!((error.code(), error.status().as_u16()), ("json_malformed", 400), "{bad:?}");
        }
    }

    #[test]
    fn media_types() {
        let check = |text: &'static str| {
            check_media_type(&HeaderMap::from_iter([(CONTENT_TYPE, axum::http::HeaderValue::from_static(text))]))
        };
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
            assert_eq!(check(bad).unwrap_err().status().as_u16(), 415, "{bad}");
        }
        assert!(check_media_type(&HeaderMap::new()).is_err());
    }
}
