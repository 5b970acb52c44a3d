//! Generations: answered requests for weights, with the samples that were made.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::{DatasetId, Error, GenerationId, Page, PageRequest, Registry, Result, Seed, VersionId};

/// A generation.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Generation {
    /// Its id.
    pub id: GenerationId,
    /// The generator version that made it.
    pub version_id: VersionId,
    /// That version's generator.
    pub generator: String,
    /// That version's number.
    pub version: i32,
    /// The dataset, when it is a registered one.
    pub dataset_id: Option<DatasetId>,
    /// Digest of the dataset's content.
    pub dataset_digest: String,
    /// What was asked for: sampler, steps, guidance, …
    pub request: Value,
    /// The execution provider that was really used, such as `cpu`.
    pub provider: String,
    /// The device, in words.
    pub device: String,
    /// Milliseconds of each stage.
    pub timings: Value,
    /// The request's seed.
    #[sqlx(try_from = "i64")]
    pub seed: Seed,
    /// Number of samples.
    pub samples: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// One generated set of weights.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Sample {
    /// The generation it belongs to.
    pub generation_id: GenerationId,
    /// Its place in the generation, from 0.
    pub index: i32,
    /// Its own seed.
    #[sqlx(try_from = "i64")]
    pub seed: Seed,
    /// Digest of the weights (safetensors).
    pub artifact_digest: String,
    /// Bytes of the weights file.
    pub size: i64,
    /// Measured accuracy, 0 to 1, when it was evaluated.
    pub accuracy: Option<f32>,
    /// Other measures.
    pub metrics: Value,
}

/// A generation to record.
#[derive(Clone, Debug)]
pub struct NewGeneration {
    /// Its id, chosen before the samples so that their metadata can name it.
    pub id: GenerationId,
    /// The generator version that made it.
    pub version_id: VersionId,
    /// The dataset, when it is a registered one.
    pub dataset_id: Option<DatasetId>,
    /// Digest of the dataset's content.
    pub dataset_digest: String,
    /// What was asked for.
    pub request: Value,
    /// The execution provider that was really used.
    pub provider: String,
    /// The device, in words.
    pub device: String,
    /// Milliseconds of each stage.
    pub timings: Value,
    /// The request's seed.
    pub seed: Seed,
    /// The samples, at least one, in order; their artifacts are stored already.
    pub samples: Vec<NewSample>,
}

/// A sample to record; its index is its place in the list.
#[derive(Clone, Debug)]
pub struct NewSample {
    /// Its own seed.
    pub seed: Seed,
    /// Digest of the stored weights (safetensors).
    pub artifact_digest: String,
    /// Measured accuracy, 0 to 1, when it was evaluated.
    pub accuracy: Option<f32>,
    /// Other measures.
    pub metrics: Value,
}

/// Which generations to list.
#[derive(Clone, Debug, Default)]
pub struct GenerationFilter {
    /// Only those of this generator, by name.
    pub generator: Option<String>,
    /// Only those of this generator version.
    pub version: Option<VersionId>,
    /// Only those for this dataset.
    pub dataset: Option<DatasetId>,
}

const SELECT: &str = "SELECT n.id, n.version_id, g.name AS generator, v.version, n.dataset_id, n.dataset_digest,
        n.request, n.provider, n.device, n.timings, n.seed, n.created_at,
        (SELECT count(*) FROM samples s WHERE s.generation_id = n.id) AS samples
    FROM generations n JOIN generator_versions v ON v.id = n.version_id JOIN generators g ON g.id = v.generator_id";

/// Records a generation and its samples: all of it or nothing.
///
/// # Errors
/// `not_found` (version, dataset), `artifact_missing`, `already_exists` (the id), `invalid_value`.
pub async fn create(registry: &Registry, new: &NewGeneration) -> Result<Generation> {
    if new.samples.is_empty() {
        return Err(Error::invalid("samples", "a generation has at least one sample"));
    }
    let mut transaction = registry.pool().begin().await?;
    insert(&mut transaction, new).await?;
    insert_samples(&mut transaction, new).await?;
    transaction.commit().await?;
    get(registry, new.id).await
}

async fn insert(connection: &mut PgConnection, new: &NewGeneration) -> Result<()> {
    sqlx::query(
        "INSERT INTO generations
            (id, version_id, dataset_id, dataset_digest, request, provider, device, timings, seed)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(new.id)
    .bind(new.version_id)
    .bind(new.dataset_id)
    .bind(&new.dataset_digest)
    .bind(&new.request)
    .bind(&new.provider)
    .bind(&new.device)
    .bind(&new.timings)
    .bind(new.seed.to_bigint())
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_samples(connection: &mut PgConnection, new: &NewGeneration) -> Result<()> {
    // The outer join keeps a sample whose artifact is missing, so that the foreign key names the digest.
    sqlx::query(
        "INSERT INTO samples (generation_id, index, seed, artifact_digest, size, accuracy, metrics)
         SELECT $1, s.place - 1, s.seed, s.digest, COALESCE(a.size, 0), s.accuracy, s.metrics
         FROM UNNEST($2::bigint[], $3::text[], $4::real[], $5::jsonb[])
              WITH ORDINALITY AS s (seed, digest, accuracy, metrics, place)
         LEFT JOIN artifacts a ON a.digest = s.digest",
    )
    .bind(new.id)
    .bind(new.samples.iter().map(|s| s.seed.to_bigint()).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.artifact_digest.as_str()).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.accuracy).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.metrics.clone()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The generation of an id.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, id: GenerationId) -> Result<Generation> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} WHERE n.id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("generation", id))
}

/// The samples of a generation, in order.
///
/// # Errors
/// `not_found` when there is no such generation.
pub async fn samples(registry: &Registry, id: GenerationId) -> Result<Vec<Sample>> {
    let rows: Vec<Sample> = sqlx::query_as(
        "SELECT generation_id, index, seed, artifact_digest, size, accuracy, metrics
         FROM samples WHERE generation_id = $1 ORDER BY index",
    )
    .bind(id)
    .fetch_all(registry.pool())
    .await?;
    if rows.is_empty() { Err(Error::not_found("generation", id)) } else { Ok(rows) }
}

/// One sample of a generation.
///
/// # Errors
/// `not_found`.
pub async fn sample(registry: &Registry, id: GenerationId, index: i32) -> Result<Sample> {
    sqlx::query_as(
        "SELECT generation_id, index, seed, artifact_digest, size, accuracy, metrics
         FROM samples WHERE generation_id = $1 AND index = $2",
    )
    .bind(id)
    .bind(index)
    .fetch_optional(registry.pool())
    .await?
    .ok_or_else(|| Error::not_found("sample", format!("{id}/{index}")))
}

/// Generations, newest first.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, filter: &GenerationFilter, page: &PageRequest) -> Result<Page<Generation>> {
    let (time, id) = page.after_time()?;
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{SELECT}
         WHERE (n.created_at, n.id)
               < (COALESCE($1, 'infinity'), COALESCE($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
           AND ($3::text IS NULL OR g.name = $3) AND ($4::uuid IS NULL OR n.version_id = $4)
           AND ($5::uuid IS NULL OR n.dataset_id = $5)
         ORDER BY n.created_at DESC, n.id DESC LIMIT $6"
    )))
    .bind(time)
    .bind(id)
    .bind(&filter.generator)
    .bind(filter.version)
    .bind(filter.dataset)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_time(rows, |row: &Generation| (row.created_at, row.id.as_uuid())))
}
