//! Generations: answered requests for weights, with the samples that were made.

mod candidates;
mod described;
mod evaluations;
mod make;
mod request;
mod retrieve;
mod samples;
mod work;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName};
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::Caller;
use registry::Write;
use registry::embeddings::{self, SubjectKind};
use registry::generations as rows;
use registry::generators;
use registry::jobs::work as work_on;
use registry::jobs::{Attempt, JobKind};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use candidates::{Origin, RankBy};
use make::{make, plan};
use request::NewGeneration;
pub use request::Recorded;
use samples::Sample;

use crate::about::About;
use crate::answer::Answer;
use crate::auth::quota::{self, Reserved};
use crate::error::{Error, Result};
use crate::extract::{self, Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::inline::DatasetInput;
use crate::jobs;
use crate::lifecycle::lifecycle;
use crate::metrics;
use crate::page::{Listing, list_query};
use crate::problem::{CreateProblems, GetProblems, ListProblems};
use crate::state::AppState;

const RESPOND_ASYNC: &str = "respond-async";
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get))
        .merge(samples::routes())
        .merge(evaluations::routes())
        .merge(life::routes())
}

/// An answered request for weights.
#[derive(Serialize, ToSchema)]
pub(crate) struct Generation {
    #[serde(flatten)]
    summary: GenerationSummary,
    /// The samples, in order.
    samples: Vec<Sample>,
}

/// An answered request for weights, without its samples.
#[derive(Serialize, ToSchema)]
pub(crate) struct GenerationSummary {
    /// Its id.
    id: Uuid,
    /// The generator version that made it.
    generator: UsedGenerator,
    /// Name of the networks' architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "mlp-64-32-5")]
    architecture: Option<String>,
    /// The labelled data it was made for.
    dataset: UsedDataset,
    /// Number of samples.
    #[schema(example = 5)]
    count: i64,
    /// The sampler.
    #[schema(example = "ddim")]
    sampler: String,
    /// The seed of the noise; sample i draws its noise from the seed and i.
    #[schema(example = 7, format = "uint64")]
    seed: u64,
    /// Sampling steps taken.
    #[schema(example = 20)]
    steps: usize,
    /// η of `ddim`.
    #[schema(example = 0.0)]
    eta: f64,
    /// Classifier-free guidance; 1 is off.
    #[schema(example = 1.0)]
    guidance: f32,
    /// Deviation of noise added to what was sampled, where there was some.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 0.25)]
    latent_noise: Option<f32>,
    /// Quality that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 1.5)]
    quality: Option<f32>,
    /// Steps of refinement, where there were some.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false, example = 3)]
    refine_steps: Option<usize>,
    /// `true` where statistics of normalisations were measured on the examples that the encoder took.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    recalibrate: bool,
    /// The execution provider that was really used: `cpu` or `cuda`.
    #[schema(example = "cpu")]
    provider: String,
    /// The device that was really used, in words.
    #[schema(example = "CPU, 2 threads")]
    device: String,
    /// Where samples could come from.
    #[schema(example = json!(["generated", "retrieved", "closed_form"]))]
    candidates: Vec<Origin>,
    /// What decided which are best; without it they are in the order of the noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank_by: Option<RankBy>,
    /// How far the dataset is from the generator's zoo: the cosine distance of its embedding to the nearest run's, in
    /// units of the mean distance between neighbours in the zoo. About 1 and less is within the zoo; null where the
    /// zoo's embeddings are not registered.
    #[schema(required, example = 0.83)]
    distance: Option<f64>,
    /// How far each class of the dataset is from the classes of the generator's zoo, in the dataset's order: the distance of
    /// the class's token to the nearest of theirs, in units of what other images of those very classes have. About 1 is like
    /// one of them; above 1.3 or so in the mean (more than 95 % of the zoo's own datasets have) is far. Null where the
    /// generator does not know its zoo's classes.
    #[schema(required, example = json!([0.9, 1.1, 1.0, 0.8, 1.2]))]
    class_distances: Option<Vec<f64>>,
    /// What to know about the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<String>,
    /// How long each stage took.
    timings: Timings,
    /// When it was made.
    created_at: DateTime<Utc>,
    #[serde(flatten)]
    about: About,
}

/// A generator version that made a generation.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsedGenerator {
    /// The generator's name.
    #[schema(example = "digits")]
    name: String,
    /// The version's number.
    #[schema(example = 3)]
    version: i32,
    /// The generator's digest.
    digest: String,
}

/// The labelled data of a generation.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsedDataset {
    /// Its id, when it is a registered one.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    /// Digest of its content.
    digest: String,
    /// Names of the classes, in the order of the generated head's rows.
    #[schema(example = json!(["3", "1", "4", "0", "7"]))]
    classes: Vec<String>,
    /// Which examples of each class the encoder took.
    #[schema(example = 0, format = "uint64")]
    seed: u64,
}

