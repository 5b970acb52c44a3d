//! What a worker does to a job. Every call names the claim of its attempt; once another attempt has begun, or the job
//! has ended, it is refused with `job_lost` and nothing is changed.

use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Job, JobState, Progress, caller_of, events, fetch, schedule, webhooks};
use crate::{Caller, Error, JobId, Registry, Result, Write};

/// Longest wait before another attempt, in seconds.
const LONGEST_WAIT: i32 = 300;

/// An attempt's hold on a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job: JobId,
    /// This attempt's own key.
    pub key: Uuid,
}

/// A job that was taken on.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The hold on it.
    pub claim: Claim,
    /// The job.
    pub job: Job,
    /// In whose name it acts.
    pub caller: Caller,
}

/// What a running job is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Continue,
    /// Someone asked to cancel it.
    Cancel,
    /// Its deadline has passed.
    Expire,
}

/// Takes a job on. `None` when there is nothing left to do: it has ended, or ends here because it was cancelled, its
/// deadline has passed, or its workers were lost too often.
///
/// # Errors
/// `database`, `database_unavailable`.
pub async fn claim(registry: &Registry, id: JobId, worker: &str) -> Result<Option<Claimed>> {
    let mut transaction = registry.pool().begin().await?;
    let found: Option<(JobState, bool, bool, bool, Value)> = sqlx::query_as(
        "SELECT state, cancel_requested_at IS NOT NULL, COALESCE(deadline <= clock_timestamp(), false),
            attempts >= max_attempts, caller
         FROM jobs WHERE id = $1 FOR UPDATE",
    )
    .bind(id)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some((state, cancelled, expired, exhausted, caller)) = found.filter(|found| !found.0.is_final()) else {
        return Ok(None);
    };
    let over = match (cancelled, expired, exhausted) {
        (true, _, _) => Some((JobState::Cancelled, None)),
        (_, true, _) => Some((JobState::Failed, Some(expired_error()))),
        (_, _, true) => Some((JobState::Failed, Some(lost_error()))),
        _ => None,
    };
    if let Some((state, error)) = over {
        end(&mut transaction, id, state, error, None).await?;
        transaction.commit().await?;
        return Ok(None);
    }
    let claim = Claim { job: id, key: Uuid::now_v7() };
    let attempts: i32 = sqlx::query_scalar(
        "UPDATE jobs SET state = 'running', claim = $2, worker = $3, attempts = attempts + 1,
            heartbeat_at = clock_timestamp(), started_at = COALESCE(started_at, clock_timestamp())
         WHERE id = $1 RETURNING attempts",
    )
    .bind(id)
    .bind(claim.key)
    .bind(worker)
    .fetch_one(&mut *transaction)
    .await?;
    let data = json!({ "state": "running", "attempt": attempts, "worker": worker,
        "recovered": state == JobState::Running });
    events::append(&mut transaction, id, "state", data).await?;
    let job = fetch(&mut transaction, id).await?.ok_or_else(|| Error::not_found("job", id))?;
    transaction.commit().await?;
    Ok(Some(Claimed { claim, job, caller: caller_of(&caller) }))
}

pub(super) fn expired_error() -> Value {
    json!({ "code": "deadline_exceeded", "detail": "the job had not ended at its deadline: give it more time" })
}

fn lost_error() -> Value {
    json!({ "code": "worker_lost",
        "detail": "its workers ended in the middle of it, as often as it has attempts: see their logs, they may lack memory" })
}

/// Says that the attempt lives and what it is to do. `progress` also becomes an event.
///
/// # Errors
/// `job_lost`, `database`.
pub async fn heartbeat(registry: &Registry, claim: Claim, progress: Option<&Progress>) -> Result<Wish> {
    let mut transaction = registry.pool().begin().await?;
    let written = progress.map(sqlx::types::Json);
    let row: Option<(bool, bool)> = sqlx::query_as(
        "UPDATE jobs SET heartbeat_at = clock_timestamp(), progress = COALESCE($3, progress)
         WHERE id = $1 AND claim = $2
         RETURNING cancel_requested_at IS NOT NULL, COALESCE(deadline <= clock_timestamp(), false)",
    )
    .bind(claim.job)
    .bind(claim.key)
    .bind(written)
    .fetch_optional(&mut *transaction)
    .await?;
    let (cancel, expired) = row.ok_or_else(|| lost(claim))?;
    if let Some(progress) = progress {
        events::append(&mut transaction, claim.job, "progress", json!(progress)).await?;
    }
    transaction.commit().await?;
    Ok(match (cancel, expired) {
        (true, _) => Wish::Cancel,
        (_, true) => Wish::Expire,
        _ => Wish::Continue,
    })
}

fn lost(claim: Claim) -> Error {
    Error::JobLost(claim.job.to_string())
}

/// Locks the row when the attempt still holds it; what follows in the transaction is then the attempt's alone.
pub(crate) async fn hold(connection: &mut PgConnection, claim: Claim) -> Result<()> {
    let held: Option<i32> = sqlx::query_scalar("SELECT 1 FROM jobs WHERE id = $1 AND claim = $2 FOR UPDATE")
        .bind(claim.job)
        .bind(claim.key)
        .fetch_optional(connection)
        .await?;
    held.map(|_| ()).ok_or_else(|| lost(claim))
}

