//! Zoos: populations of trained models, and the runs that made them.

pub(crate) mod build;
mod checkpoints;
mod imports;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::Caller;
use registry::{runs as run_rows, zoos as rows};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::about::{About, NewAbout};
use crate::answer::Answer;
use crate::error::Result;
use crate::extract::{self, Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::jobs::{Job, JobOptions};
use crate::lifecycle::lifecycle;
use crate::page::{Listing, PageQuery, list_query};
use crate::problem::{CreateProblems, GetProblems, ListProblems, SubListProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get))
        .routes(routes!(list_runs))
        .routes(routes!(checkpoints::import))
        .routes(routes!(imports::create))
        .merge(life::routes())
}

/// A population of trained models of one architecture.
#[derive(Serialize, ToSchema)]
pub(crate) struct Zoo {
    /// Its id.
    id: Uuid,
    /// Its unique name.
    #[schema(example = "digits")]
    name: String,
    /// The architecture of its models; null in a zoo for imports until its first checkpoint comes.
    #[schema(required)]
    architecture_id: Option<Uuid>,
    /// How it was trained.
    #[schema(value_type = Object)]
    config: Value,
    /// Digest of its content; null in a zoo for imports, which may grow.
    #[schema(required)]
    digest: Option<String>,
    /// Number of runs.
    #[schema(example = 200)]
    runs: i64,
    /// Number of checkpoints of all runs.
    #[schema(example = 1000)]
    checkpoints: i64,
    /// When it was registered.
    created_at: DateTime<Utc>,
    #[serde(flatten)]
    about: About,
}

impl From<rows::Zoo> for Zoo {
    fn from(row: rows::Zoo) -> Self {
        Self {
            id: row.id.as_uuid(),
            name: row.name,
            architecture_id: row.architecture_id.map(|id| id.as_uuid()),
            config: row.config,
            digest: row.digest,
            runs: row.runs,
            checkpoints: row.checkpoints,
            created_at: row.created_at,
            about: row.about.into(),
        }
    }
}

/// One training of one model on one task.
#[derive(Serialize, ToSchema)]
pub(crate) struct Run {
    /// Its id.
    id: Uuid,
    /// The zoo it belongs to.
    zoo_id: Uuid,
    /// Its number within the zoo.
    #[schema(example = 0)]
    index: i32,
    /// Its name, when it was trained elsewhere.
    #[schema(required)]
    name: Option<String>,
    /// The dataset it was trained on, when that is registered.
    #[schema(required)]
    dataset_id: Option<Uuid>,
    /// What the dataset is called, when the run was trained elsewhere and that is known.
    #[schema(required)]
    dataset: Option<String>,
    /// The task: labels of the dataset, in the order of the model's outputs; empty when it is unknown.
    #[schema(example = json!([3, 1, 4, 0, 7]))]
    classes: Vec<i32>,
    /// The seed of its initialisation and batches, when it is known.
    #[schema(required, example = 7, format = "uint64")]
    seed: Option<u64>,
    /// When it was registered.
    created_at: DateTime<Utc>,
}

impl From<run_rows::Run> for Run {
    fn from(row: run_rows::Run) -> Self {
        Self {
            id: row.id.as_uuid(),
            zoo_id: row.zoo_id.as_uuid(),
            index: row.index,
            name: row.name,
            dataset_id: row.dataset_id.map(|id| id.as_uuid()),
            dataset: row.dataset_name,
            classes: row.classes,
            seed: row.seed.map(|seed| seed.0),
            created_at: row.created_at,
        }
    }
}

list_query!(ListQuery {
    /// Only the zoo of this name.
    name: Option<String>,
    /// Only zoos of this architecture, by id.
    architecture: Option<Uuid>,
});

/// List zoos
///
/// By name.
#[utoipa::path(
    get, path = "/v1/zoos", operation_id = "listZoos", tag = "zoos", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of zoos.", body = Listing<Zoo>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits",
            "architecture_id": "0199a1f6-3c5e-7d0a-9a53-000000000001", "config": {"seed": 7},
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "runs": 200, "checkpoints": 1000, "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "public", "tags": ["vision"], "description": "", "updated_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Query(query): Query<ListQuery>) -> Result<Response> {
    let request = query.request();
    let filter = rows::ZooFilter { name: query.name, architecture: query.architecture.map(Into::into) };
    let page = rows::list(state.registry(), &caller, &filter, &request).await?;
    Listing::select(page, query.fields.as_deref(), Zoo::from)
}

