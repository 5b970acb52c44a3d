//! Jobs that search a language model for better layers (Algorithm 1).

use std::path::Path;

use ::language::evaluate::{Candidate, Evaluator, likelihood, multiple_choice};
use ::language::generator::Generator;
use ::language::model::Model;
use ::language::search::{Course, search as algorithm_1};
use ::language::spectra::spectra;
use api::AppState;
use api::models::{Search, folder};
use registry::jobs::{Attempt, work};
use serde_json::json;
use training::progress::Progress;

use super::training::progress;
use super::{parse, registry};
use crate::context::blocking;
use crate::error::{Error, Result};

/// Folder, within that of the models, of what searches keep: a folder each.
const KEPT: &str = ".searches";

/// Does a search and ends its job with the score of every candidate. What it keeps is in the folder of models: another
/// attempt there goes on from it.
pub async fn search(state: &AppState, attempt: Attempt) -> Result<()> {
    let request: Search = parse(&attempt.job.request)?;
    let models = folder(state)?;
    let kept = models.join(KEPT).join(attempt.job.id.to_string());
    let (shown, out) = (progress(&attempt), request.out.clone());
    let place = kept.clone();
    let course = blocking(move || searched(&request, &models, &place, &shown)).await?;
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

fn searched(request: &Search, models: &Path, kept: &Path, progress: &Progress) -> Result<Course> {
    std::fs::create_dir_all(kept).map_err(Error::io(kept))?;
    let (dir, out) = (models.join(&request.model), models.join(&request.out));
    let model = Model::open(&dir).map_err(|error| within(error, models))?;
    let generator = layers(request, &model, &kept.join("layers.safetensors"), progress)?;
    let mut evaluator: Box<dyn Evaluator> = match request.questions.is_empty() {
        true => Box::new(likelihood(&model, &request.lines, request.length).map_err(|error| within(error, models))?),
        false => Box::new(multiple_choice(&model, &request.questions).map_err(|error| within(error, models))?),
    };
    let path = kept.join("course.json");
    let (course, changed) = algorithm_1(&model, &generator, evaluator.as_mut(), (&request.search, &path), progress)?;
    // An attempt that was cut off between the directory and the end of its job leaves its mark beside the course.
    let mark = kept.join("written");
    if !(mark.exists() && out.exists()) {
        Candidate { model: &model, changed }.write(&out).map_err(|error| within(error, models))?;
        std::fs::write(&mark, b"").map_err(Error::io(&mark))?;
    }
    Ok(course)
}

/// The generator that an earlier attempt learned, or one that is learned now.
fn layers(request: &Search, model: &Model, path: &Path, progress: &Progress) -> Result<Generator> {
    if path.exists() {
        return Ok(Generator::open(path)?);
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
    let folder = format!("{}/", models.display());
    match &error {
        ::language::Error::Model { .. } => Error::input("model_invalid", error.to_string().replace(&folder, "")),
        _ => error.into(),
    }
}
