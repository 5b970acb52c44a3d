//! Feature extractors: ONNX image encoders whose features dataset encoders and networks may take instead of pixels.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use chrono::{DateTime, Utc};
use inference::Extractor as Loaded;
use registry::{Caller, extractors as rows};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;
use weights::manifest::{ExtractorSpec, ResizeRule};

use crate::about::{About, NewAbout};
use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::extract::{Path, Query};
use crate::files::{self, Binary, File};
use crate::idempotency::IdempotencyKey;
use crate::lifecycle::lifecycle;
use crate::limits::{self, check_name};
use crate::page::{Listing, list_query};
use crate::problem::{CreateProblems, FileProblems, GetProblems, ListProblems};
use crate::state::AppState;
use crate::upload::receive;

/// Media type of ONNX graphs.
const ONNX: &str = "application/onnx";

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get))
        .routes(routes!(get_file))
        .merge(life::routes())
}

/// A feature extractor.
#[derive(Serialize, ToSchema)]
pub(crate) struct Extractor {
    /// Its id.
    id: Uuid,
    /// Its unique name.
    #[schema(example = "clip-vit-b32")]
    name: String,
    /// Name of the graph's input.
    #[schema(example = "images")]
    input: String,
    /// Name of the graph's output.
    #[schema(example = "features")]
    output: String,
    /// `[channels, height, width]` of the input.
    #[schema(example = json!([3, 224, 224]))]
    shape: Vec<usize>,
    /// How images get that size: `stretch` or `crop`.
    #[schema(example = "crop", pattern = "^(stretch|crop)$")]
    resize: String,
    /// What is taken from each channel, whose values are 0 to 1.
    #[schema(example = json!([0.481, 0.458, 0.408]))]
    mean: Vec<f32>,
    /// What each channel is then divided by.
    #[schema(example = json!([0.269, 0.261, 0.276]))]
    std: Vec<f32>,
    /// Features of an image.
    #[schema(example = 512)]
    dim: i32,
    /// Digest of the graph.
    digest: String,
    /// Where to download the graph.
    #[schema(example = "/v1/extractors/clip-vit-b32/file")]
    url: String,
    /// When it was registered.
    created_at: DateTime<Utc>,
    #[serde(flatten)]
    about: About,
}

impl From<rows::Extractor> for Extractor {
    fn from(row: rows::Extractor) -> Self {
        // What was stored was a specification; one that cannot be read shows as empty.
        let spec: Option<ExtractorSpec> = serde_json::from_value(row.spec).ok();
        let resize = match spec.as_ref().map(|spec| spec.resize) {
            Some(ResizeRule::Crop) => "crop",
            _ => "stretch",
        };
        let (input, output, shape, mean, std) =
            spec.map(|s| (s.input, s.output, s.shape.to_vec(), s.mean, s.std)).unwrap_or_default();
        Self {
            id: row.id.as_uuid(),
            url: format!("/v1/extractors/{}/file", row.name),
            name: row.name,
            input,
            output,
            shape,
            resize: resize.into(),
            mean,
            std,
            dim: row.dim,
            digest: row.artifact_digest,
            created_at: row.created_at,
            about: row.about.into(),
        }
    }
}

list_query!(ListQuery {});

/// List feature extractors
///
/// By name. `pixels`, which is built in, is not among them.
#[utoipa::path(
    get, path = "/v1/extractors", operation_id = "listExtractors", tag = "extractors", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of extractors.", body = Listing<Extractor>), ListProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Query(query): Query<ListQuery>) -> Result<Response> {
    let page = rows::list(state.registry(), &caller, &query.request()).await?;
    Listing::select(page, query.fields.as_deref(), Extractor::from)
}

/// Get a feature extractor
#[utoipa::path(
    get, path = "/v1/extractors/{name}", operation_id = "getExtractor", tag = "extractors",
    params(("name" = String, Path, description = "Its name.", example = "clip-vit-b32")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The extractor.", body = Extractor), GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(name): Path<String>) -> Result<Json<Extractor>> {
    read(&state, &caller, name).await.map(Json)
}

async fn read(state: &AppState, caller: &Caller, name: String) -> Result<Extractor> {
    Ok(rows::get(state.registry(), caller, &name).await?.into())
}

