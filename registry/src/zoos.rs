//! Zoos: populations of trained models of one architecture.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::runs::{self, NewRun};
use crate::{ArchitectureId, Error, Page, PageRequest, Registry, Result, ZooId, names};

/// A zoo.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Zoo {
    /// Its id.
    pub id: ZooId,
    /// Its unique name.
    pub name: String,
    /// The architecture of its models.
    pub architecture_id: ArchitectureId,
    /// How it was trained.
    pub config: Value,
    /// Digest of its content.
    pub digest: String,
    /// Number of runs.
    pub runs: i64,
    /// Number of checkpoints of all runs.
    pub checkpoints: i64,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A zoo to register.
#[derive(Clone, Debug)]
pub struct NewZoo {
    /// Its unique name.
    pub name: String,
    /// The architecture of its models.
    pub architecture_id: ArchitectureId,
    /// How it was trained.
    pub config: Value,
    /// Digest of its content.
    pub digest: String,
}

const SELECT: &str = "SELECT id, name, architecture_id, config, digest, created_at,
        (SELECT count(*) FROM runs WHERE zoo_id = zoos.id) AS runs,
        (SELECT count(*) FROM checkpoints JOIN runs ON runs.id = run_id WHERE zoo_id = zoos.id) AS checkpoints
    FROM zoos";

/// Registers a zoo without runs.
///
/// # Errors
/// `already_exists`, `invalid_name`, `not_found` (the architecture), `invalid_value`.
pub async fn create(registry: &Registry, new: &NewZoo) -> Result<Zoo> {
    create_with_runs(registry, new, &[]).await
}

/// Registers a zoo with all its runs and checkpoints: all of it or nothing.
///
/// # Errors
/// Those of [`create`] and of [`runs::insert_bulk`].
pub async fn create_with_runs(registry: &Registry, new: &NewZoo, new_runs: &[NewRun]) -> Result<Zoo> {
    names::check(&new.name)?;
    let mut transaction = registry.pool().begin().await?;
    let id = insert(&mut transaction, new).await?;
    runs::insert(&mut transaction, id, new_runs).await?;
    transaction.commit().await?;
    by_id(registry, id).await
}

async fn insert(connection: &mut PgConnection, new: &NewZoo) -> Result<ZooId> {
    let id = ZooId::generate();
    sqlx::query("INSERT INTO zoos (id, name, architecture_id, config, digest) VALUES ($1, $2, $3, $4, $5)")
        .bind(id)
        .bind(&new.name)
        .bind(new.architecture_id)
        .bind(&new.config)
        .bind(&new.digest)
        .execute(connection)
        .await?;
    Ok(id)
}

/// The zoo of a name.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, name: &str) -> Result<Zoo> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} WHERE name = $1")))
        .bind(name)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("zoo", name))
}

/// The zoo of an id.
///
/// # Errors
/// `not_found`.
pub async fn by_id(registry: &Registry, id: ZooId) -> Result<Zoo> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} WHERE id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("zoo", id))
}

/// Zoos by name, all or those of one architecture.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, architecture: Option<ArchitectureId>, page: &PageRequest) -> Result<Page<Zoo>> {
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{SELECT} WHERE name > COALESCE($1, '') AND ($2::uuid IS NULL OR architecture_id = $2) ORDER BY name LIMIT $3"
    )))
    .bind(page.after_name()?)
    .bind(architecture)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_name(rows, |row: &Zoo| &row.name))
}
