//! Aliases of generator versions, such as `stable`: they move atomically, and every move is kept.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{Caller, Change, Error, GeneratorId, ListRequest, Page, Registry, Result, Write, generators, names};

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
    /// Where it pointed from then on; `None` when it was removed.
    pub version: Option<i32>,
    /// Who moved it.
    pub actor: String,
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
/// `invalid_name`, `not_found` (generator, version), `not_owner`, `yanked`, `conflict` when it is not where `expected`
/// says.
pub async fn set(
    write: &mut Write,
    generator: &str,
    alias: &str,
    version: i32,
    expected: Expected,
) -> Result<Option<i32>> {
    names::check_alias(alias)?;
    // The lock on the generator makes reading and moving one step.
    let id = generators::lock(write, generator).await?;
    let previous = current(write, id, alias).await?;
    check_expected(generator, alias, previous, expected)?;
    if previous != Some(version) {
        require_version(write, id, generator, version).await?;
        // clock_timestamp, not now(): the transaction may have begun before an earlier move was committed.
        sqlx::query(
            "INSERT INTO aliases (generator_id, alias, version) VALUES ($1, $2, $3)
             ON CONFLICT (generator_id, alias) DO UPDATE SET version = $3, updated_at = clock_timestamp()",
        )
        .bind(id)
        .bind(alias)
        .bind(version)
        .execute(write.connection())
        .await?;
        record(write, id, generator, alias, previous, Some(version)).await?;
    }
    Ok(previous)
}

/// Removes an alias; its history stays.
///
/// # Errors
/// `not_found` (generator, alias), `not_owner`, `conflict` when it is not where `expected` says.
pub async fn remove(write: &mut Write, generator: &str, alias: &str, expected: Expected) -> Result<()> {
    let id = generators::lock(write, generator).await?;
    let previous = current(write, id, alias).await?;
    if previous.is_none() {
        return Err(Error::not_found("generator alias", format!("{generator}@{alias}")));
    }
    check_expected(generator, alias, previous, expected)?;
    sqlx::query("DELETE FROM aliases WHERE generator_id = $1 AND alias = $2")
        .bind(id)
        .bind(alias)
        .execute(write.connection())
        .await?;
    record(write, id, generator, alias, previous, None).await
}

async fn current(write: &mut Write, id: GeneratorId, alias: &str) -> Result<Option<i32>> {
    let sql = "SELECT version FROM aliases WHERE generator_id = $1 AND alias = $2";
    Ok(sqlx::query_scalar(sql).bind(id).bind(alias).fetch_optional(write.connection()).await?)
}

async fn require_version(write: &mut Write, id: GeneratorId, generator: &str, version: i32) -> Result<()> {
    let yanked: Option<bool> = sqlx::query_scalar(
        "SELECT yanked_at IS NOT NULL FROM generator_versions WHERE generator_id = $1 AND version = $2 FOR KEY SHARE",
    )
    .bind(id)
    .bind(version)
    .fetch_optional(write.connection())
    .await?;
    match yanked {
        Some(false) => Ok(()),
        Some(true) => Err(Error::Yanked { generator: generator.into(), version }),
        None => Err(Error::not_found("generator version", format!("{generator}@{version}"))),
    }
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

/// Keeps a move, in the alias' history and in the audit trail.
async fn record(
    write: &mut Write,
    id: GeneratorId,
    generator: &str,
    alias: &str,
    previous: Option<i32>,
    version: Option<i32>,
) -> Result<()> {
    let actor = write.caller().name.clone();
    sqlx::query(
        "INSERT INTO alias_history (id, generator_id, alias, previous, version, actor, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp())",
    )
    .bind(uuid::Uuid::now_v7())
    .bind(id)
    .bind(alias)
    .bind(previous)
    .bind(version)
    .bind(actor)
    .execute(write.connection())
    .await?;
    let state = |version: Option<i32>| version.map(|version| json!({"version": version}));
    let action = if version.is_some() { "alias.move" } else { "alias.remove" };
    write
        .audit(Change {
            action,
            resource: "generator alias",
            id: format!("{generator}@{alias}"),
            before: state(previous),
            after: state(version),
        })
        .await
}

const HISTORY: Listed = Listed {
    columns: "h.id, h.previous, h.version, h.actor, h.created_at",
    from: "FROM alias_history h",
    late: "",
    alias: "h",
    sight: Sight::Checked,
    deletable: false,
    described: false,
    orders: &[Order { field: "created_at", column: "h.created_at", kind: Kind::Time }],
    default_order: "-created_at",
};

/// One alias of a generator.
///
/// # Errors
/// `not_found` (generator, alias).
pub async fn get(registry: &Registry, caller: &Caller, generator: &str, alias: &str) -> Result<Alias> {
    let found = list(registry, caller, generator).await?.into_iter().find(|found| found.alias == alias);
    found.ok_or_else(|| Error::not_found("generator alias", format!("{generator}@{alias}")))
}

/// All aliases of a generator, by name.
///
/// # Errors
/// `not_found` (generator).
pub async fn list(registry: &Registry, caller: &Caller, generator: &str) -> Result<Vec<Alias>> {
    let generator = generators::get(registry, caller, generator).await?;
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
    caller: &Caller,
    generator: &str,
    alias: &str,
    request: &ListRequest,
) -> Result<Page<AliasChange>> {
    let generator = generators::get(registry, caller, generator).await?;
    let mut query = Query::start(&HISTORY, request, caller)?;
    query.equal("h.generator_id", Some(&generator.id));
    query.equal("h.alias", Some(&alias.to_owned()));
    query.page(registry).await
}
