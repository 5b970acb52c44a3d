//! Zoos: populations of trained models of one architecture.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::runs::{self, NewRun};
use crate::{
    About, Access, ArchitectureId, Caller, Change, Error, ListRequest, NewAbout, Page, Registry, Result, Write, ZooId,
    names,
};

/// A zoo.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Zoo {
    /// Its id.
    pub id: ZooId,
    /// Its unique name.
    pub name: String,
    /// The architecture of its models; one for imports has none until its first checkpoint comes.
    pub architecture_id: Option<ArchitectureId>,
    /// How it was trained.
    pub config: Value,
    /// Digest of its content; none where that may grow.
    pub digest: Option<String>,
    /// Number of runs.
    pub runs: i64,
    /// Number of checkpoints of all runs.
    pub checkpoints: i64,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// Owner, visibility, tags, description.
    #[sqlx(flatten)]
    pub about: About,
}

/// A zoo to register.
#[derive(Clone, Debug)]
pub struct NewZoo {
    /// Its unique name.
    pub name: String,
    /// The architecture of its models; one for imports has none until its first checkpoint comes.
    pub architecture_id: Option<ArchitectureId>,
    /// How it was trained.
    pub config: Value,
    /// Digest of its content; none where that may grow.
    pub digest: Option<String>,
    /// Tags, description, visibility.
    pub about: NewAbout,
}

/// Which zoos to list.
#[derive(Clone, Debug, Default)]
pub struct ZooFilter {
    /// Only the one of this name.
    pub name: Option<String>,
    /// Only those of this architecture.
    pub architecture: Option<ArchitectureId>,
}

const COLUMNS: &str = "z.id, z.name, z.architecture_id, z.config, z.digest, z.runs, z.checkpoints, z.created_at,
    z.owner, z.visibility, z.tags, z.description, z.updated_at, z.deleted_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM zoos z",
    late: "",
    alias: "z",
    sight: Sight::Named("z"),
    deletable: true,
    described: true,
    orders: &[
        Order { field: "name", column: "z.name", kind: Kind::Text },
        Order { field: "created_at", column: "z.created_at", kind: Kind::Time },
    ],
    default_order: "name",
};

impl Zoo {
    pub(crate) fn access(&self) -> Access<'_> {
        Access { name: Some(&self.name), owner: &self.about.owner, visibility: &self.about.visibility }
    }
}

/// Registers a zoo without runs.
///
/// # Errors
/// `already_exists`, `invalid_name`, `name_not_allowed`, `not_found` (the architecture), `invalid_value`.
pub async fn create(write: &mut Write, new: &NewZoo) -> Result<Zoo> {
    create_with_runs(write, new, &[]).await
}

/// Registers a zoo with all its runs and checkpoints: all of it or nothing.
///
/// # Errors
/// Those of [`create`] and of [`runs::insert_bulk`].
pub async fn create_with_runs(write: &mut Write, new: &NewZoo, new_runs: &[NewRun]) -> Result<Zoo> {
    names::check(&new.name)?;
    write.caller().require_name(&new.name)?;
    let (id, owner) = (ZooId::generate(), write.caller().name.clone());
    sqlx::query(
        "INSERT INTO zoos (id, name, architecture_id, config, digest, owner, visibility, tags, description)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(id)
    .bind(&new.name)
    .bind(new.architecture_id)
    .bind(&new.config)
    .bind(&new.digest)
    .bind(owner)
    .bind(new.about.visibility())
    .bind(&new.about.tags)
    .bind(&new.about.description)
    .execute(write.connection())
    .await?;
    runs::insert(write.connection(), id, new_runs).await?;
    let sql = format!("SELECT {COLUMNS} FROM zoos z WHERE z.id = $1");
    let zoo: Zoo = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_one(write.connection()).await?;
    let after = json!({"name": zoo.name, "digest": zoo.digest, "runs": zoo.runs, "checkpoints": zoo.checkpoints});
    write.audit(Change::made("zoo.create", "zoo", id, after)).await?;
    Ok(zoo)
}

/// The zoo of a name.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn get(registry: &Registry, caller: &Caller, name: &str) -> Result<Zoo> {
    let sql = format!("SELECT {COLUMNS} FROM zoos z WHERE z.name = $1 AND z.deleted_at IS NULL");
    let found: Option<Zoo> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(name).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("zoo", name))
}

/// The zoo of an id.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn by_id(registry: &Registry, caller: &Caller, id: ZooId) -> Result<Zoo> {
    let sql = format!("SELECT {COLUMNS} FROM zoos z WHERE z.id = $1 AND z.deleted_at IS NULL");
    let found: Option<Zoo> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("zoo", id))
}

/// The zoo of an id as it is in a unit of work.
///
/// # Errors
/// `not_found`.
pub async fn in_work(write: &mut Write, id: ZooId) -> Result<Zoo> {
    let sql = format!("SELECT {COLUMNS} FROM zoos z WHERE z.id = $1");
    let found = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(write.connection()).await?;
    found.ok_or_else(|| Error::not_found("zoo", id))
}

/// The zoo of an id, locked for adding to it.
///
/// # Errors
/// `not_found`, `not_owner`.
pub(crate) async fn owned(write: &mut Write, id: ZooId) -> Result<Zoo> {
    let sql = format!("SELECT {COLUMNS} FROM zoos z WHERE z.id = $1 AND z.deleted_at IS NULL FOR KEY SHARE");
    let found: Option<Zoo> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(write.connection()).await?;
    let zoo = found.ok_or_else(|| Error::not_found("zoo", id))?;
    write.caller().require_sight("zoo", &id.to_string(), zoo.access())?;
    write.caller().require_ownership("zoo", &zoo.name, &zoo.about.owner)?;
    Ok(zoo)
}

/// Zoos, by name unless another order is asked for (`name`, `created_at`).
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &ZooFilter,
    request: &ListRequest,
) -> Result<Page<Zoo>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    query.equal("z.name", filter.name.as_ref());
    query.equal("z.architecture_id", filter.architecture.as_ref());
    query.page(registry).await
}
