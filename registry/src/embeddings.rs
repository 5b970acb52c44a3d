//! Embeddings of datasets and runs under a generator version's dataset encoder, and the nearest of them.

use pgvector::Vector;
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::page::MAX_LIMIT;
use crate::runs::array_text;
use crate::{Error, Registry, Result, VersionId, Write};

/// Dimensions a pgvector `vector` can have.
const MAX_DIMENSION: usize = 16_000;

/// What an embedding is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// A dataset (a task of its classes).
    Dataset,
    /// A run (its checkpoint's task).
    Run,
}

impl SubjectKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Run => "run",
        }
    }
}

/// An embedding to store.
#[derive(Clone, Debug)]
pub struct NewEmbedding {
    /// The dataset's or run's id.
    pub subject_id: Uuid,
    /// The task: classes in order.
    pub classes: Vec<i32>,
    /// The embedding: finite, not all zero, of one dimension for a generator version.
    pub embedding: Vec<f32>,
}

/// A stored embedding near a given one.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Neighbour {
    /// The dataset's or run's id.
    pub subject_id: Uuid,
    /// The task: classes in order.
    pub classes: Vec<i32>,
    /// Cosine distance, 0 (same direction) to 2 (opposite).
    pub distance: f64,
}

/// Stores embeddings under a generator version in one statement; a subject's task that is there is replaced.
///
/// # Errors
/// `not_found` (version, subject), `invalid_value` (dimension, values, a task given twice). Nothing is written then.
pub async fn insert_bulk(write: &mut Write, version: VersionId, kind: SubjectKind, new: &[NewEmbedding]) -> Result<()> {
    let Some(first) = new.first() else {
        return Ok(());
    };
    let dimension = first.embedding.len();
    new.iter().try_for_each(|item| check(&item.embedding, dimension))?;
    refuse_repeated(new)?;
    lock(write.connection(), version).await?;
    require_dimension(write.connection(), version, dimension).await?;
    require_subjects(write.connection(), kind, new).await?;
    insert(write.connection(), version, kind, new).await
}

/// The stored embeddings nearest to `query` by cosine distance, nearest first: an exact scan.
///
/// # Errors
/// `invalid_value` (values, dimension, limit of 1 to [`MAX_LIMIT`]).
pub async fn nearest(
    registry: &Registry,
    version: VersionId,
    kind: SubjectKind,
    query: &[f32],
    limit: u32,
) -> Result<Vec<Neighbour>> {
    if limit == 0 || limit > MAX_LIMIT {
        return Err(Error::invalid("limit", format!("ask for 1 to {MAX_LIMIT} neighbours, not {limit}")));
    }
    check(query, query.len())?;
    let mut connection = registry.pool().acquire().await?;
    require_dimension(&mut connection, version, query.len()).await?;
    let rows = sqlx::query_as(
        "SELECT subject_id, classes, embedding <=> $3 AS distance FROM embeddings
         WHERE version_id = $1 AND subject_kind = $2 ORDER BY distance, subject_id, classes LIMIT $4",
    )
    .bind(version)
    .bind(kind.as_str())
    .bind(Vector::from(query.to_vec()))
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await?;
    Ok(rows)
}

/// Runs that a zoo's spread is measured at, and runs that each is compared with.
const SPREAD_SAMPLE: (i64, i64) = (256, 10_000);
/// Cosine distance up to which two embeddings are of one and the same task: f32 tells no smaller ones apart.
const SAME: f64 = 1e-6;

/// The spread of a version's embeddings of a kind: the mean cosine distance from one to the nearest that is not the
/// same, over at most 256 of them (chosen by a hash of the subject, and so always the same ones). None where there
/// are not two that differ.
///
/// Embeddings that are equal do not count as neighbours: the runs of one task, from other initialisations, would
/// otherwise give a zoo of one dataset no spread at all.
///
/// # Errors
/// `database`.
pub async fn spread(registry: &Registry, version: VersionId, kind: SubjectKind) -> Result<Option<f64>> {
    let mean: Option<f64> = sqlx::query_scalar(
        "WITH others AS MATERIALIZED (
             SELECT embedding, row_number() OVER (ORDER BY md5(subject_id::text), classes) AS place FROM embeddings
             WHERE version_id = $1 AND subject_kind = $2 ORDER BY place LIMIT $4)
         SELECT avg(near.distance) FROM others s CROSS JOIN LATERAL (
             SELECT min(d.distance) AS distance
             FROM (SELECT o.embedding <=> s.embedding AS distance FROM others o) d WHERE d.distance > $5) near
         WHERE s.place <= $3",
    )
    .bind(version)
    .bind(kind.as_str())
    .bind(SPREAD_SAMPLE.0)
    .bind(SPREAD_SAMPLE.1)
    .bind(SAME)
    .fetch_one(registry.pool())
    .await?;
    Ok(mean)
}

