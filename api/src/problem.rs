//! `application/problem+json` (RFC 9457): what every error looks like on the wire.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

/// Media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// Identifies the kind of problem: `urn:problem-type:weightsmith:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:problem-type:weightsmith:not_found")]
    pub kind: String,
    /// The kind of problem in words.
    #[schema(example = "Not found")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// One sentence that says what was wrong and what would be right.
    #[schema(example = "there is no generator `digit`: list them to see which there are")]
    pub detail: String,
    /// Stable name of the kind of problem, for programs.
    #[schema(example = "not_found")]
    pub code: String,
    /// Path of the request.
    #[schema(example = "/v1/generators/digit")]
    pub instance: String,
    /// Id of the request, as in the header `x-request-id` and in the server's log.
    #[schema(example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")]
    pub request_id: String,
    /// The part of the request that is wrong, such as `dataset.images[0].data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "generator")]
    pub field: Option<String>,
    /// What was looked at, when the server is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<Check>>,
}

/// One thing that a server needs to do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Check {
    /// What: `migrations`, `database`, `artifacts` or `session`.
    #[schema(example = "database")]
    pub name: &'static str,
    /// Whether it works.
    pub ok: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "the database cannot be reached: check that the server runs and that DATABASE_URL is right")]
    pub reason: Option<String>,
}

impl Problem {
    /// A problem of a kind, for one request.
    #[must_use]
    pub fn new(status: StatusCode, code: &str, detail: String, instance: &str, request_id: &str) -> Self {
        Self {
            kind: format!("urn:problem-type:weightsmith:{code}"),
            title: title(code),
            status: status.as_u16(),
            detail,
            code: code.to_owned(),
            instance: instance.to_owned(),
            request_id: request_id.to_owned(),
            field: None,
            checks: None,
        }
    }
}

/// `modality_mismatch` → `Modality mismatch`.
fn title(code: &str) -> String {
    let words = code.replace('_', " ").replace("json", "JSON").replace("base64", "Base64");
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// One kind of answer: status, description, and an example's code and detail.
type Kind = (u16, &'static str, &'static str, &'static str);

const MALFORMED: Kind = (
    400,
    "The request cannot be read: malformed JSON, path, query or header.",
    "invalid_cursor",
    "the cursor is not one this list gave out: pass next_cursor of the page before, or none to begin",
);
const UNAUTHENTICATED: Kind = (
    401,
    "No token came with the request, or one that is not valid (any more).",
    "token_missing",
    "the operation needs a token: send it as `Authorization: Bearer wsm_…`",
);
const FORBIDDEN: Kind = (
    403,
    "The token does not allow this.",
    "scope_missing",
    "the token does not have the scope `train`: use one that has it, or ask an administrator",
);
const LIMITED: Kind = (
    429,
    "Too many requests, or the day's quota is used up; `Retry-After` says when to come back.",
    "rate_limited",
    "more requests than 50 a second (100 at once) came from this client: try again in a second",
);
const NOT_FOUND: Kind = (
    404,
    "Nothing has this name or id.",
    "not_found",
    "there is no generator `digit`: list them to see which there are",
);
const ENDED: Kind = (
    409,
    "The job has ended already.",
    "job_finished",
    "the job `0199a1f6-3c5e-7d0a-9a53-00000000000a` has ended (succeeded): there is nothing left to cancel",
);
const CONFLICT: Kind = (
    409,
    "The resource is in a state in which that is not possible.",
    "in_use",
    "the zoo `digits` is in use by a generator version: purge that first",
);
const IN_FLIGHT: Kind = (
    409,
    "A request with the same `Idempotency-Key` is under way; `Retry-After` says when to send it again.",
    "idempotency_in_flight",
    "a request with this Idempotency-Key is under way: wait for its answer, or send the same again in a second",
);
const STALLED: Kind = (
    408,
    "The body stopped coming.",
    "body_stalled",
    "nothing of the body came for 30 seconds: send it again, without pauses",
);
const PRECONDITION: Kind = (
    412,
    "The resource is not in the state that the request expects.",
    "conflict",
    "the alias `champion` of `digits` is at version 2, not at version 1: read it again and decide anew",
);
const TOO_LARGE: Kind = (
    413,
    "The body, or what it unpacks to, is over a limit.",
    "body_too_large",
    "the body is larger than the limit of 33554432 bytes: send less",
);
const MEDIA: Kind =
    (415, "The body is not JSON.", "media_type_unsupported", "the content type is text/plain: send application/json");
const RANGE: Kind = (
    416,
    "The range begins after the file's end.",
    "range_not_satisfiable",
    "the range begins after the end of the file: it has 9208 bytes, 0 to 9207",
);
const INVALID: Kind = (
    422,
    "The request can be read and asks for something impossible.",
    "option_invalid",
    "count is 10000; it must be a whole number from 1 to 256",
);
const BUSY: Kind = (
    429,
    "The queue is full; `Retry-After` says when to come back.",
    "busy",
    "64 requests are waiting already, which is the limit: try again in a second",
);
const INTERNAL: Kind = (
    500,
    "The server is at fault.",
    "internal",
    "the server could not complete the request: its log says why under the request id",
);
const UNAVAILABLE: Kind = (
    503,
    "The database or the artifact store cannot be reached, or the request took too long.",
    "database_unavailable",
    "the database cannot be reached: check that the server runs and that DATABASE_URL is right",
);
const FULL: Kind = (
    507,
    "The disk of the artifact store is full.",
    "storage_full",
    "the artifact store is full: free space on its disk (`weightsmith gc` removes what nothing refers to)",
);

fn describe(kinds: &[Kind]) -> BTreeMap<String, RefOr<Response>> {
    kinds.iter().map(|kind| (kind.0.to_string(), RefOr::T(response(kind)))).collect()
}

/// Adds what every POST may answer, unless the operation says so itself.
pub(crate) fn describe_post(responses: &mut BTreeMap<String, RefOr<Response>>) {
    for (status, response) in describe(&[STALLED, MALFORMED, IN_FLIGHT, INVALID]) {
        responses.entry(status).or_insert(response);
    }
}

fn response((status, description, code, detail): &Kind) -> Response {
    let status = StatusCode::from_u16(*status).unwrap_or_default();
    let example = Problem::new(status, code, (*detail).to_owned(), "/v1/…", "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e");
    let content = ContentBuilder::new()
        .schema(Some(RefOr::<utoipa::openapi::Schema>::Ref(Ref::from_schema_name("Problem"))))
        .example(Some(json!(example)))
        .build();
    ResponseBuilder::new().description(*description).content(MEDIA_TYPE, content).build()
}

/// Problems of every operation that needs a token.
pub(crate) fn access() -> BTreeMap<String, RefOr<Response>> {
    describe(&[UNAUTHENTICATED, FORBIDDEN, LIMITED])
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = [$($kind:ident),*];)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                describe(&[$($kind),*])
            }
        }
    )*};
}

