//! How a change is answered: the answer is committed with the change, so that a repeated request gets it again.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use registry::{Write, idempotency};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::idempotency::IdempotencyKey;

/// The answer to a request that changes something; [`Answer::commit`] is how such a handler ends.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// A JSON body under a status.
    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::Internal(format!("an answer cannot be written as JSON: {error}")))?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Ok(Self { status, headers, body: body.into() })
    }

    /// 201 with the address of what was made.
    pub(crate) fn created(location: &str, body: &impl Serialize) -> Result<Self> {
        Self::json(StatusCode::CREATED, body)?.header(LOCATION, location)
    }

    /// 202 with the address where the work can be watched.
    #[allow(dead_code)]
    pub(crate) fn accepted(location: &str, body: &impl Serialize) -> Result<Self> {
        Self::json(StatusCode::ACCEPTED, body)?.header(LOCATION, location)
    }

    /// 200.
    pub(crate) fn ok(body: &impl Serialize) -> Result<Self> {
        Self::json(StatusCode::OK, body)
    }

    /// 204.
    #[allow(dead_code)]
    pub(crate) fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// With one more header.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Result<Self> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::Internal(format!("{value:?} cannot be a value of the header {name}")))?;
        self.headers.append(name, value);
        Ok(self)
    }

    /// An answer that is there already, for requests that changed nothing.
    pub(crate) fn of(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        Self { status, headers, body }
    }

    /// Commits the changes, and with them this answer when the request has an `Idempotency-Key`.
    ///
    /// # Errors
    /// Those of the commit; nothing is written then.
    pub(crate) async fn commit(self, write: Write, key: &IdempotencyKey) -> Result<Response> {
        match key.held() {
            None => write.commit().await?,
            Some(held) => {
                let headers = self.headers.iter().filter_map(|(name, value)| {
                    value.to_str().ok().map(|value| (name.as_str().to_owned(), value.to_owned()))
                });
                let answer = idempotency::Answer {
                    body_sha256: held.body_digest().await?,
                    status: self.status.as_u16(),
                    headers: headers.collect(),
                    body: self.body.to_vec(),
                };
                write.commit_answer(held.claim(), answer).await?;
                held.answered();
            }
        }
        Ok(self.into_response())
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
