//! Lineage: what something was made from, and what was made from it.

use axum::Json;
use axum::extract::State;
use registry::Caller;
use registry::lineage::{self as rows, NodeKind};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::Result;
use crate::extract::Query;
use crate::problem::SubListProblems;
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get))
}

/// A part of the lineage around a node.
#[derive(Serialize, ToSchema)]
struct Lineage {
    /// The node asked for.
    #[schema(example = "version:digits@3")]
    root: String,
    /// It and the nodes around it, nearest first.
    nodes: Vec<LineageNode>,
    /// Which was made from which.
    edges: Vec<LineageEdge>,
    /// Whether there is more than the limit allows.
    truncated: bool,
}

/// A thing that was made or made from.
#[derive(Serialize, ToSchema)]
struct LineageNode {
    /// Names it within lineage.
    #[schema(example = "version:digits@3")]
    node: String,
    /// `dataset`, `run`, `checkpoint`, `zoo`, `version`, `generation` or `sample`.
    #[schema(example = "version")]
    kind: &'static str,
    /// What to call it.
    #[schema(example = "digits@3")]
    label: String,
    /// Where it is in this API; runs are in the list of their zoo's runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/v1/generators/digits/versions/3")]
    url: Option<String>,
    /// Its id; of a sample, that of its generation.
    id: Uuid,
    /// Whether it was deleted or yanked.
    deleted: bool,
}

/// A step of making.
#[derive(Serialize, ToSchema)]
struct LineageEdge {
    /// The node that something was made from.
    #[schema(example = "zoo:0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")]
    source: String,
    /// The node that was made from it.
    #[schema(example = "version:digits@3")]
    result: String,
}

/// Which way to go.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Direction {
    /// To what it was made from.
    Sources,
    /// To what was made from it.
    Results,
    /// Both ways.
    #[default]
    Both,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LineageQuery {
    /// Where to begin: `dataset:ID`, `run:ID`, `checkpoint:ID`, `zoo:ID`, `version:NAME@3`, `generation:ID` or
    /// `sample:ID/0` (the generation's id and the sample's place).
    #[param(example = "version:digits@3")]
    node: String,
    /// Which way to go; both by default.
    #[param(inline)]
    direction: Option<Direction>,
    /// Most steps away from the node, 1 to 10.
    #[param(example = 10, minimum = 1, maximum = 10, default = 10)]
    depth: Option<u32>,
    /// Most nodes, 1 to 1000.
    #[param(example = 100, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
}

impl From<rows::Node> for LineageNode {
    fn from(row: rows::Node) -> Self {
        let rows::Node { node, kind, id, index, label, deleted } = row;
        let url = match kind {
            NodeKind::Dataset => Some(format!("/v1/datasets/{id}")),
            NodeKind::Run => None,
            NodeKind::Checkpoint => Some(format!("/v1/checkpoints/{id}")),
            NodeKind::Zoo => Some(format!("/v1/zoos/{id}")),
            NodeKind::Version => label.split_once('@').map(|(name, n)| format!("/v1/generators/{name}/versions/{n}")),
            NodeKind::Generation => Some(format!("/v1/generations/{id}")),
            NodeKind::Sample => Some(format!("/v1/generations/{id}/samples/{}/file", index.unwrap_or_default())),
        };
        Self { node, kind: kind.word(), label, url, id, deleted }
    }
}

/// Get the lineage of something
///
/// sample → generation → generator version → zoo → checkpoint → run → dataset, from any of them and both ways. What
/// the caller may not see is left out, and what is only reached through it.
#[utoipa::path(
    get, path = "/v1/lineage", operation_id = "getLineage", tag = "lineage", params(LineageQuery),
    responses((status = 200, description = "The graph.", body = Lineage, example = json!({
        "root": "version:digits@3",
        "nodes": [
            {"node": "version:digits@3", "kind": "version", "label": "digits@3",
             "url": "/v1/generators/digits/versions/3", "id": "0199a1f6-3c5e-7d0a-9a53-000000000001",
             "deleted": false},
            {"node": "zoo:0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "kind": "zoo", "label": "digits-1f6f2f1c",
             "url": "/v1/zoos/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e",
             "deleted": false}],
        "edges": [{"source": "zoo:0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "result": "version:digits@3"}],
        "truncated": false})), SubListProblems),
    security(("token" = ["read"]))
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<LineageQuery>,
) -> Result<Json<Lineage>> {
    let direction = match query.direction.unwrap_or_default() {
        Direction::Sources => rows::Direction::Sources,
        Direction::Results => rows::Direction::Results,
        Direction::Both => rows::Direction::Both,
    };
    let depth = query.depth.unwrap_or(10);
    if !(1..=10).contains(&depth) {
        let error = crate::Error::ValueInvalid(format!("depth is {depth}; it must be a whole number from 1 to 10"));
        return Err(error.in_field("depth"));
    }
    let limit = query.limit.unwrap_or(100) as usize;
    let graph = rows::graph(state.registry(), &caller, &query.node.parse()?, direction, depth, limit).await?;
    Ok(Json(Lineage {
        root: graph.root,
        nodes: graph.nodes.into_iter().map(LineageNode::from).collect(),
        edges: graph.edges.into_iter().map(|e| LineageEdge { source: e.source, result: e.result }).collect(),
        truncated: graph.truncated,
    }))
}