lifecycle!(
    life: Extractor, "a feature extractor", tag "extractors", scope "train",
    "/v1/extractors/{name}", "/v1/extractors/{name}/restore", "/v1/extractors/{name}/purge",
    ids ("updateExtractor", "deleteExtractor", "restoreExtractor", "purgeExtractor"),
    key ("name", String, "clip-vit-b32"), Extractor, read
);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NewQuery {
    /// Its name.
    #[param(example = "clip-vit-b32", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    name: String,
    /// Name of the graph's input, f32 `[batch, channels, height, width]`.
    #[param(example = "images")]
    input: String,
    /// Name of the graph's output, `batch` rows of features.
    #[param(example = "features")]
    output: String,
    /// Channels (1 or 3), height and width of the input, between commas.
    #[param(example = "3,224,224")]
    shape: String,
    /// How images get that size: `stretch`, or `crop` to its proportions first.
    #[param(example = "crop", pattern = "^(stretch|crop)$")]
    resize: Option<String>,
    /// What is taken from each channel, whose values are 0 to 1, between commas; 0 when it is left out.
    #[param(example = "0.481,0.458,0.408")]
    mean: Option<String>,
    /// What each channel is then divided by, between commas; 1 when it is left out.
    #[param(example = "0.269,0.261,0.276")]
    std: Option<String>,
    /// What it is.
    #[param(max_length = 10000)]
    description: Option<String>,
    /// Whether only its owner and administrators see it.
    private: Option<bool>,
}

impl NewQuery {
    fn spec(&self) -> Result<ExtractorSpec> {
        let wrong = |field: &'static str, rule: &str| Error::ValueInvalid(format!("{field} {rule}")).in_field(field);
        let shape: Option<Vec<usize>> = self.shape.split(',').map(|part| part.trim().parse().ok()).collect();
        let shape = shape.and_then(|shape| <[usize; 3]>::try_from(shape).ok());
        let shape = shape.ok_or_else(|| wrong("shape", "must be channels,height,width as three whole numbers"))?;
        let resize = match self.resize.as_deref() {
            None | Some("stretch") => ResizeRule::Stretch,
            Some("crop") => ResizeRule::Crop,
            Some(_) => return Err(wrong("resize", "must be stretch or crop")),
        };
        let channels = |field, text: &Option<String>, otherwise: f32| match text {
            None => Ok(vec![otherwise; shape[0].min(3)]),
            Some(text) => text
                .split(',')
                .map(|part| part.trim().parse().map_err(|_| wrong(field, "must be numbers between commas")))
                .collect::<Result<Vec<f32>>>(),
        };
        Ok(ExtractorSpec {
            name: self.name.clone(),
            input: self.input.clone(),
            output: self.output.clone(),
            shape,
            resize,
            mean: channels("mean", &self.mean, 0.0)?,
            std: channels("std", &self.std, 1.0)?,
            dim: 0,
        })
    }
}

/// Register a feature extractor
///
/// The body is the ONNX graph. It is run once on two images: a graph that does not fit is refused with the reason.
#[utoipa::path(
    post, path = "/v1/extractors", operation_id = "createExtractor", tag = "extractors", params(NewQuery),
    request_body(content = Binary, content_type = "application/octet-stream", description = "The ONNX graph."),
    security(("token" = ["train"])),
    responses((status = 201, description = "Registered.", body = Extractor,
               headers(("Location" = String, description = "The extractor's address."))), CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Query(query): Query<NewQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    check_name(&query.name)?;
    let spec = query.spec()?;
    let file = receive(&state, &headers, body).await?;
    let place = state.work().place().await?;
    let runtime = state.runtime().clone();
    let (spec, file) = limits::run(place, move |_| {
        let onnx =
            std::fs::read(file.path()).map_err(|e| Error::Internal(format!("an upload is not readable: {e}")))?;
        let spec = Loaded::probe(&runtime, &spec, &onnx)?.spec().clone();
        Ok((spec, file))
    })
    .await?;
    let artifact = state.registry().artifacts().put_file(&file.path(), ONNX).await?;
    let json = |error: serde_json::Error| Error::Internal(error.to_string());
    let new = rows::NewExtractor {
        name: query.name,
        dim: i32::try_from(spec.dim).unwrap_or(i32::MAX),
        spec: serde_json::to_value(&spec).map_err(json)?,
        artifact_digest: artifact.digest,
        about: NewAbout::new(query.description.unwrap_or_default(), Vec::new(), query.private).or(false),
    };
    let mut write = state.registry().write(&caller).await?;
    let row = rows::create(&mut write, &new).await?;
    let location = format!("/v1/extractors/{}", row.name);
    Answer::created(&location, &Extractor::from(row))?.commit(write, &key).await
}

/// Download a feature extractor
///
/// Its ONNX graph. `ETag` is the digest; `Range`, `If-Range` and `If-None-Match` work.
#[utoipa::path(
    get, path = "/v1/extractors/{name}/file", operation_id = "downloadExtractor", tag = "extractors",
    params(("name" = String, Path, description = "Its name.", example = "clip-vit-b32")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The file.", body = Binary, content_type = "application/onnx"),
              (status = 206, description = "The range asked for.", body = Binary, content_type = "application/onnx"),
              (status = 304, description = "The file is the one that `If-None-Match` names."), FileProblems)
)]
async fn get_file(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let row = rows::get(state.registry(), &caller, &name).await?;
    let file = File { digest: &row.artifact_digest, name: format!("{}.onnx", row.name), media_type: ONNX };
    files::answer(state.registry().artifacts(), &method, &headers, file).await
}