/// A zoo to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewZoo {
    /// To build a zoo: the training configuration, with the keys of the TOML files. A source is `digits`, or
    /// `registered:` and the name or id of a dataset.
    #[schema(value_type = Option<Object>)]
    build: Option<Value>,
    /// To make an empty zoo for checkpoints from outside: its name.
    #[schema(example = "resnets", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    name: Option<String>,
    /// The architecture of an empty zoo, by name; without it, that of the first checkpoint.
    #[schema(example = "resnet20")]
    architecture: Option<String>,
    /// Description, tags, and who sees an empty zoo.
    about: Option<NewAbout>,
    /// How the job is to be done.
    job: Option<JobOptions>,
}

/// Make a zoo
///
/// With `build`, trains all its models, as a job; the job's result is the zoo. With `name`, an empty one for checkpoints
/// from outside.
#[utoipa::path(
    post, path = "/v1/zoos", operation_id = "createZoo", tag = "zoos",
    request_body(content = NewZoo, description = "What to build, or a name.", example = json!({
        "build": {
            "name": "digits", "seed": 7, "data": {"sources": [{"name": "digits", "from": "digits"}]},
            "tasks": {"kind": "class_sets", "classes": 5, "seen": 200, "orders": 15},
            "architecture": {"kind": "mlp", "hidden": [32]},
            "denoiser": {"kind": "mlp", "width": 384, "blocks": 4}}})),
    security(("token" = ["train"])),
    responses((status = 201, description = "The empty zoo.", body = Zoo,
               headers(("Location" = String, description = "The zoo's address."))),
              (status = 202, description = "The job.", body = Job,
               headers(("Location" = String, description = "The job's address."))), CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    extract::Json(new): extract::Json<NewZoo>,
) -> Result<Response> {
    match (new.build, new.name) {
        (Some(config), None) if new.architecture.is_none() && new.about.is_none() => {
            build::build(&state, &caller, &key, config, new.job).await
        }
        (None, Some(name)) if new.job.is_none() => {
            let about = new.about.unwrap_or_default();
            empty(&state, &caller, &key, &name, new.architecture.as_deref(), about).await
        }
        _ => {
            let rule = "give `build` (and `job`), or `name` (and `architecture`, `about`)";
            Err(crate::Error::JsonInvalid(rule.into()))
        }
    }
}

/// An empty zoo for checkpoints from outside.
async fn empty(
    state: &AppState,
    caller: &Caller,
    key: &IdempotencyKey,
    name: &str,
    architecture: Option<&str>,
    about: NewAbout,
) -> Result<Response> {
    let architecture = match architecture {
        Some(name) => Some(
            registry::architectures::get(state.registry(), caller, name)
                .await
                .map_err(|error| crate::Error::from(error).in_field("architecture"))?,
        ),
        None => None,
    };
    let mut write = state.registry().write(caller).await?;
    let zoo = registry::imports::create_zoo(&mut write, name, architecture.as_ref(), about.or(false)).await?;
    let location = format!("/v1/zoos/{}", zoo.id);
    Answer::created(&location, &Zoo::from(zoo))?.commit(write, key).await
}

/// Get a zoo
#[utoipa::path(
    get, path = "/v1/zoos/{id}", operation_id = "getZoo", tag = "zoos",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The zoo.", body = Zoo, example = json!({
        "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits",
        "architecture_id": "0199a1f6-3c5e-7d0a-9a53-000000000001", "config": {"seed": 7},
        "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "runs": 200, "checkpoints": 1000, "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "public", "tags": ["vision"], "description": "", "updated_at": "2026-01-01T00:00:00Z"})), GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Json<Zoo>> {
    read(&state, &caller, id).await.map(Json)
}

async fn read(state: &AppState, caller: &Caller, id: Uuid) -> Result<Zoo> {
    Ok(rows::by_id(state.registry(), caller, id.into()).await?.into())
}

lifecycle!(
    life: Zoo, "a zoo", tag "zoos", scope "train",
    "/v1/zoos/{id}", "/v1/zoos/{id}/restore", "/v1/zoos/{id}/purge",
    ids ("updateZoo", "deleteZoo", "restoreZoo", "purgeZoo"),
    key ("id", Uuid, "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"), Zoo, read
);

/// List the runs of a zoo
///
/// In the order of their registration.
#[utoipa::path(
    get, path = "/v1/zoos/{id}/runs", operation_id = "listZooRuns", tag = "zoos",
    params(("id" = Uuid, Path, description = "The zoo's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           PageQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of runs.", body = Listing<Run>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-000000000002", "zoo_id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e",
            "index": 0, "name": null, "dataset_id": "0199a1f6-3c5e-7d0a-9a53-000000000003", "dataset": null,
            "classes": [3, 1, 4, 0, 7],
            "seed": 7, "created_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), SubListProblems)
)]
async fn list_runs(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Listing<Run>>> {
    let zoo = rows::by_id(state.registry(), &caller, id.into()).await?;
    let page = run_rows::list(state.registry(), &caller, Some(zoo.id), &query.request()).await?;
    Ok(Listing::of(page, Run::from))
}
