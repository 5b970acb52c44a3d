//! What can go wrong, and the one place that says which status each error has.

use std::io;
use std::net::SocketAddr;

use axum::http::header::{ALLOW, CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use registry::tokens::Scope;

use crate::auth::{RateLimit, Standing, exceeded_headers};
use crate::problem::Check;

/// How a client may prove who it is (RFC 6750).
const CHALLENGE: &str = "Bearer realm=\"weightsmith\"";

/// The result of a handler or of serving.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the API. `Display` is one sentence for the client; causes are for the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the catalogue or the artifact store.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// From reading labelled data.
    #[error(transparent)]
    Dataset(#[from] datasets::Error),
    /// From running a generator.
    #[error(transparent)]
    Inference(#[from] inference::Error),
    /// From running a text encoder.
    #[error(transparent)]
    Language(language::Error),
    /// The server has no folder of language models.
    #[error("this server has no language models: start it with --models DIR, a folder with a directory for each")]
    ModelsUnset,
    /// No such language model.
    #[error("there is no language model {0:?}: /v1/models lists those there are")]
    ModelUnknown(String),
    /// A sample that is no adapter.
    #[error("sample {index} is of {architecture}, which is no adapter: download its `file`")]
    NoAdapter {
        /// Its place in the generation.
        index: i32,
        /// Its networks.
        architecture: String,
    },
    /// From reading a bundle.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// From reading a checkpoint that came from outside.
    #[error("{0}")]
    Import(#[source] weights::Error),
    /// An error in a known part of the request.
    #[error("{source}")]
    InField {
        /// The part, such as `dataset.npz`.
        field: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// No such path.
    #[error("there is no resource at {0}: /openapi.json lists those there are")]
    UnknownRoute(String),
    /// The path has other methods.
    #[error("{method} is not possible here: use {allow}")]
    MethodNotAllowed {
        /// The method asked for.
        method: String,
        /// The methods there are.
        allow: String,
    },
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    JsonMalformed(String),
    /// The body is JSON of another form than the operation takes.
    #[error("the body does not fit this operation: {0}")]
    JsonInvalid(String),
    /// The body has another content type.
    #[error("the content type is {0}: send application/json")]
    MediaType(String),
    /// The body is over the limit.
    #[error("the body is larger than the limit of {0} bytes: send less")]
    BodyTooLarge(usize),
    /// An uploaded file is over the limit.
    #[error("the file is larger than the limit of {0} bytes: send less")]
    UploadTooLarge(u64),
    /// The body ended early.
    #[error("the body could not be read to its end: send it again")]
    BodyIncomplete,
    /// The path's parameters cannot be read.
    #[error("{0}")]
    PathInvalid(String),
    /// The query cannot be read.
    #[error("{0}")]
    QueryInvalid(String),
    /// A header cannot be read.
    #[error("the header {name} is not usable: {rule}")]
    HeaderInvalid {
        /// The header.
        name: &'static str,
        /// What would be right.
        rule: &'static str,
    },
    /// A value is outside its range.
    #[error("{0}")]
    ValueInvalid(String),
    /// Text that should be base64.
    #[error("{0} is not base64 ({1}): encode the file's bytes in standard base64 with padding")]
    Base64(&'static str, String),
    /// Evaluation was asked for with nothing to evaluate on.
    #[error(
        "nothing is left to evaluate on: the encoder takes {taken} examples a class and class {class:?} has {have}; give labelled `evaluation` data, or more examples"
    )]
    EvaluationMissing {
        /// Examples a class that the encoder takes.
        taken: usize,
        /// The class.
        class: String,
        /// Its examples.
        have: usize,
    },
    /// An alias is expected to exist and does not.
    #[error("the alias does not exist, so it cannot match If-Match: leave the header out to create it")]
    AliasAbsent,
    /// The range begins after the end of the file.
    #[error("the range begins after the end of the file: it has {size} bytes{}", last_byte(*.size))]
    RangeNotSatisfiable {
        /// Bytes there are.
        size: u64,
    },
    /// No token came with the request.
    #[error("the operation needs a token: send it as `Authorization: Bearer wsm_…`")]
    TokenMissing,
    /// The token does not allow the operation.
    #[error("the token does not have the scope `{}`: use one that has it, or ask an administrator", either(.0, "` or `"))]
    ScopeMissing(Vec<Scope>),
    /// In open mode, a request that was meant for another host.
    #[error("this server serves only this machine, and the request is for `{0}`: ask for localhost or 127.0.0.1")]
    HostNotAllowed(String),
    /// Open mode on an address that others can reach.
    #[error("open mode is only for loopback, and {0} is not: use tokens, or bind to 127.0.0.1")]
    OpenNeedsLoopback(SocketAddr),
    /// Too many requests of one client.
    #[error("more requests than {} a second ({} at once) came from this client: try again in a second", .0.per_second, .0.burst)]
    RateLimited(RateLimit),
    /// Too many requests wait.
    #[error("{0} requests are waiting already, which is the limit: try again in a second")]
    Busy(usize),
    /// A request with the same idempotency key is under way.
    #[error(
        "a request with this Idempotency-Key is under way: wait for its answer, or send the same again in a second"
    )]
    IdempotencyInFlight,
    /// An idempotency key was used for another request.
    #[error("this Idempotency-Key was used with {0}: give each request a key of its own")]
    IdempotencyKeyReused(&'static str),
    /// The request took too long.
    #[error("the request took longer than the limit of {0} seconds: ask for less at a time")]
    Timeout(u64),
    /// The body stopped coming.
    #[error("nothing of the body came for {0} seconds: send it again, without pauses")]
    BodyStalled(u64),
    /// The server is not yet able to do its work.
    #[error("the server is starting: try again in a second")]
    Starting,
    /// The server cannot do its work; the checks say why.
    #[error("the server is not ready: {}", failing(.0))]
    NotReady(Vec<Check>),
    /// A page's origin that cannot be one.
    #[error("`{0}` is not an origin: write scheme://host or scheme://host:port, or * for all")]
    Origin(String),
    /// The client went away.
    #[error("the request was cancelled")]
    Cancelled,
    /// A bug, or something that is not to be told to clients.
    #[error("internal error: {0}")]
    Internal(String),
    /// The listener failed.
    #[error("cannot serve: {0}")]
    Serve(#[source] io::Error),
}

fn either(scopes: &[Scope], between: &str) -> String {
    scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(between)
}

fn failing(checks: &[Check]) -> String {
    let failing: Vec<String> = checks
        .iter()
        .filter_map(|check| check.reason.as_ref().map(|reason| format!("{}: {reason}", check.name)))
        .collect();
    failing.join("; ")
}

fn last_byte(size: u64) -> String {
    size.checked_sub(1).map_or_else(String::new, |last| format!(", 0 to {last}"))
}

impl Error {
    /// Says which part of the request the error is about, unless it is known more exactly.
    #[must_use]
    pub fn in_field(self, field: impl Into<String>) -> Self {
        match self {
            Self::InField { .. } => self,
            other => Self::InField { field: field.into(), source: Box::new(other) },
        }
    }

    /// The part of the request that is wrong.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::InField { field, .. } => Some(field),
            Self::Inference(inference::Error::Option { option, .. }) => Some(option),
            Self::Registry(registry::Error::InvalidValue { field, .. }) => Some(field),
            Self::Registry(registry::Error::InvalidCursor) => Some("cursor"),
            _ => None,
        }
    }

    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Registry(error) => error.code(),
            Self::Dataset(error) => error.code(),
            Self::Inference(error) => error.code(),
            Self::Language(error) => error.code(),
            Self::NoAdapter { .. } => "no_adapter",
            Self::ModelsUnset => "models_unset",
            Self::ModelUnknown(_) => "not_found",
            Self::Weights(error) | Self::Import(error) => error.code(),
            Self::InField { source, .. } => source.code(),
            Self::UnknownRoute(_) => "unknown_route",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::JsonMalformed(_) => "json_malformed",
            Self::JsonInvalid(_) => "json_invalid",
            Self::MediaType(_) => "media_type_unsupported",
            Self::BodyTooLarge(_) | Self::UploadTooLarge(_) => "body_too_large",
            Self::BodyIncomplete => "body_incomplete",
            Self::PathInvalid(_) => "path_invalid",
            Self::QueryInvalid(_) => "query_invalid",
            Self::HeaderInvalid { .. } => "header_invalid",
            Self::ValueInvalid(_) => "invalid_value",
            Self::Base64(..) => "base64_invalid",
            Self::EvaluationMissing { .. } => "evaluation_missing",
            Self::AliasAbsent => "conflict",
            Self::RangeNotSatisfiable { .. } => "range_not_satisfiable",
            Self::TokenMissing => "token_missing",
            Self::ScopeMissing(_) => "scope_missing",
            Self::HostNotAllowed(_) => "host_not_allowed",
            Self::OpenNeedsLoopback(_) => "open_needs_loopback",
            Self::RateLimited(_) => "rate_limited",
            Self::Busy(_) => "busy",
            Self::IdempotencyInFlight => "idempotency_in_flight",
            Self::IdempotencyKeyReused(_) => "idempotency_key_reused",
            Self::Timeout(_) => "timeout",
            Self::BodyStalled(_) => "body_stalled",
            Self::Starting => "starting",
            Self::NotReady(_) => "not_ready",
            Self::Origin(_) => "origin_invalid",
            Self::Cancelled => "cancelled",
            Self::Internal(_) | Self::Serve(_) => "internal",
        }
    }

    /// The HTTP status of this error.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Registry(error) => registry_status(error),
            Self::Dataset(error) => dataset_status(error),
            Self::Inference(error) => inference_status(error),
            // Texts were checked: what is left is the bundle's fault.
            Self::Language(_) => StatusCode::INTERNAL_SERVER_ERROR,
            // Only bundles of this registry are read here, and those were verified when they were published.
            Self::Import(weights::Error::CheckpointTooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Import(weights::Error::Read(_) | weights::Error::Write(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Import(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Weights(_) | Self::Internal(_) | Self::Serve(_) | Self::OpenNeedsLoopback(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::InField { source, .. } => source.status(),
            Self::UnknownRoute(_) | Self::NoAdapter { .. } | Self::ModelsUnset | Self::ModelUnknown(_) => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::JsonMalformed(_)
            | Self::BodyIncomplete
            | Self::PathInvalid(_)
            | Self::QueryInvalid(_)
            | Self::HeaderInvalid { .. } => StatusCode::BAD_REQUEST,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge(_) | Self::UploadTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::JsonInvalid(_)
            | Self::ValueInvalid(_)
            | Self::Base64(..)
            | Self::EvaluationMissing { .. }
            | Self::IdempotencyKeyReused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::IdempotencyInFlight => StatusCode::CONFLICT,
            Self::AliasAbsent => StatusCode::PRECONDITION_FAILED,
            Self::RangeNotSatisfiable { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::TokenMissing => StatusCode::UNAUTHORIZED,
            Self::ScopeMissing(_) | Self::HostNotAllowed(_) => StatusCode::FORBIDDEN,
            Self::Busy(_) | Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout(_) | Self::Cancelled | Self::Starting | Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::BodyStalled(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Origin(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }

    /// The sentence for the client: that of the error, or one that tells nothing when the server is at fault.
    #[must_use]
    pub fn detail(&self) -> String {
        match self.status() {
            StatusCode::INTERNAL_SERVER_ERROR => {
                "the server could not complete the request: its log says why under the request id".to_owned()
            }
            _ => self.to_string(),
        }
    }
}

fn registry_status(error: &registry::Error) -> StatusCode {
    use registry::Error as E;
    match error {
        E::NotFound { .. } => StatusCode::NOT_FOUND,
        E::AlreadyExists { .. }
        | E::JobFinished { .. }
        | E::JobLost(_)
        | E::ClaimLost
        | E::NotDeleted { .. }
        | E::InUse { .. }
        | E::Yanked { .. } => StatusCode::CONFLICT,
        E::NotOwner { .. } | E::NameNotAllowed { .. } => StatusCode::FORBIDDEN,
        E::TokenInvalid | E::TokenExpired | E::TokenRevoked => StatusCode::UNAUTHORIZED,
        E::QuotaExceeded { .. } => StatusCode::TOO_MANY_REQUESTS,
        E::Conflict { .. } => StatusCode::PRECONDITION_FAILED,
        E::InvalidCursor | E::Input(_) => StatusCode::BAD_REQUEST,
        E::InvalidName { .. } | E::InvalidReference(_) | E::InvalidValue { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        E::InvalidRange { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
        E::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        E::DatabaseUnavailable(_) | E::Storage(_) | E::MaintenanceBusy => StatusCode::SERVICE_UNAVAILABLE,
        E::StorageFull(_) => StatusCode::INSUFFICIENT_STORAGE,
        // Also `artifact_missing`: no client names an artifact, so a row has lost its file.
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn dataset_status(error: &datasets::Error) -> StatusCode {
    use datasets::Error as E;
    match error {
        E::LimitExceeded { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        E::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        // No operation of the API reads a file of the server.
        E::Io { .. } | E::FolderInvalid { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

fn inference_status(error: &inference::Error) -> StatusCode {
    use inference::Error as E;
    match error {
        E::Dataset(error) => dataset_status(error),
        E::ModalityMismatch { .. }
        | E::ShapeMismatch { .. }
        | E::ClassesMismatch { .. }
        | E::ClassesOutside { .. }
        | E::UnknownSampler(_)
        | E::UnknownArchitecture { .. }
        | E::Extractor { .. }
        | E::NoForward { .. }
        | E::Option { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        E::Cancelled { .. } => StatusCode::SERVICE_UNAVAILABLE,
        // Data of a request is finite and of the right length before it comes to a graph: the rest is the bundle's
        // or the runtime's fault.
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The error behind a response; the envelope turns it into a problem, for it knows the request.
#[derive(Clone, Debug)]
pub(crate) struct Failure(pub(crate) std::sync::Arc<Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        headers(&self, response.headers_mut());
        response.extensions_mut().insert(Failure(std::sync::Arc::new(self)));
        response
    }
}

/// The headers that an error's answer has to have.
fn headers(error: &Error, headers: &mut HeaderMap) {
    let header = match error {
        Error::InField { source, .. } => return self::headers(source, headers),
        Error::Busy(_) | Error::IdempotencyInFlight | Error::Starting | Error::NotReady(_) => {
            Some((RETRY_AFTER, "1".to_owned()))
        }
        Error::RateLimited(rate) => {
            Standing::exhausted(*rate).write(headers);
            // At one request a second or more, the next is possible within one.
            Some((RETRY_AFTER, "1".to_owned()))
        }
        Error::Registry(registry::Error::QuotaExceeded { what, limit, left, reset_seconds }) => {
            exceeded_headers(headers, what, *limit, *left, *reset_seconds);
            Some((RETRY_AFTER, reset_seconds.to_string()))
        }
        Error::MethodNotAllowed { allow, .. } => Some((ALLOW, allow.clone())),
        Error::RangeNotSatisfiable { size } => Some((CONTENT_RANGE, format!("bytes */{size}"))),
        Error::TokenMissing => Some((WWW_AUTHENTICATE, CHALLENGE.to_owned())),
        Error::ScopeMissing(scopes) => {
            // The attribute's scopes are all needed (RFC 6750): one that suffices is named.
            let scope = either(scopes.get(..1).unwrap_or_default(), "");
            Some((WWW_AUTHENTICATE, format!("{CHALLENGE}, error=\"insufficient_scope\", scope=\"{scope}\"")))
        }
        other if other.status() == StatusCode::UNAUTHORIZED => {
            Some((WWW_AUTHENTICATE, format!("{CHALLENGE}, error=\"invalid_token\"")))
        }
        _ => None,
    };
    if let Some((name, value)) = header
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_follows_the_fault() {
        let of = |error: Error| error.status().as_u16();
        assert_eq!(of(registry::Error::InvalidCursor.into()), 400);
        assert_eq!(of(registry::Error::ArtifactMissing { digest: String::new() }.into()), 500);
        assert_eq!(of(datasets::Error::ZipInvalid(String::new()).into()), 422);
        assert_eq!(of(datasets::Error::LimitExceeded { what: String::new(), found: 2, limit: 1 }.into()), 413);
        assert_eq!(of(inference::Error::from(datasets::Error::TooFewClasses(1)).into()), 422);
        assert_eq!(of(inference::Error::Bundle(String::new()).into()), 500);
    }

    #[test]
    fn internals_are_not_told() {
        let error = Error::Internal("secret".into());
        assert!(!error.detail().contains("secret"));
        let error = Error::from(inference::Error::Graph { graph: "g".into(), reason: "secret".into() });
        assert!(!error.detail().contains("secret") && error.code() == "graph_failed");
    }

    #[test]
    fn the_innermost_field_stays() {
        let error = Error::Base64("npz", "x".into()).in_field("dataset.npz").in_field("dataset");
        assert_eq!(error.field(), Some("dataset.npz"));
        assert_eq!(error.code(), "base64_invalid");
    }
}
