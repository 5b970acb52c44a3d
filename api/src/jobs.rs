//! Jobs: long work that is watched, cancelled and resumed.

mod options;
mod sse;

use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use registry::jobs::{self as rows, Attempt, JobFilter, JobKind, JobState, NewJob};
use registry::{Caller, ListRequest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(crate) use options::JobOptions;

use crate::answer::Answer;
use crate::auth::quota::{self, Reserved};
use crate::error::{Error, Result};
use crate::extract::{Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::page::Listing;
use crate::problem::{CancelProblems, GetProblems, ListProblems};
use crate::state::AppState;

/// When to ask again for a job that has not ended, in seconds.
const ASK_AGAIN: &str = "2";

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get)).routes(routes!(cancel)).routes(routes!(events))
}

/// Long work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Job {
    /// Its id.
    id: Uuid,
    /// What it does: `zoo_build`, `train`, `import`, `evaluate`, `generate` or `search`.
    #[schema(example = "train", pattern = "^(zoo_build|train|import|evaluate|generate|search)$")]
    kind: &'static str,
    /// The queue it waits in.
    #[schema(example = "train")]
    queue: String,
    /// Where it stands.
    #[schema(example = "running", pattern = "^(queued|running|succeeded|failed|cancelled)$")]
    state: &'static str,
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    /// Attempts begun; one that a worker's shutdown interrupted does not count.
    #[schema(example = 1)]
    attempts: i32,
    /// Attempts before it fails.
    #[schema(example = 5)]
    max_attempts: i32,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobError>,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<JobResult>,
    /// Whose it is.
    #[schema(example = "ann")]
    owner: String,
    /// The worker that is at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "node-7:4242")]
    worker: Option<String>,
    /// When that worker was last heard of.
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_at: Option<DateTime<Utc>>,
    /// When someone asked to cancel it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested_at: Option<DateTime<Utc>>,
    /// When it fails unless it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<DateTime<Utc>>,
    /// What is told when it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "https://example.org/hook")]
    webhook_url: Option<String>,
    /// Where its events are.
    #[schema(example = "/v1/jobs/0199a1f6-3c5e-7d0a-9a53-00000000000a/events")]
    events_url: String,
    /// When it was asked for.
    created_at: DateTime<Utc>,
    /// When its first attempt began.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<DateTime<Utc>>,
}

/// How far a job is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Progress {
    /// What is being done.
    #[schema(example = "denoiser")]
    stage: String,
    /// Steps of the stage that are done.
    #[schema(example = 1200)]
    step: u64,
    /// Steps of the stage.
    #[schema(example = 2000)]
    steps: u64,
    /// Training loss of the last step, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 0.12)]
    loss: Option<f64>,
    /// Steps a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 41.5)]
    rate: Option<f64>,
    /// Seconds until the stage ends, at this rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 19.3)]
    seconds_left: Option<f64>,
}

impl From<rows::Progress> for Progress {
    fn from(row: rows::Progress) -> Self {
        let rows::Progress { stage, step, steps, loss, rate, seconds_left } = row;
        Self { stage, step, steps, loss, rate, seconds_left }
    }
}

/// Why an attempt failed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct JobError {
    /// Stable name of the kind of error.
    #[schema(example = "config_invalid")]
    code: String,
    /// What was wrong, and what would be right.
    detail: String,
}

/// What came of a job.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct JobResult {
    /// Kind of the resource: `zoo`, `generator_version`, `generation`, `evaluation`, `import`, `model`.
    #[schema(example = "generator_version")]
    kind: String,
    /// Where it is.
    #[schema(example = "/v1/generators/digits/versions/3")]
    url: String,
    /// More about it.
    #[serde(default)]
    #[schema(value_type = Object)]
    detail: Value,
}

impl From<rows::Job> for Job {
    fn from(row: rows::Job) -> Self {
        Self {
            events_url: format!("{}/events", location(&row)),
            id: row.id.as_uuid(),
            kind: row.kind.name(),
            queue: row.queue,
            state: row.state.name(),
            progress: row.progress.map(Progress::from),
            attempts: row.attempts,
            max_attempts: row.max_attempts,
            error: row.error.and_then(|error| serde_json::from_value(error).ok()),
            result: row.result.and_then(|result| serde_json::from_value(result).ok()),
            owner: row.owner,
            worker: row.worker,
            heartbeat_at: row.heartbeat_at,
            cancel_requested_at: row.cancel_requested_at,
            deadline: row.deadline,
            webhook_url: row.webhook_url,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        }
    }
}

/// A job with what was asked for.
#[derive(Serialize, ToSchema)]
pub(crate) struct JobDetail {
    #[serde(flatten)]
    job: Job,
    /// What was asked for, as it was sent.
    #[schema(value_type = Object)]
    request: Value,
    /// The tries of telling its webhook.
    deliveries: Vec<Delivery>,
}

