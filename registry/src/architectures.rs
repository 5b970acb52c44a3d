//! Architectures: what a network looks like, as its layout of named parameters.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    About, Access, ArchitectureId, Caller, Change, Error, ListRequest, NewAbout, Page, Registry, Result, Write, names,
};

/// An architecture.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Architecture {
    /// Its id.
    pub id: ArchitectureId,
    /// Its unique name.
    pub name: String,
    /// What the network is built from.
    pub config: Value,
    /// Number of parameters.
    pub parameters: i64,
    /// Names and shapes of the parameters, in order.
    pub layout: Value,
    /// Digest of the forward graph (ONNX, weights as inputs), when there is one.
    pub forward_artifact: Option<String>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// Owner, visibility, tags, description.
    #[sqlx(flatten)]
    pub about: About,
}

/// An architecture to register.
#[derive(Clone, Debug)]
pub struct NewArchitecture {
    /// Its unique name.
    pub name: String,
    /// What the network is built from.
    pub config: Value,
    /// Number of parameters, 1 or more.
    pub parameters: i64,
    /// Names and shapes of the parameters, in order.
    pub layout: Value,
    /// Digest of the stored forward graph, when there is one.
    pub forward_artifact: Option<String>,
    /// Tags, description, visibility.
    pub about: NewAbout,
}

const COLUMNS: &str = "a.id, a.name, a.config, a.parameters, a.layout, a.forward_artifact, a.created_at,
    a.owner, a.visibility, a.tags, a.description, a.updated_at, a.deleted_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM architectures a",
    late: "",
    alias: "a",
    sight: Sight::Named("a"),
    deletable: true,
    described: true,
    orders: &[
        Order { field: "name", column: "a.name", kind: Kind::Text },
        Order { field: "created_at", column: "a.created_at", kind: Kind::Time },
    ],
    default_order: "name",
};

impl Architecture {
    fn access(&self) -> Access<'_> {
        Access { name: Some(&self.name), owner: &self.about.owner, visibility: &self.about.visibility }
    }
}

/// Registers an architecture.
///
/// # Errors
/// `already_exists`, `invalid_name`, `name_not_allowed`, `invalid_value`, `artifact_missing`.
pub async fn create(write: &mut Write, new: &NewArchitecture) -> Result<Architecture> {
    insert(write, new).await?.ok_or_else(|| Error::AlreadyExists { resource: "architecture", name: new.name.clone() })
}

/// Registers an architecture, or returns the one of that name when its layout is the same.
///
/// # Errors
/// As [`create`]; `already_exists` when the name belongs to another layout, or to one that was deleted or is private.
pub async fn ensure(write: &mut Write, new: &NewArchitecture) -> Result<Architecture> {
    if let Some(made) = insert(write, new).await? {
        return Ok(made);
    }
    let caller = write.caller().clone();
    let sql = format!("SELECT {COLUMNS} FROM architectures a WHERE a.name = $1");
    let found: Architecture =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(&new.name).fetch_one(write.connection()).await?;
    if found.layout == new.layout && found.about.deleted_at.is_none() && caller.sees(found.access()) {
        Ok(found)
    } else {
        Err(Error::AlreadyExists { resource: "architecture", name: new.name.clone() })
    }
}

/// The new row, or none when the name is taken.
async fn insert(write: &mut Write, new: &NewArchitecture) -> Result<Option<Architecture>> {
    names::check(&new.name)?;
    write.caller().require_name(&new.name)?;
    let owner = write.caller().name.clone();
    let sql = format!(
        "INSERT INTO architectures AS a (id, name, config, parameters, layout, forward_artifact,
                                         owner, visibility, tags, description)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT ON CONSTRAINT architectures_name_key DO NOTHING RETURNING {COLUMNS}"
    );
    let row: Option<Architecture> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(ArchitectureId::generate())
        .bind(&new.name)
        .bind(&new.config)
        .bind(new.parameters)
        .bind(&new.layout)
        .bind(&new.forward_artifact)
        .bind(owner)
        .bind(new.about.visibility())
        .bind(&new.about.tags)
        .bind(&new.about.description)
        .fetch_optional(write.connection())
        .await?;
    if let Some(row) = &row {
        let after = json!({"id": row.id, "parameters": row.parameters});
        write.audit(Change::made("architecture.create", "architecture", &row.name, after)).await?;
    }
    Ok(row)
}

/// The architecture of a name.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn get(registry: &Registry, caller: &Caller, name: &str) -> Result<Architecture> {
    let sql = format!("SELECT {COLUMNS} FROM architectures a WHERE a.name = $1 AND a.deleted_at IS NULL");
    let found: Option<Architecture> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(name).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("architecture", name))
}

/// The architecture of an id, whether deleted or not.
///
/// # Errors
/// `not_found`, also when the caller may not see it.
pub async fn by_id(registry: &Registry, caller: &Caller, id: ArchitectureId) -> Result<Architecture> {
    let sql = format!("SELECT {COLUMNS} FROM architectures a WHERE a.id = $1");
    let found: Option<Architecture> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("architecture", id))
}

/// The architecture of an id, within a unit of work.
pub(crate) async fn in_work(write: &mut Write, id: ArchitectureId) -> Result<Architecture> {
    let sql = format!("SELECT {COLUMNS} FROM architectures a WHERE a.id = $1");
    let found = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(write.connection()).await?;
    found.ok_or_else(|| Error::not_found("architecture", id))
}

/// Architectures, by name unless another order is asked for (`name`, `created_at`).
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, caller: &Caller, request: &ListRequest) -> Result<Page<Architecture>> {
    Query::start(&LISTED, request, caller)?.page(registry).await
}