/// Wall-clock time of each stage, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Timings {
    /// Reading the labelled data.
    parse_ms: f64,
    /// Encoding it to a condition.
    encode_ms: f64,
    /// From noise to latents.
    sample_ms: f64,
    /// From latents to files of weights.
    decode_ms: f64,
    /// Making and comparing candidates, where they are ranked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f64, required = false)]
    rank_ms: Option<f64>,
    /// Measuring accuracies.
    evaluate_ms: f64,
    /// Storing the files.
    store_ms: f64,
    /// From the request, once read, to its record; with waiting and loading.
    total_ms: f64,
}

impl Timings {
    /// Counts the stages and samples of a generation that was recorded.
    fn count(self, samples: usize) {
        let stages = [
            ("parse", self.parse_ms),
            ("encode", self.encode_ms),
            ("sample", self.sample_ms),
            ("decode", self.decode_ms),
            ("evaluate", self.evaluate_ms),
            ("store", self.store_ms),
            ("total", self.total_ms),
        ];
        let rank = self.rank_ms.map(|milliseconds| ("rank", milliseconds));
        stages.into_iter().chain(rank).for_each(|(name, milliseconds)| metrics::stage(name, milliseconds));
        metrics::samples(samples);
    }

    /// Rounded to microseconds, which is what is worth keeping.
    fn rounded(self) -> Self {
        let round = |ms: f64| (ms * 1e3).round() / 1e3;
        Self {
            parse_ms: round(self.parse_ms),
            encode_ms: round(self.encode_ms),
            sample_ms: round(self.sample_ms),
            decode_ms: round(self.decode_ms),
            rank_ms: self.rank_ms.map(round),
            evaluate_ms: round(self.evaluate_ms),
            store_ms: round(self.store_ms),
            total_ms: round(self.total_ms),
        }
    }
}

impl From<rows::Generation> for GenerationSummary {
    fn from(row: rows::Generation) -> Self {
        // A record of another writer may lack parts; what it has is shown.
        let recorded: Recorded = serde_json::from_value(row.request).unwrap_or_default();
        Self {
            id: row.id.as_uuid(),
            generator: UsedGenerator { name: row.generator, version: row.version, digest: recorded.generator_digest },
            architecture: recorded.architecture,
            dataset: UsedDataset {
                id: row.dataset_id.map(registry::DatasetId::as_uuid),
                digest: row.dataset_digest,
                classes: recorded.classes,
                seed: recorded.dataset_seed,
            },
            count: row.samples,
            sampler: recorded.sampler,
            seed: row.seed.0,
            steps: recorded.steps,
            eta: recorded.eta,
            guidance: recorded.guidance,
            latent_noise: Some(recorded.latent_noise).filter(|noise| *noise > 0.0),
            quality: recorded.quality,
            refine_steps: recorded.refine.map(|refine| refine.steps),
            recalibrate: recorded.recalibrate,
            provider: row.provider,
            device: row.device,
            candidates: recorded.candidates,
            rank_by: recorded.rank_by,
            distance: recorded.distance,
            class_distances: recorded.class_distances,
            warnings: recorded.warnings,
            timings: serde_json::from_value(row.timings).unwrap_or_default(),
            created_at: row.created_at,
            about: row.about.into(),
        }
    }
}

list_query!(ListQuery {
    /// Only generations of this generator: `name` for all its versions, `name@3` or `name@alias` for one.
    #[param(example = "digits")]
    generator: Option<String>,
    /// Only generations for this dataset, by id.
    dataset: Option<Uuid>,
});

/// List generations
///
/// Newest first, without their samples.
#[utoipa::path(
    get, path = "/v1/generations", operation_id = "listGenerations", tag = "generations", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of generations.", body = Listing<GenerationSummary>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e",
            "generator": {"name": "digits", "version": 3,
                "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
            "dataset": {"id": "0199a1f6-3c5e-7d0a-9a53-000000000003",
                "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "classes": ["3", "1", "4", "0", "7"], "seed": 0},
            "count": 1, "sampler": "ddim", "seed": 7, "steps": 20, "eta": 0.0, "guidance": 1.0,
            "provider": "cpu", "device": "CPU, 2 threads", "candidates": ["generated"], "distance": 0.83,
            "class_distances": [0.9, 1.1, 1.0, 0.8, 1.2],
            "timings": {"parse_ms": 0.4, "encode_ms": 2.1, "sample_ms": 14.2, "decode_ms": 1.3, "evaluate_ms": 0.0,
                "store_ms": 3.9, "total_ms": 22.4},
            "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "private", "tags": [], "description": "", "updated_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Query(query): Query<ListQuery>) -> Result<Response> {
    let request = query.request();
    let mut filter = rows::GenerationFilter { dataset: query.dataset.map(Into::into), ..Default::default() };
    match query.generator {
        Some(reference) if reference.contains('@') => {
            let version = generators::resolve(state.registry(), &caller, &reference).await;
            filter.version = Some(version.map_err(|error| Error::from(error).in_field("generator"))?.id);
        }
        name => filter.generator = name,
    }
    let page = rows::list(state.registry(), &caller, &filter, &request).await?;
    Listing::select(page, query.fields.as_deref(), GenerationSummary::from)
}

/// Get a generation
///
/// With all its samples.
#[utoipa::path(
    get, path = "/v1/generations/{id}", operation_id = "getGeneration", tag = "generations",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The generation.", body = Generation), GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Json<Generation>> {
    read(&state, &caller, id).await.map(Json)
}

