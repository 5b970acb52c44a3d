//! Datasets: what conditions are made of, labelled examples or a text.

use axum::Json;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::response::Response;
use chrono::{DateTime, Utc};
use datasets::Dataset as Data;
use registry::Caller;
use registry::datasets as rows;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::about::{About, NewAbout};
use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::extract::{self, Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::inline::{Content, Given, Image, labels};
use crate::lifecycle::lifecycle;
use crate::limits::{self, check_name};
use crate::page::{Listing, list_query};
use crate::problem::{CreateProblems, GetProblems, ListProblems};
use crate::state::AppState;
use crate::texts;

mod nearest;
mod upload;

pub(crate) use upload::between_commas;
mod view;

/// Media type of the stored file.
const NPZ: &str = "application/x-npz";

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get))
        .routes(routes!(upload::upload))
        .routes(routes!(view::thumbnail))
        .routes(routes!(view::sample))
        .routes(routes!(view::file))
        .routes(routes!(nearest::nearest))
        .merge(life::routes())
}

/// Labelled examples, or a text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Dataset {
    /// Its id.
    id: Uuid,
    /// Its name; several datasets may share one.
    #[schema(example = "digits")]
    name: String,
    /// What it is: labelled examples of the kind `image` or `features`, or one `text`.
    #[schema(example = "image")]
    modality: String,
    /// Shape of one example: `[channels, height, width]` or `[features]`; empty of a text.
    #[schema(example = json!([1, 8, 8]))]
    shape: Vec<i32>,
    /// Names of the classes, in label order; none of a text.
    #[schema(example = json!(["0", "1", "2"]))]
    classes: Vec<String>,
    /// Number of examples.
    #[schema(example = 1797)]
    examples: i64,
    /// Digest of the content, whatever file it came in.
    digest: String,
    /// When it was registered.
    created_at: DateTime<Utc>,
    #[serde(flatten)]
    about: About,
}

impl From<rows::Dataset> for Dataset {
    fn from(row: rows::Dataset) -> Self {
        Self {
            id: row.id.as_uuid(),
            name: row.name,
            modality: row.modality,
            shape: row.shape,
            classes: row.class_names,
            examples: row.examples,
            digest: row.digest,
            created_at: row.created_at,
            about: row.about.into(),
        }
    }
}

/// A dataset to register: a name and exactly one of `images`, `npz`, `zip` and `text`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDataset {
    /// Its name.
    #[schema(example = "digits", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    name: String,
    /// Images, all of one size.
    images: Option<Vec<Image>>,
    /// A NumPy archive in base64: `images` `[n, h, w]` or `[n, c, h, w]`, or `features` `[n, d]`; `labels` `[n]`;
    /// optionally `class_names`.
    #[schema(content_encoding = "base64")]
    npz: Option<String>,
    /// A zip of `CLASS/image.png` or `.jpg` in base64.
    #[schema(content_encoding = "base64")]
    zip: Option<String>,
    /// A description of a task, for generators that are conditioned on a text.
    #[schema(
        example = "Decide whether a sentence is an opinion for or against something.",
        min_length = 1,
        max_length = 10000
    )]
    text: Option<String>,
    /// Names of the classes, in label order; with `npz` and `zip` also a choice of them.
    classes: Option<Vec<String>>,
    /// Description, tags, and whether it is private.
    #[serde(default)]
    about: NewAbout,
}

list_query!(ListQuery {
    /// Only datasets of this name.
    name: Option<String>,
    /// Only datasets of this modality: `image`, `features` or `text`.
    modality: Option<String>,
    /// Only the one with this content.
    digest: Option<String>,
});

/// List datasets
///
/// Newest first.
#[utoipa::path(
    get, path = "/v1/datasets", operation_id = "listDatasets", tag = "datasets", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of datasets.", body = Listing<Dataset>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits", "modality": "image", "shape": [1, 8, 8],
            "classes": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], "examples": 1797,
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "public", "tags": ["vision"], "description": "", "updated_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Query(query): Query<ListQuery>) -> Result<Response> {
    let request = query.request();
    let filter =
        rows::DatasetFilter { name: query.name, modality: query.modality, digest: query.digest, labelled: false };
    let page = rows::list(state.registry(), &caller, &filter, &request).await?;
    Listing::select(page, query.fields.as_deref(), Dataset::from)
}

/// Get a dataset
#[utoipa::path(
    get, path = "/v1/datasets/{id}", operation_id = "getDataset", tag = "datasets",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The dataset.", body = Dataset, example = json!({
        "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits", "modality": "image", "shape": [1, 8, 8],
        "classes": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], "examples": 1797,
        "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "public", "tags": ["vision"], "description": "", "updated_at": "2026-01-01T00:00:00Z"})), GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Json<Dataset>> {
    read(&state, &caller, id).await.map(Json)
}

async fn read(state: &AppState, caller: &Caller, id: Uuid) -> Result<Dataset> {
    Ok(rows::get(state.registry(), caller, id.into()).await?.into())
}

lifecycle!(
    life: Dataset, "a dataset", tag "datasets", scope "train",
    "/v1/datasets/{id}", "/v1/datasets/{id}/restore", "/v1/datasets/{id}/purge",
    ids ("updateDataset", "deleteDataset", "restoreDataset", "purgeDataset"),
    key ("id", Uuid, "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"), Dataset, read
);

