//! Evaluations of a generation: its samples measured on labelled data, as a job.

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::evaluations as rows;
use registry::jobs::{Attempt, JobKind, Progress, work};
use registry::{Caller, generations, generators};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Recorded;
use super::work::Input;
use crate::error::{Error, Result};
use crate::extract::{self, Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::inline::{DatasetInput, DatasetInputSchema};
use crate::jobs::{self, Job, JobOptions};
use crate::limits::{Cancel, blocking};
use crate::page::{Listing, PageQuery};
use crate::problem::{CreateProblems, GetProblems, SubListProblems};
use crate::state::AppState;
use crate::texts;

/// The routes of evaluations.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get))
}

/// An evaluation to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewEvaluation {
    /// The labelled data. Its classes are those of the generation, in the same order, unless others are named.
    #[schema(value_type = DatasetInputSchema)]
    dataset: DatasetInput,
    /// How the job is to be done.
    job: Option<JobOptions>,
}

/// What the samples of a generation measured on labelled data.
#[derive(Serialize, ToSchema)]
pub(crate) struct Evaluation {
    /// Its id.
    id: Uuid,
    /// The generation.
    generation_id: Uuid,
    /// The labelled data, when it is registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset_id: Option<Uuid>,
    /// Digest of the labelled data.
    dataset_digest: String,
    /// Names of the classes, in the order of the head's rows.
    #[schema(example = json!(["3", "1", "4"]))]
    classes: Vec<String>,
    /// What each sample measured, in order.
    samples: Vec<Measured>,
    /// When it was made.
    created_at: DateTime<Utc>,
}

/// What a sample measured.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Measured {
    /// The sample's place in the generation, from 0.
    #[schema(example = 0)]
    index: i32,
    /// Accuracy, 0 to 1.
    #[schema(example = 0.96)]
    accuracy: f64,
    /// Mean cross-entropy in nats.
    #[schema(example = 0.13)]
    loss: f64,
    /// Number of examples.
    #[schema(example = 812)]
    evaluated_on: u64,
}

impl From<rows::Evaluation> for Evaluation {
    fn from(row: rows::Evaluation) -> Self {
        Self {
            id: row.id.as_uuid(),
            generation_id: row.generation_id.as_uuid(),
            dataset_id: row.dataset_id.map(registry::DatasetId::as_uuid),
            dataset_digest: row.dataset_digest,
            classes: row.classes,
            samples: serde_json::from_value(row.results).unwrap_or_default(),
            created_at: row.created_at,
        }
    }
}

/// List the evaluations of a generation
///
/// Newest first.
#[utoipa::path(
    get, path = "/v1/generations/{id}/evaluations", operation_id = "listEvaluations", tag = "generations",
    params(("id" = Uuid, Path, description = "The generation's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           PageQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of evaluations.", body = Listing<Evaluation>), SubListProblems)
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Listing<Evaluation>>> {
    let page = rows::list(state.registry(), &caller, id.into(), &query.request()).await?;
    Ok(Listing::of(page, Evaluation::from))
}

/// Get an evaluation of a generation
#[utoipa::path(
    get, path = "/v1/generations/{id}/evaluations/{evaluation}", operation_id = "getEvaluation", tag = "generations",
    params(("id" = Uuid, Path, description = "The generation's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           ("evaluation" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-00000000000e")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The evaluation.", body = Evaluation), GetProblems)
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, evaluation)): Path<(Uuid, Uuid)>,
) -> Result<axum::Json<Evaluation>> {
    let row = rows::get(state.registry(), &caller, id.into(), evaluation.into()).await?;
    Ok(axum::Json(row.into()))
}

