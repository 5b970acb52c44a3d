//! What a dataset looks like: a thumbnail, a sample of each class, and its file.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datasets::{Dataset as Data, Modality};
use registry::{Caller, datasets as rows};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::NPZ;
use crate::error::{Error, Result};
use crate::extract::{Path, Query};
use crate::files::{self, Binary, File, matches_none};
use crate::limits;
use crate::problem::{FileProblems, ViewProblems};
use crate::state::AppState;
use crate::texts;

/// Most examples of a sample.
const MAX_SAMPLE: usize = 5_000;
/// How long a client may keep what belongs to a digest, in seconds; private: not everyone may see it.
const KEEP: &str = "private, max-age=86400";

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ThumbnailQuery {
    /// Longest side in pixels.
    #[param(example = 256, minimum = 8, maximum = 2048, default = 256)]
    size: Option<u32>,
    /// Images of each class.
    #[param(example = 8, minimum = 1, maximum = 64, default = 8)]
    per_class: Option<usize>,
}

/// Get a dataset's thumbnail
///
/// A PNG with a row of images for each class. It never changes: `ETag` and `If-None-Match` work.
#[utoipa::path(
    get, path = "/v1/datasets/{id}/thumbnail", operation_id = "getDatasetThumbnail", tag = "datasets",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"), ThumbnailQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "The picture.", body = Binary, content_type = "image/png"),
              (status = 304, description = "The picture is the one that `If-None-Match` names."), ViewProblems)
)]
pub(super) async fn thumbnail(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(query): Query<ThumbnailQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let row = rows::get(state.registry(), &caller, id.into()).await?;
    let (size, per_class) = (query.size.unwrap_or(256), query.per_class.unwrap_or(8));
    let etag = format!("\"{}-thumbnail-{size}-{per_class}\"", row.digest);
    if matches_none(&headers, &etag) {
        return Ok(unchanged(&etag));
    }
    let data = state.dataset(&row).await?;
    let place = state.work().place().await?;
    let png = limits::run(place, move |_| Ok(datasets::grid(&data, per_class, size)?)).await?;
    let headers = [(ETAG, etag.as_str()), (CACHE_CONTROL, KEEP), (CONTENT_TYPE, "image/png")];
    Ok((headers, Body::from(png)).into_response())
}

fn unchanged(etag: &str) -> Response {
    (StatusCode::NOT_MODIFIED, [(ETAG, etag), (CACHE_CONTROL, KEEP)]).into_response()
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SampleQuery {
    /// Examples of each class; a class with fewer gives all it has.
    #[param(example = 5, minimum = 1, maximum = 1000, default = 5)]
    per_class: Option<usize>,
    /// Which examples: equal seeds give equal ones.
    #[param(example = 0, default = 0)]
    seed: Option<u64>,
    /// `json` (images as PNG in base64) or `npz`.
    #[param(example = "json", pattern = "^(json|npz)$")]
    format: Option<String>,
}

/// Some examples of each class.
#[derive(Serialize, ToSchema)]
pub(super) struct Sample {
    /// Names of the classes, in label order.
    #[schema(example = json!(["0", "1"]))]
    classes: Vec<String>,
    /// Shape of one example.
    #[schema(example = json!([1, 8, 8]))]
    shape: Vec<usize>,
    /// The examples, class by class.
    examples: Vec<Example>,
}

/// One example.
#[derive(Serialize, ToSchema)]
struct Example {
    /// Its place in the dataset, from 0.
    #[schema(example = 17)]
    index: usize,
    /// Name of its class.
    #[schema(example = "3")]
    class: String,
    /// An image as PNG in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(content_encoding = "base64")]
    png: Option<String>,
    /// The values of a feature vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<f32>>,
}

/// Sample a dataset
///
/// The same number of examples of each class.
#[utoipa::path(
    get, path = "/v1/datasets/{id}/sample", operation_id = "sampleDataset", tag = "datasets",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"), SampleQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "The examples.", content((Sample = "application/json"), (Binary = "application/x-npz"))),
              (status = 304, description = "The sample is the one that `If-None-Match` names."), ViewProblems)
)]
pub(super) async fn sample(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(query): Query<SampleQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let npz = match query.format.as_deref() {
        None | Some("json") => false,
        Some("npz") => true,
        Some(_) => return Err(Error::ValueInvalid("format must be json or npz".into()).in_field("format")),
    };
    let row = rows::get(state.registry(), &caller, id.into()).await?;
    let (per_class, seed) = (query.per_class.unwrap_or(5), query.seed.unwrap_or(0));
    let most = per_class.saturating_mul(row.class_names.len());
    if per_class == 0 || per_class > 1000 || most > MAX_SAMPLE {
        let text = format!("per_class must be 1 to 1000, and at most {MAX_SAMPLE} examples in all, not {most}");
        return Err(Error::ValueInvalid(text).in_field("per_class"));
    }
    let etag = format!("\"{}-sample-{per_class}-{seed}-{npz}\"", row.digest);
    if matches_none(&headers, &etag) {
        return Ok(unchanged(&etag));
    }
    let data = state.dataset(&row).await?;
    let place = state.work().place().await?;
    let chosen = data.sample(per_class, seed);
    let tags = [(ETAG, etag), (CACHE_CONTROL, KEEP.to_owned())];
    if npz {
        let file = limits::run(place, move |_| Ok(datasets::npz::to_npz(&data.take(&chosen))?)).await?;
        return Ok((tags, [(CONTENT_TYPE, NPZ)], Body::from(file)).into_response());
    }
    let sample = limits::run(place, move |_| described(&data, &chosen)).await?;
    Ok((tags, Json(sample)).into_response())
}

fn described(data: &Data, chosen: &[usize]) -> Result<Sample> {
    let example = |&index: &usize| -> Result<Example> {
        let class = data.class_names[data.labels[index] as usize].clone();
        let (png, values) = match data.modality() {
            Modality::Image => (Some(STANDARD.encode(datasets::example_png(data, index)?)), None),
            Modality::Features => (None, Some(data.gather(&[index]))),
        };
        Ok(Example { index, class, png, values })
    };
    let examples = chosen.iter().map(example).collect::<Result<_>>()?;
    Ok(Sample { classes: data.class_names.clone(), shape: data.shape.clone(), examples })
}

/// Download a dataset
///
/// All of it as `.npz`, or a text as it is. `ETag` is the file's digest; `Range`, `If-Range` and `If-None-Match` work.
#[utoipa::path(
    get, path = "/v1/datasets/{id}/file", operation_id = "downloadDataset", tag = "datasets",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The file.", content((Binary = "application/x-npz"), (String = "text/plain"))),
              (status = 206, description = "The range asked for.", body = Binary, content_type = "application/x-npz"),
              (status = 304, description = "The file is the one that `If-None-Match` names."), FileProblems)
)]
pub(super) async fn file(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let row = rows::get(state.registry(), &caller, id.into()).await?;
    let (end, media_type) = if row.modality == texts::MODALITY { ("txt", texts::TEXT) } else { ("npz", NPZ) };
    let file = File { digest: &row.artifact_digest, name: format!("{}.{end}", row.name), media_type };
    files::answer(state.registry().artifacts(), &method, &headers, file).await
}
