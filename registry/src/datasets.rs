//! Datasets: labelled examples, stored as one `.npz` artifact each.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{DatasetId, Error, Page, PageRequest, Registry, Result, names};

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
}

/// Which datasets to list.
#[derive(Clone, Debug, Default)]
pub struct DatasetFilter {
    /// Only those of this name.
    pub name: Option<String>,
    /// Only those of this modality.
    pub modality: Option<String>,
}

const COLUMNS: &str = "id, name, modality, shape, class_names, examples, digest, artifact_digest, created_at";

/// Registers a dataset.
///
/// # Errors
/// `already_exists` (the same content), `invalid_name`, `invalid_value`, `artifact_missing`.
pub async fn create(registry: &Registry, new: &NewDataset) -> Result<Dataset> {
    names::check(&new.name)?;
    let row = sqlx::query_as(
        "INSERT INTO datasets (id, name, modality, shape, class_names, examples, digest, artifact_digest)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         RETURNING id, name, modality, shape, class_names, examples, digest, artifact_digest, created_at",
    )
    .bind(DatasetId::generate())
    .bind(&new.name)
    .bind(&new.modality)
    .bind(&new.shape)
    .bind(&new.class_names)
    .bind(new.examples)
    .bind(&new.digest)
    .bind(&new.artifact_digest)
    .fetch_one(registry.pool())
    .await?;
    Ok(row)
}

/// Registers a dataset, or returns the one that has the same content.
///
/// # Errors
/// As [`create`], without `already_exists`.
pub async fn ensure(registry: &Registry, new: &NewDataset) -> Result<Dataset> {
    match create(registry, new).await {
        Err(Error::AlreadyExists { .. }) => by_digest(registry, &new.digest).await,
        other => other,
    }
}

/// The dataset of an id.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, id: DatasetId) -> Result<Dataset> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM datasets WHERE id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("dataset", id))
}

/// The dataset whose content has a digest.
///
/// # Errors
/// `not_found`.
pub async fn by_digest(registry: &Registry, digest: &str) -> Result<Dataset> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM datasets WHERE digest = $1")))
        .bind(digest)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("dataset", digest))
}

/// Datasets, newest first.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, filter: &DatasetFilter, page: &PageRequest) -> Result<Page<Dataset>> {
    let (time, id) = page.after_time()?;
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM datasets
         WHERE (created_at, id) < (COALESCE($1, 'infinity'), COALESCE($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
           AND ($3::text IS NULL OR name = $3) AND ($4::text IS NULL OR modality = $4)
         ORDER BY created_at DESC, id DESC LIMIT $5"
    )))
    .bind(time)
    .bind(id)
    .bind(&filter.name)
    .bind(&filter.modality)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_time(rows, |row: &Dataset| (row.created_at, row.id.as_uuid())))
}
