//! Jobs: long work that is watched, cancelled and resumed.
//!
//! A job is a row that anyone may ask about ([`get`], [`list()`], [`events`]); [`dispatch`] brings it to a worker through
//! graphile_worker, and [`work`] is what a worker does to it. Delivery is at least once, effects are exactly once: an
//! attempt holds a claim, every change of an attempt requires it, and the result is committed with the state.

mod dispatch;
mod events;
mod snapshots;
mod stats;
mod sweep;
mod webhooks;
pub mod work;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

pub use dispatch::{Attempt, DispatchOptions, Ended, Handler, run};
pub use events::{Event, Watch, events};
pub use snapshots::{keep_snapshot, load_snapshot, remove_snapshot, save_snapshot, snapshot_digest};
pub use stats::{JobCount, unfinished};
pub use webhooks::{Delivery, Due, MAX_DELIVERIES, deliveries, sign};

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{Access, Caller, Change, Error, JobId, ListRequest, Page, Registry, Result, Write, names};

/// Schema of the dispatcher's tables.
pub(crate) const SCHEMA: &str = "graphile_worker";
/// The dispatcher's task that runs a job.
pub(crate) const RUN: &str = "weightsmith.job";
/// The dispatcher's task that tells a webhook.
pub(crate) const DELIVER: &str = "weightsmith.webhook";
/// Attempts of a job, unless it says otherwise.
pub const DEFAULT_ATTEMPTS: i32 = 5;
/// The dispatcher's own attempts: it only has to bring a job to a worker, the job counts for itself.
const DISPATCH_ATTEMPTS: i32 = 1000;
/// Longest URL and secret of a webhook, in bytes.
const MAX_WEBHOOK: usize = 2048;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum JobKind {
    /// Trains the models of a zoo and registers them.
    ZooBuild,
    /// Trains a generator on a zoo and publishes it.
    Train,
    /// Imports checkpoints from outside.
    Import,
    /// Measures the samples of a generation on labelled data.
    Evaluate,
    /// Generates weights.
    Generate,
    /// Searches a language model for better layers.
    Search,
}

impl JobKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::ZooBuild, Self::Train, Self::Import, Self::Evaluate, Self::Generate, Self::Search];

    /// The queue that a job of this kind waits in, unless it names another.
    #[must_use]
    pub fn queue(self) -> &'static str {
        match self {
            Self::ZooBuild | Self::Train | Self::Search => "train",
            Self::Import => "import",
            Self::Evaluate | Self::Generate => "generate",
        }
    }

    /// The name of the kind.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ZooBuild => "zoo_build",
            Self::Train => "train",
            Self::Import => "import",
            Self::Evaluate => "evaluate",
            Self::Generate => "generate",
            Self::Search => "search",
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a worker.
    Queued,
    /// A worker is at it.
    Running,
    /// It has ended with a result.
    Succeeded,
    /// It has ended with an error.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl JobState {
    /// Whether the job has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The name of the state.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What is being done.
    pub stage: String,
    /// Steps of the stage that are done.
    pub step: u64,
    /// Steps of the stage.
    pub steps: u64,
    /// Training loss of the last step, where there is one.
    pub loss: Option<f64>,
    /// Steps a second.
    pub rate: Option<f64>,
    /// Seconds until the stage ends, at this rate.
    pub seconds_left: Option<f64>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The queue it waits in.
    pub queue: String,
    /// Where it stands.
    pub state: JobState,
    /// What was asked for.
    pub request: Value,
    /// Whose it is.
    pub owner: String,
    /// `public` or `private`.
    pub visibility: String,
    /// How far it is.
    #[sqlx(json(nullable))]
    pub progress: Option<Progress>,
    /// Attempts begun; one that a shutdown interrupted does not count.
    pub attempts: i32,
    /// Attempts before it fails.
    pub max_attempts: i32,
    /// Why the last attempt failed: `code` and `detail`.
    pub error: Option<Value>,
    /// What came of it: `kind`, `id` or `name`, and `url`.
    pub result: Option<Value>,
    /// The worker that is at it.
    pub worker: Option<String>,
    /// When that worker was last heard of.
    pub heartbeat_at: Option<DateTime<Utc>>,
    /// When someone asked to cancel it.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// When it fails unless it has ended.
    pub deadline: Option<DateTime<Utc>>,
    /// What is told when it ends.
    pub webhook_url: Option<String>,
    /// Number of its last event.
    pub last_event: i64,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When its first attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// A job to enqueue.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// What it does.
    pub kind: JobKind,
    /// What is asked for, in the kind's form.
    pub request: Value,
    /// How it is to be done.
    pub options: JobOptions,
    /// Artifacts that it needs, by name and digest: found as snapshots, and kept until it has ended.
    pub files: Vec<(&'static str, String)>,
}

