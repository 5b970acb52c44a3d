//! Generations: answered requests for weights, with the samples that were made.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    About, Access, Caller, Change, CheckpointId, DatasetId, Error, GenerationId, ListRequest, NewAbout, Page, Registry,
    Result, Seed, VersionId, Write,
};

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
    /// Owner, visibility, tags, description.
    #[sqlx(flatten)]
    pub about: About,
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
    /// `generated`, `retrieved` or `closed_form`.
    pub origin: String,
    /// What it was ranked by, when it was.
    pub scores: Option<Value>,
    /// The checkpoint that was retrieved, unless that was purged.
    pub checkpoint_id: Option<CheckpointId>,
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
    /// Tags, description, visibility.
    pub about: NewAbout,
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
    /// `generated`, `retrieved` or `closed_form`.
    pub origin: &'static str,
    /// What it was ranked by, when it was.
    pub scores: Option<Value>,
    /// The checkpoint that was retrieved.
    pub checkpoint_id: Option<CheckpointId>,
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

const COLUMNS: &str = "n.id, n.version_id, g.name AS generator, v.version, n.dataset_id, n.dataset_digest, n.request,
    n.provider, n.device, n.timings, n.seed, n.created_at,
    (SELECT count(*) FROM samples s WHERE s.generation_id = n.id) AS samples,
    n.owner, n.visibility, n.tags, n.description, n.updated_at, n.deleted_at";

const FROM: &str = "FROM generations n JOIN generator_versions v ON v.id = n.version_id
    JOIN generators g ON g.id = v.generator_id";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: FROM,
    late: "",
    alias: "n",
    sight: Sight::Unnamed("n"),
    deletable: true,
    described: true,
    orders: &[Order { field: "created_at", column: "n.created_at", kind: Kind::Time }],
    default_order: "-created_at",
};

impl Generation {
    fn access(&self) -> Access<'_> {
        // A generation has the name of its generator: that is what patterns are about.
        Access { name: Some(&self.generator), owner: &self.about.owner, visibility: &self.about.visibility }
    }
}

/// Records a generation and its samples: all of it or nothing.
///
/// # Errors
/// `not_found` (version, dataset), `artifact_missing`, `already_exists` (the id), `invalid_value`.
pub async fn create(write: &mut Write, new: &NewGeneration) -> Result<Generation> {
    if new.samples.is_empty() {
        return Err(Error::invalid("samples", "a generation has at least one sample"));
    }
    insert(write, new).await?;
    insert_samples(write.connection(), new).await?;
    let sql = format!("SELECT {COLUMNS} {FROM} WHERE n.id = $1");
    let row: Generation = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(new.id).fetch_one(write.connection()).await?;
    let after = json!({"generator": format!("{}@{}", row.generator, row.version), "samples": row.samples});
    write.audit(Change::made("generation.create", "generation", new.id, after)).await?;
    Ok(row)
}

async fn insert(write: &mut Write, new: &NewGeneration) -> Result<()> {
    let owner = write.caller().name.clone();
    sqlx::query(
        "INSERT INTO generations
            (id, version_id, dataset_id, dataset_digest, request, provider, device, timings, seed,
             owner, visibility, tags, description)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
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
    .bind(owner)
    .bind(new.about.visibility())
    .bind(&new.about.tags)
    .bind(&new.about.description)
    .execute(write.connection())
    .await?;
    Ok(())
}

async fn insert_samples(connection: &mut PgConnection, new: &NewGeneration) -> Result<()> {
    // The outer join keeps a sample whose artifact is missing, so that the foreign key names the digest.
    sqlx::query(
        "INSERT INTO samples
            (generation_id, index, seed, artifact_digest, size, accuracy, metrics, origin, scores, checkpoint_id)
         SELECT $1, s.place - 1, s.seed, s.digest, COALESCE(a.size, 0), s.accuracy, s.metrics, s.origin, s.scores,
                s.checkpoint_id
         FROM UNNEST($2::bigint[], $3::text[], $4::real[], $5::jsonb[], $6::text[], $7::jsonb[], $8::uuid[])
              WITH ORDINALITY AS s (seed, digest, accuracy, metrics, origin, scores, checkpoint_id, place)
         LEFT JOIN artifacts a ON a.digest = s.digest",
    )
    .bind(new.id)
    .bind(new.samples.iter().map(|s| s.seed.to_bigint()).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.artifact_digest.as_str()).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.accuracy).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.metrics.clone()).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.origin).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.scores.clone()).collect::<Vec<_>>())
    .bind(new.samples.iter().map(|s| s.checkpoint_id.map(CheckpointId::as_uuid)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The generation of an id.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn get(registry: &Registry, caller: &Caller, id: GenerationId) -> Result<Generation> {
    let sql = format!("SELECT {COLUMNS} {FROM} WHERE n.id = $1 AND n.deleted_at IS NULL");
    let found: Option<Generation> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("generation", id))
}

const SAMPLE: &str = "SELECT s.generation_id, s.index, s.seed, s.artifact_digest, s.size, s.accuracy, s.metrics,
    s.origin, s.scores, s.checkpoint_id FROM samples s";

/// The samples of a generation, in order.
///
/// # Errors
/// `not_found` when there is no such generation that the caller may see.
pub async fn samples(registry: &Registry, caller: &Caller, id: GenerationId) -> Result<Vec<Sample>> {
    get(registry, caller, id).await?;
    let sql = format!("{SAMPLE} WHERE s.generation_id = $1 ORDER BY s.index");
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_all(registry.pool()).await?)
}

/// The samples of a generation that this write makes, in order.
///
/// # Errors
/// `database`.
pub async fn samples_within(write: &mut Write, id: GenerationId) -> Result<Vec<Sample>> {
    let sql = format!("{SAMPLE} WHERE s.generation_id = $1 ORDER BY s.index");
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_all(write.connection()).await?)
}

/// One sample of a generation.
///
/// # Errors
/// `not_found`, also when the caller may not see the generation.
pub async fn sample(registry: &Registry, caller: &Caller, id: GenerationId, index: i32) -> Result<Sample> {
    get(registry, caller, id).await?;
    let sql = format!("{SAMPLE} WHERE s.generation_id = $1 AND s.index = $2");
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
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
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &GenerationFilter,
    request: &ListRequest,
) -> Result<Page<Generation>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    if !caller.patterns.is_empty() {
        caller.push_names(&mut query.sql, "g.name");
    }
    query.equal("g.name", filter.generator.as_ref());
    query.equal("n.version_id", filter.version.as_ref());
    query.equal("n.dataset_id", filter.dataset.as_ref());
    query.page(registry).await
}
