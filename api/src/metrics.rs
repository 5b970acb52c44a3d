//! `/metrics`: what the server counts, in the Prometheus text format.
//!
//! Labels have few values: route templates, methods, statuses, stages and states, never ids or names.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Error, Result};
use crate::problem::AnyProblems;
use crate::state::AppState;

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Upper bounds of durations, in seconds.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];
/// Upper bounds of samples in a batch.
const BATCHES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// How long counts from the database are good for.
const FRESH: Duration = Duration::from_secs(5);
/// How often measured values are put into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
const STATES: [&str; 2] = ["queued", "running"];

/// The route of `/metrics`.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get))
}

/// The process's recorder; made at the first call.
fn recorder() -> &'static PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let builder = || {
            // The buckets are not empty, which is all that could be wrong.
            let builder = PrometheusBuilder::new();
            let builder = builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS);
            let builder = builder.unwrap_or_default();
            builder.set_buckets_for_metric(Matcher::Suffix("_batch_samples".into()), &BATCHES).unwrap_or_default()
        };
        let handle = builder().install_recorder().unwrap_or_else(|error| {
            tracing::warn!(%error, "metrics go to another recorder");
            builder().build_recorder().handle()
        });
        describe();
        keep_small(handle.clone());
        handle
    })
}

/// Sorts what was measured into its buckets from time to time: until then each value is kept, and a server that nobody asks
/// for its metrics would grow with its requests.
fn keep_small(recorder: PrometheusHandle) {
    let work = move || {
        loop {
            std::thread::sleep(UPKEEP);
            recorder.run_upkeep();
        }
    };
    if let Err(error) = std::thread::Builder::new().name("metrics".into()).spawn(work) {
        tracing::warn!(%error, "no thread for the upkeep of metrics: they grow until they are asked for");
    }
}

/// Begins to count.
pub(crate) fn start() {
    recorder();
}

fn describe() {
    describe_counter!("weightsmith_http_requests_total", "Answered requests by method, route and status.");
    describe_histogram!("weightsmith_http_request_duration_seconds", "Time from a request's head to its answer's.");
    describe_counter!("weightsmith_http_request_body_bytes_total", "Bytes of request bodies by method and route.");
    describe_gauge!("weightsmith_http_requests_in_flight", "Requests that are not answered yet.");
    describe_gauge!("weightsmith_queue_length", "Requests that wait for a place to work.");
    describe_gauge!("weightsmith_queue_limit", "Requests that may wait.");
    describe_gauge!("weightsmith_places", "Requests that may work at a time.");
    describe_gauge!("weightsmith_places_in_use", "Requests that work.");
    describe_histogram!("weightsmith_queue_wait_seconds", "Time that requests waited for a place to work.");
    describe_histogram!("weightsmith_generation_stage_duration_seconds", "Time of each stage of generations.");
    // Recorded by `inference`, batch by batch.
    describe_histogram!("weightsmith_generation_batch_samples", "Rows in each run of the denoiser.");
    describe_histogram!(
        "weightsmith_generation_batch_duration_seconds",
        "Time of each run of the denoiser, and of each batch that is decoded, by stage."
    );
    describe_counter!("weightsmith_samples_total", "Networks that were generated.");
    describe_gauge!("weightsmith_jobs", "Unfinished jobs by state.");
    describe_gauge!("weightsmith_job_lag_seconds", "Age of the oldest job that waits for a worker.");
    describe_gauge!("weightsmith_database_connections", "Connections to the database, by use: busy or idle.");
    describe_counter!("weightsmith_artifact_bytes_total", "Bytes of artifacts, by direction: in or out.");
    describe_gauge!("weightsmith_process_resident_memory_bytes", "Memory of the process.");
    describe_gauge!("weightsmith_build_info", "1, with the version as label.");
}

/// What the server counts
///
/// In the Prometheus text format. With `--metrics-bind` it is served there, and not here.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "health",
    security(()),
    responses((status = 200, description = "Counters, gauges and histograms.", body = String,
               content_type = "text/plain", example = "weightsmith_queue_length 0\n"), AnyProblems)
)]
async fn get(State(state): State<AppState>) -> Result<Response> {
    if state.settings().metrics_elsewhere {
        return Err(Error::UnknownRoute("/metrics".into()));
    }
    Ok(answer(&state).await)
}

