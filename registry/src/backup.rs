//! Backup and restore: a consistent dump of the database, and every artifact that it tells of.
//!
//! ```text
//! DIR/backup.json      what it is; written last: without it the backup is not complete
//! DIR/database.dump    pg_dump's custom format, for pg_restore
//! DIR/artifacts.list   a line `DIGEST SIZE` for each artifact
//! DIR/sha256/ab/cdef…  the artifacts, as in a local store
//! ```

mod programs;

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Row};

pub use programs::Programs;

use crate::artifacts::key_of;
use crate::{ArtifactPlace, ArtifactStore, Error, Registry, Result, S3Options, garbage, migrations};

const MANIFEST: &str = "backup.json";
const DUMP: &str = "database.dump";
const LIST: &str = "artifacts.list";
/// Of the files above; a program reads its own format only.
const FORMAT: u32 = 1;
/// Artifacts that are copied at a time.
const AT_ONCE: usize = 4;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Version of the backup's own form.
    pub format: u32,
    /// Version of the program that made it.
    pub program: String,
    /// When the database was as it is in the backup.
    pub made_at: DateTime<Utc>,
    /// Version of the database's schema.
    pub schema_version: i64,
    /// Bytes of the dump.
    pub database_bytes: u64,
    /// SHA-256 of the dump.
    pub database_sha256: String,
    /// SHA-256 of the list of artifacts.
    pub list_sha256: String,
    /// Number of artifacts.
    pub artifacts: u64,
    /// Bytes of all artifacts.
    pub artifact_bytes: u64,
}

/// Makes a backup in `folder`, which must be empty or not exist. The registry may be in use; `gc` waits.
///
/// # Errors
/// `backup`, `maintenance_busy`, `artifact_missing`, `artifact_corrupt`, `io`, `storage`, `database`.
pub async fn make(registry: &Registry, database_url: &str, programs: &Programs, folder: &Path) -> Result<Backup> {
    require_empty(folder)?;
    let mut guard = registry.pool().acquire().await?;
    // Its lock ends with it, whatever happens.
    guard.close_on_drop();
    garbage::take(&mut guard, "pg_try_advisory_lock_shared").await?;
    // One snapshot for the dump and for the list: what the dump's rows refer to is what is copied.
    let mut snapshot = registry.pool().begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").execute(&mut *snapshot).await?;
    let seen = sqlx::query(
        "SELECT pg_export_snapshot() AS id, now() AS made_at, (SELECT max(version) FROM _sqlx_migrations) AS version",
    )
    .fetch_one(&mut *snapshot)
    .await?;
    let list: Vec<(String, i64)> =
        sqlx::query_as("SELECT digest::text, size FROM artifacts ORDER BY digest").fetch_all(&mut *snapshot).await?;
    programs.dump(database_url, seen.try_get("id")?, &folder.join(DUMP)).await?;
    let (made_at, schema_version) = (seen.try_get("made_at")?, seen.try_get("version")?);
    snapshot.rollback().await?;

    copy_out(registry.artifacts(), &list, folder).await?;
    let text: String = list.iter().map(|(digest, size)| format!("{digest} {size}\n")).collect();
    write(&folder.join(LIST), text.as_bytes())?;
    let (database_sha256, database_bytes) = hash_file(&folder.join(DUMP)).await?;
    let backup = Backup {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").into(),
        made_at,
        schema_version,
        database_bytes,
        database_sha256,
        list_sha256: hex::encode(Sha256::digest(text.as_bytes())),
        artifacts: list.len() as u64,
        artifact_bytes: list.iter().map(|(_, size)| u64::try_from(*size).unwrap_or(0)).sum(),
    };
    garbage::give_back(&mut guard, "pg_advisory_unlock_shared").await?;
    let json = serde_json::to_vec_pretty(&backup).map_err(|e| unusable(folder, e.to_string()))?;
    write(&folder.join(MANIFEST), &json)?;
    Ok(backup)
}

