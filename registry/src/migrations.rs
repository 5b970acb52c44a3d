//! Brings the schema up to date, or says why that cannot be.

use sqlx::PgPool;
use sqlx::migrate::{MigrateError, Migrator};

use crate::{Error, Result};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// Postgres' `insufficient_privilege`: only a superuser may add the extension.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Runs the migrations that are missing. Several processes may call it at once.
pub(crate) async fn run(pool: &PgPool) -> Result<()> {
    refuse_newer(pool).await?;
    require_pgvector(pool).await?;
    match MIGRATOR.run(pool).await {
        Ok(()) => Ok(()),
        Err(MigrateError::Execute(error)) => Err(error.into()),
        Err(MigrateError::ExecuteMigration(error, _)) => Err(explain(error)),
        Err(error) => Err(Error::SchemaMismatch(error)),
    }
}

async fn refuse_newer(pool: &PgPool) -> Result<()> {
    let known = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
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
