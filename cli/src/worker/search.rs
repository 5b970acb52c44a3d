//! Jobs that search a language model for better layers (Algorithm 1).

use std::path::Path;

use ::language::evaluate::{Candidate, Evaluator, likelihood, multiple_choice};
use ::language::generator::Generator;
use ::language::model::Model;
use ::language::search::{Course, search as algorithm_1};
use ::language::spectra::spectra;
use api::AppState;
use api::models::{Search, folder};
use registry::jobs::{self, Attempt, JobState, work};
use registry::{Caller, JobId};
use serde_json::json;
use training::progress::Progress;

use super::training::progress;
use super::{parse, registry};
use crate::context::blocking;
use crate::error::{Error, Result};

/// Folder, within that of the models, of what searches keep: a folder each, named as its job.
const KEPT: &str = ".searches";
/// The generator of a search.
const LAYERS: &str = "layers.safetensors";
/// The scores so far.
const COURSE: &str = "course.json";
/// The new model, before it gets its name.
const MODEL: &str = "model";
/// Says that the new model is complete, and gets its name next.
const COMPLETE: &str = "complete";

/// Does a search and ends its job with the score of every candidate. What it keeps is in the folder of models: another
/// attempt there goes on from it.
pub async fn search(state: &AppState, attempt: Attempt) -> Result<()> {
    let request: Search = parse(&attempt.job.request)?;
    let models = folder(state)?;
    sweep(state, &models.join(KEPT)).await;
    let kept = models.join(KEPT).join(attempt.job.id.to_string());
    let (shown, out, place) = (progress(&attempt), request.out.clone(), kept.clone());
    let course =
        blocking(move || searched(&request, &models, &place, &shown).map_err(|error| within(error, &models))).await?;
    let result = json!({ "kind": "model", "url": "/v1/models",
        "detail": { "name": out, "before": course.initial, "after": course.score(), "evaluator": course.evaluator,
            "evaluations": course.evaluations(), "steps": course.steps } });
    let mut write = registry(state).write(&attempt.caller).await?;
    work::succeed(&mut write, attempt.claim, &result).await?;
    write.commit().await?;
    // The result has all of it.
    let _ = std::fs::remove_dir_all(&kept);
    Ok(())
}

/// Removes what searches kept whose jobs have ended: cancelled, expired and failed ones leave it.
async fn sweep(state: &AppState, kept: &Path) {
    let Ok(entries) = std::fs::read_dir(kept) else { return };
    for entry in entries.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok()) else { continue };
        let ended = match jobs::get(registry(state), &Caller::system("search"), id).await {
            Ok(job) => !matches!(job.state, JobState::Queued | JobState::Running),
            Err(error) => error.code() == "not_found",
        };
        if ended {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn searched(request: &Search, models: &Path, kept: &Path, progress: &Progress) -> ::language::Result<Course> {
    std::fs::create_dir_all(kept).map_err(::language::Error::io(kept))?;
    let model = Model::open(&models.join(&request.model))?;
    // What does not fit is said before minutes are spent.
    let mut evaluator: Box<dyn Evaluator> = match request.questions.is_empty() {
        true => Box::new(likelihood(&model, &request.lines, request.length)?.stopped_by(progress.clone())),
        false => Box::new(multiple_choice(&model, &request.questions)?.stopped_by(progress.clone())),
    };
    let generator = layers(request, &model, &kept.join(LAYERS), progress)?;
    let course = kept.join(COURSE);
    let (course, changed) = algorithm_1(&model, &generator, evaluator.as_mut(), (&request.search, &course), progress)?;
    progress.check()?;
    let (made, complete, out) = (kept.join(MODEL), kept.join(COMPLETE), models.join(&request.out));
    if !complete.exists() {
        unfinished(kept);
        Candidate { model: &model, changed }.write(&made)?;
        std::fs::write(&complete, b"").map_err(::language::Error::io(&complete))?;
    }
    // An attempt that was cut off behind this has left nothing to name.
    if made.exists() {
        if out.exists() {
            let text = format!("{} exists already: name a model that does not", out.display());
            return Err(::language::Error::Model { path: out, reason: text });
        }
        std::fs::rename(&made, &out).map_err(::language::Error::io(&out))?;
    }
    Ok(course)
}

/// Removes what an attempt that was cut off wrote of the new model.
fn unfinished(kept: &Path) {
    for entry in std::fs::read_dir(kept).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// The generator that an earlier attempt learned, or one that is learned now.
fn layers(request: &Search, model: &Model, path: &Path, progress: &Progress) -> ::language::Result<Generator> {
    if path.exists() {
        return Generator::open(path);
    }
    let names = match request.matrices.is_empty() {
        false => request.matrices.clone(),
        true => {
            let all = spectra(model, request.top, progress)?;
            all.into_iter().filter(|layer| layer.selected).map(|layer| layer.matrix.name).collect()
        }
    };
    let generator = Generator::learn(model, &names, &request.layers, progress)?;
    generator.save(path)?;
    Ok(generator)
}

/// An error without the place of the models on this machine.
fn within(error: ::language::Error, models: &Path) -> Error {
    match error {
        ::language::Error::Io { path, source } => Error::Io { path, source },
        error @ (::language::Error::Model { .. } | ::language::Error::Text(_)) => {
            Error::input(error.code(), error.within(models))
        }
        error => error.into(),
    }
}
