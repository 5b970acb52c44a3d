//! The artifact store: bytes under the SHA-256 of their content.
//!
//! Bytes are complete under `sha256/ab/cdef…` before their row is written. A crash in between leaves a file without
//! a row, which the same upload later adopts and `gc` removes; a row without its file never comes about.

mod digest;
mod files;
mod place;
mod probe;
mod read;
mod settle;
mod upload;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use serde::Serialize;
use sqlx::PgPool;
use tokio::sync::Semaphore;

pub use digest::digest_of;
pub(crate) use files::{FileKind, StoredFile};
pub use place::{ArtifactPlace, S3Key, S3Options};
pub use read::ArtifactReader;
pub(crate) use settle::{bucket, release, try_alone};

use crate::{Error, Result};

/// Uploads of one bulk call that are under way at a time.
const CONCURRENT_WRITES: usize = 32;
/// Uploads of a process that may be at their last step, in which each holds a connection.
const CONCURRENT_SETTLING: usize = 8;
/// Most bytes of an artifact in a bucket: S3 copies no larger object in one request, and the last step is a copy.
const BUCKET_LIMIT: u64 = 5 << 30;

/// The key of a digest's bytes.
pub(crate) fn key_of(digest: &str) -> Result<String> {
    Ok(digest::key(digest)?.into())
}

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
    backend: Backend,
    pool: PgPool,
    settling: Arc<Semaphore>,
}

/// What only one kind of store can do.
#[derive(Clone)]
enum Backend {
    /// Files of uploads that were cut off, which the object store does not list.
    Folder(PathBuf),
    /// Uploads in parts that can be dropped later.
    Bucket(Arc<dyn MultipartStore>),
    Other,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Folder(_) => "Folder",
            Self::Bucket(_) => "Bucket",
            Self::Other => "Other",
        })
    }
}

impl ArtifactStore {
    /// A store over any object store (memory, …).
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, pool: PgPool) -> Self {
        Self::over(store, Backend::Other, pool)
    }

    fn over(store: Arc<dyn ObjectStore>, backend: Backend, pool: PgPool) -> Self {
        Self { store, backend, pool, settling: Arc::new(Semaphore::new(CONCURRENT_SETTLING)) }
    }

    /// The store at a place.
    ///
    /// # Errors
    /// `io` or `storage` when the folder cannot be made or used; `storage` or `invalid_value` when the options of a
    /// bucket do not do. No bucket is asked yet.
    pub fn at(place: &ArtifactPlace, options: &S3Options, pool: PgPool) -> Result<Self> {
        match place {
            ArtifactPlace::Folder(folder) => Self::local(folder, pool),
            ArtifactPlace::S3 { bucket, prefix } => {
                let store = place::bucket(bucket, prefix, options)?;
                Ok(Self::over(store.clone(), Backend::Bucket(store), pool))
            }
        }
    }

    /// A store in a local directory, which is made if it is missing.
    ///
    /// # Errors
    /// `io` or `storage` when the directory cannot be made or used.
    pub fn local(directory: &Path, pool: PgPool) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
        // Rows are durable when committed, so the files they name have to be durable before.
        let store = LocalFileSystem::new_with_prefix(directory)?.with_fsync(true);
        let folder = directory.canonicalize().map_err(Error::io(directory))?;
        Ok(Self::over(Arc::new(store), Backend::Folder(folder), pool))
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
}