/// Ends a job with a result, in the write that makes the result true.
///
/// # Errors
/// `job_lost`, `database`; do not commit the write then.
pub async fn succeed(write: &mut Write, claim: Claim, result: &Value) -> Result<()> {
    hold(write.connection(), claim).await?;
    end(write.connection(), claim.job, JobState::Succeeded, None, Some(result)).await
}

/// Ends an attempt that failed for good.
///
/// # Errors
/// `job_lost`, `database`.
pub async fn fail(registry: &Registry, claim: Claim, code: &str, detail: &str) -> Result<()> {
    finish(registry, claim, JobState::Failed, Some(json!({ "code": code, "detail": detail }))).await
}

/// Ends a job whose deadline has passed.
///
/// # Errors
/// `job_lost`, `database`.
pub async fn expire(registry: &Registry, claim: Claim) -> Result<()> {
    finish(registry, claim, JobState::Failed, Some(expired_error())).await
}

/// Ends a job that was cancelled.
///
/// # Errors
/// `job_lost`, `database`.
pub async fn cancelled(registry: &Registry, claim: Claim) -> Result<()> {
    finish(registry, claim, JobState::Cancelled, None).await
}

async fn finish(registry: &Registry, claim: Claim, state: JobState, error: Option<Value>) -> Result<()> {
    let mut transaction = registry.pool().begin().await?;
    hold(&mut transaction, claim).await?;
    end(&mut transaction, claim.job, state, error, None).await?;
    Ok(transaction.commit().await?)
}

/// Ends a job, whoever has it: state, last event, webhook; snapshots go.
pub(crate) async fn end(
    connection: &mut PgConnection,
    id: JobId,
    state: JobState,
    error: Option<Value>,
    result: Option<&Value>,
) -> Result<()> {
    sqlx::query(
        "UPDATE jobs SET state = $2, claim = NULL, finished_at = clock_timestamp(), error = $3, result = $4
         WHERE id = $1",
    )
    .bind(id)
    .bind(state)
    .bind(&error)
    .bind(result)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM job_snapshots WHERE job_id = $1").bind(id).execute(&mut *connection).await?;
    let mut data = json!({ "state": state });
    for (key, value) in [("error", error.as_ref()), ("result", result)] {
        if let (Some(value), Some(data)) = (value, data.as_object_mut()) {
            data.insert(key.into(), value.clone());
        }
    }
    events::append(connection, id, "state", data).await?;
    webhooks::schedule_first(connection, id).await
}

/// Ends an attempt that may go better another time: the job waits and is tried again, or fails when that was the last
/// attempt.
///
/// # Errors
/// `job_lost`, `database`.
pub async fn retry(registry: &Registry, claim: Claim, code: &str, detail: &str) -> Result<()> {
    let error = json!({ "code": code, "detail": detail });
    let mut transaction = registry.pool().begin().await?;
    hold(&mut transaction, claim).await?;
    let (attempts, most, queue): (i32, i32, String) =
        sqlx::query_as("SELECT attempts, max_attempts, queue FROM jobs WHERE id = $1")
            .bind(claim.job)
            .fetch_one(&mut *transaction)
            .await?;
    if attempts >= most {
        end(&mut transaction, claim.job, JobState::Failed, Some(error), None).await?;
        return Ok(transaction.commit().await?);
    }
    let wait = 2i32.saturating_pow(attempts.unsigned_abs()).min(LONGEST_WAIT);
    sqlx::query("UPDATE jobs SET state = 'queued', claim = NULL, worker = NULL, error = $2 WHERE id = $1")
        .bind(claim.job)
        .bind(&error)
        .execute(&mut *transaction)
        .await?;
    let data =
        json!({ "state": "queued", "reason": "retry", "error": error, "attempt": attempts, "wait_seconds": wait });
    events::append(&mut transaction, claim.job, "state", data).await?;
    schedule(&mut transaction, claim.job, &queue, f64::from(wait)).await?;
    Ok(transaction.commit().await?)
}

/// Puts a job back because its worker stops: what it has kept stays, and no attempt is lost.
///
/// # Errors
/// `job_lost`, `database`.
pub async fn put_back(registry: &Registry, claim: Claim) -> Result<()> {
    let mut transaction = registry.pool().begin().await?;
    hold(&mut transaction, claim).await?;
    let queue: String = sqlx::query_scalar(
        "UPDATE jobs SET state = 'queued', claim = NULL, worker = NULL, attempts = GREATEST(attempts - 1, 0)
         WHERE id = $1 RETURNING queue",
    )
    .bind(claim.job)
    .fetch_one(&mut *transaction)
    .await?;
    let data = json!({ "state": "queued", "reason": "shutdown" });
    events::append(&mut transaction, claim.job, "state", data).await?;
    schedule(&mut transaction, claim.job, &queue, 0.0).await?;
    Ok(transaction.commit().await?)
}
