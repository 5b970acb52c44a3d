//! Generators and their versions: numbered from 1, immutable, a number never given twice.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::{Error, GeneratorId, GeneratorRef, Page, PageRequest, Registry, Result, Selector, VersionId, ZooId, names};

/// A generator: a name with versions.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Generator {
    /// Its id.
    pub id: GeneratorId,
    /// Its unique name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Number of versions.
    pub versions: i64,
    /// The highest version there is.
    pub latest: Option<i32>,
    /// When its first version was published.
    pub created_at: DateTime<Utc>,
}

/// One immutable version of a generator.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct GeneratorVersion {
    /// Its id.
    pub id: VersionId,
    /// The generator's name.
    pub generator: String,
    /// Its number, from 1.
    pub version: i32,
    /// Digest of the bundle's content.
    pub digest: String,
    /// What it generates weights for, such as `image`.
    pub modality: String,
    /// The bundle's manifest.
    pub manifest: Value,
    /// Digest of the stored bundle (tar).
    pub artifact_digest: String,
    /// The zoo it was trained on, when that is in this registry.
    pub zoo_id: Option<ZooId>,
    /// When it was published.
    pub created_at: DateTime<Utc>,
}

/// A version to publish.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// The generator's name; the generator is made when there is none.
    pub name: String,
    /// What the generator is for; used when it is made.
    pub description: String,
    /// Digest of the bundle's content.
    pub digest: String,
    /// What it generates weights for, such as `image`.
    pub modality: String,
    /// The bundle's manifest.
    pub manifest: Value,
    /// Digest of the stored bundle (tar).
    pub artifact_digest: String,
    /// The zoo it was trained on, when that is in this registry.
    pub zoo_id: Option<ZooId>,
}

const SELECT: &str = "SELECT id, name, description, created_at,
        (SELECT count(*) FROM generator_versions v WHERE v.generator_id = g.id) AS versions,
        (SELECT max(version) FROM generator_versions v WHERE v.generator_id = g.id) AS latest
    FROM generators g";

const SELECT_VERSION: &str = "SELECT v.id, g.name AS generator, v.version, v.digest, v.modality, v.manifest,
        v.artifact_digest, v.zoo_id, v.created_at
    FROM generator_versions v JOIN generators g ON g.id = v.generator_id";

/// Publishes a bundle as the next version of a generator. The same digest again returns the version it has.
///
/// # Errors
/// `invalid_name`, `invalid_value`, `artifact_missing`, `not_found` (the zoo).
pub async fn publish(registry: &Registry, new: &NewVersion) -> Result<GeneratorVersion> {
    names::check(&new.name)?;
    let mut transaction = registry.pool().begin().await?;
    let generator = ensure_generator(&mut transaction, new).await?;
    let existing: Option<VersionId> =
        sqlx::query_scalar("SELECT id FROM generator_versions WHERE generator_id = $1 AND digest = $2")
            .bind(generator)
            .bind(&new.digest)
            .fetch_optional(&mut *transaction)
            .await?;
    let id = match existing {
        Some(id) => id,
        None => insert_version(&mut transaction, generator, new).await?,
    };
    transaction.commit().await?;
    by_version_id(registry, id).await
}

/// The generator's id, its row locked: publishing to one generator goes one at a time.
async fn ensure_generator(connection: &mut PgConnection, new: &NewVersion) -> Result<GeneratorId> {
    sqlx::query("INSERT INTO generators (id, name, description) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING")
        .bind(GeneratorId::generate())
        .bind(&new.name)
        .bind(&new.description)
        .execute(&mut *connection)
        .await?;
    lock(connection, &new.name).await
}

/// Locks a generator's row until the transaction ends.
pub(crate) async fn lock(connection: &mut PgConnection, name: &str) -> Result<GeneratorId> {
    sqlx::query_scalar("SELECT id FROM generators WHERE name = $1 FOR NO KEY UPDATE")
        .bind(name)
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| Error::not_found("generator", name))
}

