//! Feature extractors: registered ONNX image encoders.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    About, Access, Caller, Change, Error, ExtractorId, ListRequest, NewAbout, Page, Registry, Result, Write, names,
};

/// A feature extractor.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Extractor {
    /// Its id.
    pub id: ExtractorId,
    /// Its unique name.
    pub name: String,
    /// What it takes and gives, as in a bundle's manifest.
    pub spec: Value,
    /// Features of an image.
    pub dim: i32,
    /// Digest of the stored ONNX graph.
    pub artifact_digest: String,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// Owner, visibility, tags, description.
    #[sqlx(flatten)]
    pub about: About,
}

/// A feature extractor to register; whoever registers it has run the graph.
#[derive(Clone, Debug)]
pub struct NewExtractor {
    /// Its unique name, not `pixels`.
    pub name: String,
    /// What it takes and gives.
    pub spec: Value,
    /// Features of an image, 1 or more.
    pub dim: i32,
    /// Digest of the stored ONNX graph.
    pub artifact_digest: String,
    /// Tags, description, visibility.
    pub about: NewAbout,
}

const COLUMNS: &str = "x.id, x.name, x.spec, x.dim, x.artifact_digest, x.created_at,
    x.owner, x.visibility, x.tags, x.description, x.updated_at, x.deleted_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM extractors x",
    late: "",
    alias: "x",
    sight: Sight::Named("x"),
    deletable: true,
    described: true,
    orders: &[
        Order { field: "name", column: "x.name", kind: Kind::Text },
        Order { field: "created_at", column: "x.created_at", kind: Kind::Time },
    ],
    default_order: "name",
};

impl Extractor {
    fn access(&self) -> Access<'_> {
        Access { name: Some(&self.name), owner: &self.about.owner, visibility: &self.about.visibility }
    }
}

/// Registers an extractor.
///
/// # Errors
/// `already_exists`, `invalid_name`, `name_not_allowed`, `invalid_value`, `artifact_missing`.
pub async fn create(write: &mut Write, new: &NewExtractor) -> Result<Extractor> {
    names::check(&new.name)?;
    write.caller().require_name(&new.name)?;
    let owner = write.caller().name.clone();
    let sql = format!(
        "INSERT INTO extractors AS x (id, name, spec, dim, artifact_digest, owner, visibility, tags, description)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING {COLUMNS}"
    );
    let row: Extractor = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(ExtractorId::generate())
        .bind(&new.name)
        .bind(&new.spec)
        .bind(new.dim)
        .bind(&new.artifact_digest)
        .bind(owner)
        .bind(new.about.visibility())
        .bind(&new.about.tags)
        .bind(&new.about.description)
        .fetch_one(write.connection())
        .await?;
    let after = json!({"id": row.id, "dim": row.dim, "digest": row.artifact_digest});
    write.audit(Change::made("extractor.create", "extractor", &row.name, after)).await?;
    Ok(row)
}

/// The extractor of a name.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn get(registry: &Registry, caller: &Caller, name: &str) -> Result<Extractor> {
    let sql = format!("SELECT {COLUMNS} FROM extractors x WHERE x.name = $1 AND x.deleted_at IS NULL");
    let found: Option<Extractor> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(name).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("extractor", name))
}

/// Extractors, by name unless another order is asked for (`name`, `created_at`).
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, caller: &Caller, request: &ListRequest) -> Result<Page<Extractor>> {
    Query::start(&LISTED, request, caller)?.page(registry).await
}
