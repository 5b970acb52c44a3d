//! The artifact store: bytes under the SHA-256 of their content.
//!
//! Bytes are complete under `sha256/ab/cdef…` before their row is written. A crash in between leaves a file without
//! a row, which the same upload later adopts; a row without its file never comes about.

mod digest;
mod read;
mod write;

use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use serde::Serialize;
use sqlx::PgPool;

pub use digest::digest_of;
pub use read::ArtifactReader;

use crate::{Error, Result};

/// Uploads of one bulk call that are under way at a time.
const CONCURRENT_WRITES: usize = 32;

/// What is known of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Artifact {
    /// `sha256:` and 64 lowercase hex digits.
    pub digest: String,
    /// Bytes.
    #[sqlx(try_from = "i64")]
    pub size: u64,
    /// Media type given by the first upload, such as `application/x-tar`.
    pub media_type: String,
}

/// Content-addressed bytes: files in an object store, their digests and sizes in the database.
#[derive(Clone, Debug)]
pub struct ArtifactStore {
    store: Arc<dyn ObjectStore>,
    pool: PgPool,
}

impl ArtifactStore {
    /// A store over any object store (S3, memory, …).
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, pool: PgPool) -> Self {
        Self { store, pool }
    }

    /// A store in a local directory, which is made if it is missing.
    ///
    /// # Errors
    /// `io` or `storage` when the directory cannot be made or used.
    pub fn local(directory: &Path, pool: PgPool) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
        // Rows are durable when committed, so the files they name have to be durable before.
        let store = LocalFileSystem::new_with_prefix(directory)?.with_fsync(true);
        Ok(Self::new(Arc::new(store), pool))
    }

    /// What is known of an artifact.
    ///
    /// # Errors
    /// `artifact_missing` when there is none, `invalid_value` for a malformed digest.
    pub async fn stat(&self, digest: &str) -> Result<Artifact> {
        digest::key(digest)?;
        sqlx::query_as("SELECT digest, size, media_type FROM artifacts WHERE digest = $1")
            .bind(digest)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| Error::ArtifactMissing { digest: digest.into() })
    }

    /// Whether there is such an artifact.
    ///
    /// # Errors
    /// `invalid_value` for a malformed digest.
    pub async fn exists(&self, digest: &str) -> Result<bool> {
        match self.stat(digest).await {
            Ok(_) => Ok(true),
            Err(Error::ArtifactMissing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the rows of artifacts whose files are complete.
    async fn record(&self, artifacts: &[Artifact]) -> Result<()> {
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
             ON CONFLICT (digest) DO NOTHING",
        )
        .bind(digests)
        .bind(sizes)
        .bind(types)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
