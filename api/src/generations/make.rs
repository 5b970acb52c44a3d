//! Makes a generation as far as its files: from a request to what is to be recorded.

use registry::generations as rows;
use registry::generators::{self, GeneratorVersion};
use registry::jobs::{Attempt, Progress};
use registry::{Caller, GenerationId, Seed};
use serde::Serialize;
use serde_json::json;

use super::Timings;
use super::candidates::{Candidate, Plan};
use super::described;
use super::request::{NewGeneration, Recorded};
use super::retrieve::Retriever;
use super::work::{Clock, Input, Job, Made};
use crate::about::NewAbout;
use crate::auth::quota::Reserved;
use crate::error::{Error, Result};
use crate::files::SAFETENSORS;
use crate::health::device;
use crate::limits::{self, Cancel};
use crate::state::AppState;
use crate::texts;

/// The plan of a request's candidates, by what the version's manifest says of its networks.
///
/// # Errors
/// `unknown_architecture` and `invalid_value`.
pub(super) fn plan(new: &NewGeneration, version: &GeneratorVersion) -> Result<Plan> {
    let all = version.manifest.get("architectures").and_then(serde_json::Value::as_array);
    let all = all.map(Vec::as_slice).unwrap_or_default();
    let text = |a: &serde_json::Value, pointer: &str| a.pointer(pointer)?.as_str().map(str::to_owned);
    if version.modality == texts::MODALITY {
        described::check(new)?;
    }
    let architecture = match &new.architecture {
        None => all.first(),
        Some(name) => {
            let named = |a: &&serde_json::Value| text(a, "/name").as_ref() == Some(name);
            let known = || all.iter().filter_map(|a| text(a, "/name")).collect::<Vec<_>>().join(", ");
            let unknown = || inference::Error::UnknownArchitecture { name: name.clone(), known: known() };
            Some(all.iter().find(named).ok_or_else(|| Error::from(unknown()).in_field("architecture"))?)
        }
    };
    let of = |pointer: &str| architecture.and_then(|a| text(a, pointer));
    let predictor = version.manifest.get("predictor").is_some_and(serde_json::Value::is_object);
    Plan::of(
        new,
        of("/config/kind").as_deref() == Some("head"),
        of("/name").as_deref().unwrap_or("other networks"),
        predictor,
    )
}

/// Does the work of a request, or of an attempt at a job, as far as the files: the rows are still to be written.
pub(super) async fn make(
    state: &AppState,
    caller: &Caller,
    new: NewGeneration,
    attempt: Option<&Attempt>,
) -> Result<(rows::NewGeneration, Option<Reserved>)> {
    let mut total = Clock::start();
    let evaluates = new.evaluates()?;
    let options = new.options();
    options.validate(&state.sample_limits())?;
    let version = generators::resolve(state.registry(), caller, &new.generator)
        .await
        .map_err(|error| Error::from(error).in_field("generator"))?;
    let plan = plan(&new, &version)?;
    let mut clock = Clock::start();
    let dataset = Input::fetch(state, caller, "dataset", new.dataset).await?;
    let evaluation = match new.evaluation {
        Some(input) => Some(Input::fetch(state, caller, "evaluation", input).await?),
        None => None,
    };
    let validation = match new.validation {
        Some(input) => Some(Input::fetch(state, caller, "validation", input).await?),
        None => None,
    };
    let fetch_ms = clock.lap();
    let mut recorded = Recorded {
        generator_digest: version.digest.clone(),
        dataset_seed: dataset.seed,
        sampler: options.sampler.to_string(),
        guidance: options.guidance,
        latent_noise: options.latent_noise,
        quality: options.quality,
        refine: options.refine,
        recalibrate: options.recalibrate,
        candidates: plan.origins.clone(),
        rank_by: plan.rank_by,
        ..Recorded::default()
    };
    let seed = Seed(options.seed);
    // A job has a worker's place already, and its samples were set aside when it was accepted.
    let (place, reserved) = match attempt {
        None => {
            // Last of what can refuse the request, and given back when the work fails.
            let mut reserved = Reserved::of(state.registry(), caller, options.count).await?;
            let place = state.work().place().await?;
            reserved.begin();
            (Some(place), Some(reserved))
        }
        Some(_) => (None, None),
    };
    let mut generator = state.generator(&version).await?.for_client(&sharer(caller));
    if let Some(name) = &new.architecture {
        generator = generator.with_architecture(name)?;
    }
    recorded.steps = options.effective_steps(&generator.manifest().schedule);
    recorded.eta = options.effective_eta(&generator.manifest().schedule);
    let generator_name = format!("{}@{}", version.generator, version.version);
    let limits = state.settings().datasets.clone();
    let retriever = Retriever::new(state, caller, &version, &generator, options.count);
    let named = new.architecture.is_some();
    let job = Job {
        generator: std::sync::Arc::new(generator),
        named,
        generator_name,
        dataset,
        evaluates,
        evaluation,
        plan,
        validation,
        retriever,
        texts: state.texts(&version).await?,
        options,
        limits,
    };
    let mut made = match (place, attempt.cloned()) {
        (Some(place), _) => limits::run(place, move |cancel| job.run(cancel, &|_, _| {})).await?,
        (None, attempt) => limits::blocking(move || as_attempt(job, attempt)).await?,
    };
    made.timings.parse_ms += fetch_ms;
    recorded.architecture = Some(std::mem::take(&mut made.architecture));
    recorded.classes = std::mem::take(&mut made.classes);
    recorded.evaluation_digest = made.evaluation_digest.take();
    recorded.validation_digest = made.validation_digest.take();
    recorded.warnings = std::mem::take(&mut made.warnings);
    recorded.distance = made.distance;
    recorded.class_distances = made.class_distances.take();
    let about = new.about.unwrap_or_default();
    let made = store(state, &version, seed, recorded, made, about, &mut total).await?;
    Ok((made, reserved))
}

