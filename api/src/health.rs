//! Liveness and readiness.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Result;
use crate::problem::{AnyProblems, ReadyProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready))
}

/// The process answers.
#[derive(Serialize, ToSchema)]
pub(crate) struct Live {
    /// `live`.
    #[schema(example = "live")]
    status: &'static str,
    /// Version of the server.
    #[schema(example = "0.1.0")]
    version: &'static str,
}

/// The server can do its work.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    /// `ready`.
    #[schema(example = "ready")]
    status: &'static str,
    /// `ok`: the database answers.
    #[schema(example = "ok")]
    database: &'static str,
    /// ONNX Runtime and where it runs.
    runtime: RuntimeHealth,
}

/// ONNX Runtime and where it runs.
#[derive(Serialize, ToSchema)]
pub(crate) struct RuntimeHealth {
    /// Version of the library, where it tells it.
    #[schema(example = "1.32.0")]
    version: Option<String>,
    /// The execution provider that graphs really run on: `cpu` or `cuda`.
    #[schema(example = "cpu")]
    provider: String,
    /// The device, in words.
    #[schema(example = "CPU, 2 threads")]
    device: String,
}

/// The device that graphs really run on, in words.
pub(crate) fn device(runtime: &inference::Runtime) -> String {
    match (runtime.provider(), runtime.threads()) {
        (inference::Provider::Cuda, _) => "CUDA GPU".to_owned(),
        (inference::Provider::Cpu, 1) => "CPU, 1 thread".to_owned(),
        (inference::Provider::Cpu, threads) => format!("CPU, {threads} threads"),
    }
}

/// Whether the process answers
///
/// For a supervisor that restarts a server that no longer answers. Touches nothing else.
#[utoipa::path(
    get, path = "/health/live", operation_id = "getHealthLive", tag = "health",
    security(()),
    responses((status = 200, description = "The process answers.", body = Live,
               example = json!({"status": "live", "version": "0.1.0"})), AnyProblems)
)]
async fn live() -> Json<Live> {
    Json(Live { status: "live", version: env!("CARGO_PKG_VERSION") })
}

/// Whether the server can do its work
///
/// Asks the database, and says which device and execution provider are really used.
#[utoipa::path(
    get, path = "/health/ready", operation_id = "getHealthReady", tag = "health",
    security(()),
    responses((status = 200, description = "The server can do its work.", body = Ready,
               example = json!({"status": "ready", "database": "ok",
                   "runtime": {"version": "1.32.0", "provider": "cpu", "device": "CPU, 2 threads"}})), ReadyProblems)
)]
async fn ready(State(state): State<AppState>) -> Result<Json<Ready>> {
    state.registry().ping().await?;
    let runtime = state.runtime();
    Ok(Json(Ready {
        status: "ready",
        database: "ok",
        runtime: RuntimeHealth {
            version: runtime.version().map(str::to_owned),
            provider: runtime.provider().to_string(),
            device: device(runtime),
        },
    }))
}
