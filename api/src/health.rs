//! Liveness and readiness.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::{Mutex, OnceCell};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Error, Result};
use crate::limits::blocking;
use crate::problem::{AnyProblems, Check, ReadyProblems};
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
    /// What was looked at.
    checks: Vec<Check>,
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
/// Ready means: the schema is up to date, the database answers, the artifact store takes and gives bytes (asked every
/// 10 seconds at most), and a graph has run. Otherwise 503, whose `checks` say what is wrong; also while the server
/// starts.
#[utoipa::path(
    get, path = "/health/ready", operation_id = "getHealthReady", tag = "health",
    security(()),
    responses((status = 200, description = "The server can do its work.", body = Ready,
               example = json!({"status": "ready", "checks": [{"name": "migrations", "ok": true},
                   {"name": "database", "ok": true}, {"name": "artifacts", "ok": true}, {"name": "session", "ok": true}],
                   "runtime": {"version": "1.32.0", "provider": "cpu", "device": "CPU, 2 threads"}})), ReadyProblems)
)]
async fn ready(State(state): State<AppState>) -> Result<Json<Ready>> {
    let checks = check(&state).await;
    if checks.iter().any(|check| !check.ok) {
        return Err(Error::NotReady(checks));
    }
    let runtime = state.runtime();
    Ok(Json(Ready {
        status: "ready",
        checks,
        runtime: RuntimeHealth {
            version: runtime.version().map(str::to_owned),
            provider: runtime.provider().to_string(),
            device: device(runtime),
        },
    }))
}

/// What was found out about the server's needs.
#[derive(Default)]
pub(crate) struct Probes {
    /// A graph has run.
    warmed: OnceCell<()>,
    /// When the artifact store was asked, and what was wrong with it.
    artifacts: Mutex<Option<(Instant, Option<String>)>>,
}

/// How long what is known of the artifact store is good for, when it works and when it does not.
const FRESH: Duration = Duration::from_secs(10);
const FRESH_FAILURE: Duration = Duration::from_secs(1);

/// Looks at all that the server needs.
pub(crate) async fn check(state: &AppState) -> Vec<Check> {
    let database = state.registry().ping().await.err().map(|error| told(&error.into()));
    let (artifacts, session) = tokio::join!(artifacts(state), session(state));
    let of = |name, reason: Option<String>| Check { name, ok: reason.is_none(), reason };
    // A state is made of a registry whose migrations have run.
    vec![of("migrations", None), of("database", database), of("artifacts", artifacts), of("session", session)]
}

/// What a client may read of a failure; the log has all of it.
fn told(error: &Error) -> String {
    tracing::warn!(code = error.code(), %error, "not ready");
    match error {
        Error::Registry(error) => error.to_string(),
        error => error.detail(),
    }
}

async fn artifacts(state: &AppState) -> Option<String> {
    let mut known = state.probes().artifacts.lock().await;
    if let Some((at, reason)) = &*known
        && at.elapsed() < if reason.is_none() { FRESH } else { FRESH_FAILURE }
    {
        return reason.clone();
    }
    let reason = state.registry().artifacts().probe().await.err().map(|error| told(&error.into()));
    *known = Some((Instant::now(), reason.clone()));
    reason
}

async fn session(state: &AppState) -> Option<String> {
    let warm = || {
        let runtime = state.runtime().clone();
        blocking(move || Ok(runtime.warm()?))
    };
    state.probes().warmed.get_or_try_init(warm).await.err().map(|error| told(&error))
}

/// What is served while the state is not there yet.
pub(crate) fn starting() -> Router {
    let reason = "it connects, migrates and warms up; try again in a second".to_owned();
    let check = Check { name: "start", ok: false, reason: Some(reason) };
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(|| async { Error::NotReady(vec![check]) }))
        .fallback(|| async { Error::Starting })
}