/// Who takes turns with others in the denoiser's runs: who showed a token, or else where the request comes from.
fn sharer(caller: &Caller) -> String {
    match (&caller.token, caller.address) {
        (None, Some(address)) => address.to_string(),
        _ => caller.name.clone(),
    }
}

/// The work of an attempt: it stops when the attempt is told to, and says how far it is.
fn as_attempt(job: Job, attempt: Option<Attempt>) -> Result<Made> {
    let cancel = attempt.as_ref().map_or_else(Cancel::default, |attempt| Cancel::of(attempt.stop.clone()));
    let started = std::time::Instant::now();
    let made = job.run(&cancel, &|step, steps| {
        let rate = Some(step as f64 / started.elapsed().as_secs_f64()).filter(|rate| *rate > 0.0 && rate.is_finite());
        let seconds_left = rate.map(|rate| steps.saturating_sub(step) as f64 / rate);
        let (step, steps) = (step as u64, steps as u64);
        if let Some(attempt) = &attempt {
            attempt.report(Progress { stage: "sample".into(), step, steps, loss: None, rate, seconds_left });
        }
    });
    // Also where the sampler was what stopped.
    cancel.check()?;
    made
}

/// Stores the files; the record names them.
async fn store(
    state: &AppState,
    version: &GeneratorVersion,
    seed: Seed,
    recorded: Recorded,
    made: Made,
    about: NewAbout,
    total: &mut Clock,
) -> Result<rows::NewGeneration> {
    let mut clock = Clock::start();
    let artifacts = state.registry().artifacts().put_many(made.files, SAFETENSORS).await?;
    let timings = Timings { store_ms: clock.lap(), total_ms: total.lap(), ..made.timings }.rounded();
    let samples: Vec<_> = artifacts
        .into_iter()
        .zip(&made.samples)
        .enumerate()
        .map(|(index, (artifact, sample))| recorded_sample(seed, artifact.digest, sample, made.evaluations.get(index)))
        .collect::<Result<_>>()?;
    timings.count(samples.len());
    Ok(rows::NewGeneration {
        id: GenerationId::generate(),
        version_id: version.id,
        dataset_id: made.dataset_id,
        dataset_digest: made.dataset_digest,
        request: as_json(&recorded)?,
        provider: state.runtime().provider().to_string(),
        device: device(state.runtime()),
        timings: as_json(&timings)?,
        seed,
        samples,
        // What is made for someone's data is theirs unless they say otherwise.
        about: about.or(true),
    })
}

fn recorded_sample(
    seed: Seed,
    artifact_digest: String,
    sample: &Candidate,
    evaluation: Option<&inference::Evaluation>,
) -> Result<rows::NewSample> {
    let mut metrics = serde_json::Map::new();
    if let Some(found) = evaluation {
        metrics.insert("loss".into(), json!(found.loss));
        metrics.insert("evaluated_on".into(), json!(found.examples));
    }
    if let Some(method) = sample.method {
        metrics.insert("method".into(), json!(method.as_str()));
    }
    if let Some(draw) = sample.draw {
        metrics.insert("draw".into(), json!(draw));
    }
    Ok(rows::NewSample {
        seed,
        artifact_digest,
        accuracy: evaluation.map(|found| found.accuracy as f32),
        metrics: metrics.into(),
        origin: sample.origin.as_str(),
        scores: sample.scores.as_ref().map(as_json).transpose()?,
        checkpoint_id: sample.checkpoint,
    })
}

/// A record as JSON.
pub(super) fn as_json(value: &impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|error| Error::Internal(format!("a record cannot be written: {error}")))
}