/// Evaluate a generation
///
/// Measures all its samples on labelled data, as a job; the job's result is the evaluation.
#[utoipa::path(
    post, path = "/v1/generations/{id}/evaluations", operation_id = "createEvaluation", tag = "generations",
    params(("id" = Uuid, Path, description = "The generation's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    request_body(content = NewEvaluation, description = "What to measure on.", example = json!({
        "dataset": {"id": "0199a1f6-3c5e-7d0a-9a53-000000000003"}})),
    security(("token" = ["generate"])),
    responses((status = 202, description = "The job.", body = Job,
               headers(("Location" = String, description = "The job's address."))), CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Path(id): Path<Uuid>,
    extract::Raw(new, mut request): extract::Raw<NewEvaluation>,
) -> Result<Response> {
    let row = generations::get(state.registry(), &caller, id.into()).await?;
    let reference = format!("{}@{}", row.generator, row.version);
    let version = registry::generators::resolve(state.registry(), &caller, &reference).await?;
    if version.modality == texts::MODALITY {
        let architecture =
            version.manifest.pointer("/architectures/0/name").and_then(Value::as_str).unwrap_or_default();
        return Err(inference::Error::NoForward { architecture: architecture.to_owned() }.into());
    }
    if let Some(dataset) = new.dataset.registered() {
        let found = registry::datasets::get(state.registry(), &caller, dataset.into()).await;
        found.map_err(|error| Error::from(error).in_field("dataset.id"))?;
    }
    request.retain(|name, _| name != "job");
    request.insert("generation".into(), json!(id));
    let options = new.job.unwrap_or_default();
    jobs::accept(&state, &caller, &key, JobKind::Evaluate, Value::Object(request), options, &[], 0).await
}

/// What the job is asked for.
#[derive(Deserialize)]
struct Request {
    generation: Uuid,
    dataset: DatasetInput,
}

/// Makes the evaluation of a job, and ends the job with it.
pub(crate) async fn run(state: &AppState, attempt: Attempt) -> Result<()> {
    let Request { generation, dataset } = jobs::request(&attempt.job)?;
    let (registry, caller) = (state.registry(), &attempt.caller);
    let row = generations::get(registry, caller, generation.into()).await?;
    let samples = generations::samples(registry, caller, row.id).await?;
    let version = generators::by_version_id(registry, caller, row.version_id).await?;
    let mut generator = state.generator(&version).await?;
    let input = Input::fetch(state, caller, "dataset", dataset).await?;
    let recorded: Recorded = serde_json::from_value(row.request).unwrap_or_default();
    if let Some(name) = &recorded.architecture {
        generator = std::sync::Arc::new(generator.with_architecture(name)?);
    }
    let mut files = Vec::with_capacity(samples.len());
    for sample in &samples {
        files.push(registry.artifacts().read(&sample.artifact_digest).await?);
    }
    let (cancel, limits) = (Cancel::of(attempt.stop.clone()), state.settings().datasets.clone());
    let shown = attempt.clone();
    let (dataset_id, results, digest, classes) = blocking(move || {
        let (data, labels) = input.read(Some(&recorded.classes), &limits)?;
        let head = generator.classes();
        if labels.len() != head {
            let needs = "the generated head";
            let error = inference::Error::ClassesMismatch { found: labels.len(), needs, expected: head };
            return Err(Error::from(error).in_field("dataset"));
        }
        let chosen = data.select_classes(&labels).map_err(|error| Error::from(error).in_field("dataset"))?;
        chosen.require_every_class().map_err(|error| Error::from(error).in_field("dataset"))?;
        let layout = generator.architecture().layout.clone();
        let mut results = Vec::with_capacity(files.len());
        for (index, file) in files.iter().enumerate() {
            cancel.check()?;
            let measured = generator.evaluate(&weights::tensors::from_safetensors(file, &layout)?, &chosen)?;
            results.push(Measured {
                index: index as i32,
                accuracy: measured.accuracy,
                loss: measured.loss,
                evaluated_on: measured.examples as u64,
            });
            let (step, steps) = (index as u64 + 1, files.len() as u64);
            shown.report(Progress { stage: "evaluate".into(), step, steps, ..Progress::default() });
        }
        Ok((input.id(), results, chosen.digest(), chosen.class_names.clone()))
    })
    .await?;
    let new = rows::NewEvaluation {
        generation_id: generation.into(),
        dataset_id,
        dataset_digest: digest,
        classes,
        results: super::make::as_json(&results)?,
    };
    let mut write = registry.write(caller).await?;
    let id = rows::create(&mut write, &new).await?;
    let url = format!("/v1/generations/{generation}/evaluations/{id}");
    let mean = results.iter().map(|measured| measured.accuracy).sum::<f64>() / results.len().max(1) as f64;
    let result = json!({ "kind": "evaluation", "url": url, "detail": { "id": id, "mean_accuracy": mean } });
    work::succeed(&mut write, attempt.claim, &result).await?;
    Ok(write.commit().await?)
}
