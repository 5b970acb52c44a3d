//! Checkpoints of models that others trained: added to a zoo one by one or many at a time, each content once.

use std::collections::HashMap;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::architectures::{self, Architecture, NewArchitecture};
use crate::constraints::{ACCURACY, COUNTING, FINITE};
use crate::{
    Caller, Change, CheckpointId, DatasetId, Error, NewAbout, Registry, Result, RunId, Write, ZooId, names, zoos,
};

/// What a run was trained on, when it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The registered dataset.
    pub id: Option<DatasetId>,
    /// Its name, also when it is not registered; 1 to 200 characters.
    pub name: Option<String>,
}

impl Origin {
    /// Whether a run of this dataset may get a checkpoint that is said to be of `self`.
    fn may_be(&self, known: &Self) -> bool {
        match (self.id, known.id) {
            (Some(a), Some(b)) => a == b,
            // A dataset may have been registered since.
            _ => self.name.is_none() || self.name == known.name,
        }
    }
}

/// The file that a checkpoint came in, and what was taken out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name of the file, 1 to 1000 characters.
    pub name: String,
    /// Digest of the file as it came.
    pub digest: String,
    /// Key path of the tensors in it; empty: the top.
    pub key: String,
    /// What was taken off the tensors' names; empty: nothing.
    pub strip_prefix: String,
}

/// A checkpoint to add.
#[derive(Clone, Debug, PartialEq)]
pub struct NewImport {
    /// Name of its run, 1 to 200 characters; it is made when the zoo has none of that name.
    pub run: String,
    /// What the run was trained on.
    pub dataset: Origin,
    /// Epochs trained, when they are known; a run has an epoch once.
    pub epoch: Option<i32>,
    /// Test accuracy, 0 to 1, when it is known.
    pub accuracy: Option<f32>,
    /// Test loss, when it is known.
    pub loss: Option<f32>,
    /// Digest of the stored weights (safetensors).
    pub artifact_digest: String,
    /// Where it came from.
    pub source: Source,
    /// Its tags.
    pub tags: Vec<String>,
    /// What is said about it.
    pub description: String,
}

/// What became of a checkpoint to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It was added.
    New(CheckpointId),
    /// The zoo has the same weights already, under this id.
    Known(CheckpointId),
}

impl Added {
    /// The checkpoint's id.
    #[must_use]
    pub fn id(self) -> CheckpointId {
        match self {
            Self::New(id) | Self::Known(id) => id,
        }
    }
}

/// Makes an empty zoo for checkpoints from outside. Without an architecture, the first checkpoint gives it one.
///
/// # Errors
/// `already_exists`, `invalid_name`, `name_not_allowed`, `not_found` (the architecture), `invalid_value`.
pub async fn create_zoo(
    write: &mut Write,
    name: &str,
    architecture: Option<&Architecture>,
    about: NewAbout,
) -> Result<zoos::Zoo> {
    let new = zoos::NewZoo {
        name: name.into(),
        architecture_id: architecture.map(|architecture| architecture.id),
        config: json!({"kind": "imported"}),
        digest: None,
        about,
    };
    zoos::create(write, &new).await
}

/// Gives a zoo of the caller's its architecture, unless it has one: the answer is the one it has now. Others that add to
/// the zoo wait until this unit of work ends.
///
/// # Errors
/// `not_found`, `not_owner`, and those of [`architectures::ensure`].
pub async fn settle_architecture(write: &mut Write, zoo: ZooId, new: &NewArchitecture) -> Result<Architecture> {
    lock(write, zoo).await?;
    let found = zoos::owned(write, zoo).await?;
    if let Some(id) = found.architecture_id {
        return architectures::in_work(write, id).await;
    }
    let made = architectures::ensure(write, new).await?;
    sqlx::query("UPDATE zoos SET architecture_id = $2, updated_at = now() WHERE id = $1")
        .bind(zoo)
        .bind(made.id)
        .execute(write.connection())
        .await?;
    let after = json!({"architecture": made.name});
    let change = Change {
        action: "zoo.settle_architecture",
        resource: "zoo",
        id: zoo.to_string(),
        before: Some(json!({"architecture": Value::Null})),
        after: Some(after),
    };
    write.audit(change).await?;
    Ok(made)
}

/// One import into a zoo at a time: numbers of new runs, and what is there already, stay true until the end.
async fn lock(write: &mut Write, zoo: ZooId) -> Result<()> {
    sqlx::query("SELECT FROM zoos WHERE id = $1 FOR NO KEY UPDATE").bind(zoo).execute(write.connection()).await?;
    Ok(())
}

/// The zoo of an id, when the caller may add to it.
///
/// # Errors
/// `not_found`, `not_owner`.
pub async fn own_zoo(registry: &Registry, caller: &Caller, id: ZooId) -> Result<zoos::Zoo> {
    let zoo = zoos::by_id(registry, caller, id).await?;
    caller.require_ownership("zoo", &zoo.name, &zoo.about.owner)?;
    Ok(zoo)
}

