//! Samples: generated weights.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use registry::Caller;
use registry::generations as rows;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::candidates::{Origin, Scores};
use crate::error::{Error, Result};
use crate::extract::Path;
use crate::files::{self, Binary, File, FileMetadata, SAFETENSORS};
use crate::problem::{FileProblems, GetProblems};
use crate::state::AppState;

/// The routes of samples.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_file, head_file)).routes(routes!(get_metadata)).routes(routes!(get_adapter))
}

/// One generated network.
#[derive(Serialize, ToSchema)]
pub(crate) struct Sample {
    /// Its place in the generation, from 0.
    #[schema(example = 0)]
    index: i32,
    /// The generation's seed; with the draw, it fixes the noise.
    #[schema(example = 7, format = "uint64")]
    seed: u64,
    /// Digest of the weights file.
    digest: String,
    /// Bytes of the weights file.
    #[schema(example = 9632)]
    size: i64,
    /// Where to download the weights file (safetensors).
    #[schema(example = "/v1/generations/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e/samples/0/file")]
    url: String,
    /// Where it comes from.
    origin: Origin,
    /// Of a closed form: `ridge`, `centroid`, `blend` (a mean of the two), or `adapted` (ridge regression towards what is
    /// generated).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "ridge", pattern = "^(ridge|centroid|blend|adapted)$")]
    method: Option<String>,
    /// Of a generated one: which draw of the noise it is, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 0)]
    draw: Option<u64>,
    /// Of a retrieved one: the checkpoint, unless that was purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_id: Option<Uuid>,
    /// What it was ranked by, when samples were ranked.
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Scores>,
    /// Measured accuracy, 0 to 1, when it was evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 0.96)]
    accuracy: Option<f32>,
    /// Measured loss (mean cross-entropy in nats), when it was evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 0.13)]
    loss: Option<f64>,
    /// Number of examples it was evaluated on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 812)]
    evaluated_on: Option<u64>,
}

impl From<rows::Sample> for Sample {
    fn from(row: rows::Sample) -> Self {
        Self {
            index: row.index,
            seed: row.seed.0,
            digest: row.artifact_digest,
            size: row.size,
            origin: serde_json::from_value(row.origin.into()).unwrap_or(Origin::Generated),
            method: row.metrics.get("method").and_then(Value::as_str).map(str::to_owned),
            draw: row.metrics.get("draw").and_then(Value::as_u64),
            checkpoint_id: row.checkpoint_id.map(registry::CheckpointId::as_uuid),
            scores: row.scores.and_then(|scores| serde_json::from_value(scores).ok()),
            url: format!("/v1/generations/{}/samples/{}/file", row.generation_id, row.index),
            accuracy: row.accuracy,
            loss: row.metrics.get("loss").and_then(Value::as_f64),
            evaluated_on: row.metrics.get("evaluated_on").and_then(Value::as_u64),
        }
    }
}

/// Download a sample
///
/// The weights as safetensors. `ETag` is the digest; `Range`, `If-Range` and `If-None-Match` work.
#[utoipa::path(
    get, path = "/v1/generations/{id}/samples/{index}/file", operation_id = "downloadSample", tag = "generations",
    params(("id" = Uuid, Path, description = "The generation's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           ("index" = i32, Path, description = "The sample's place, from 0.", example = 0)),
    security(("token" = ["read"])),
    responses((status = 200, description = "The file.", body = Binary, content_type = "application/vnd.safetensors"),
              (status = 206, description = "The range asked for.", body = Binary,
               content_type = "application/vnd.safetensors"),
              (status = 304, description = "The file is the one that `If-None-Match` names."), FileProblems)
)]
async fn get_file(
    state: State<AppState>,
    caller: Caller,
    path: Path<(Uuid, i32)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    file(state, caller, path, method, headers).await
}

