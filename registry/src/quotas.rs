//! Daily quotas of tokens. Samples are reserved before the work, in one statement: however many ask at once, a day's
//! sum never exceeds the quota. Seconds of computing are known only afterwards: when a day's sum has reached the quota,
//! no more work begins.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::{Caller, Error, Registry, Result, TokenId};

/// Samples that were set aside for a piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    token: TokenId,
    day: NaiveDate,
    /// Samples set aside.
    pub samples: i64,
}

/// What a token may use and has used on the current day (UTC).
#[derive(Clone, Copy, Debug, PartialEq, sqlx::FromRow)]
pub struct Usage {
    /// Samples a day; none: any number.
    pub samples_limit: Option<i64>,
    /// Samples generated or reserved.
    pub samples: i64,
    /// Seconds of computing a day; none: any number.
    pub compute_seconds_limit: Option<f64>,
    /// Seconds of computing used.
    pub compute_seconds: f64,
    /// Seconds until the day ends, rounded up.
    pub reset_seconds: i64,
}

const RESET: &str = "ceil(extract(epoch FROM
    date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day' - now() AT TIME ZONE 'UTC'))::bigint";

/// Sets samples aside for a piece of work that is about to begin; `None` for a caller without a token, who has no
/// quota.
///
/// # Errors
/// `quota_exceeded`: nothing is set aside then.
pub async fn reserve(registry: &Registry, caller: &Caller, samples: u64) -> Result<Option<Reservation>> {
    let Some(token) = caller.token else {
        return Ok(None);
    };
    let samples = i64::try_from(samples).map_err(|_| Error::invalid("count", "ask for fewer samples"))?;
    // A row that two insert at once is locked and looked at again by the second.
    let day: Option<NaiveDate> = sqlx::query_scalar(
        "INSERT INTO usage AS u (token_id, day, samples)
         SELECT t.id, (now() AT TIME ZONE 'UTC')::date, $2 FROM tokens t
         WHERE t.id = $1 AND COALESCE($2 <= t.samples_per_day, true) AND COALESCE(0 < t.compute_seconds_per_day, true)
         ON CONFLICT (token_id, day) DO UPDATE SET samples = u.samples + EXCLUDED.samples
         WHERE EXISTS (SELECT FROM tokens t WHERE t.id = $1
             AND COALESCE(u.samples + EXCLUDED.samples <= t.samples_per_day, true)
             AND COALESCE(u.compute_seconds < t.compute_seconds_per_day, true))
         RETURNING u.day",
    )
    .bind(token)
    .bind(samples)
    .fetch_optional(registry.pool())
    .await?;
    match day {
        Some(day) => Ok(Some(Reservation { token, day, samples })),
        None => Err(exceeded(&usage(registry, token).await?, samples)),
    }
}

fn exceeded(usage: &Usage, asked: i64) -> Error {
    let reset_seconds = usage.reset_seconds.max(1).cast_unsigned();
    match (usage.samples_limit, usage.compute_seconds_limit) {
        (Some(limit), _) if usage.samples + asked > limit => {
            Error::QuotaExceeded { what: "samples", limit, left: (limit - usage.samples).max(0), reset_seconds }
        }
        (_, limit) => {
            let limit = limit.unwrap_or_default();
            let left = (limit - usage.compute_seconds).max(0.0) as i64;
            Error::QuotaExceeded { what: "compute seconds", limit: limit as i64, left, reset_seconds }
        }
    }
}

/// Gives back samples that were set aside and not made.
///
/// # Errors
/// `database`, `database_unavailable`.
pub async fn release(registry: &Registry, reservation: &Reservation) -> Result<()> {
    sqlx::query("UPDATE usage SET samples = GREATEST(samples - $3, 0) WHERE token_id = $1 AND day = $2")
        .bind(reservation.token)
        .bind(reservation.day)
        .bind(reservation.samples)
        .execute(registry.pool())
        .await?;
    Ok(())
}

/// Notes the seconds that a piece of work computed.
///
/// # Errors
/// `database`, `database_unavailable`.
pub async fn consume(registry: &Registry, reservation: &Reservation, seconds: f64) -> Result<()> {
    sqlx::query("UPDATE usage SET compute_seconds = compute_seconds + $3 WHERE token_id = $1 AND day = $2")
        .bind(reservation.token)
        .bind(reservation.day)
        .bind(seconds.max(0.0))
        .execute(registry.pool())
        .await?;
    Ok(())
}

/// What a token may use and has used today.
///
/// # Errors
/// `not_found` when there is no such token.
pub async fn usage(registry: &Registry, token: TokenId) -> Result<Usage> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT t.samples_per_day AS samples_limit, COALESCE(u.samples, 0) AS samples,
             t.compute_seconds_per_day AS compute_seconds_limit, COALESCE(u.compute_seconds, 0) AS compute_seconds,
             {RESET} AS reset_seconds
         FROM tokens t LEFT JOIN usage u ON u.token_id = t.id AND u.day = (now() AT TIME ZONE 'UTC')::date
         WHERE t.id = $1"
    )))
    .bind(token)
    .fetch_optional(registry.pool())
    .await?
    .ok_or_else(|| Error::not_found("token", token))
}
