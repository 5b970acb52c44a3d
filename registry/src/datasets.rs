//! Datasets: labelled examples, stored as one `.npz` artifact each.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    About, Access, Caller, Change, DatasetId, Error, ListRequest, NewAbout, Page, Registry, Result, Write, names,
};

/// A dataset.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Dataset {
    /// Its id.
    pub id: DatasetId,
    /// Its name; several datasets may share one.
    pub name: String,
    /// What its examples are, such as `image`.
    pub modality: String,
    /// Shape of one example, such as `[1, 8, 8]`.
    pub shape: Vec<i32>,
    /// Names of the classes, in label order.
    pub class_names: Vec<String>,
    /// Number of examples.
    pub examples: i64,
    /// Digest of the content, whatever file it came in; unique.
    pub digest: String,
    /// Digest of the stored `.npz` file.
    pub artifact_digest: String,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// Owner, visibility, tags, description.
    #[sqlx(flatten)]
    pub about: About,
}

/// A dataset to register.
#[derive(Clone, Debug)]
pub struct NewDataset {
    /// Its name.
    pub name: String,
    /// What its examples are, such as `image`.
    pub modality: String,
    /// Shape of one example.
    pub shape: Vec<i32>,
    /// Names of the classes, in label order, 2 or more.
    pub class_names: Vec<String>,
    /// Number of examples, 1 or more.
    pub examples: i64,
    /// Digest of the content.
    pub digest: String,
    /// Digest of the stored `.npz` file.
    pub artifact_digest: String,
    /// Tags, description, visibility.
    pub about: NewAbout,
}

/// Which datasets to list.
#[derive(Clone, Debug, Default)]
pub struct DatasetFilter {
    /// Only those of this name.
    pub name: Option<String>,
    /// Only labelled examples, and no texts.
    pub labelled: bool,
    /// Only those of this modality.
    pub modality: Option<String>,
    /// Only the one with this content.
    pub digest: Option<String>,
}

const COLUMNS: &str = "d.id, d.name, d.modality, d.shape, d.class_names, d.examples, d.digest, d.artifact_digest,
    d.created_at, d.owner, d.visibility, d.tags, d.description, d.updated_at, d.deleted_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM datasets d",
    late: "",
    alias: "d",
    sight: Sight::Named("d"),
    deletable: true,
    described: true,
    orders: &[
        Order { field: "created_at", column: "d.created_at", kind: Kind::Time },
        Order { field: "name", column: "d.name", kind: Kind::Text },
        Order { field: "examples", column: "d.examples", kind: Kind::Integer },
    ],
    default_order: "-created_at",
};

impl Dataset {
    fn access(&self) -> Access<'_> {
        Access { name: Some(&self.name), owner: &self.about.owner, visibility: &self.about.visibility }
    }
}

/// Registers a dataset.
///
/// # Errors
/// `already_exists` (the same content), `invalid_name`, `name_not_allowed`, `invalid_value`, `artifact_missing`.
pub async fn create(write: &mut Write, new: &NewDataset) -> Result<Dataset> {
    insert(write, new).await?.ok_or_else(|| Error::AlreadyExists { resource: "dataset", name: new.digest.clone() })
}

/// Registers a dataset, or returns the one that has the same content: restored when it was deleted.
///
/// # Errors
/// As [`create`]; `already_exists` only when the caller may not see the dataset of the same content.
pub async fn ensure(write: &mut Write, new: &NewDataset) -> Result<Dataset> {
    if let Some(made) = insert(write, new).await? {
        return Ok(made);
    }
    let caller = write.caller().clone();
    let sql = format!("SELECT {COLUMNS} FROM datasets d WHERE d.digest = $1 FOR NO KEY UPDATE");
    let found: Dataset =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(&new.digest).fetch_one(write.connection()).await?;
    if !caller.sees(found.access()) {
        return Err(Error::AlreadyExists { resource: "dataset", name: new.digest.clone() });
    }
    if found.about.deleted_at.is_none() {
        return Ok(found);
    }
    crate::lifecycle::restore(write, crate::lifecycle::Resource::Dataset, &found.id.to_string()).await?;
    Ok(Dataset { about: About { deleted_at: None, ..found.about }, ..found })
}

/// The new row, or none when the content is registered.
async fn insert(write: &mut Write, new: &NewDataset) -> Result<Option<Dataset>> {
    names::check(&new.name)?;
    write.caller().require_name(&new.name)?;
    let owner = write.caller().name.clone();
    let sql = format!(
        "INSERT INTO datasets AS d (id, name, modality, shape, class_names, examples, digest, artifact_digest,
                                    owner, visibility, tags, description)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         ON CONFLICT ON CONSTRAINT datasets_digest_key DO NOTHING RETURNING {COLUMNS}"
    );
    let row: Option<Dataset> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(DatasetId::generate())
        .bind(&new.name)
        .bind(&new.modality)
        .bind(&new.shape)
        .bind(&new.class_names)
        .bind(new.examples)
        .bind(&new.digest)
        .bind(&new.artifact_digest)
        .bind(owner)
        .bind(new.about.visibility())
        .bind(&new.about.tags)
        .bind(&new.about.description)
        .fetch_optional(write.connection())
        .await?;
    if let Some(row) = &row {
        let after = json!({"name": row.name, "digest": row.digest, "examples": row.examples});
        write.audit(Change::made("dataset.create", "dataset", row.id, after)).await?;
    }
    Ok(row)
}

/// The dataset of an id.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn get(registry: &Registry, caller: &Caller, id: DatasetId) -> Result<Dataset> {
    let sql = format!("SELECT {COLUMNS} FROM datasets d WHERE d.id = $1 AND d.deleted_at IS NULL");
    let found: Option<Dataset> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("dataset", id))
}

/// The dataset with this content.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn by_digest(registry: &Registry, caller: &Caller, digest: &str) -> Result<Dataset> {
    let sql = format!("SELECT {COLUMNS} FROM datasets d WHERE d.digest = $1 AND d.deleted_at IS NULL");
    let found: Option<Dataset> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(digest).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("dataset", digest))
}

/// The newest dataset of a name.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn by_name(registry: &Registry, caller: &Caller, name: &str) -> Result<Dataset> {
    let filter = DatasetFilter { name: Some(name.into()), labelled: true, ..DatasetFilter::default() };
    let first = list(registry, caller, &filter, &ListRequest { limit: 1, ..ListRequest::default() }).await?;
    first.items.into_iter().next().ok_or_else(|| Error::not_found("dataset", name))
}

/// Datasets, newest first unless another order is asked for (`created_at`, `name`, `examples`).
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &DatasetFilter,
    request: &ListRequest,
) -> Result<Page<Dataset>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    let equal = [("name", &filter.name), ("modality", &filter.modality), ("digest", &filter.digest)];
    for (column, value) in equal {
        query.equal(&format!("d.{column}"), value.as_ref());
    }
    if filter.labelled {
        query.sql.push(" AND d.modality <> 'text'");
    }
    query.page(registry).await
}