/// Ask about a sample's file
///
/// The headers of the download alone.
#[utoipa::path(
    head, path = "/v1/generations/{id}/samples/{index}/file", operation_id = "headSampleFile", tag = "generations",
    params(("id" = Uuid, Path, description = "The generation's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           ("index" = i32, Path, description = "The sample's place, from 0.", example = 0)),
    security(("token" = ["read"])),
    responses((status = 200, description = "The headers of the download."),
              (status = 304, description = "The file is the one that `If-None-Match` names."), FileProblems)
)]
async fn head_file(
    state: State<AppState>,
    caller: Caller,
    path: Path<(Uuid, i32)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    file(state, caller, path, method, headers).await
}

async fn file(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, index)): Path<(Uuid, i32)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let row = rows::sample(state.registry(), &caller, id.into(), index).await?;
    let name = format!("{id}-{index}.safetensors");
    let file = File { digest: &row.artifact_digest, name, media_type: SAFETENSORS };
    files::answer(state.registry().artifacts(), &method, &headers, file).await
}

/// Download a sample as an adapter
///
/// A tar of the directory that Python's `peft` loads: `adapter_config.json` and `adapter_model.safetensors`. Only of
/// samples that are adapters.
#[utoipa::path(
    get, path = "/v1/generations/{id}/samples/{index}/adapter", operation_id = "downloadAdapter", tag = "generations",
    params(("id" = Uuid, Path, description = "The generation's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           ("index" = i32, Path, description = "The sample's place, from 0.", example = 0)),
    security(("token" = ["read"])),
    responses((status = 200, description = "The directory.", body = Binary, content_type = "application/x-tar"),
              (status = 304, description = "The adapter is the one that `If-None-Match` names."), GetProblems)
)]
async fn get_adapter(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, index)): Path<(Uuid, i32)>,
    headers: HeaderMap,
) -> Result<Response> {
    let row = rows::sample(state.registry(), &caller, id.into(), index).await?;
    let artifacts = state.registry().artifacts();
    let found = files::metadata(artifacts, &row.artifact_digest).await?;
    let of = |key: &str| found.text(key).unwrap_or_default();
    let config = of("architecture_config");
    let Ok(weights::Architecture::Lora(lora)) = serde_json::from_str(&config) else {
        return Err(Error::NoAdapter { index, architecture: of("architecture") });
    };
    let etag = format!("\"{}-adapter\"", row.artifact_digest);
    if files::matches_none(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    let file = artifacts.read(&row.artifact_digest).await?;
    let tar = lora.directory(&file).map_err(|error| Error::Internal(error.to_string()))?;
    let name = files::disposition(&format!("{id}-{index}.tar"));
    let head = [(ETAG, etag), (CONTENT_TYPE, files::TAR.to_owned()), (CONTENT_DISPOSITION, name)];
    Ok((head, Body::from(tar)).into_response())
}

/// Get a sample's metadata
///
/// The header of its safetensors file, without the weights.
#[utoipa::path(
    get, path = "/v1/generations/{id}/samples/{index}/metadata", operation_id = "getFileMetadata",
    tag = "generations",
    params(("id" = Uuid, Path, description = "The generation's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           ("index" = i32, Path, description = "The sample's place, from 0.", example = 0)),
    security(("token" = ["read"])),
    responses((status = 200, description = "The metadata.", body = FileMetadata, example = json!({
        "metadata": {"architecture": "mlp-64-32-5", "seed": "7", "index": "0", "sampler": "ddim", "steps": "20"},
        "tensors": {"layers.0.weight": {"dtype": "F32", "shape": [32, 64], "data_offsets": [0, 8192]}}})), GetProblems)
)]
async fn get_metadata(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, index)): Path<(Uuid, i32)>,
) -> Result<Json<FileMetadata>> {
    let row = rows::sample(state.registry(), &caller, id.into(), index).await?;
    files::metadata(state.registry().artifacts(), &row.artifact_digest).await.map(Json)
}
