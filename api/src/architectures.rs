//! Architectures: networks that weights are generated for.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::Caller;
use registry::architectures as rows;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;
use weights::checkpoint::TensorLayout;

use crate::about::{About, NewAbout};
use crate::answer::Answer;
use crate::error::Result;
use crate::extract::{self, Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::imports;
use crate::lifecycle::lifecycle;
use crate::page::{Listing, list_query};
use crate::problem::{CreateProblems, GetProblems, ListProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get)).merge(life::routes())
}

/// A network that weights are generated for.
#[derive(Serialize, ToSchema)]
pub(crate) struct Architecture {
    /// Its id.
    id: Uuid,
    /// Its unique name.
    #[schema(example = "mlp-64-32-5")]
    name: String,
    /// Kind and sizes.
    #[schema(value_type = Object, example = json!({"kind": "mlp", "inputs": 64, "hidden": [32], "classes": 5}))]
    config: Value,
    /// Number of parameters.
    #[schema(example = 2245)]
    parameters: i64,
    /// Names and shapes of the parameters, in the order of the flat vector.
    #[schema(value_type = Object)]
    layout: Value,
    /// Digest of the forward graph (ONNX, weights as inputs), when one is stored.
    forward: Option<String>,
    /// When it was registered.
    created_at: DateTime<Utc>,
    #[serde(flatten)]
    about: About,
}

impl From<rows::Architecture> for Architecture {
    fn from(row: rows::Architecture) -> Self {
        Self {
            id: row.id.as_uuid(),
            name: row.name,
            config: row.config,
            parameters: row.parameters,
            layout: row.layout,
            forward: row.forward_artifact,
            created_at: row.created_at,
            about: row.about.into(),
        }
    }
}

list_query!(ListQuery {});

/// List architectures
///
/// By name.
#[utoipa::path(
    get, path = "/v1/architectures", operation_id = "listArchitectures", tag = "architectures", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of architectures.", body = Listing<Architecture>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "mlp-64-32-5",
            "config": {"kind": "mlp", "inputs": 64, "hidden": [32], "classes": 5, "activation": "relu"},
            "parameters": 2245,
            "layout": {"params": [{"name": "layers.0.weight", "shape": [32, 64], "offset": 0}]},
            "forward": null, "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "public", "tags": ["vision"], "description": "", "updated_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Query(query): Query<ListQuery>) -> Result<Response> {
    let page = rows::list(state.registry(), &caller, &query.request()).await?;
    Listing::select(page, query.fields.as_deref(), Architecture::from)
}

/// An architecture to register: a layout.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewArchitecture {
    /// Its name.
    #[schema(example = "resnet20", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    name: String,
    /// Names, shapes and types of the tensors: `{"params": [{"name", "shape", "dtype"}]}`, with `F32` where no type is
    /// given.
    #[schema(value_type = Object, example = json!({"params": [{"name": "fc.weight", "shape": [10, 64], "dtype": "F32"}]}))]
    layout: TensorLayout,
    /// Description, tags, and who sees it.
    #[serde(default)]
    about: NewAbout,
}

/// Register an architecture
///
/// One that is only a layout, for zoos of checkpoints from outside. The same name with the same layout gives the one there is.
#[utoipa::path(
    post, path = "/v1/architectures", operation_id = "createArchitecture", tag = "architectures",
    request_body(content = NewArchitecture, description = "Name and layout.", example = json!({
        "name": "resnet20", "layout": {"params": [{"name": "fc.weight", "shape": [10, 64], "dtype": "F32"}]}})),
    security(("token" = ["train"])),
    responses((status = 201, description = "Registered, or there with the same layout.", body = Architecture,
               headers(("Location" = String, description = "Its address."))), CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    extract::Json(new): extract::Json<NewArchitecture>,
) -> Result<Response> {
    let row =
        imports::architecture(&new.name, &new.layout, new.about.or(false)).map_err(|error| error.in_field("layout"))?;
    let mut write = state.registry().write(&caller).await?;
    let row = rows::ensure(&mut write, &row).await?;
    let location = format!("/v1/architectures/{}", row.name);
    Answer::created(&location, &Architecture::from(row))?.commit(write, &key).await
}

/// Get an architecture
#[utoipa::path(
    get, path = "/v1/architectures/{name}", operation_id = "getArchitecture", tag = "architectures",
    params(("name" = String, Path, description = "Its name.", example = "mlp-64-32-5")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The architecture.", body = Architecture, example = json!({
        "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "mlp-64-32-5",
        "config": {"kind": "mlp", "inputs": 64, "hidden": [32], "classes": 5, "activation": "relu"},
        "parameters": 2245,
        "layout": {"params": [{"name": "layers.0.weight", "shape": [32, 64], "offset": 0}]},
        "forward": null, "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "public", "tags": ["vision"], "description": "", "updated_at": "2026-01-01T00:00:00Z"})), GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(name): Path<String>) -> Result<Json<Architecture>> {
    read(&state, &caller, name).await.map(Json)
}

async fn read(state: &AppState, caller: &Caller, name: String) -> Result<Architecture> {
    Ok(rows::get(state.registry(), caller, &name).await?.into())
}

lifecycle!(
    life: Architecture, "an architecture", tag "architectures", scope "train",
    "/v1/architectures/{name}", "/v1/architectures/{name}/restore", "/v1/architectures/{name}/purge",
    ids ("updateArchitecture", "deleteArchitecture", "restoreArchitecture", "purgeArchitecture"),
    key ("name", String, "mlp-64-32-5"), Architecture, read
);
