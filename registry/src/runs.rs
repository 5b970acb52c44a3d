//! Runs: one training of one model on one task (an ordered choice of a dataset's classes).

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;

use crate::checkpoints::{self, NewCheckpoint};
use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    Access, Caller, Change, DatasetId, Error, ListRequest, Page, Registry, Result, RunId, Seed, Write, ZooId, zoos,
};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The zoo it belongs to.
    pub zoo_id: ZooId,
    /// Its number within the zoo.
    pub index: i32,
    /// Its name, when it was trained elsewhere.
    pub name: Option<String>,
    /// The dataset it was trained on, when that is registered.
    pub dataset_id: Option<DatasetId>,
    /// What the dataset is called, when the run was trained elsewhere and that is known.
    pub dataset_name: Option<String>,
    /// The task: classes of the dataset, in the order of the model's outputs; empty when they are unknown.
    pub classes: Vec<i32>,
    /// The seed of its initialisation and batches, when it is known.
    pub seed: Option<Seed>,
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

const COLUMNS: &str = "r.id, r.zoo_id, r.index, r.name, r.dataset_id, r.dataset_name, r.classes, r.seed, r.created_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM runs r JOIN zoos z ON z.id = r.zoo_id AND z.deleted_at IS NULL",
    late: "",
    alias: "r",
    sight: Sight::Named("z"),
    deletable: false,
    described: false,
    orders: &[
        Order { field: "created_at", column: "r.created_at", kind: Kind::Time },
        Order { field: "index", column: "r.index", kind: Kind::Integer },
    ],
    default_order: "created_at",
};

/// Registers runs with their checkpoints in a zoo of the caller's; the ids are in the order of `new`.
///
/// # Errors
/// `not_found` (zoo, dataset), `not_owner`, `already_exists` (an index of the zoo, an epoch of a run),
/// `artifact_missing`, `invalid_value`.
pub async fn insert_bulk(write: &mut Write, zoo: ZooId, new: &[NewRun]) -> Result<Vec<RunId>> {
    zoos::owned(write, zoo).await?;
    let ids = insert(write.connection(), zoo, new).await?;
    let checkpoints: usize = new.iter().map(|run| run.checkpoints.len()).sum();
    let after = json!({"runs": new.len(), "checkpoints": checkpoints});
    write.audit(Change::made("zoo.add_runs", "zoo", zoo, after)).await?;
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
/// `not_found`, also when the caller may not see its zoo or that was deleted.
pub async fn get(registry: &Registry, caller: &Caller, id: RunId) -> Result<Run> {
    let sql = format!(
        "SELECT {COLUMNS}, z.name AS zoo_name, z.owner, z.visibility FROM runs r
         JOIN zoos z ON z.id = r.zoo_id AND z.deleted_at IS NULL WHERE r.id = $1"
    );
    let found: Option<Seen> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(registry.pool()).await?;
    let seen = found.filter(|row| {
        caller.sees(Access { name: Some(&row.zoo_name), owner: &row.owner, visibility: &row.visibility })
    });
    seen.map(|row| row.run).ok_or_else(|| Error::not_found("run", id))
}

/// Numbers and ids of the runs of a zoo, those of this unit of work too.
///
/// # Errors
/// `database`.
pub async fn ids_of_zoo(write: &mut Write, zoo: ZooId) -> Result<Vec<(i32, RunId)>> {
    let sql = "SELECT index, id FROM runs WHERE zoo_id = $1 ORDER BY index";
    Ok(sqlx::query_as(sql).bind(zoo).fetch_all(write.connection()).await?)
}

/// All runs of a zoo by their numbers, for training on them. Whether the zoo may be seen is for the caller to check.
///
/// # Errors
/// `database`.
pub async fn all_of_zoo(registry: &Registry, zoo: ZooId) -> Result<Vec<Run>> {
    let sql = format!("SELECT {COLUMNS} FROM runs r WHERE r.zoo_id = $1 ORDER BY r.index");
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(zoo).fetch_all(registry.pool()).await?)
}

#[derive(sqlx::FromRow)]
struct Seen {
    #[sqlx(flatten)]
    run: Run,
    zoo_name: String,
    owner: String,
    visibility: String,
}

/// Runs in the order of their registration unless another is asked for (`created_at`, `index`), all or those of one
/// zoo.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    zoo: Option<ZooId>,
    request: &ListRequest,
) -> Result<Page<Run>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    query.equal("r.zoo_id", zoo.as_ref());
    query.page(registry).await
}