/// The metrics as they are now.
pub(crate) async fn answer(state: &AppState) -> Response {
    observe(state).await;
    let recorder = recorder();
    recorder.run_upkeep();
    ([(CONTENT_TYPE, MEDIA_TYPE)], recorder.render()).into_response()
}

/// Sets what is only known by asking.
async fn observe(state: &AppState) {
    let work = state.work().usage();
    gauge!("weightsmith_queue_length").set(work.waiting as f64);
    gauge!("weightsmith_queue_limit").set(work.queue as f64);
    gauge!("weightsmith_places").set(work.places as f64);
    gauge!("weightsmith_places_in_use").set(work.busy as f64);
    let (open, idle) = state.registry().connections();
    gauge!("weightsmith_database_connections", "use" => "idle").set(idle as f64);
    gauge!("weightsmith_database_connections", "use" => "busy").set(open.saturating_sub(idle) as f64);
    if let Some(bytes) = resident_memory() {
        gauge!("weightsmith_process_resident_memory_bytes").set(bytes as f64);
    }
    gauge!("weightsmith_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    jobs(state).await;
}

async fn jobs(state: &AppState) {
    static ASKED: Mutex<Option<Instant>> = Mutex::new(None);
    {
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        *asked = Some(Instant::now());
    }
    // What cannot be asked keeps its last value; the pool's gauges and readiness tell why.
    let Ok(counts) = registry::jobs::unfinished(state.registry()).await else {
        return;
    };
    for name in STATES {
        let count = counts.iter().find(|count| count.state == name);
        gauge!("weightsmith_jobs", "state" => name).set(count.map_or(0.0, |count| count.jobs as f64));
    }
    let queued = counts.iter().find(|count| count.state == "queued");
    gauge!("weightsmith_job_lag_seconds").set(queued.map_or(0.0, |count| count.oldest_seconds.max(0.0)));
}

/// Resident memory of this process in bytes, where the system tells it.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The template of a request's route, once it is known.
#[derive(Clone, Default)]
pub(crate) struct Route(std::sync::Arc<OnceLock<String>>);

impl Route {
    /// The template; `other` for what has no route.
    pub(crate) fn name(&self) -> &str {
        self.0.get().map_or("other", String::as_str)
    }
}

/// Notes the template of the route that was found, for who counts outside.
pub(crate) async fn note_route(request: Request, next: Next) -> Response {
    if let (Some(route), Some(path)) = (request.extensions().get::<Route>(), request.extensions().get::<MatchedPath>())
    {
        // Noted once: the layer is inside one route only.
        let _ = route.0.set(path.as_str().to_owned());
    }
    next.run(request).await
}

/// One request that is not answered yet.
pub(crate) struct InFlight(());

impl InFlight {
    pub(crate) fn begin() -> Self {
        gauge!("weightsmith_http_requests_in_flight").increment(1.0);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!("weightsmith_http_requests_in_flight").decrement(1.0);
    }
}

/// Counts an answer.
pub(crate) fn answered(method: &Method, route: &Route, status: StatusCode, time: Duration) {
    let method = known(method);
    let (route, status) = (route.name().to_owned(), status.as_str().to_owned());
    counter!("weightsmith_http_requests_total", "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    histogram!("weightsmith_http_request_duration_seconds", "method" => method, "route" => route)
        .record(time.as_secs_f64());
}

/// Counts the bytes of a request's body that came, whether or not it was taken.
pub(crate) fn received(method: &Method, route: &Route, bytes: u64) {
    if bytes > 0 {
        counter!("weightsmith_http_request_body_bytes_total", "method" => known(method), "route" => route.name().to_owned())
            .increment(bytes);
    }
}

/// A client may invent methods; a label may not.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Notes how long a request waited for a place to work.
pub(crate) fn waited(time: Duration) {
    histogram!("weightsmith_queue_wait_seconds").record(time.as_secs_f64());
}

/// Notes how long a stage of a generation took.
pub(crate) fn stage(name: &'static str, milliseconds: f64) {
    histogram!("weightsmith_generation_stage_duration_seconds", "stage" => name).record(milliseconds / 1e3);
}

/// Counts generated networks.
pub(crate) fn samples(count: usize) {
    counter!("weightsmith_samples_total").increment(count as u64);
}

/// Counts bytes of artifacts that went out.
pub(crate) fn sent(bytes: usize) {
    counter!("weightsmith_artifact_bytes_total", "direction" => "out").increment(bytes as u64);
}
