//! Looking after jobs that nobody looks after: what the dispatcher has lost is handed to it again, what was cancelled
//! or has passed its deadline while it waited is ended.

use serde_json::Value;

use super::{JobState, schedule, work};
use crate::{JobId, Registry, Result};

/// A running job that was not heard of for this long has lost its worker, in seconds.
pub(crate) const STALE_SECONDS: f64 = 10.0;
/// Jobs looked after in one go.
const MANY: i64 = 100;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    pub(crate) ended: usize,
    pub(crate) handed_on: usize,
}

/// Looks after all jobs once. Any number of workers may do so at a time.
pub(crate) async fn sweep(registry: &Registry) -> Result<Swept> {
    Ok(Swept { ended: end_overdue(registry).await?, handed_on: hand_on(registry).await? })
}

async fn end_overdue(registry: &Registry) -> Result<usize> {
    let mut transaction = registry.pool().begin().await?;
    let overdue: Vec<(JobId, bool)> = sqlx::query_as(
        "SELECT id, cancel_requested_at IS NOT NULL FROM jobs
         WHERE finished_at IS NULL AND (cancel_requested_at IS NOT NULL OR deadline <= clock_timestamp())
           AND (state = 'queued' OR heartbeat_at < clock_timestamp() - $1 * interval '1 second')
         ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED",
    )
    .bind(STALE_SECONDS)
    .bind(MANY)
    .fetch_all(&mut *transaction)
    .await?;
    for (id, cancelled) in &overdue {
        let (state, error): (_, Option<Value>) = match cancelled {
            true => (JobState::Cancelled, None),
            false => (JobState::Failed, Some(work::expired_error())),
        };
        work::end(&mut transaction, *id, state, error, None).await?;
    }
    transaction.commit().await?;
    Ok(overdue.len())
}

async fn hand_on(registry: &Registry) -> Result<usize> {
    let mut transaction = registry.pool().begin().await?;
    let lost: Vec<(JobId, String)> = sqlx::query_as(
        "SELECT id, queue FROM jobs
         WHERE finished_at IS NULL AND (state = 'queued' OR heartbeat_at < clock_timestamp() - $1 * interval '1 second')
           AND NOT EXISTS (SELECT FROM graphile_worker._private_jobs d WHERE d.key = jobs.id::text)
         ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED",
    )
    .bind(STALE_SECONDS)
    .bind(MANY)
    .fetch_all(&mut *transaction)
    .await?;
    for (id, queue) in &lost {
        tracing::warn!(job = %id, "the dispatcher had lost a job");
        schedule(&mut transaction, *id, queue, 0.0).await?;
    }
    transaction.commit().await?;
    Ok(lost.len())
}
