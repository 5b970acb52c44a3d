//! Telling a webhook that its job has ended: signed, tried again when it fails, every try recorded.

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;
use sqlx::PgConnection;

use super::{DELIVER, Job, fetch};
use crate::{JobId, Registry, Result};

/// Tries before a webhook is given up, over about 17 minutes.
pub const MAX_DELIVERIES: i32 = 10;
/// The dispatcher's flag of deliveries, which every worker takes. No queue can have this name.
pub(crate) const FLAG: &str = "webhook!";

/// A try of telling a webhook.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Delivery {
    /// Its number, from 1.
    pub attempt: i32,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// The HTTP status of the answer.
    pub status: Option<i32>,
    /// Why there was no answer.
    pub error: Option<String>,
}

/// What is to be delivered.
#[derive(Clone)]
pub struct Due {
    /// The job, which has ended.
    pub job: Job,
    /// Where to.
    pub url: String,
    /// The key to sign with.
    pub secret: String,
    /// Number of this try, from 1.
    pub attempt: i32,
    /// Seconds since 1970, of the database's clock.
    pub timestamp: i64,
}

/// The value of `Weightsmith-Signature`: `t=SECONDS,v1=HEX`, the HMAC-SHA256 of `SECONDS.BODY` under the secret.
#[must_use]
pub fn sign(secret: &str, timestamp: i64, body: &[u8]) -> String {
    let mut text = format!("t={timestamp},v1=");
    // A key of any length is good.
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) {
        mac.update(format!("{timestamp}.").as_bytes());
        mac.update(body);
        text.push_str(&hex::encode(mac.finalize().into_bytes()));
    }
    text
}

/// Hands the first try to the dispatcher when the job has a webhook.
pub(crate) async fn schedule_first(connection: &mut PgConnection, id: JobId) -> Result<()> {
    let has: Option<bool> = sqlx::query_scalar("SELECT webhook_url IS NOT NULL FROM jobs WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    if has == Some(true) { schedule(connection, id, 0).await } else { Ok(()) }
}

async fn schedule(connection: &mut PgConnection, id: JobId, delay: i32) -> Result<()> {
    sqlx::query(
        "SELECT 1 FROM graphile_worker.add_job($1, json_build_object('job', $2::text), NULL,
            now() + $3 * interval '1 second', 1000, 'webhook ' || $2::text, NULL, ARRAY[$4])",
    )
    .bind(DELIVER)
    .bind(id.to_string())
    .bind(f64::from(delay))
    .bind(FLAG)
    .execute(connection)
    .await?;
    Ok(())
}

/// What is to be delivered for a job; `None` when its webhook has answered, was given up, or is not there.
pub(crate) async fn due(registry: &Registry, id: JobId) -> Result<Option<Due>> {
    let row: Option<(String, String, i32, i64)> = sqlx::query_as(
        "SELECT webhook_url, webhook_secret, (SELECT count(*) FROM job_deliveries d WHERE d.job_id = j.id)::int,
            extract(epoch FROM clock_timestamp())::bigint
         FROM jobs j WHERE id = $1 AND webhook_url IS NOT NULL AND finished_at IS NOT NULL
           AND NOT EXISTS (SELECT FROM job_deliveries d WHERE d.job_id = j.id AND d.status BETWEEN 200 AND 299)",
    )
    .bind(id)
    .fetch_optional(registry.pool())
    .await?;
    let Some((url, secret, tried, timestamp)) = row.filter(|row| row.2 < MAX_DELIVERIES) else {
        return Ok(None);
    };
    let job = fetch(&mut *registry.pool().acquire().await?, id).await?;
    Ok(job.map(|job| Due { job, url, secret, attempt: tried + 1, timestamp }))
}

/// Records a try, and has it tried again when it failed.
pub(crate) async fn record(
    registry: &Registry,
    id: JobId,
    attempt: i32,
    outcome: std::result::Result<u16, String>,
) -> Result<()> {
    let (status, error) = match outcome {
        Ok(status) => (Some(i32::from(status)), None),
        Err(error) => (None, Some(error)),
    };
    let mut transaction = registry.pool().begin().await?;
    sqlx::query(
        "INSERT INTO job_deliveries (job_id, attempt, status, error) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(id)
    .bind(attempt)
    .bind(status)
    .bind(error)
    .execute(&mut *transaction)
    .await?;
    let accepted = status.is_some_and(|status| (200..300).contains(&status));
    if !accepted && attempt < MAX_DELIVERIES {
        schedule(&mut transaction, id, 2i32.saturating_pow(attempt.unsigned_abs())).await?;
    }
    Ok(transaction.commit().await?)
}

/// The tries of a job's webhook, in order. Whether the job may be seen is for the caller to check.
///
/// # Errors
/// `database`.
pub async fn deliveries(registry: &Registry, id: JobId) -> Result<Vec<Delivery>> {
    let rows =
        sqlx::query_as("SELECT attempt, at, status, error FROM job_deliveries WHERE job_id = $1 ORDER BY attempt")
            .bind(id)
            .fetch_all(registry.pool())
            .await?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_hmac_sha256() {
        // echo -n '1700000000.{"a":1}' | openssl dgst -sha256 -hmac whsec_test
        assert_eq!(
            sign("whsec_test", 1_700_000_000, br#"{"a":1}"#),
            "t=1700000000,v1=38877139021993b830af32feea6e18a8da83eb2f6e49ee50bd9e4cf4ca4d3789"
        );
    }
}
