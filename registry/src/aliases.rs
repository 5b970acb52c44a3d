//! Aliases of generator versions, such as `stable`: they move atomically, and every move is kept.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use crate::{Error, GeneratorId, Page, PageRequest, Registry, Result, generators, names};

/// An alias.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Alias {
    /// The generator's name.
    pub generator: String,
    /// The alias, unique within the generator.
    pub alias: String,
    /// The version it points to.
    pub version: i32,
    /// When it was first set.
    pub created_at: DateTime<Utc>,
    /// When it last moved.
    pub updated_at: DateTime<Utc>,
}

/// One move of an alias.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct AliasChange {
    #[serde(skip)]
    id: uuid::Uuid,
    /// Where it pointed before; `None` when it was new.
    pub previous: Option<i32>,
    /// Where it pointed from then on.
    pub version: i32,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Where the caller believes an alias to point, for a move that must not undo someone else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anywhere or nowhere.
    Any,
    /// It does not exist.
    Absent,
    /// At this version.
    Version(i32),
}

/// Points an alias to a version; returns where it pointed before.
///
/// # Errors
/// `invalid_name`, `not_found` (generator, version), `conflict` when it is not where `expected` says.
pub async fn set(
    registry: &Registry,
    generator: &str,
    alias: &str,
    version: i32,
    expected: Expected,
) -> Result<Option<i32>> {
    names::check_alias(alias)?;
    let mut transaction = registry.pool().begin().await?;
    // The lock on the generator makes reading and moving one step.
    let id = generators::lock(&mut transaction, generator).await?;
    require_version(&mut transaction, id, generator, version).await?;
    let previous: Option<i32> =
        sqlx::query_scalar("SELECT version FROM aliases WHERE generator_id = $1 AND alias = $2")
            .bind(id)
            .bind(alias)
            .fetch_optional(&mut *transaction)
            .await?;
    check_expected(generator, alias, previous, expected)?;
    if previous != Some(version) {
        write(&mut transaction, id, alias, previous, version).await?;
    }
    transaction.commit().await?;
    Ok(previous)
}

async fn require_version(connection: &mut PgConnection, id: GeneratorId, generator: &str, version: i32) -> Result<()> {
    let found: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM generator_versions WHERE generator_id = $1 AND version = $2)")
            .bind(id)
            .bind(version)
            .fetch_one(connection)
            .await?;
    if found { Ok(()) } else { Err(Error::not_found("generator version", format!("{generator}@{version}"))) }
}

fn check_expected(generator: &str, alias: &str, actual: Option<i32>, expected: Expected) -> Result<()> {
    let met = match expected {
        Expected::Any => true,
        Expected::Absent => actual.is_none(),
        Expected::Version(version) => actual == Some(version),
    };
    if met {
        return Ok(());
    }
    let words = |version: Option<i32>| version.map_or("no version".to_owned(), |v| format!("version {v}"));
    let expected = match expected {
        Expected::Version(version) => Some(version),
        Expected::Any | Expected::Absent => None,
    };
    Err(Error::Conflict {
        generator: generator.into(),
        alias: alias.into(),
        expected: words(expected),
        actual: words(actual),
    })
}

async fn write(
    connection: &mut PgConnection,
    id: GeneratorId,
    alias: &str,
    previous: Option<i32>,
    version: i32,
) -> Result<()> {
    // clock_timestamp, not now(): the transaction may have begun before an earlier move was committed.
    sqlx::query(
        "INSERT INTO aliases (generator_id, alias, version) VALUES ($1, $2, $3)
         ON CONFLICT (generator_id, alias) DO UPDATE SET version = $3, updated_at = clock_timestamp()",
    )
    .bind(id)
    .bind(alias)
    .bind(version)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO alias_history (id, generator_id, alias, previous, version, created_at)
         VALUES ($1, $2, $3, $4, $5, clock_timestamp())",
    )
    .bind(uuid::Uuid::now_v7())
    .bind(id)
    .bind(alias)
    .bind(previous)
    .bind(version)
    .execute(connection)
    .await?;
    Ok(())
}

/// One alias of a generator.
///
/// # Errors
/// `not_found` (generator, alias).
pub async fn get(registry: &Registry, generator: &str, alias: &str) -> Result<Alias> {
    let found = list(registry, generator).await?.into_iter().find(|found| found.alias == alias);
    found.ok_or_else(|| Error::not_found("generator alias", format!("{generator}@{alias}")))
}

/// All aliases of a generator, by name.
///
/// # Errors
/// `not_found` (generator).
pub async fn list(registry: &Registry, generator: &str) -> Result<Vec<Alias>> {
    let generator = generators::get(registry, generator).await?;
    let rows = sqlx::query_as(
        "SELECT g.name AS generator, a.alias, a.version, a.created_at, a.updated_at
         FROM aliases a JOIN generators g ON g.id = a.generator_id WHERE g.id = $1 ORDER BY a.alias",
    )
    .bind(generator.id)
    .fetch_all(registry.pool())
    .await?;
    Ok(rows)
}

/// The moves of an alias, newest first.
///
/// # Errors
/// `not_found` (generator), `invalid_cursor`, `invalid_value`.
pub async fn history(
    registry: &Registry,
    generator: &str,
    alias: &str,
    page: &PageRequest,
) -> Result<Page<AliasChange>> {
    let generator = generators::get(registry, generator).await?;
    let (time, id) = page.after_time()?;
    let rows = sqlx::query_as(
        "SELECT id, previous, version, created_at FROM alias_history
         WHERE generator_id = $1 AND alias = $2 AND (created_at, id)
            < (COALESCE($3, 'infinity'), COALESCE($4, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
         ORDER BY created_at DESC, id DESC LIMIT $5",
    )
    .bind(generator.id)
    .bind(alias)
    .bind(time)
    .bind(id)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_time(rows, |row: &AliasChange| (row.created_at, row.id)))
}