async fn read(state: &AppState, caller: &Caller, id: Uuid) -> Result<Generation> {
    let row = rows::get(state.registry(), caller, id.into()).await?;
    with_samples(state, caller, row).await
}

lifecycle!(
    life: Generation, "a generation", tag "generations", scope "generate",
    "/v1/generations/{id}", "/v1/generations/{id}/restore", "/v1/generations/{id}/purge",
    ids ("updateGeneration", "deleteGeneration", "restoreGeneration", "purgeGeneration"),
    key ("id", Uuid, "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"), Generation, read
);

async fn with_samples(state: &AppState, caller: &Caller, row: rows::Generation) -> Result<Generation> {
    let samples = rows::samples(state.registry(), caller, row.id).await?;
    Ok(Generation { summary: row.into(), samples: samples.into_iter().map(Sample::from).collect() })
}

/// Generate weights for a dataset
///
/// Encodes the dataset, samples `count` networks, and stores each as a safetensors file. For linear heads, and wherever
/// `candidates` asks for it, checkpoints of the zoo and closed forms compete with what is generated, and the best
/// `count` are the answer; each sample says its origin and its scores. Nothing is stored when
/// anything fails; when the client goes away, the work stops. With `Prefer: respond-async`, with `job`, and when `count`
/// is above the server's limit for answers at once, it is done as a job and the answer is 202.
#[utoipa::path(
    post, path = "/v1/generations", operation_id = "createGeneration", tag = "generations",
    params(("Prefer" = Option<String>, Header, description = "`respond-async` for a job.", example = "respond-async")),
    request_body(content = NewGeneration, description = "What to generate.", examples(
        ("samples" = (summary = "The generator alone", value = json!({
            "generator": "digits@latest",
            "dataset": {"id": "0199a1f6-3c5e-7d0a-9a53-000000000003", "classes": ["3", "1", "4", "0", "7"]},
            "count": 1, "sampler": "ddim", "steps": 20, "seed": 7, "evaluate": true}))),
        ("candidates" = (summary = "The best of all candidates, by leave-one-out", value = json!({
            "generator": "heads@latest",
            "dataset": {"id": "0199a1f6-3c5e-7d0a-9a53-000000000003", "classes": ["3", "1", "4"]},
            "candidates": ["generated", "retrieved", "closed_form"], "rank_by": "leave_one_out", "count": 1,
            "seed": 7}))),
        ("validation" = (summary = "The best of all candidates, by validation data", value = json!({
            "generator": "heads@latest",
            "dataset": {"id": "0199a1f6-3c5e-7d0a-9a53-000000000003", "classes": ["3", "1", "4"]},
            "candidates": ["generated", "closed_form"], "rank_by": "validation",
            "validation": {"id": "0199a1f6-3c5e-7d0a-9a53-000000000004"}, "count": 3, "seed": 7}))))),
    security(("token" = ["generate"])),
    responses(
        (status = 201, description = "Generated.", body = Generation,
         headers(("Location" = String, description = "The generation's address.")), example = json!({
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e",
            "generator": {"name": "digits", "version": 3,
                "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
            "dataset": {"id": "0199a1f6-3c5e-7d0a-9a53-000000000003",
                "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "classes": ["3", "1", "4", "0", "7"], "seed": 0},
            "count": 1, "sampler": "ddim", "seed": 7, "steps": 20, "eta": 0.0, "guidance": 1.0,
            "provider": "cpu", "device": "CPU, 2 threads", "candidates": ["generated"], "distance": 0.83,
            "class_distances": [0.9, 1.1, 1.0, 0.8, 1.2],
            "timings": {"parse_ms": 0.4, "encode_ms": 2.1, "sample_ms": 14.2, "decode_ms": 1.3, "evaluate_ms": 2.0,
                "store_ms": 3.9, "total_ms": 24.4},
            "created_at": "2026-01-01T00:00:00Z", "owner": "ann",
            "visibility": "private", "tags": [], "description": "", "updated_at": "2026-01-01T00:00:00Z",
            "samples": [{"index": 0, "seed": 7,
                "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": 9632,
                "url": "/v1/generations/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e/samples/0/file",
                "origin": "generated", "draw": 0, "accuracy": 0.96, "loss": 0.13, "evaluated_on": 812}]})),
        (status = 202, description = "The job that generates.", body = crate::jobs::Job,
         headers(("Location" = String, description = "The job's address."),
                 ("Preference-Applied" = String, description = "`respond-async`, when the request preferred it."))),
        CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    headers: HeaderMap,
    extract::Raw(mut new, request): extract::Raw<NewGeneration>,
) -> Result<Response> {
    let preferred = prefers_async(&headers);
    let count = new.count.unwrap_or(1);
    let large = count > state.settings().async_above;
    if preferred || large || new.job.is_some() {
        let applied = &applied(preferred);
        let options = new.job.take().unwrap_or_default();
        let request = deferred(&state, &caller, &new, request).await?;
        return jobs::accept(&state, &caller, &key, JobKind::Generate, request, options, applied, count).await;
    }
    let (mut write, row, reserved) = generate(&state, &caller, new).await?;
    let samples = rows::samples_within(&mut write, row.id).await?;
    let location = format!("/v1/generations/{}", row.id);
    let body = Generation { summary: row.into(), samples: samples.into_iter().map(Sample::from).collect() };
    let mut response = Answer::created(&location, &body)?.commit(write, &key).await?;
    reserved.made().await;
    quota::tell(state.registry(), &caller, response.headers_mut()).await;
    Ok(response)
}

/// What an answer says of the wish not to wait.
pub(crate) fn applied(preferred: bool) -> Vec<(HeaderName, &'static str)> {
    preferred.then_some((PREFERENCE_APPLIED, RESPOND_ASYNC)).into_iter().collect()
}

/// Whether the client asks not to wait (RFC 7240).
pub(crate) fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(RESPOND_ASYNC))
}

