//! Keeps `gc` away from files whose row is about to be written.
//!
//! Digests fall into 256 buckets by their first byte. An upload holds the lock of its bucket, shared, from looking
//! whether the file is there until its row is committed; `gc` holds it alone while it removes rows and their files.
//! So `gc` never removes a file that an upload has just decided to rely on. The locks are the database's: they hold
//! between processes, and end with them.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::OwnedSemaphorePermit;

use super::{Artifact, ArtifactStore};
use crate::{Error, Result};

/// First number of the locks: "WSGA"; the second is the bucket.
const LOCKS: i32 = 0x5753_4741;

/// The right to write files of some digests and then their rows.
pub(super) struct Settling {
    transaction: Transaction<'static, Postgres>,
    _place: OwnedSemaphorePermit,
}

/// The bucket of a digest: its first byte.
pub(crate) fn bucket(digest: &str) -> i32 {
    digest.get(7..9).and_then(|byte| i32::from_str_radix(byte, 16).ok()).unwrap_or_default()
}

impl ArtifactStore {
    /// Waits for the right to write files and rows of these digests.
    pub(super) async fn settling<'a>(&self, digests: impl Iterator<Item = &'a str>) -> Result<Settling> {
        let buckets: Vec<i32> = digests.map(bucket).collect::<BTreeSet<_>>().into_iter().collect();
        // Uploads that wait for a slow store must leave connections to everyone else.
        let closed = |_| Error::DatabaseUnavailable(sqlx::Error::PoolClosed);
        let place = std::sync::Arc::clone(&self.settling).acquire_owned().await.map_err(closed)?;
        let mut transaction = self.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock_shared($1, bucket) FROM unnest($2::int[]) AS bucket")
            .bind(LOCKS)
            .bind(buckets)
            .execute(&mut *transaction)
            .await?;
        Ok(Settling { transaction, _place: place })
    }
}

impl Settling {
    /// Writes the rows of artifacts whose files are complete; those that are there are marked as just used.
    pub(super) async fn record(mut self, artifacts: &[Artifact]) -> Result<()> {
        // In one order everywhere, so that two bulk inserts never wait for each other in a circle.
        let mut sorted: Vec<&Artifact> = artifacts.iter().collect();
        sorted.sort_by(|a, b| a.digest.cmp(&b.digest));
        sorted.dedup_by(|a, b| a.digest == b.digest);
        let digests: Vec<&str> = sorted.iter().map(|a| a.digest.as_str()).collect();
        let sizes: Vec<i64> = sorted.iter().map(|a| i64::try_from(a.size).unwrap_or(i64::MAX)).collect();
        let types: Vec<&str> = sorted.iter().map(|a| a.media_type.as_str()).collect();
        sqlx::query(
            "INSERT INTO artifacts (digest, size, media_type)
             SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::text[])
             ON CONFLICT (digest) DO UPDATE SET touched_at = clock_timestamp()",
        )
        .bind(digests)
        .bind(sizes)
        .bind(types)
        .execute(&mut *self.transaction)
        .await?;
        Ok(self.transaction.commit().await?)
    }
}

/// Tries to get a bucket for the session of `connection` alone.
pub(crate) async fn try_alone(connection: &mut PgConnection, bucket: i32) -> Result<bool> {
    let query = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2)").bind(LOCKS).bind(bucket);
    Ok(query.fetch_one(connection).await?)
}

/// Gives a bucket back.
pub(crate) async fn release(connection: &mut PgConnection, bucket: i32) -> Result<()> {
    sqlx::query("SELECT pg_advisory_unlock($1, $2)").bind(LOCKS).bind(bucket).execute(connection).await?;
    Ok(())
}