/// Puts a backup into a database without tables and into an artifact store, and compares every digest on the way.
/// Artifacts come first: what is cut off leaves files without rows, and can be begun again.
///
/// # Errors
/// `backup` when it is not complete or damaged, or the database is not empty; `schema_newer`, `io`, `storage`,
/// `database`, `database_unavailable`.
pub async fn restore(
    folder: &Path,
    programs: &Programs,
    database_url: &str,
    place: &ArtifactPlace,
    options: &S3Options,
) -> Result<Backup> {
    let backup = read(folder).await?;
    let known = migrations::newest();
    if backup.schema_version > known {
        return Err(Error::SchemaNewer { found: backup.schema_version, known });
    }
    let list = read_list(folder, &backup)?;
    let pool =
        PgPoolOptions::new().max_connections(2).connect(database_url).await.map_err(Error::DatabaseUnavailable)?;
    require_no_tables(&pool, folder).await?;
    let store = ArtifactStore::at(place, options, pool.clone())?;
    futures::stream::iter(list)
        .map(|digest| {
            let store = &store;
            async move {
                let path = folder.join(key_of(&digest)?);
                store.adopt(&path, &digest).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    pool.close().await;
    programs.restore(database_url, &folder.join(DUMP)).await?;
    Ok(backup)
}

async fn copy_out(store: &ArtifactStore, list: &[(String, i64)], folder: &Path) -> Result<()> {
    futures::stream::iter(list)
        .map(|(digest, _)| async move {
            let path = folder.join(key_of(digest)?);
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await.map_err(Error::io(parent))?;
            }
            store.save(digest, &path).await
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Reads what a backup says of itself, and compares it with its files but the artifacts.
async fn read(folder: &Path) -> Result<Backup> {
    let path = folder.join(MANIFEST);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(unusable(folder, "it has no backup.json: name the folder of a complete backup"));
        }
        Err(error) => return Err(Error::io(path)(error)),
    };
    let backup: Backup =
        serde_json::from_slice(&text).map_err(|e| unusable(folder, format!("its backup.json cannot be read ({e})")))?;
    if backup.format != FORMAT {
        let reason =
            format!("it has format {}, this program reads {FORMAT}: use the program that made it", backup.format);
        return Err(unusable(folder, reason));
    }
    if hash_file(&folder.join(DUMP)).await?.0 != backup.database_sha256 {
        return Err(unusable(folder, "its database.dump is damaged: use another backup"));
    }
    Ok(backup)
}

fn read_list(folder: &Path, backup: &Backup) -> Result<Vec<String>> {
    let path = folder.join(LIST);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    if hex::encode(Sha256::digest(text.as_bytes())) != backup.list_sha256 {
        return Err(unusable(folder, "its artifacts.list is damaged: use another backup"));
    }
    Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(digest, _)| digest.to_owned()).collect())
}

fn require_empty(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    if entries.next().is_some() {
        return Err(unusable(folder, "the folder is not empty: name a new one"));
    }
    Ok(())
}

async fn require_no_tables(pool: &PgPool, folder: &Path) -> Result<()> {
    let tables: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema'))",
    )
    .fetch_one(pool)
    .await?;
    if tables {
        return Err(unusable(folder, "the database has tables already: restore into an empty one"));
    }
    Ok(())
}

/// SHA-256 and size of a file.
async fn hash_file(path: &Path) -> Result<(String, u64)> {
    let path = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(&path).map_err(Error::io(&path))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            let read = std::io::Read::read(&mut file, &mut buffer).map_err(Error::io(&path))?;
            let Some(some) = buffer.get(..read).filter(|some| !some.is_empty()) else { break };
            hash.update(some);
            size += read as u64;
        }
        Ok((hex::encode(hash.finalize()), size))
    });
    hashed.await.map_err(|error| Error::Input(std::io::Error::other(error)))?
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;

    let partial = path.with_extension("part");
    let written =
        std::fs::File::create(&partial).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.and_then(|()| std::fs::rename(&partial, path)).map_err(Error::io(path))
}

fn unusable(path: impl Into<PathBuf>, reason: impl Into<String>) -> Error {
    Error::Backup { path: path.into(), reason: reason.into() }
}
