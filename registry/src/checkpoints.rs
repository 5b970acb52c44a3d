//! Checkpoints: the weights of a run after an epoch, with the accuracy measured then.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    Access, Caller, CheckpointId, DatasetId, Error, ListRequest, Page, Registry, Result, RunId, Seed, Write, ZooId,
};

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
    /// The run's name, when it was trained elsewhere.
    pub run_name: Option<String>,
    /// The dataset the run was trained on, when that is registered.
    pub dataset_id: Option<DatasetId>,
    /// What the dataset is called, when the run was trained elsewhere and that is known.
    pub dataset_name: Option<String>,
    /// The run's task: classes in the order of the model's outputs; empty when they are unknown.
    pub classes: Vec<i32>,
    /// The run's seed, when it is known.
    pub seed: Option<Seed>,
    /// Epochs trained, when they are known.
    pub epoch: Option<i32>,
    /// Test accuracy, 0 to 1, when it is known.
    pub accuracy: Option<f32>,
    /// Test loss, when it is known.
    pub loss: Option<f32>,
    /// Digest of the weights (safetensors).
    pub artifact_digest: String,
    /// Bytes of the weights file.
    pub size: i64,
    /// Name of the file it came in, when it was imported.
    pub source_name: Option<String>,
    /// Digest of that file.
    pub source_digest: Option<String>,
    /// Where in that file its tensors were; empty: at the top.
    pub source_key: Option<String>,
    /// What was taken off its tensors' names; empty: nothing.
    pub source_prefix: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// What is said about it.
    pub description: String,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// When it was deleted.
    pub deleted_at: Option<DateTime<Utc>>,
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
    /// Only those of runs on this dataset.
    pub dataset: Option<DatasetId>,
    /// Only those with these weights.
    pub digest: Option<String>,
    /// Only those at least this accurate, 0 to 1.
    pub min_accuracy: Option<f32>,
    /// Only those at most this accurate, 0 to 1.
    pub max_accuracy: Option<f32>,
}

const COLUMNS: &str = "c.id, c.zoo_id, c.run_id, r.index AS run_index, r.name AS run_name, r.dataset_id,
    r.dataset_name, r.classes, r.seed, c.epoch, c.accuracy, c.loss, c.artifact_digest, f.size, c.source_name,
    c.source_digest, c.source_key, c.source_prefix, c.tags, c.description, c.created_at, c.deleted_at";

const FROM: &str = "FROM checkpoints c JOIN zoos z ON z.id = c.zoo_id AND z.deleted_at IS NULL";

/// `OFFSET 0` keeps each an index lookup a row of the page: without it small tables are read whole and hashed.
const LATE: &str = "JOIN LATERAL (SELECT * FROM runs WHERE id = c.run_id OFFSET 0) r ON true
    JOIN LATERAL (SELECT * FROM artifacts WHERE digest = c.artifact_digest OFFSET 0) f ON true";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: FROM,
    late: LATE,
    alias: "c",
    sight: Sight::Named("z"),
    deletable: true,
    described: true,
    orders: &[
        Order { field: "created_at", column: "c.created_at", kind: Kind::Time },
        Order { field: "accuracy", column: "coalesce(c.accuracy, -1::real)", kind: Kind::Real },
    ],
    default_order: "created_at",
};

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
/// `not_found`, also when the caller may not see its zoo, or it was deleted.
pub async fn get(registry: &Registry, caller: &Caller, id: CheckpointId) -> Result<Checkpoint> {
    let sql = format!(
        "SELECT {COLUMNS}, z.name AS zoo_name, z.owner, z.visibility {FROM} {LATE} WHERE c.id = $1 AND c.deleted_at IS NULL"
    );
    let found: Option<Seen> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(registry.pool()).await?;
    let seen = found.filter(|row| {
        caller.sees(Access { name: Some(&row.zoo_name), owner: &row.owner, visibility: &row.visibility })
    });
    seen.map(|row| row.checkpoint).ok_or_else(|| Error::not_found("checkpoint", id))
}

/// The checkpoint of an id as it is in a unit of work.
///
/// # Errors
/// `not_found`.
pub async fn in_work(write: &mut Write, id: CheckpointId) -> Result<Checkpoint> {
    let sql = format!("SELECT {COLUMNS} {FROM} {LATE} WHERE c.id = $1");
    let found = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(write.connection()).await?;
    found.ok_or_else(|| Error::not_found("checkpoint", id))
}

#[derive(sqlx::FromRow)]
struct Seen {
    #[sqlx(flatten)]
    checkpoint: Checkpoint,
    zoo_name: String,
    owner: String,
    visibility: String,
}

/// Checkpoints in the order of their registration unless another is asked for (`created_at`, `accuracy`).
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &CheckpointFilter,
    request: &ListRequest,
) -> Result<Page<Checkpoint>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    query.in_order("c.zoo_id", filter.zoo.as_ref());
    query.equal("c.run_id", filter.run.as_ref());
    query.equal_in("c.run_id", "SELECT id FROM runs WHERE dataset_id", filter.dataset.as_ref());
    query.equal("c.artifact_digest", filter.digest.as_ref());
    if filter.min_accuracy.or(filter.max_accuracy).is_some() {
        query.in_range("accuracy");
    }
    if let Some(least) = filter.min_accuracy {
        query.sql.push(" AND coalesce(c.accuracy, -1::real) >= ").push_bind(least);
    }
    if let Some(most) = filter.max_accuracy {
        query.sql.push(" AND c.accuracy IS NOT NULL AND coalesce(c.accuracy, -1::real) <= ").push_bind(most);
    }
    query.page(registry).await
}

/// All checkpoints of a zoo by run and epoch, for training on them: not paged, 10,000 are a few megabytes.
///
/// # Errors
/// `database`.
pub async fn all_of_zoo(registry: &Registry, zoo: ZooId) -> Result<Vec<Checkpoint>> {
    let sql = format!(
        "SELECT {COLUMNS} {FROM} {LATE} WHERE c.zoo_id = $1 AND c.deleted_at IS NULL ORDER BY r.index, c.epoch, c.id"
    );
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(zoo).fetch_all(registry.pool()).await?)
}
