//! Brings the schema up to date, or says why that cannot be.

use sqlx::PgPool;
use sqlx::migrate::{MigrateError, Migrator};

use crate::jobs::SCHEMA;
use crate::{Error, Result};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// Postgres' `insufficient_privilege`: only a superuser may add the extension.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Held while the dispatcher's schema is made: "WSGW".
const DISPATCHER_LOCK: i64 = 0x5753_4757;

/// Brings a database's schema up to date, with that of the dispatcher of jobs. Several processes may call it at once.
///
/// # Errors
/// `schema_newer`, `schema_mismatch`, `pgvector_missing`, `dispatch`, `database`, `database_unavailable`.
pub async fn run(pool: &PgPool) -> Result<()> {
    refuse_newer(pool).await?;
    require_pgvector(pool).await?;
    match MIGRATOR.run(pool).await {
        Ok(()) => dispatcher(pool).await,
        Err(MigrateError::Execute(error)) => Err(error.into()),
        Err(MigrateError::ExecuteMigration(error, _)) => Err(explain(error)),
        Err(error) => Err(Error::SchemaMismatch(error)),
    }
}

/// Runs graphile_worker's own migrations, one process at a time.
async fn dispatcher(pool: &PgPool) -> Result<()> {
    let mut lock = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(DISPATCHER_LOCK).execute(&mut *lock).await?;
    let utils = graphile_worker::WorkerUtils::new(pool.clone(), SCHEMA);
    utils.migrate().await.map_err(|error| Error::Dispatch(Box::new(error)))?;
    Ok(lock.commit().await?)
}

/// The newest version of the schema that this program knows.
pub(crate) fn newest() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

async fn refuse_newer(pool: &PgPool) -> Result<()> {
    let known = newest();
    let migrated: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(pool).await?;
    if !migrated {
        return Ok(());
    }
    let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(pool).await?;
    match found {
        Some(found) if found > known => Err(Error::SchemaNewer { found, known }),
        _ => Ok(()),
    }
}

async fn require_pgvector(pool: &PgPool) -> Result<()> {
    let available: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')")
            .fetch_one(pool)
            .await?;
    if available { Ok(()) } else { Err(Error::PgvectorMissing) }
}

fn explain(error: sqlx::Error) -> Error {
    // `permission denied to create extension "vector"`, and not one to make a table.
    let refused = error
        .as_database_error()
        .is_some_and(|e| e.code().as_deref() == Some(INSUFFICIENT_PRIVILEGE) && e.message().contains("\"vector\""));
    if refused { Error::PgvectorMissing } else { error.into() }
}
