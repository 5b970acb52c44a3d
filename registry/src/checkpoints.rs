//! Checkpoints: the weights of a run after an epoch, with the accuracy measured then.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use crate::{CheckpointId, DatasetId, Error, Page, PageRequest, Registry, Result, RunId, Seed, ZooId};

/// A checkpoint, with the run it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Checkpoint {
    /// Its id.
    pub id: CheckpointId,
    /// The zoo of its run.
    pub zoo_id: ZooId,
    /// Its run.
    pub run_id: RunId,
    /// The run's number within the zoo.
    pub run_index: i32,
    /// The dataset the run was trained on.
    pub dataset_id: DatasetId,
    /// The run's task: classes in the order of the model's outputs.
    pub classes: Vec<i32>,
    /// The run's seed.
    #[sqlx(try_from = "i64")]
    pub seed: Seed,
    /// Epochs trained.
    pub epoch: i32,
    /// Test accuracy, 0 to 1.
    pub accuracy: f32,
    /// Test loss.
    pub loss: f32,
    /// Digest of the weights (safetensors).
    pub artifact_digest: String,
    /// Bytes of the weights file.
    pub size: i64,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A checkpoint to register.
#[derive(Clone, Debug)]
pub struct NewCheckpoint {
    /// Epochs trained, 0 or more, unique within the run.
    pub epoch: i32,
    /// Test accuracy, 0 to 1.
    pub accuracy: f32,
    /// Test loss, finite.
    pub loss: f32,
    /// Digest of the stored weights (safetensors).
    pub artifact_digest: String,
}

/// Which checkpoints to list.
#[derive(Clone, Debug, Default)]
pub struct CheckpointFilter {
    /// Only those of this zoo.
    pub zoo: Option<ZooId>,
    /// Only those of this run.
    pub run: Option<RunId>,
    /// Only those at least this accurate, 0 to 1.
    pub min_accuracy: Option<f32>,
}

const SELECT: &str = "SELECT c.id, r.zoo_id, c.run_id, r.index AS run_index, r.dataset_id, r.classes, r.seed,
        c.epoch, c.accuracy, c.loss, c.artifact_digest, a.size, c.created_at
    FROM checkpoints c JOIN runs r ON r.id = c.run_id JOIN artifacts a ON a.digest = c.artifact_digest";

pub(crate) async fn insert(connection: &mut PgConnection, new: Vec<(RunId, &NewCheckpoint)>) -> Result<()> {
    sqlx::query(
        "INSERT INTO checkpoints (id, run_id, zoo_id, epoch, accuracy, loss, artifact_digest)
         SELECT c.id, c.run_id, r.zoo_id, c.epoch, c.accuracy, c.loss, c.digest
         FROM UNNEST($1::uuid[], $2::uuid[], $3::int[], $4::real[], $5::real[], $6::text[])
              AS c (id, run_id, epoch, accuracy, loss, digest)
         JOIN runs r ON r.id = c.run_id",
    )
    .bind(new.iter().map(|_| CheckpointId::generate()).collect::<Vec<_>>())
    .bind(new.iter().map(|(run, _)| *run).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, c)| c.epoch).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, c)| c.accuracy).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, c)| c.loss).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, c)| c.artifact_digest.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The checkpoint of an id.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, id: CheckpointId) -> Result<Checkpoint> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} WHERE c.id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("checkpoint", id))
}

/// Checkpoints in the order of their registration.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, filter: &CheckpointFilter, page: &PageRequest) -> Result<Page<Checkpoint>> {
    let (time, id) = page.after_time()?;
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{SELECT}
         WHERE (c.created_at, c.id)
               > (COALESCE($1, '-infinity'), COALESCE($2, '00000000-0000-0000-0000-000000000000'::uuid))
           AND ($3::uuid IS NULL OR r.zoo_id = $3) AND ($4::uuid IS NULL OR c.run_id = $4)
           AND ($5::real IS NULL OR c.accuracy >= $5)
         ORDER BY c.created_at, c.id LIMIT $6"
    )))
    .bind(time)
    .bind(id)
    .bind(filter.zoo)
    .bind(filter.run)
    .bind(filter.min_accuracy)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_time(rows, |row: &Checkpoint| (row.created_at, row.id.as_uuid())))
}

/// All checkpoints of a zoo by run and epoch, for training on them: not paged, 10,000 are a few megabytes.
///
/// # Errors
/// `database`.
pub async fn all_of_zoo(registry: &Registry, zoo: ZooId) -> Result<Vec<Checkpoint>> {
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} WHERE r.zoo_id = $1 ORDER BY r.index, c.epoch")))
        .bind(zoo)
        .fetch_all(registry.pool())
        .await?;
    Ok(rows)
}
