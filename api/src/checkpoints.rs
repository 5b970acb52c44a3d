//! Checkpoints: the weights of a run after an epoch.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::Caller;
use registry::checkpoints as rows;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::extract::{Path, Query};
use crate::files::{self, Binary, File, FileMetadata, SAFETENSORS};
use crate::lifecycle::lifecycle;
use crate::page::{Listing, list_query};
use crate::problem::{FileProblems, GetProblems, ListProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(get_file, head_file))
        .routes(routes!(get_metadata))
        .merge(life::routes())
}

/// The weights of a run after an epoch.
#[derive(Serialize, ToSchema)]
pub(crate) struct Checkpoint {
    /// Its id.
    id: Uuid,
    /// The zoo of its run.
    zoo_id: Uuid,
    /// Its run.
    run_id: Uuid,
    /// The run's number within the zoo.
    run_index: i32,
    /// The run's name, when it was trained elsewhere.
    #[schema(required, example = "resnet20-12fca82f")]
    run: Option<String>,
    /// The dataset that the run was trained on, when that is registered.
    #[schema(required)]
    dataset_id: Option<Uuid>,
    /// What the dataset is called, when the run was trained elsewhere and that is known.
    #[schema(required, example = "cifar10")]
    dataset: Option<String>,
    /// The task: labels of the dataset, in the order of the model's outputs; empty when it is unknown.
    #[schema(example = json!([3, 1, 4, 0, 7]))]
    classes: Vec<i32>,
    /// The run's seed, when it is known.
    #[schema(required, format = "uint64")]
    seed: Option<u64>,
    /// Epochs trained, when they are known.
    #[schema(required, example = 30)]
    epoch: Option<i32>,
    /// Test accuracy, 0 to 1, when it is known.
    #[schema(required, example = 0.976)]
    accuracy: Option<f32>,
    /// Test loss (mean cross-entropy in nats), when it is known.
    #[schema(required, example = 0.08)]
    loss: Option<f32>,
    /// The file it came in, when it was imported.
    #[schema(required)]
    source: Option<Source>,
    /// Digest of the weights file.
    digest: String,
    /// Bytes of the weights file.
    #[schema(example = 9208)]
    size: i64,
    /// Where to download the weights file (safetensors).
    #[schema(example = "/v1/checkpoints/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e/file")]
    url: String,
    /// Its tags.
    tags: Vec<String>,
    /// What is said about it.
    description: String,
    /// When it was registered.
    created_at: DateTime<Utc>,
    /// When it was deleted, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<DateTime<Utc>>,
}

/// The file that an imported checkpoint came in.
#[derive(Serialize, ToSchema)]
pub(crate) struct Source {
    /// Its name.
    #[schema(example = "resnet20-12fca82f.th")]
    name: String,
    /// Digest of the file as it came; that of the stored weights is another, for they are kept in one form.
    digest: String,
    /// Where in the file the tensors were; empty: at the top.
    #[schema(example = "state_dict")]
    key: String,
    /// What was taken off the tensors' names; empty: nothing.
    #[schema(example = "module.")]
    strip_prefix: String,
}

impl Source {
    fn of(row: &rows::Checkpoint) -> Option<Self> {
        Some(Self {
            name: row.source_name.clone()?,
            digest: row.source_digest.clone()?,
            key: row.source_key.clone()?,
            strip_prefix: row.source_prefix.clone()?,
        })
    }
}

impl From<rows::Checkpoint> for Checkpoint {
    fn from(row: rows::Checkpoint) -> Self {
        Self {
            id: row.id.as_uuid(),
            zoo_id: row.zoo_id.as_uuid(),
            run_id: row.run_id.as_uuid(),
            run_index: row.run_index,
            source: Source::of(&row),
            run: row.run_name,
            dataset_id: row.dataset_id.map(|id| id.as_uuid()),
            dataset: row.dataset_name,
            classes: row.classes,
            seed: row.seed.map(|seed| seed.0),
            epoch: row.epoch,
            accuracy: row.accuracy,
            loss: row.loss,
            digest: row.artifact_digest,
            size: row.size,
            url: format!("/v1/checkpoints/{}/file", row.id),
            tags: row.tags,
            description: row.description,
            created_at: row.created_at,
            deleted_at: row.deleted_at,
        }
    }
}

list_query!(ListQuery {
    /// Only those of this zoo, by id.
    zoo: Option<Uuid>,
    /// Only those of this run, by id.
    run: Option<Uuid>,
    /// Only those of runs on this dataset, by id.
    dataset: Option<Uuid>,
    /// Only those with these weights.
    digest: Option<String>,
    /// Only those at most this accurate, 0 to 1.
    #[param(example = 1.0, minimum = 0.0, maximum = 1.0)]
    max_accuracy: Option<f32>,
    /// Only those at least this accurate, 0 to 1.
    #[param(example = 0.95, minimum = 0.0, maximum = 1.0)]
    min_accuracy: Option<f32>,
});

impl ListQuery {
    fn filter(&self) -> Result<rows::CheckpointFilter> {
        for (field, bound) in [("min_accuracy", self.min_accuracy), ("max_accuracy", self.max_accuracy)] {
            if let Some(accuracy) = bound.filter(|a| !(0.0..=1.0).contains(a)) {
                let error = Error::ValueInvalid(format!("{field} is {accuracy}; it must be a number from 0 to 1"));
                return Err(error.in_field(field));
            }
        }
        Ok(rows::CheckpointFilter {
            zoo: self.zoo.map(Into::into),
            run: self.run.map(Into::into),
            dataset: self.dataset.map(Into::into),
            digest: self.digest.clone(),
            min_accuracy: self.min_accuracy,
            max_accuracy: self.max_accuracy,
        })
    }
}