problems! {
    /// Problems of reading a list.
    ListProblems = [MALFORMED, INVALID, INTERNAL, UNAVAILABLE];
    /// Problems of reading a list that belongs to something.
    SubListProblems = [MALFORMED, NOT_FOUND, INVALID, INTERNAL, UNAVAILABLE];
    /// Problems of reading one thing.
    GetProblems = [MALFORMED, NOT_FOUND, INTERNAL, UNAVAILABLE];
    /// Problems of downloading a file.
    FileProblems = [MALFORMED, NOT_FOUND, RANGE, INTERNAL, UNAVAILABLE];
    /// Problems of sending data.
    CreateProblems = [MALFORMED, NOT_FOUND, TOO_LARGE, MEDIA, INVALID, BUSY, INTERNAL, UNAVAILABLE, FULL];
    /// Problems of looking into something, which is work.
    ViewProblems = [MALFORMED, NOT_FOUND, INVALID, BUSY, INTERNAL, UNAVAILABLE];
    /// Problems of cancelling a job.
    CancelProblems = [MALFORMED, NOT_FOUND, ENDED, INTERNAL, UNAVAILABLE];
    /// Problems of making a token.
    TokenProblems = [MALFORMED, TOO_LARGE, MEDIA, INVALID, INTERNAL, UNAVAILABLE];
    /// Problems of moving an alias.
    AliasProblems = [MALFORMED, NOT_FOUND, PRECONDITION, TOO_LARGE, MEDIA, INVALID, INTERNAL, UNAVAILABLE];
    /// Problems of changing, deleting, restoring and purging.
    ChangeProblems = [MALFORMED, NOT_FOUND, CONFLICT, TOO_LARGE, MEDIA, INVALID, INTERNAL, UNAVAILABLE];
    /// Problems of asking for readiness.
    ReadyProblems = [UNAVAILABLE];
    /// Problems that any request may meet.
    AnyProblems = [INTERNAL];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_words() {
        assert_eq!(title("modality_mismatch"), "Modality mismatch");
        assert_eq!(title("json_invalid"), "JSON invalid");
        assert_eq!(title(""), "");
    }

    #[test]
    fn absent_fields_are_left_out() {
        let problem = Problem::new(StatusCode::NOT_FOUND, "not_found", "d".into(), "/x", "id");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:problem-type:weightsmith:not_found");
        assert!(json.get("field").is_none());
    }
}