/// A try of telling a webhook.
#[derive(Serialize, ToSchema)]
pub(crate) struct Delivery {
    /// Its number, from 1.
    #[schema(example = 1)]
    attempt: i32,
    /// When it ended.
    at: DateTime<Utc>,
    /// The HTTP status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 204)]
    status: Option<i32>,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<rows::Delivery> for Delivery {
    fn from(row: rows::Delivery) -> Self {
        Self { attempt: row.attempt, at: row.at, status: row.status, error: row.error }
    }
}

/// Where a job is.
fn location(job: &rows::Job) -> String {
    format!("/v1/jobs/{}", job.id)
}

/// The body that a webhook is told: the event's type and the job.
pub fn webhook_body(job: rows::Job) -> Value {
    serde_json::json!({ "type": format!("job.{}", job.state.name()), "job": Job::from(job) })
}

/// Enqueues a job for the caller and answers 202 with its address. Its `samples` count for the day of now; what it
/// computes counts when it is done.
#[allow(clippy::too_many_arguments)] // what is asked, by whom, and how it is answered
pub(crate) async fn accept(
    state: &AppState,
    caller: &Caller,
    key: &IdempotencyKey,
    kind: JobKind,
    request: Value,
    options: JobOptions,
    headers: &[(HeaderName, &str)],
    samples: usize,
) -> Result<Response> {
    let new = NewJob { kind, request, options: options.into(), files: Vec::new() };
    accept_new(state, caller, key, &new, headers, samples).await
}

/// As [`accept`], with the files that the job needs.
pub(crate) async fn accept_new(
    state: &AppState,
    caller: &Caller,
    key: &IdempotencyKey,
    new: &NewJob,
    headers: &[(HeaderName, &str)],
    samples: usize,
) -> Result<Response> {
    let reserved = Reserved::of(state.registry(), caller, samples).await?;
    let mut write = state.registry().write(caller).await?;
    let job = rows::enqueue(&mut write, new).await?;
    let location = location(&job);
    let mut answer = Answer::accepted(&location, &Job::from(job))?.header(RETRY_AFTER, ASK_AGAIN)?;
    for (name, value) in headers {
        answer = answer.header(name.clone(), value)?;
    }
    let mut response = answer.commit(write, key).await?;
    reserved.made().await;
    quota::tell(state.registry(), caller, response.headers_mut()).await;
    Ok(response)
}

/// What a job is asked for, in the form of its kind.
pub(crate) fn request<T: DeserializeOwned>(job: &rows::Job) -> Result<T> {
    serde_json::from_value(job.request.clone()).map_err(|error| Error::JsonInvalid(error.to_string()))
}

/// Makes the generation of a job and ends the job with it, in one transaction.
///
/// # Errors
/// Those of the generation; `cancelled` when the attempt is told to stop, `job_lost` when it has the job no more.
pub async fn generate(state: &AppState, attempt: Attempt) -> Result<()> {
    crate::generations::run(state, attempt).await
}

/// Makes the evaluation of a job and ends the job with it, in one transaction.
///
/// # Errors
/// As [`generate`].
pub async fn evaluate(state: &AppState, attempt: Attempt) -> Result<()> {
    crate::generations::evaluate(state, attempt).await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Most items of the page, 1 to 200.
    #[param(example = 50, minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, with the same order.
    cursor: Option<String>,
    /// `created_at`, with `-` before it for the newest first (the default).
    #[param(example = "-created_at")]
    order: Option<String>,
    /// Only those of this owner.
    owner: Option<String>,
    /// Only those in this state.
    #[param(example = "running", inline)]
    state: Option<InState>,
    /// Only those of this kind.
    #[param(example = "train", inline)]
    kind: Option<OfKind>,
    /// Only those in this queue.
    #[param(example = "train")]
    queue: Option<String>,
}

/// Where a job stands.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = JobState)]
enum InState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

/// What a job does.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = JobKind)]
enum OfKind {
    ZooBuild,
    Train,
    Import,
    Evaluate,
    Generate,
    Search,
}

impl From<InState> for JobState {
    fn from(state: InState) -> Self {
        match state {
            InState::Queued => Self::Queued,
            InState::Running => Self::Running,
            InState::Succeeded => Self::Succeeded,
            InState::Failed => Self::Failed,
            InState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<OfKind> for JobKind {
    fn from(kind: OfKind) -> Self {
        match kind {
            OfKind::ZooBuild => Self::ZooBuild,
            OfKind::Train => Self::Train,
            OfKind::Import => Self::Import,
            OfKind::Evaluate => Self::Evaluate,
            OfKind::Generate => Self::Generate,
            OfKind::Search => Self::Search,
        }
    }
}

/// List jobs
///
/// Newest first: the caller's own, for administrators all.
#[utoipa::path(
    get, path = "/v1/jobs", operation_id = "listJobs", tag = "jobs", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of jobs.", body = Listing<Job>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-00000000000a", "kind": "train", "queue": "train", "state": "running",
            "progress": {"stage": "denoiser", "step": 1200, "steps": 2000, "loss": 0.12, "rate": 41.5,
                "seconds_left": 19.3},
            "attempts": 1, "max_attempts": 5, "owner": "ann", "worker": "node-7:4242",
            "heartbeat_at": "2026-01-01T00:00:30Z",
            "events_url": "/v1/jobs/0199a1f6-3c5e-7d0a-9a53-00000000000a/events",
            "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:01Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Listing<Job>>> {
    let filter = JobFilter { state: query.state.map(Into::into), kind: query.kind.map(Into::into), queue: query.queue };
    let request = ListRequest {
        limit: query.limit.unwrap_or(50),
        cursor: query.cursor,
        order: query.order,
        owner: query.owner,
        ..ListRequest::default()
    };
    let page = rows::list(state.registry(), &caller, &filter, &request).await?;
    Ok(Listing::of(page, Job::from))
}

/// Get a job
///
/// `Retry-After` says when to ask again while it has not ended; its events say more, and sooner.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", operation_id = "getJob", tag = "jobs",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-00000000000a")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The job.", body = JobDetail,
               headers(("Retry-After" = i64, description = "Seconds after which to ask again, until it has ended."))),
              GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Response> {
    let row = rows::get(state.registry(), &caller, id.into()).await?;
    let deliveries = match row.webhook_url {
        Some(_) => rows::deliveries(state.registry(), row.id).await?,
        None => Vec::new(),
    };
    let (ended, request) = (row.state.is_final(), row.request.clone());
    let deliveries = deliveries.into_iter().map(Delivery::from).collect();
    let mut response = axum::Json(JobDetail { job: row.into(), request, deliveries }).into_response();
    if !ended {
        response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static(ASK_AGAIN));
    }
    Ok(response)
}

/// Cancel a job
///
/// One that waits is cancelled at once; one that runs stops within about two seconds, at its next step. What it has
/// made until then is not kept, but checkpoints that an import has added. Only its owner and administrators cancel a job.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", operation_id = "cancelJob", tag = "jobs",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-00000000000a")),
    security(("token" = ["generate"]), ("token" = ["train"])),
    responses((status = 202, description = "It is cancelled, or will be.", body = Job,
               headers(("Location" = String, description = "The job's address."))), CancelProblems)
)]
async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Path(id): Path<Uuid>,
) -> Result<Response> {
    let mut write = state.registry().write(&caller).await?;
    let job = rows::cancel(&mut write, id.into()).await?;
    let location = location(&job);
    Answer::accepted(&location, &Job::from(job))?.commit(write, &key).await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Number of the last event seen, for clients that cannot send the header; the header goes before it.
    #[param(minimum = 0, example = 0)]
    last_event_id: Option<u64>,
}