/// Refuses values that no checkpoint may have, before a file is read.
///
/// # Errors
/// `invalid_value`.
pub fn check_values(accuracy: Option<f32>, loss: Option<f32>, epoch: Option<i32>) -> Result<()> {
    if accuracy.is_some_and(|accuracy| !(0.0..=1.0).contains(&accuracy)) {
        return Err(Error::invalid("accuracy", ACCURACY));
    }
    if loss.is_some_and(|loss| !loss.is_finite()) {
        return Err(Error::invalid("loss", FINITE));
    }
    if epoch.is_some_and(|epoch| epoch < 0) {
        return Err(Error::invalid("epoch", COUNTING));
    }
    Ok(())
}

/// Adds checkpoints to a zoo of the caller's. Weights that the zoo has already are not added again. The answers are in
/// the order of `new`.
///
/// # Errors
/// `not_found` (zoo), `not_owner`, `already_exists` (an epoch of a run), `artifact_missing`, `invalid_value` (also when
/// a run would have two datasets).
pub async fn add(write: &mut Write, zoo: ZooId, new: &[NewImport]) -> Result<Vec<Added>> {
    lock(write, zoo).await?;
    zoos::owned(write, zoo).await?;
    let known = ids_of(write, zoo, new).await?;
    let fresh: Vec<&NewImport> = new.iter().filter(|one| !known.contains_key(&one.artifact_digest)).collect();
    let runs = ensure_runs(write, zoo, &fresh).await?;
    let made = insert(write, zoo, &fresh, &runs).await?;
    if made > 0 {
        let after = json!({"checkpoints": made, "first": fresh.first().map(|one| &one.source.name)});
        write.audit(Change::made("zoo.import", "zoo", zoo, after)).await?;
    }
    let now = ids_of(write, zoo, new).await?;
    let mut answered: HashMap<&str, ()> = HashMap::new();
    new.iter()
        .map(|one| {
            let id = *now.get(&one.artifact_digest).ok_or_else(|| Error::not_found("checkpoint", &one.source.name))?;
            let first = answered.insert(&one.artifact_digest, ()).is_none();
            Ok(if first && !known.contains_key(&one.artifact_digest) { Added::New(id) } else { Added::Known(id) })
        })
        .collect()
}

/// Ids of the imported checkpoints of a zoo by the digest of their weights.
async fn ids_of(write: &mut Write, zoo: ZooId, new: &[NewImport]) -> Result<HashMap<String, CheckpointId>> {
    let digests: Vec<&str> = new.iter().map(|one| one.artifact_digest.as_str()).collect();
    let rows: Vec<(String, CheckpointId)> = sqlx::query_as(
        "SELECT artifact_digest, id FROM checkpoints
         WHERE zoo_id = $1 AND artifact_digest = ANY ($2) AND source_digest IS NOT NULL",
    )
    .bind(zoo)
    .bind(digests)
    .fetch_all(write.connection())
    .await?;
    Ok(rows.into_iter().collect())
}

#[derive(sqlx::FromRow)]
struct RunRow {
    id: RunId,
    name: String,
    dataset_id: Option<DatasetId>,
    dataset_name: Option<String>,
}

/// The runs of the checkpoints by name; those that are missing are made.
async fn ensure_runs(write: &mut Write, zoo: ZooId, new: &[&NewImport]) -> Result<HashMap<String, RunId>> {
    let mut wanted: Vec<(&str, &Origin)> = Vec::new();
    for one in new {
        match wanted.iter().find(|(name, _)| *name == one.run) {
            Some((name, origin)) if !one.dataset.may_be(origin) => return Err(two_datasets(name)),
            Some(_) => {}
            None => wanted.push((&one.run, &one.dataset)),
        }
    }
    let mut runs = HashMap::new();
    for row in runs_of(write, zoo, &wanted).await? {
        let origin = Origin { id: row.dataset_id, name: row.dataset_name };
        if wanted.iter().any(|(name, wanted)| *name == row.name && !wanted.may_be(&origin)) {
            return Err(two_datasets(&row.name));
        }
        runs.insert(row.name, row.id);
    }
    wanted.retain(|(name, _)| !runs.contains_key(*name));
    if !wanted.is_empty() {
        make_runs(write, zoo, &wanted).await?;
        runs.extend(runs_of(write, zoo, &wanted).await?.into_iter().map(|row| (row.name, row.id)));
    }
    Ok(runs)
}

fn two_datasets(run: &str) -> Error {
    Error::invalid(
        "dataset",
        format!("the run {run} is there with another dataset, or with none: a run is a training on one dataset"),
    )
}

async fn runs_of(write: &mut Write, zoo: ZooId, wanted: &[(&str, &Origin)]) -> Result<Vec<RunRow>> {
    let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    let sql = "SELECT id, name, dataset_id, dataset_name FROM runs WHERE zoo_id = $1 AND name = ANY ($2)";
    Ok(sqlx::query_as(sql).bind(zoo).bind(names).fetch_all(write.connection()).await?)
}