/// Register a dataset
///
/// Idempotent by content: data that is registered already answers 200 with the dataset there is.
#[utoipa::path(
    post, path = "/v1/datasets", operation_id = "createDataset", tag = "datasets",
    request_body(content = NewDataset, description = "Name and labelled data.", example = json!({
        "name": "two-digits", "classes": ["3", "1"],
        "images": [{"class": "3", "data": "iVBORw0KGgo…"}, {"class": "1", "data": "iVBORw0KGgo…"}]})),
    security(("token" = ["train"])),
    responses(
        (status = 201, description = "Registered.", body = Dataset,
         headers(("Location" = String, description = "The dataset's address.")), example = json!({
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "two-digits", "modality": "image",
            "shape": [1, 8, 8], "classes": ["3", "1"], "examples": 2,
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "public", "tags": ["vision"], "description": "", "updated_at": "2026-01-01T00:00:00Z"})),
        (status = 200, description = "The same content was registered before.", body = Dataset,
         headers(("Location" = String, description = "The dataset's address."))),
        CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    extract::Json(new): extract::Json<NewDataset>,
) -> Result<Response> {
    check_name(&new.name)?;
    let content = match Content::one_of(new.images, new.npz, new.zip, new.text) {
        Given::One(content) => content,
        _ => return Err(Error::JsonInvalid("give exactly one of `images`, `npz`, `zip` and `text`".into())),
    };
    if let Content::Text(text) = &content {
        if new.classes.is_some() {
            return Err(Error::ValueInvalid("a text has no classes: leave them out".into()).in_field("classes"));
        }
        let text = texts::checked(text).map_err(|error| error.in_field("text"))?;
        return store(&state, &caller, &key, new.name, new.about, Stored::text(text)).await;
    }
    let place = state.work().place().await?;
    let limits = state.settings().datasets.clone();
    let classes = new.classes;
    let (data, npz) = limits::run(place, move |_| prepare(&content, classes.as_deref(), &limits)).await?;
    store(&state, &caller, &key, new.name, new.about, Stored::labelled(&data, npz)?).await
}

/// Reads the data, with the classes asked for, and writes it as the file to store.
fn prepare(content: &Content, classes: Option<&[String]>, limits: &datasets::Limits) -> Result<(Data, Vec<u8>)> {
    chosen(content.read("", classes, limits)?, classes)
}

/// The classes asked for, and the file to store.
fn chosen(mut data: Data, classes: Option<&[String]>) -> Result<(Data, Vec<u8>)> {
    if let Some(classes) = classes {
        let chosen = labels(&data, classes).and_then(|labels| data.select_classes(&labels));
        data = chosen.map_err(|error| Error::from(error).in_field("classes"))?;
    }
    data.require_every_class()?;
    let npz = datasets::npz::to_npz(&data)?;
    Ok((data, npz))
}

/// What is stored and registered of a dataset, whatever it is.
struct Stored {
    modality: String,
    shape: Vec<i32>,
    class_names: Vec<String>,
    examples: i64,
    digest: String,
    file: Vec<u8>,
    media_type: &'static str,
}

impl Stored {
    /// Labelled examples, with their file.
    fn labelled(data: &Data, npz: Vec<u8>) -> Result<Self> {
        let small = |n: usize| i32::try_from(n).map_err(|_| Error::Internal(format!("a dimension of {n}")));
        Ok(Self {
            modality: data.modality().to_string(),
            shape: data.shape.iter().map(|d| small(*d)).collect::<Result<_>>()?,
            class_names: data.class_names.clone(),
            examples: i64::try_from(data.len()).unwrap_or(i64::MAX),
            digest: data.digest(),
            file: npz,
            media_type: NPZ,
        })
    }

    fn text(text: &str) -> Self {
        Self {
            modality: texts::MODALITY.to_owned(),
            shape: Vec::new(),
            class_names: Vec::new(),
            examples: 1,
            digest: texts::digest(text),
            file: text.as_bytes().to_vec(),
            media_type: texts::TEXT,
        }
    }
}

/// Stores and registers data, or answers with the dataset of the same content.
async fn store(
    state: &AppState,
    caller: &Caller,
    key: &IdempotencyKey,
    name: String,
    about: NewAbout,
    stored: Stored,
) -> Result<Response> {
    let registry = state.registry();
    let address = |row: &rows::Dataset| format!("/v1/datasets/{}", row.id);
    match rows::by_digest(registry, caller, &stored.digest).await {
        Ok(row) => {
            let answer = Answer::ok(&Dataset::from(row.clone()))?.header(LOCATION, &address(&row))?;
            return answer.commit(registry.write(caller).await?, key).await;
        }
        Err(registry::Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let artifact = registry.artifacts().put_bytes(stored.file, stored.media_type).await?;
    let new = rows::NewDataset {
        name,
        modality: stored.modality,
        shape: stored.shape,
        class_names: stored.class_names,
        examples: stored.examples,
        digest: stored.digest,
        artifact_digest: artifact.digest,
        about: about.or(false),
    };
    let mut write = registry.write(caller).await?;
    let row = rows::ensure(&mut write, &new).await?;
    Answer::created(&address(&row), &Dataset::from(row))?.commit(write, key).await
}
