//! What an attempt keeps for the next one, possibly on another machine: named bytes in the artifact store.

use bytes::Bytes;

use super::work::{Claim, hold};
use crate::{JobId, Registry, Result};

const MEDIA_TYPE: &str = "application/octet-stream";

/// Keeps bytes under a name; those that were there before are replaced.
///
/// # Errors
/// `job_lost`, `storage`, `database`; what was there before stays then.
pub async fn save_snapshot(registry: &Registry, claim: Claim, name: &str, bytes: Bytes) -> Result<()> {
    let artifact = registry.artifacts().put_bytes(bytes, MEDIA_TYPE).await?;
    let mut transaction = registry.pool().begin().await?;
    hold(&mut transaction, claim).await?;
    sqlx::query(
        "INSERT INTO job_snapshots (job_id, name, artifact_digest) VALUES ($1, $2, $3)
         ON CONFLICT (job_id, name) DO UPDATE
         SET artifact_digest = excluded.artifact_digest, updated_at = clock_timestamp()",
    )
    .bind(claim.job)
    .bind(name)
    .bind(&artifact.digest)
    .execute(&mut *transaction)
    .await?;
    Ok(transaction.commit().await?)
}

/// The bytes under a name, compared with their digest.
///
/// # Errors
/// `artifact_missing`, `artifact_corrupt`, `storage`, `database`.
pub async fn load_snapshot(registry: &Registry, job: JobId, name: &str) -> Result<Option<Bytes>> {
    let digest: Option<String> =
        sqlx::query_scalar("SELECT artifact_digest FROM job_snapshots WHERE job_id = $1 AND name = $2")
            .bind(job)
            .bind(name)
            .fetch_optional(registry.pool())
            .await?;
    match digest {
        Some(digest) => registry.artifacts().read(&digest).await.map(Some),
        None => Ok(None),
    }
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
