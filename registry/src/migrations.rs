//! Brings the schema up to date, or says why that cannot be.

use sqlx::PgPool;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgPoolOptions;

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

/// A database's schema beside the one that this program makes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SchemaStatus {
    /// Newest migration of the database; none when it is empty.
    pub found: Option<i64>,
    /// Newest migration of this program.
    pub known: i64,
    /// Migrations that are missing, oldest first.
    pub pending: Vec<SchemaStep>,
}

/// One migration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SchemaStep {
    /// Its number.
    pub version: i64,
    /// What it is about.
    pub name: String,
}

impl SchemaStatus {
    /// Refuses a schema that this program would first have to migrate.
    ///
    /// # Errors
    /// `schema_behind`.
    pub fn require_current(&self) -> Result<()> {
        match self.pending.len() {
            0 => Ok(()),
            pending => Err(Error::SchemaBehind { pending }),
        }
    }
}

/// Looks at a database's schema and changes nothing.
///
/// # Errors
/// `database_unavailable`, `database`, `schema_newer`.
pub async fn schema_status(database_url: &str) -> Result<SchemaStatus> {
    let pool = one_connection(database_url).await?;
    let status = status(&pool).await;
    pool.close().await;
    status
}

/// Brings a database's schema up to date; gives what it was before.
///
/// # Errors
/// `database_unavailable`, `database`, `pgvector_missing`, `schema_newer`, `schema_mismatch`.
pub async fn migrate_schema(database_url: &str) -> Result<SchemaStatus> {
    let pool = one_connection(database_url).await?;
    let migrated = async {
        let before = status(&pool).await?;
        run(&pool).await?;
        Ok(before)
    };
    let migrated = migrated.await;
    pool.close().await;
    migrated
}

async fn one_connection(database_url: &str) -> Result<PgPool> {
    // A second one: some migrations ask beside the one that holds the lock.
    let options = PgPoolOptions::new().max_connections(2).acquire_timeout(crate::CONNECT_TIMEOUT);
    options.connect(database_url).await.map_err(Error::DatabaseUnavailable)
}

async fn status(pool: &PgPool) -> Result<SchemaStatus> {
    refuse_newer(pool).await?;
    let migrated: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(pool).await?;
    let done: Vec<i64> = match migrated {
        true => {
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY 1").fetch_all(pool).await?
        }
        false => Vec::new(),
    };
    let step = |migration: &sqlx::migrate::Migration| SchemaStep {
        version: migration.version,
        name: migration.description.to_string(),
    };
    Ok(SchemaStatus {
        found: done.last().copied(),
        known: MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default(),
        pending: MIGRATOR.iter().filter(|migration| !done.contains(&migration.version)).map(step).collect(),
    })
}