/// How a job is to be done.
#[derive(Clone, Debug, Default)]
pub struct JobOptions {
    /// The queue, a name; the kind's own by default.
    pub queue: Option<String>,
    /// Attempts before it fails, 1 to 100; [`DEFAULT_ATTEMPTS`] by default.
    pub max_attempts: Option<i32>,
    /// When it fails unless it has ended.
    pub deadline: Option<DateTime<Utc>>,
    /// What is told when it ends.
    pub webhook: Option<Webhook>,
}

/// What is told when a job ends.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// An http or https URL.
    pub url: String,
    /// The key that deliveries are signed with, 8 characters or more; never shown again.
    pub secret: String,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those of this kind.
    pub kind: Option<JobKind>,
    /// Only those in this queue.
    pub queue: Option<String>,
}

const COLUMNS: &str = "j.id, j.kind, j.queue, j.state, j.request, j.owner, j.visibility, j.progress, j.attempts,
    j.max_attempts, j.error, j.result, j.worker, j.heartbeat_at, j.cancel_requested_at, j.deadline, j.webhook_url,
    j.last_event, j.created_at, j.started_at, j.finished_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM jobs j",
    late: "",
    alias: "j",
    sight: Sight::Unnamed("j"),
    deletable: false,
    described: false,
    orders: &[Order { field: "created_at", column: "j.created_at", kind: Kind::Time }],
    default_order: "-created_at",
};

/// Puts a job into its queue; it is there, and dispatched, once the write is committed.
///
/// # Errors
/// `invalid_value`, `invalid_name` (the queue), `artifact_missing`.
pub async fn enqueue(write: &mut Write, new: &NewJob) -> Result<Job> {
    let JobOptions { queue, max_attempts, deadline, webhook } = &new.options;
    let queue = queue.as_deref().unwrap_or(new.kind.queue());
    names::check(queue)?;
    webhook.iter().try_for_each(check_webhook)?;
    let (id, caller) = (JobId::generate(), write.caller().clone());
    sqlx::query(
        "INSERT INTO jobs (id, kind, queue, request, caller, owner, max_attempts, deadline, webhook_url, webhook_secret)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(id)
    .bind(new.kind)
    .bind(queue)
    .bind(&new.request)
    .bind(caller_json(&caller))
    .bind(&caller.name)
    .bind(max_attempts.unwrap_or(DEFAULT_ATTEMPTS))
    .bind(deadline)
    .bind(webhook.as_ref().map(|webhook| &webhook.url))
    .bind(webhook.as_ref().map(|webhook| &webhook.secret))
    .execute(write.connection())
    .await?;
    for (name, digest) in &new.files {
        snapshots::refer(write.connection(), id, name, digest).await?;
    }
    events::append(write.connection(), id, "state", json!({ "state": "queued" })).await?;
    schedule(write.connection(), id, queue, 0.0).await?;
    let after = json!({ "kind": new.kind, "queue": queue });
    let id_text = id.to_string();
    write
        .audit(Change { action: "job.create", resource: "job", id: id_text, before: None, after: Some(after) })
        .await?;
    fetch(write.connection(), id).await?.ok_or_else(|| Error::not_found("job", id))
}

fn check_webhook(webhook: &Webhook) -> Result<()> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| webhook.url.strip_prefix(scheme));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    let plain = webhook.url.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if host.is_empty() || host.contains('@') || !plain || webhook.url.len() > MAX_WEBHOOK {
        let rule = format!("give an http:// or https:// URL without user name, of at most {MAX_WEBHOOK} bytes");
        return Err(Error::invalid("webhook.url", rule));
    }
    if !(8..=MAX_WEBHOOK).contains(&webhook.secret.len()) || webhook.secret.contains('\0') {
        return Err(Error::invalid("webhook.secret", format!("give 8 to {MAX_WEBHOOK} bytes of text")));
    }
    Ok(())
}

fn caller_json(caller: &Caller) -> Value {
    json!({
        "name": caller.name, "administrator": caller.administrator, "patterns": caller.patterns,
        "token": caller.token, "request_id": caller.request_id,
        "address": caller.address.map(|address| address.to_string()),
    })
}

/// Who asked for a job, as [`caller_json`] wrote it.
fn caller_of(json: &Value) -> Caller {
    let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
    Caller {
        name: text("name").unwrap_or_default(),
        token: text("token").and_then(|id| id.parse().ok()),
        administrator: json.get("administrator").and_then(Value::as_bool).unwrap_or(false),
        patterns: json.get("patterns").and_then(|p| serde_json::from_value(p.clone()).ok()).unwrap_or_default(),
        request_id: text("request_id"),
        address: text("address").and_then(|address| address.parse().ok()),
    }
}

/// Hands a job to the dispatcher, to be run in `delay` seconds. It takes the place of what is there for the job.
pub(crate) async fn schedule(connection: &mut PgConnection, id: JobId, queue: &str, delay: f64) -> Result<()> {
    sqlx::query(
        "SELECT 1 FROM graphile_worker.add_job($1, json_build_object('job', $2::text), NULL,
            now() + $3 * interval '1 second', $4, $2::text, NULL, ARRAY[$5])",
    )
    .bind(RUN)
    .bind(id.to_string())
    .bind(delay)
    .bind(DISPATCH_ATTEMPTS)
    .bind(queue)
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn fetch(connection: &mut PgConnection, id: JobId) -> Result<Option<Job>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs j WHERE j.id = $1");
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(connection).await?)
}

