//! The catalogue (Postgres with pgvector) and the artifact store: all the state there is.
//!
//! One module a resource, each with functions that take a [`Registry`]. SQL is nowhere else in the workspace.
//! With no server at hand, [`embedded::EmbeddedPostgres`] runs a private one under the data directory.

mod about;
pub mod aliases;
pub mod architectures;
pub mod artifacts;
pub mod audit;
pub mod backup;
mod caller;
pub mod checkpoints;
#[doc(hidden)]
pub mod constraints;
pub mod datasets;
pub mod embedded;
pub mod embeddings;
mod error;
pub mod evaluations;
pub mod extractors;
pub mod fsck;
pub mod garbage;
pub mod generations;
pub mod generators;
pub mod idempotency;
mod ids;
pub mod imports;
pub mod jobs;
pub mod lifecycle;
pub mod lineage;
pub mod listing;
mod migrations;
mod names;
pub mod nearest;
mod page;
pub mod quotas;
mod references;
pub mod runs;
pub mod synthetic;
pub mod tokens;
mod write;
pub mod zoos;

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgPool};

pub use about::{About, NewAbout};
pub use artifacts::{Artifact, ArtifactPlace, ArtifactReader, ArtifactStore, S3Key, S3Options, digest_of};
pub use caller::{Access, Caller};
pub use error::{Error, Result};
pub use ids::{
    ArchitectureId, CheckpointId, DatasetId, EvaluationId, ExtractorId, GenerationId, GeneratorId, JobId, RunId, Seed,
    TokenId, VersionId, ZooId,
};
pub use listing::ListRequest;
pub use migrations::run as migrate;
pub use migrations::{SchemaStatus, SchemaStep, migrate_schema, schema_status};
pub use names::{GeneratorRef, Selector, check as check_name};
pub use page::{MAX_LIMIT, Page};
pub use write::{Change, Write};

/// Connections a process holds at most, for each core and at least. Statements run on cores: more of them at a time only
/// take turns, and the slowest waits longest.
const CONNECTIONS: (usize, usize) = (3, 6);
/// A connection that rested longer is tried before it is used: a server that went away is noticed then. Those in use
/// are tried by the pool when they come back.
const RESTED: Duration = Duration::from_secs(1);
/// How long a call waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connected registry; clones share its connections.
#[derive(Clone, Debug)]
pub struct Registry {
    pool: PgPool,
    artifacts: ArtifactStore,
}

impl Registry {
    /// Connects to a server, brings its schema up to date, and opens the artifact directory.
    ///
    /// # Errors
    /// `database_unavailable`, `pgvector_missing`, `schema_newer`, `schema_mismatch`, `io`, `storage`.
    pub async fn connect(database_url: &str, artifact_dir: &Path) -> Result<Self> {
        Self::connect_to(database_url, &ArtifactPlace::Folder(artifact_dir.into()), &S3Options::default()).await
    }

    /// Connects to a server, brings its schema up to date, and opens the artifact store.
    ///
    /// # Errors
    /// As [`Registry::connect`], and `invalid_value` for options of a bucket that do not do.
    pub async fn connect_to(database_url: &str, artifacts: &ArtifactPlace, options: &S3Options) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let connections = (cores * CONNECTIONS.0).clamp(CONNECTIONS.1, 48) as u32;
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(CONNECT_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, about| {
                Box::pin(async move {
                    if about.idle_for > RESTED {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect(database_url)
            .await
            .map_err(Error::DatabaseUnavailable)?;
        migrations::run(&pool).await?;
        let artifacts = ArtifactStore::at(artifacts, options, pool.clone())?;
        Ok(Self::new(pool, artifacts))
    }

    /// A registry over a pool whose schema is up to date and an artifact store.
    #[must_use]
    pub fn new(pool: PgPool, artifacts: ArtifactStore) -> Self {
        Self { pool, artifacts }
    }

    /// The artifact store.
    #[must_use]
    pub fn artifacts(&self) -> &ArtifactStore {
        &self.artifacts
    }

    /// Asks the database for an answer: for readiness.
    ///
    /// # Errors
    /// `database_unavailable` or `database`.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Connections to the database: all that are open, and those of them that nobody uses.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        (self.pool.size() as usize, self.pool.num_idle())
    }

    /// Closes the connections; calls under way end first.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }
}