/// One server-sent event of a job, as its lines are read.
#[derive(ToSchema)]
#[allow(dead_code)] // the stream writes the lines themselves
struct StreamedEvent {
    /// The event's number, from 1 without gaps.
    id: String,
    /// `state`, `progress` or `cancel_requested`.
    event: String,
    /// A JSON object.
    data: String,
}

/// Watch a job
///
/// Its events as they happen, as server-sent events: `id` is the event's number (from 1, without gaps), `event` its
/// type (`state`, `progress`, `cancel_requested`), `data` a JSON object. Whoever was cut off goes on with
/// `Last-Event-ID`: nothing is missed, nothing comes twice. The stream ends after the event of the final state; whoever has
/// seen that gets 204.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", operation_id = "watchJob", tag = "jobs",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-00000000000a"),
           ("Last-Event-ID" = Option<u64>, Header, description = "Number of the last event seen.", example = 0),
           EventsQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "The events after the last one seen.", body = StreamedEvent,
               content_type = "text/event-stream",
               example = json!({"id": "1", "event": "state",
                                "data": "{\"state\":\"queued\",\"at\":\"2026-01-01T00:00:00Z\"}"})),
              (status = 204, description = "The job has ended, and its last event was seen."),
              GetProblems)
)]
async fn events(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let after = sse::last_seen(&headers, query.last_event_id)?;
    let job = rows::get(state.registry(), &caller, id.into()).await?;
    if job.state.is_final() && after >= job.last_event {
        // What tells an EventSource that there is no use in coming back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    // A number that no event has yet is not waited for.
    Ok(sse::stream(&state, job.id, after.min(job.last_event)).into_response())
}