/// The job of an id.
///
/// # Errors
/// `not_found`, also where the caller may not see it.
pub async fn get(registry: &Registry, caller: &Caller, id: JobId) -> Result<Job> {
    let mut connection = registry.pool().acquire().await?;
    let job = fetch(&mut connection, id).await?.ok_or_else(|| Error::not_found("job", id))?;
    let access = Access { name: None, owner: &job.owner, visibility: &job.visibility };
    caller.require_sight("job", &id.to_string(), access)?;
    Ok(job)
}

/// Whether a search that has not ended is to write the model `out`.
///
/// # Errors
/// Those of the database.
pub async fn writes_model(registry: &Registry, out: &str) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM jobs WHERE kind = 'search' AND state IN ('queued', 'running') AND request->>'out' = $1)";
    Ok(sqlx::query_scalar(sql).bind(out).fetch_one(registry.pool()).await?)
}

/// Jobs, newest first.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &JobFilter,
    request: &ListRequest,
) -> Result<Page<Job>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    if let Some(state) = filter.state {
        query.sql.push(" AND j.state = ").push_bind(state);
    }
    if let Some(kind) = filter.kind {
        query.sql.push(" AND j.kind = ").push_bind(kind);
    }
    if let Some(queue) = &filter.queue {
        query.sql.push(" AND j.queue = ").push_bind(queue.clone());
    }
    query.page(registry).await
}

/// Asks to cancel a job: one that waits is cancelled at once, one that runs within a second or two.
///
/// # Errors
/// `not_found`, `not_owner`, `job_finished`.
pub async fn cancel(write: &mut Write, id: JobId) -> Result<Job> {
    let caller = write.caller().clone();
    sqlx::query("SELECT 1 FROM jobs WHERE id = $1 FOR UPDATE").bind(id).execute(write.connection()).await?;
    let job = fetch(write.connection(), id).await?.ok_or_else(|| Error::not_found("job", id))?;
    let id_text = id.to_string();
    let access = Access { name: None, owner: &job.owner, visibility: &job.visibility };
    caller.require_sight("job", &id_text, access)?;
    caller.require_ownership("job", &id_text, &job.owner)?;
    match job.state {
        JobState::Queued => {
            work::end(write.connection(), id, JobState::Cancelled, None, None).await?;
            sqlx::query("SELECT 1 FROM graphile_worker.remove_job($1)")
                .bind(&id_text)
                .execute(write.connection())
                .await?;
        }
        JobState::Running => {
            sqlx::query(
                "UPDATE jobs SET cancel_requested_at = COALESCE(cancel_requested_at, clock_timestamp()) WHERE id = $1",
            )
            .bind(id)
            .execute(write.connection())
            .await?;
            if job.cancel_requested_at.is_none() {
                events::append(write.connection(), id, "cancel_requested", json!({})).await?;
            }
        }
        ended => return Err(Error::JobFinished { id: id_text, state: ended.name().into() }),
    }
    let before = json!({ "state": job.state });
    write
        .audit(Change { action: "job.cancel", resource: "job", id: id_text, before: Some(before), after: None })
        .await?;
    fetch(write.connection(), id).await?.ok_or_else(|| Error::not_found("job", id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_are_plain_web_addresses() {
        let check = |url: &str, secret: &str| check_webhook(&Webhook { url: url.into(), secret: secret.into() });
        for good in ["http://localhost:9000/x", "https://example.org", "https://example.org/?a=b#c"] {
            assert!(check(good, "a long secret").is_ok(), "{good}");
        }
        let long = format!("https://x/{}", "y".repeat(MAX_WEBHOOK));
        for bad in ["", "ftp://x", "file:///etc/passwd", "http://", "https:///x", "http://a@b/", "http://a b/", &long] {
            assert_eq!(check(bad, "a long secret").unwrap_err().code(), "invalid_value", "{bad}");
        }
        assert!(check("http://x", "short").is_err());
        let shown = format!("{:?}", Webhook { url: "http://x".into(), secret: "a long secret".into() });
        assert!(!shown.contains("secret\""), "{shown}");
        assert!(!shown.contains("a long"), "{shown}");
    }

    #[test]
    fn callers_come_back() {
        let caller = Caller {
            administrator: false,
            patterns: vec!["a-*".into()],
            token: Some(crate::TokenId::generate()),
            request_id: Some("r".into()),
            address: "::1".parse().ok(),
            ..Caller::system("ann")
        };
        assert_eq!(caller_of(&caller_json(&caller)), caller);
        assert!(!caller_of(&json!({})).administrator);
    }
}