/// The request as its job keeps it: with the seed and the version of now, so that each attempt makes the same.
async fn deferred(
    state: &AppState,
    caller: &Caller,
    new: &NewGeneration,
    mut request: serde_json::Map<String, serde_json::Value>,
) -> Result<serde_json::Value> {
    new.evaluates()?;
    let options = new.options();
    options.validate(&state.sample_limits())?;
    let version = generators::resolve(state.registry(), caller, &new.generator)
        .await
        .map_err(|error| Error::from(error).in_field("generator"))?;
    let plan = plan(new, &version)?;
    if plan.explicit
        && plan.has(Origin::Retrieved)
        && !embeddings::any(state.registry(), version.id, SubjectKind::Run).await?
    {
        return Err(work::nothing_to_retrieve(&format!("{}@{}", version.generator, version.version)));
    }
    let others = [&new.evaluation, &new.validation].into_iter().flatten();
    for id in std::iter::once(&new.dataset).chain(others).filter_map(DatasetInput::registered) {
        registry::datasets::get(state.registry(), caller, id.into()).await?;
    }
    request.shift_remove("job");
    request.insert("generator".into(), json!(format!("{}@{}", version.generator, version.version)));
    request.insert("seed".into(), json!(options.seed));
    Ok(serde_json::Value::Object(request))
}

/// Makes the generation of a job, and ends the job with it.
pub(crate) async fn run(state: &AppState, attempt: Attempt) -> Result<()> {
    let new = jobs::request(&attempt.job)?;
    let (made, _) = make(state, &attempt.caller, new, Some(&attempt)).await?;
    let mut write = state.registry().write(&attempt.caller).await?;
    let row = rows::create(&mut write, &made).await?;
    let result = json!({ "kind": "generation", "url": format!("/v1/generations/{}", row.id),
        "detail": { "id": row.id, "samples": row.samples } });
    work_on::succeed(&mut write, attempt.claim, &result).await?;
    Ok(write.commit().await?)
}

pub(crate) use evaluations::run as evaluate;

/// Makes a generation; it is recorded when the write is committed.
async fn generate(
    state: &AppState,
    caller: &Caller,
    new: NewGeneration,
) -> Result<(Write, rows::Generation, Reserved)> {
    let (made, reserved) = make(state, caller, new, None).await?;
    let reserved = reserved.ok_or_else(|| Error::Internal("a generation at once sets its samples aside".into()))?;
    let mut write = state.registry().write(caller).await?;
    let row = rows::create(&mut write, &made).await?;
    Ok((write, row, reserved))
}