async fn insert_version(connection: &mut PgConnection, generator: GeneratorId, new: &NewVersion) -> Result<VersionId> {
    let version: i32 = sqlx::query_scalar(
        "UPDATE generators SET last_version = last_version + 1 WHERE id = $1 RETURNING last_version",
    )
    .bind(generator)
    .fetch_one(&mut *connection)
    .await?;
    let id = VersionId::generate();
    sqlx::query(
        "INSERT INTO generator_versions
            (id, generator_id, version, digest, modality, manifest, artifact_digest, zoo_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(generator)
    .bind(version)
    .bind(&new.digest)
    .bind(&new.modality)
    .bind(&new.manifest)
    .bind(&new.artifact_digest)
    .bind(new.zoo_id)
    .execute(connection)
    .await?;
    Ok(id)
}

/// The version a reference means: `name` or `name@latest` (the highest), `name@3`, `name@alias`.
///
/// # Errors
/// `invalid_reference`; `not_found`, which says whether the generator or the version is missing.
pub async fn resolve(registry: &Registry, reference: &str) -> Result<GeneratorVersion> {
    let parsed: GeneratorRef = reference.parse()?;
    let found = match &parsed.selector {
        Selector::Latest => fetch(registry, "g.name = $1 ORDER BY v.version DESC LIMIT 1", &parsed.name, "").await?,
        Selector::Version(version) => {
            fetch(registry, "g.name = $1 AND v.version::text = $2", &parsed.name, &version.to_string()).await?
        }
        Selector::Alias(alias) => {
            let condition = "g.name = $1 AND v.version = \
                             (SELECT a.version FROM aliases a WHERE a.generator_id = g.id AND a.alias = $2)";
            fetch(registry, condition, &parsed.name, alias).await?
        }
    };
    match found {
        Some(version) => Ok(version),
        None => {
            get(registry, &parsed.name).await?;
            let resource = match parsed.selector {
                Selector::Alias(_) => "generator alias",
                _ => "generator version",
            };
            Err(Error::not_found(resource, parsed))
        }
    }
}

/// One version under a condition on the name ($1) and a selector ($2, possibly unused).
async fn fetch(
    registry: &Registry,
    condition: &'static str,
    name: &str,
    selector: &str,
) -> Result<Option<GeneratorVersion>> {
    // `$2` has to appear for its type to be known.
    let sql = format!("{SELECT_VERSION} WHERE $2::text IS NOT NULL AND {condition}");
    let found =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(name).bind(selector).fetch_optional(registry.pool()).await?;
    Ok(found)
}

/// The version of an id.
///
/// # Errors
/// `not_found`.
pub async fn by_version_id(registry: &Registry, id: VersionId) -> Result<GeneratorVersion> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT_VERSION} WHERE v.id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("generator version", id))
}

/// The generator of a name.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, name: &str) -> Result<Generator> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} WHERE name = $1")))
        .bind(name)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("generator", name))
}

/// Generators by name, all or those whose name or description contains `search` (case ignored).
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, search: Option<&str>, page: &PageRequest) -> Result<Page<Generator>> {
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{SELECT} WHERE name > COALESCE($1, '')
           AND ($2::text IS NULL OR position(lower($2) IN name) > 0 OR position(lower($2) IN lower(description)) > 0)
         ORDER BY name LIMIT $3"
    )))
    .bind(page.after_name()?)
    .bind(search)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_name(rows, |row: &Generator| &row.name))
}

/// Versions of a generator, newest first.
///
/// # Errors
/// `not_found`, `invalid_cursor`, `invalid_value`.
pub async fn versions(registry: &Registry, name: &str, page: &PageRequest) -> Result<Page<GeneratorVersion>> {
    let generator = get(registry, name).await?;
    let (time, id) = page.after_time()?;
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{SELECT_VERSION} WHERE v.generator_id = $1 AND (v.created_at, v.id)
            < (COALESCE($2, 'infinity'), COALESCE($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
         ORDER BY v.created_at DESC, v.id DESC LIMIT $4"
    )))
    .bind(generator.id)
    .bind(time)
    .bind(id)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_time(rows, |row: &GeneratorVersion| (row.created_at, row.id.as_uuid())))
}