/// List checkpoints
///
/// In the order of their registration.
#[utoipa::path(
    get, path = "/v1/checkpoints", operation_id = "listCheckpoints", tag = "checkpoints", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of checkpoints.", body = Listing<Checkpoint>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "zoo_id": "0199a1f6-3c5e-7d0a-9a53-000000000001",
            "run_id": "0199a1f6-3c5e-7d0a-9a53-000000000002", "run_index": 0, "run": null, "dataset": null, "source": null,
            "dataset_id": "0199a1f6-3c5e-7d0a-9a53-000000000003", "classes": [3, 1, 4, 0, 7], "seed": 7,
            "epoch": 30, "accuracy": 0.976, "loss": 0.08,
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": 9208,
            "url": "/v1/checkpoints/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e/file",
            "tags": [], "description": "", "created_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Query(query): Query<ListQuery>) -> Result<Response> {
    let page = rows::list(state.registry(), &caller, &query.filter()?, &query.request()).await?;
    Listing::select(page, query.fields.as_deref(), Checkpoint::from)
}

/// Get a checkpoint
#[utoipa::path(
    get, path = "/v1/checkpoints/{id}", operation_id = "getCheckpoint", tag = "checkpoints",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The checkpoint.", body = Checkpoint, example = json!({
        "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "zoo_id": "0199a1f6-3c5e-7d0a-9a53-000000000001",
        "run_id": "0199a1f6-3c5e-7d0a-9a53-000000000002", "run_index": 0, "run": null, "dataset": null, "source": null,
        "dataset_id": "0199a1f6-3c5e-7d0a-9a53-000000000003", "classes": [3, 1, 4, 0, 7], "seed": 7,
        "epoch": 30, "accuracy": 0.976, "loss": 0.08,
        "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": 9208,
        "url": "/v1/checkpoints/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e/file",
        "tags": [], "description": "", "created_at": "2026-01-01T00:00:00Z"})), GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Json<Checkpoint>> {
    read(&state, &caller, id).await.map(Json)
}

async fn read(state: &AppState, caller: &Caller, id: Uuid) -> Result<Checkpoint> {
    Ok(rows::get(state.registry(), caller, id.into()).await?.into())
}

lifecycle!(
    life: Checkpoint, "a checkpoint", tag "checkpoints", scope "train",
    "/v1/checkpoints/{id}", "/v1/checkpoints/{id}/restore", "/v1/checkpoints/{id}/purge",
    ids ("updateCheckpoint", "deleteCheckpoint", "restoreCheckpoint", "purgeCheckpoint"),
    key ("id", Uuid, "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"), Checkpoint, read
);

/// Download a checkpoint
///
/// The weights as safetensors. `ETag` is the digest; `Range`, `If-Range` and `If-None-Match` work.
#[utoipa::path(
    get, path = "/v1/checkpoints/{id}/file", operation_id = "downloadCheckpoint", tag = "checkpoints",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The file.", body = Binary, content_type = "application/vnd.safetensors"),
              (status = 206, description = "The range asked for.", body = Binary,
               content_type = "application/vnd.safetensors"),
              (status = 304, description = "The file is the one that `If-None-Match` names."), FileProblems)
)]
async fn get_file(
    state: State<AppState>,
    caller: Caller,
    id: Path<Uuid>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    file(state, caller, id, method, headers).await
}

/// Ask about a checkpoint's file
///
/// The headers of the download alone.
#[utoipa::path(
    head, path = "/v1/checkpoints/{id}/file", operation_id = "headCheckpointFile", tag = "checkpoints",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The headers of the download."),
              (status = 304, description = "The file is the one that `If-None-Match` names."), FileProblems)
)]
async fn head_file(
    state: State<AppState>,
    caller: Caller,
    id: Path<Uuid>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    file(state, caller, id, method, headers).await
}

/// Get a checkpoint's metadata
///
/// The header of its safetensors file, without the weights.
#[utoipa::path(
    get, path = "/v1/checkpoints/{id}/metadata", operation_id = "getCheckpointMetadata", tag = "checkpoints",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The metadata.", body = FileMetadata, example = json!({
        "metadata": {"format": "pt"},
        "tensors": {"fc.weight": {"dtype": "F32", "shape": [10, 64], "data_offsets": [0, 2560]}}})), GetProblems)
)]
async fn get_metadata(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<FileMetadata>> {
    let row = rows::get(state.registry(), &caller, id.into()).await?;
    files::metadata(state.registry().artifacts(), &row.artifact_digest).await.map(Json)
}

async fn file(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let row = rows::get(state.registry(), &caller, id.into()).await?;
    let name = match row.epoch {
        Some(epoch) => format!("checkpoint-{}-{epoch}.safetensors", row.run_index),
        None => format!("checkpoint-{}-{}.safetensors", row.run_index, row.id),
    };
    let file = File { digest: &row.artifact_digest, name, media_type: SAFETENSORS };
    files::answer(state.registry().artifacts(), &method, &headers, file).await
}