/// Whether a version has embeddings of a kind.
///
/// # Errors
/// `database`.
pub async fn any(registry: &Registry, version: VersionId, kind: SubjectKind) -> Result<bool> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM embeddings WHERE version_id = $1 AND subject_kind = $2)")
        .bind(version)
        .bind(kind.as_str())
        .fetch_one(registry.pool())
        .await?)
}

pub(crate) fn check(embedding: &[f32], dimension: usize) -> Result<()> {
    if embedding.len() != dimension {
        return Err(wrong_dimension(dimension, embedding.len()));
    }
    if dimension == 0 || dimension > MAX_DIMENSION {
        return Err(Error::invalid("embedding", format!("use 1 to {MAX_DIMENSION} dimensions, not {dimension}")));
    }
    let norm: f32 = embedding.iter().map(|x| x * x).sum();
    if norm.is_finite() && norm > 0.0 {
        Ok(())
    } else {
        Err(Error::invalid("embedding", "its values must be finite and not all zero"))
    }
}

fn wrong_dimension(expected: usize, found: usize) -> Error {
    Error::invalid("embedding", format!("this generator version's embeddings have {expected} dimensions, not {found}"))
}

fn refuse_repeated(new: &[NewEmbedding]) -> Result<()> {
    let mut keys: Vec<_> = new.iter().map(|item| (item.subject_id, &item.classes)).collect();
    keys.sort();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::invalid("embeddings", format!("{} appears twice with the same classes", pair[0].0))),
        None => Ok(()),
    }
}

/// Locks the version's row: two writers cannot settle on different dimensions.
async fn lock(connection: &mut PgConnection, version: VersionId) -> Result<()> {
    let found = sqlx::query("SELECT FROM generator_versions WHERE id = $1 FOR NO KEY UPDATE")
        .bind(version)
        .fetch_optional(connection)
        .await?;
    found.map(|_| ()).ok_or_else(|| Error::not_found("generator version", version))
}

pub(crate) async fn require_dimension(
    connection: &mut PgConnection,
    version: VersionId,
    dimension: usize,
) -> Result<()> {
    let stored: Option<i32> =
        sqlx::query_scalar("SELECT vector_dims(embedding) FROM embeddings WHERE version_id = $1 LIMIT 1")
            .bind(version)
            .fetch_optional(connection)
            .await?;
    same_dimension(stored, dimension)
}

/// Refuses a dimension that is not the stored one.
pub(crate) fn same_dimension(stored: Option<i32>, dimension: usize) -> Result<()> {
    match stored.and_then(|stored| usize::try_from(stored).ok()) {
        Some(stored) if stored != dimension => Err(wrong_dimension(stored, dimension)),
        _ => Ok(()),
    }
}

async fn require_subjects(connection: &mut PgConnection, kind: SubjectKind, new: &[NewEmbedding]) -> Result<()> {
    let sql = match kind {
        SubjectKind::Dataset => {
            "SELECT s FROM UNNEST($1::uuid[]) s WHERE NOT EXISTS (SELECT FROM datasets WHERE id = s) LIMIT 1"
        }
        SubjectKind::Run => {
            "SELECT s FROM UNNEST($1::uuid[]) s WHERE NOT EXISTS (SELECT FROM runs WHERE id = s) LIMIT 1"
        }
    };
    let subjects: Vec<Uuid> = new.iter().map(|item| item.subject_id).collect();
    let missing: Option<Uuid> = sqlx::query_scalar(sql).bind(subjects).fetch_optional(connection).await?;
    missing.map_or(Ok(()), |id| Err(Error::not_found(kind.as_str(), id)))
}

async fn insert(
    connection: &mut PgConnection,
    version: VersionId,
    kind: SubjectKind,
    new: &[NewEmbedding],
) -> Result<()> {
    sqlx::query(
        "INSERT INTO embeddings (version_id, subject_kind, subject_id, classes, embedding)
         SELECT $1, $2, e.subject_id, e.classes::int[], e.embedding
         FROM UNNEST($3::uuid[], $4::text[], $5::vector[]) AS e (subject_id, classes, embedding)
         ON CONFLICT (version_id, subject_kind, subject_id, classes)
         DO UPDATE SET embedding = EXCLUDED.embedding",
    )
    .bind(version)
    .bind(kind.as_str())
    .bind(new.iter().map(|item| item.subject_id).collect::<Vec<_>>())
    .bind(new.iter().map(|item| array_text(&item.classes)).collect::<Vec<_>>())
    .bind(new.iter().map(|item| Vector::from(item.embedding.clone())).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
