//! How many jobs there are in each state, and how long they wait: for monitoring.

use crate::{Registry, Result};

/// Jobs of one state.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub struct JobCount {
    /// The state, such as `queued`.
    pub state: String,
    /// Jobs in it.
    pub jobs: i64,
    /// Seconds that the oldest of them has been in the table.
    pub oldest_seconds: f64,
}

/// Counts jobs that have not ended, by state; states without jobs are left out.
///
/// # Errors
/// `database_unavailable`, `database`.
pub async fn unfinished(registry: &Registry) -> Result<Vec<JobCount>> {
    let counts = sqlx::query_as(
        "SELECT state, count(*) AS jobs,
                extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest_seconds
         FROM jobs WHERE finished_at IS NULL GROUP BY state",
    );
    Ok(counts.fetch_all(registry.pool()).await?)
}
