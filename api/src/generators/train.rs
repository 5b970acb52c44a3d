//! Generator versions that are trained here, as jobs.

use axum::extract::State;
use axum::response::Response;
use registry::jobs::JobKind;
use registry::{Caller, zoos};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Error, Result};
use crate::extract::{self, Path};
use crate::idempotency::IdempotencyKey;
use crate::jobs::{self, Job, JobOptions};
use crate::limits::check_name;
use crate::problem::CreateProblems;
use crate::state::AppState;
use crate::zoos::build::check;

/// The routes of trainings.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(create))
}

/// A generator version to train.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTraining {
    /// The zoo to train on, by id or name.
    #[schema(example = "digits-1f6f2f1c")]
    zoo: String,
    /// The training configuration: the keys of the TOML files. Seed, data and tasks are those of the zoo.
    #[schema(value_type = Object)]
    config: Value,
    /// How the job is to be done.
    job: Option<JobOptions>,
}

/// Train a generator version
///
/// Trains on a registered zoo, as a job; the job's result is the new version. A worker that is killed loses seconds:
/// another one goes on from what it has kept, and the version is the same.
#[utoipa::path(
    post, path = "/v1/generators/{name}/versions", operation_id = "trainGeneratorVersion", tag = "generators",
    params(("name" = String, Path, description = "The generator's name; it is made when there is none.",
            example = "digits")),
    request_body(content = NewTraining, description = "What to train.", example = json!({
        "zoo": "digits-1f6f2f1c",
        "config": {
            "name": "digits", "seed": 7, "data": {"sources": [{"name": "digits", "from": "digits"}]},
            "tasks": {"kind": "class_sets", "classes": 5, "seen": 200, "orders": 15},
            "architecture": {"kind": "mlp", "hidden": [32]},
            "denoiser": {"kind": "mlp", "width": 384, "blocks": 4}},
        "job": {"webhook": {"url": "https://example.org/hook", "secret": "correct horse battery staple"}}})),
    security(("token" = ["train"])),
    responses((status = 202, description = "The job.", body = Job,
               headers(("Location" = String, description = "The job's address."))), CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Path(name): Path<String>,
    extract::Json(new): extract::Json<NewTraining>,
) -> Result<Response> {
    check_name(&name)?;
    check(&new.config, "config")?;
    let zoo = match new.zoo.parse() {
        Ok(id) => zoos::by_id(state.registry(), &caller, id).await,
        Err(_) => zoos::get(state.registry(), &caller, &new.zoo).await,
    };
    let zoo = zoo.map_err(|error| Error::from(error).in_field("zoo"))?;
    let request = json!({ "generator": name, "zoo": zoo.id, "config": new.config });
    jobs::accept(&state, &caller, &key, JobKind::Train, request, new.job.unwrap_or_default(), &[], 0).await
}
