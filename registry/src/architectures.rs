//! Architectures: what a network looks like, as its layout of named parameters.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use crate::{ArchitectureId, Error, Page, PageRequest, Registry, Result, names};

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
}

const COLUMNS: &str = "id, name, config, parameters, layout, forward_artifact, created_at";

/// Registers an architecture.
///
/// # Errors
/// `already_exists`, `invalid_name`, `invalid_value`, `artifact_missing`.
pub async fn create(registry: &Registry, new: &NewArchitecture) -> Result<Architecture> {
    names::check(&new.name)?;
    let row = sqlx::query_as(
        "INSERT INTO architectures (id, name, config, parameters, layout, forward_artifact)
         VALUES ($1, $2, $3, $4, $5, $6)
         RETURNING id, name, config, parameters, layout, forward_artifact, created_at",
    )
    .bind(ArchitectureId::generate())
    .bind(&new.name)
    .bind(&new.config)
    .bind(new.parameters)
    .bind(&new.layout)
    .bind(&new.forward_artifact)
    .fetch_one(registry.pool())
    .await?;
    Ok(row)
}

/// Registers an architecture, or returns the one of that name when its layout is the same.
///
/// # Errors
/// As [`create`]; `already_exists` when the name belongs to another layout.
pub async fn ensure(registry: &Registry, new: &NewArchitecture) -> Result<Architecture> {
    match create(registry, new).await {
        Err(Error::AlreadyExists { resource, name }) => {
            let existing = get(registry, &new.name).await?;
            if existing.layout == new.layout { Ok(existing) } else { Err(Error::AlreadyExists { resource, name }) }
        }
        other => other,
    }
}

/// The architecture of a name.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, name: &str) -> Result<Architecture> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM architectures WHERE name = $1")))
        .bind(name)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("architecture", name))
}

/// The architecture of an id.
///
/// # Errors
/// `not_found`.
pub async fn by_id(registry: &Registry, id: ArchitectureId) -> Result<Architecture> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM architectures WHERE id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("architecture", id))
}

/// Architectures by name.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, page: &PageRequest) -> Result<Page<Architecture>> {
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM architectures WHERE name > COALESCE($1, '') ORDER BY name LIMIT $2"
    )))
    .bind(page.after_name()?)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_name(rows, |row: &Architecture| &row.name))
}