async fn make_runs(write: &mut Write, zoo: ZooId, wanted: &[(&str, &Origin)]) -> Result<()> {
    sqlx::query(
        "INSERT INTO runs (id, zoo_id, index, name, dataset_id, dataset_name, classes)
         SELECT r.id, $1, (SELECT coalesce(max(index), -1) FROM runs WHERE zoo_id = $1) + r.place::int,
                r.name, r.dataset_id, r.dataset_name, '{}'
         FROM UNNEST($2::uuid[], $3::text[], $4::uuid[], $5::text[])
              WITH ORDINALITY AS r (id, name, dataset_id, dataset_name, place)",
    )
    .bind(zoo)
    .bind(wanted.iter().map(|_| RunId::generate()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(_, origin)| origin.id).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(_, origin)| origin.name.as_deref()).collect::<Vec<_>>())
    .execute(write.connection())
    .await?;
    Ok(())
}

async fn insert(write: &mut Write, zoo: ZooId, new: &[&NewImport], runs: &HashMap<String, RunId>) -> Result<u64> {
    let run_ids: Vec<Option<RunId>> = new.iter().map(|one| runs.get(&one.run).copied()).collect();
    // UNNEST flattens arrays of arrays, so the tags of each travel as JSON.
    let tags: Vec<Value> = new.iter().map(|one| json!(one.tags)).collect();
    let done = sqlx::query(
        "INSERT INTO checkpoints (id, zoo_id, run_id, epoch, accuracy, loss, artifact_digest,
                                  source_name, source_digest, source_key, source_prefix, tags, description)
         SELECT c.id, $1, c.run_id, c.epoch, c.accuracy, c.loss, c.digest,
                c.source_name, c.source_digest, c.source_key, c.source_prefix,
                ARRAY(SELECT jsonb_array_elements_text(c.tags)), c.description
         FROM UNNEST($2::uuid[], $3::uuid[], $4::int[], $5::real[], $6::real[], $7::text[],
                     $8::text[], $9::text[], $10::text[], $11::text[], $12::jsonb[], $13::text[])
              AS c (id, run_id, epoch, accuracy, loss, digest,
                    source_name, source_digest, source_key, source_prefix, tags, description)
         ON CONFLICT (zoo_id, artifact_digest) WHERE source_digest IS NOT NULL DO NOTHING",
    )
    .bind(zoo)
    .bind(new.iter().map(|_| CheckpointId::generate()).collect::<Vec<_>>())
    .bind(run_ids)
    .bind(new.iter().map(|one| one.epoch).collect::<Vec<_>>())
    .bind(new.iter().map(|one| one.accuracy).collect::<Vec<_>>())
    .bind(new.iter().map(|one| one.loss).collect::<Vec<_>>())
    .bind(new.iter().map(|one| one.artifact_digest.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|one| one.source.name.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|one| one.source.digest.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|one| one.source.key.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|one| one.source.strip_prefix.as_str()).collect::<Vec<_>>())
    .bind(tags)
    .bind(new.iter().map(|one| one.description.as_str()).collect::<Vec<_>>())
    .execute(write.connection())
    .await?;
    Ok(done.rows_affected())
}

/// Of these files (by digest), those that are in the zoo already, taken with the same key and prefix.
///
/// # Errors
/// `database`.
pub async fn journal(
    registry: &Registry,
    zoo: ZooId,
    digests: &[String],
    key: &str,
    strip_prefix: &str,
) -> Result<HashMap<String, CheckpointId>> {
    let rows: Vec<(String, CheckpointId)> = sqlx::query_as(
        "SELECT source_digest, id FROM checkpoints
         WHERE zoo_id = $1 AND source_digest = ANY ($2) AND source_key = $3 AND source_prefix = $4",
    )
    .bind(zoo)
    .bind(digests)
    .bind(key)
    .bind(strip_prefix)
    .fetch_all(registry.pool())
    .await?;
    Ok(rows.into_iter().collect())
}

/// What a dataset given by id or name is: an id has to be that of one the caller sees; a name stays a name, with the id
/// when exactly one dataset that the caller sees has it.
///
/// # Errors
/// `not_found` (an id), `invalid_value` (a name that is too long).
pub async fn origin(registry: &Registry, caller: &Caller, text: &str) -> Result<Origin> {
    if let Ok(id) = text.parse::<Uuid>() {
        let found = crate::datasets::get(registry, caller, id.into()).await?;
        return Ok(Origin { id: Some(found.id), name: Some(found.name) });
    }
    if text.is_empty() || text.chars().count() > 200 || text.contains('\0') {
        return Err(Error::invalid("dataset", "use the id of a registered dataset, or a name of 1 to 200 characters"));
    }
    let mut id = None;
    if names::check(text).is_ok() {
        let filter = crate::datasets::DatasetFilter { name: Some(text.into()), labelled: true, ..Default::default() };
        let request = crate::ListRequest { limit: 2, ..Default::default() };
        let page = crate::datasets::list(registry, caller, &filter, &request).await?;
        if let [one] = page.items.as_slice() {
            id = Some(one.id);
        }
    }
    Ok(Origin { id, name: Some(text.into()) })
}
