//! What happened to a job, in order: numbered from 1 without gaps, so that a reader that was cut off goes on after the
//! last number it has seen and misses nothing.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgListener;
use sqlx::{PgConnection, PgPool};
use tokio::sync::broadcast;

use crate::{JobId, Registry, Result};

/// The channel that says which job has a new event.
const CHANNEL: &str = "weightsmith_jobs";
/// Notices kept for a slow reader; one that misses some asks the table.
const KEPT: usize = 256;
/// How long before a listener that was cut off tries again.
const RECONNECT: Duration = Duration::from_secs(1);

/// An event of a job.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Event {
    /// Its number, from 1.
    pub sequence: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// `state`, `progress`, `cancel_requested` or `retry`.
    #[sqlx(rename = "type")]
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened.
    pub data: Value,
}

impl Event {
    /// Whether it is the last event of its job.
    #[must_use]
    pub fn is_final(&self) -> bool {
        let state = self.data.get("state").and_then(Value::as_str);
        self.kind == "state" && matches!(state, Some("succeeded" | "failed" | "cancelled"))
    }
}

/// Adds an event; the job's row stays locked until the transaction ends, which keeps the numbers in order.
pub(crate) async fn append(connection: &mut PgConnection, id: JobId, kind: &str, data: Value) -> Result<()> {
    sqlx::query(
        "WITH next AS (UPDATE jobs SET last_event = last_event + 1 WHERE id = $1 RETURNING last_event)
         INSERT INTO job_events (job_id, sequence, type, data) SELECT $1, last_event, $2, $3 FROM next",
    )
    .bind(id)
    .bind(kind)
    .bind(data)
    .execute(&mut *connection)
    .await?;
    sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(id.to_string()).execute(connection).await?;
    Ok(())
}

/// Events of a job after a number, at most `limit`. Whether the job may be seen is for the caller to check.
///
/// # Errors
/// `database`.
pub async fn events(registry: &Registry, id: JobId, after: i64, limit: i64) -> Result<Vec<Event>> {
    let rows = sqlx::query_as(
        "SELECT sequence, at, type, data FROM job_events WHERE job_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3",
    )
    .bind(id)
    .bind(after)
    .bind(limit)
    .fetch_all(registry.pool())
    .await?;
    Ok(rows)
}

/// Says which jobs have new events, to any number of readers over one connection. A notice may get lost with the
/// connection: readers also ask from time to time.
#[derive(Clone, Debug)]
pub struct Watch(broadcast::Sender<JobId>);

impl Watch {
    /// Begins to listen, until the registry is closed or every clone is dropped.
    #[must_use]
    pub fn start(registry: &Registry) -> Self {
        let (sender, _) = broadcast::channel(KEPT);
        let watch = Self(sender);
        tokio::spawn(listen(registry.pool().clone(), watch.0.downgrade()));
        watch
    }

    /// The notices from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<JobId> {
        self.0.subscribe()
    }
}

async fn listen(pool: PgPool, notices: broadcast::WeakSender<JobId>) {
    while !pool.is_closed() && notices.strong_count() > 0 {
        if let Err(error) = follow(&pool, &notices).await {
            tracing::debug!(%error, "notices of jobs are not heard");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn follow(pool: &PgPool, notices: &broadcast::WeakSender<JobId>) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        let notice = tokio::select! {
            notice = listener.try_recv() => notice?,
            () = pool.close_event() => return Ok(()),
        };
        let (Some(notice), Some(notices)) = (notice, notices.upgrade()) else {
            return Ok(());
        };
        if let Ok(id) = notice.payload().parse() {
            // Nobody may be reading.
            let _ = notices.send(id);
        }
    }
}
