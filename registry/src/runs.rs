//! Runs: one training of one model on one task (an ordered choice of a dataset's classes).

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use crate::checkpoints::{self, NewCheckpoint};
use crate::{DatasetId, Error, Page, PageRequest, Registry, Result, RunId, Seed, ZooId};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The zoo it belongs to.
    pub zoo_id: ZooId,
    /// Its number within the zoo.
    pub index: i32,
    /// The dataset it was trained on.
    pub dataset_id: DatasetId,
    /// The task: classes of the dataset, in the order of the model's outputs.
    pub classes: Vec<i32>,
    /// The seed of its initialisation and batches.
    #[sqlx(try_from = "i64")]
    pub seed: Seed,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A run to register, with its checkpoints.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Its number within the zoo.
    pub index: i32,
    /// The dataset it was trained on.
    pub dataset_id: DatasetId,
    /// The task: two or more different classes of the dataset, in the order of the model's outputs.
    pub classes: Vec<i32>,
    /// The seed of its initialisation and batches.
    pub seed: Seed,
    /// Its checkpoints; their artifacts are stored already.
    pub checkpoints: Vec<NewCheckpoint>,
}

const COLUMNS: &str = "id, zoo_id, index, dataset_id, classes, seed, created_at";

/// Registers runs with their checkpoints in one transaction; the ids are in the order of `new`.
///
/// # Errors
/// `not_found` (zoo, dataset), `already_exists` (an index of the zoo, an epoch of a run), `artifact_missing`,
/// `invalid_value`. Nothing is written then.
pub async fn insert_bulk(registry: &Registry, zoo: ZooId, new: &[NewRun]) -> Result<Vec<RunId>> {
    let mut transaction = registry.pool().begin().await?;
    let ids = insert(&mut transaction, zoo, new).await?;
    transaction.commit().await?;
    Ok(ids)
}

pub(crate) async fn insert(connection: &mut PgConnection, zoo: ZooId, new: &[NewRun]) -> Result<Vec<RunId>> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    new.iter().try_for_each(check)?;
    let ids: Vec<RunId> = new.iter().map(|_| RunId::generate()).collect();
    // UNNEST flattens arrays of arrays, so each task travels as the text of an array.
    sqlx::query(
        "INSERT INTO runs (id, zoo_id, index, dataset_id, classes, seed)
         SELECT r.id, $1, r.index, r.dataset_id, r.classes::int[], r.seed
         FROM UNNEST($2::uuid[], $3::int[], $4::uuid[], $5::text[], $6::bigint[])
              AS r (id, index, dataset_id, classes, seed)",
    )
    .bind(zoo)
    .bind(&ids)
    .bind(new.iter().map(|run| run.index).collect::<Vec<_>>())
    .bind(new.iter().map(|run| run.dataset_id).collect::<Vec<_>>())
    .bind(new.iter().map(|run| array_text(&run.classes)).collect::<Vec<_>>())
    .bind(new.iter().map(|run| run.seed.to_bigint()).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    refuse_unknown_classes(connection, &ids).await?;
    let pairs = ids.iter().zip(new).flat_map(|(id, run)| run.checkpoints.iter().map(|c| (*id, c))).collect();
    checkpoints::insert(connection, pairs).await?;
    Ok(ids)
}

fn check(run: &NewRun) -> Result<()> {
    let mut sorted = run.classes.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() < run.classes.len() {
        return Err(Error::invalid("classes", format!("run {} names a class twice: name each once", run.index)));
    }
    Ok(())
}

async fn refuse_unknown_classes(connection: &mut PgConnection, ids: &[RunId]) -> Result<()> {
    let wrong: Option<(i32, i32)> = sqlx::query_as(
        "SELECT runs.index, cardinality(class_names) FROM runs JOIN datasets ON datasets.id = dataset_id
         WHERE runs.id = ANY ($1) AND NOT cardinality(class_names) > ALL (classes) LIMIT 1",
    )
    .bind(ids)
    .fetch_optional(connection)
    .await?;
    match wrong {
        Some((run, classes)) => Err(Error::invalid(
            "classes",
            format!("run {run} has a class its dataset lacks: use 0 to {}", classes.saturating_sub(1)),
        )),
        None => Ok(()),
    }
}

/// `{1,2,3}`: the text form of a Postgres array of numbers.
pub(crate) fn array_text(numbers: &[i32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}

/// The run of an id.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, id: RunId) -> Result<Run> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM runs WHERE id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("run", id))
}

/// Runs in the order of their registration, all or those of one zoo.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(registry: &Registry, zoo: Option<ZooId>, page: &PageRequest) -> Result<Page<Run>> {
    let (time, id) = page.after_time()?;
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM runs
         WHERE (created_at, id) > (COALESCE($1, '-infinity'), COALESCE($2, '00000000-0000-0000-0000-000000000000'::uuid))
           AND ($3::uuid IS NULL OR zoo_id = $3)
         ORDER BY created_at, id LIMIT $4"
    )))
    .bind(time)
    .bind(id)
    .bind(zoo)
    .bind(page.rows()?)
    .fetch_all(registry.pool())
    .await?;
    Ok(page.page_by_time(rows, |row: &Run| (row.created_at, row.id.as_uuid())))
}
