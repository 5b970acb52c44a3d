//! What a model is scored by, from the options of a command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::language::evaluate::{Candidate, Evaluator, External, Question, likelihood, multiple_choice};
use ::language::model::Model;
use serde_json::{Value, json};

use super::{Score, lines};
use crate::context::tokio_runtime;
use crate::error::{Error, Result};

/// The evaluator that the options name; candidates of programs and addresses are written to `folder`.
pub fn open(score: &Score, model: &Model, folder: &Path) -> Result<Box<dyn Evaluator>> {
    let limit = Some(score.limit).filter(|s| s.is_finite() && *s > 0.0).map(Duration::from_secs_f64);
    let limit = limit.ok_or_else(|| Error::input("usage", "--limit must be a number of seconds above 0"))?;
    if !score.text.is_empty() {
        return Ok(Box::new(likelihood(model, &lines(&score.text)?, score.length)?));
    }
    if let Some(path) = &score.questions {
        let questions = Question::read(&std::fs::read_to_string(path).map_err(Error::io(path))?)?;
        return Ok(Box::new(multiple_choice(model, &questions)?));
    }
    let folder = std::path::absolute(folder).map_err(Error::io(folder))?;
    if !score.command.is_empty() {
        return Ok(Box::new(External { command: score.command.clone(), limit, folder }));
    }
    match &score.url {
        Some(url) => Ok(Box::new(Address::new(url.clone(), limit, folder)?)),
        None => Err(Error::input("usage", "say what the model is scored by: --text, --questions, --command or --url")),
    }
}

/// A server that scores a directory on this machine.
struct Address {
    url: String,
    folder: PathBuf,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Address {
    fn new(url: String, limit: Duration, folder: PathBuf) -> Result<Self> {
        let client = reqwest::Client::builder().timeout(limit).build()?;
        Ok(Self { url, folder, client, runtime: tokio_runtime()? })
    }

    async fn ask(&self, dir: &Path) -> std::result::Result<f64, String> {
        let request = self.client.post(&self.url).json(&json!({ "model": dir }));
        let answer = request.send().await.map_err(|e| Error::from(e).to_string())?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("it answered {status}"));
        }
        let answer: Value = answer.json().await.map_err(|e| Error::from(e).to_string())?;
        let score = answer["score"].as_f64().filter(|score| score.is_finite());
        score.ok_or_else(|| format!("it answered {answer} and not {{\"score\": NUMBER}}"))
    }
}

impl Evaluator for Address {
    fn score(&mut self, candidate: &mut Candidate<'_>) -> ::language::Result<f64> {
        let failed = |reason: String| ::language::Error::Evaluator(format!("{}: {reason}", self.url));
        candidate.written(&self.folder, |dir| self.runtime.block_on(self.ask(dir)).map_err(failed))
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}
