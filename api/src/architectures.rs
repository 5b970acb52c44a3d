//! Architectures: networks that weights are generated for.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use registry::architectures as rows;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::Result;
use crate::extract::{Path, Query};
use crate::page::{self, Listing};
use crate::problem::{GetProblems, ListProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get))
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
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Most items of the page, 1 to 200.
    #[param(example = 50, minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

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
            "forward": null, "created_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, Query(query): Query<ListQuery>) -> Result<Json<Listing<Architecture>>> {
    let page = rows::list(state.registry(), &page::request(query.limit, query.cursor)).await?;
    Ok(Listing::of(page, Architecture::from))
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
        "forward": null, "created_at": "2026-01-01T00:00:00Z"})), GetProblems)
)]
async fn get(State(state): State<AppState>, Path(name): Path<String>) -> Result<Json<Architecture>> {
    Ok(Json(rows::get(state.registry(), &name).await?.into()))
}
