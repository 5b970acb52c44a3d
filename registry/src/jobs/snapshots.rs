//! What a job needs, and what an attempt keeps for the next one, possibly on another machine: named bytes in the artifact
//! store, which stay there until the job has ended.

use bytes::Bytes;
use sqlx::PgConnection;

use super::work::{Claim, hold};
use crate::{JobId, Registry, Result, Write};

const MEDIA_TYPE: &str = "application/octet-stream";

/// Keeps bytes under a name; those that were there before are replaced.
///
/// # Errors
/// `job_lost`, `storage`, `database`; what was there before stays then.
pub async fn save_snapshot(registry: &Registry, claim: Claim, name: &str, bytes: Bytes) -> Result<()> {
    let artifact = registry.artifacts().put_bytes(bytes, MEDIA_TYPE).await?;
    let mut transaction = registry.pool().begin().await?;
    hold(&mut transaction, claim).await?;
    refer(&mut transaction, claim.job, name, &artifact.digest).await?;
    Ok(transaction.commit().await?)
}

/// Keeps an artifact under a name in a unit of work of the attempt: what the work has changed and what is kept of it
/// are true together. Call it last, for the job's row is locked from here on.
///
/// # Errors
/// `job_lost`, `artifact_missing`, `database`; do not commit the write then.
pub async fn keep_snapshot(write: &mut Write, claim: Claim, name: &str, digest: &str) -> Result<()> {
    hold(write.connection(), claim).await?;
    refer(write.connection(), claim.job, name, digest).await
}

pub(super) async fn refer(connection: &mut PgConnection, job: JobId, name: &str, digest: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO job_snapshots (job_id, name, artifact_digest) VALUES ($1, $2, $3)
         ON CONFLICT (job_id, name) DO UPDATE
         SET artifact_digest = excluded.artifact_digest, updated_at = clock_timestamp()",
    )
    .bind(job)
    .bind(name)
    .bind(digest)
    .execute(connection)
    .await?;
    Ok(())
}

/// The bytes under a name, compared with their digest.
///
/// # Errors
/// `artifact_missing`, `artifact_corrupt`, `storage`, `database`.
pub async fn load_snapshot(registry: &Registry, job: JobId, name: &str) -> Result<Option<Bytes>> {
    match snapshot_digest(registry, job, name).await? {
        Some(digest) => registry.artifacts().read(&digest).await.map(Some),
        None => Ok(None),
    }
}

/// The digest of the bytes under a name: tells without reading them whether they are there.
///
/// # Errors
/// `database`.
pub async fn snapshot_digest(registry: &Registry, job: JobId, name: &str) -> Result<Option<String>> {
    let query = sqlx::query_scalar("SELECT artifact_digest FROM job_snapshots WHERE job_id = $1 AND name = $2");
    Ok(query.bind(job).bind(name).fetch_optional(registry.pool()).await?)
}

/// Forgets the bytes under a name; a name that is not there is no error.
///
/// # Errors
/// `job_lost`, `database`.
pub async fn remove_snapshot(registry: &Registry, claim: Claim, name: &str) -> Result<()> {
    let mut transaction = registry.pool().begin().await?;
    hold(&mut transaction, claim).await?;
    sqlx::query("DELETE FROM job_snapshots WHERE job_id = $1 AND name = $2")
        .bind(claim.job)
        .bind(name)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.commit().await?)
}
