//! The demo's HTTP client: asks for weights, downloads and checks them, measures latency.

use std::net::SocketAddr;
use std::time::Instant;

use datasets::Task;
use registry::tokens::Secret;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use training::progress::Progress;

use super::Made;
use crate::error::{Error, Result};

/// Requests timed for the latency, after as many to warm up as a fifth of them.
const TIMED: usize = 100;

/// Registered parts of the sources, by source.
pub struct Parts<'a> {
    /// Support images come from here.
    pub validation: &'a [(String, registry::DatasetId)],
    /// Accuracies are measured here.
    pub test: &'a [(String, registry::DatasetId)],
}

/// The weights that one request brought.
pub struct Answer {
    /// Downloaded weights, `[d]` a sample.
    pub theta: Vec<Vec<f32>>,
    /// Accuracy that the server measured for each.
    pub accuracy: Vec<f64>,
}

/// A client of the demo's own server.
pub struct Client {
    http: reqwest::Client,
    base: String,
    generator: String,
}

impl Client {
    /// A client of the API at `address` that shows this secret and asks for this generator.
    pub fn new(address: SocketAddr, secret: &Secret, generator: String) -> Result<Self> {
        // A proxy of the environment does not lead to this machine.
        let bearer = HeaderValue::try_from(format!("Bearer {}", secret.reveal()));
        let bearer = bearer.map_err(|_| Error::Internal("a secret is not a header's value".into()))?;
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        let http = reqwest::Client::builder().no_proxy().default_headers(headers).build()?;
        Ok(Self { http, base: format!("http://{address}"), generator })
    }

    fn body(&self, made: &Made, task: &Task, datasets: &[(String, registry::DatasetId)]) -> Result<Value> {
        let missing = || Error::Internal(format!("no dataset for task {task}"));
        let (_, id) = datasets.iter().find(|(name, _)| *name == task.source).ok_or_else(missing)?;
        let source = made.sources.list().iter().find(|s| s.name == task.source).ok_or_else(missing)?;
        let classes: Vec<&String> = task.classes.iter().map(|&c| &source.data.class_names[c as usize]).collect();
        Ok(json!({ "id": id, "classes": classes }))
    }

    /// Asks for weights for every task, and downloads them.
    pub async fn ask_all(
        &self,
        made: &Made,
        tasks: &[Task],
        parts: &Parts<'_>,
        progress: &Progress,
    ) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(tasks.len());
        for (seed, task) in tasks.iter().enumerate() {
            progress.check()?;
            let mut dataset = self.body(made, task, parts.validation)?;
            dataset["seed"] = json!(seed);
            let e = &made.config.evaluation;
            let request = json!({
                "generator": self.generator, "dataset": dataset, "count": e.samples, "seed": seed,
                "sampler": "ddim", "steps": e.steps, "guidance": e.guidance,
                "evaluate": true, "evaluation": self.body(made, task, parts.test)?,
            });
            answers.push(self.ask(made, &request).await?);
        }
        Ok(answers)
    }

    async fn post(&self, request: &Value) -> Result<Value> {
        let response = self.http.post(format!("{}/v1/generations", self.base)).json(request).send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        if status.is_success() { Ok(body) } else { Err(Error::Http(format!("the server answered {status}: {body}"))) }
    }

    /// The generator that is asked for.
    pub fn generator(&self) -> &str {
        &self.generator
    }

    /// Asks for adapters: the generation, and each sample's directory as `peft` loads it.
    pub async fn adapters(&self, request: &Value) -> Result<(Value, Vec<tempfile::TempDir>)> {
        let generation = self.post(request).await?;
        let (id, count) = (generation["id"].as_str().unwrap_or_default(), generation["count"].as_u64().unwrap_or(0));
        let mut directories = Vec::new();
        for index in 0..count {
            let url = format!("{}/v1/generations/{id}/samples/{index}/adapter", self.base);
            let tar = self.http.get(url).send().await?.error_for_status()?.bytes().await?;
            let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
            tar::Archive::new(&tar[..]).unpack(folder.path()).map_err(Error::io(folder.path()))?;
            directories.push(folder);
        }
        Ok((generation, directories))
    }

    async fn ask(&self, made: &Made, request: &Value) -> Result<Answer> {
        let generation = self.post(request).await?;
        let layout = made.zoo.architecture.layout();
        let mut answer = Answer { theta: Vec::new(), accuracy: Vec::new() };
        for sample in generation["samples"].as_array().into_iter().flatten() {
            let text = |key: &str| sample[key].as_str().unwrap_or_default().to_owned();
            let url = text("url");
            let url = if url.starts_with("http") { url } else { format!("{}{url}", self.base) };
            let bytes = self.http.get(url).send().await?.error_for_status()?.bytes().await?;
            let digest = weights::digest::sha256(&bytes);
            if digest != text("digest") {
                return Err(Error::Http(format!(
                    "the download's digest is {digest}, announced was {}",
                    text("digest")
                )));
            }
            answer.theta.push(weights::tensors::from_safetensors(&bytes, &layout)?);
            let accuracy = sample["accuracy"].as_f64();
            answer.accuracy.push(accuracy.ok_or_else(|| Error::Http("a sample has no accuracy".into()))?);
        }
        Ok(answer)
    }

    /// Median time in ms of a request for one sample on a warm server, and the id of the last generation.
    pub async fn latency(&self, made: &Made, validation: &[(String, registry::DatasetId)]) -> Result<(f64, String)> {
        let (seen, _) = made.sources.tasks(&made.config)?;
        let mut times = Vec::with_capacity(TIMED);
        let mut id = String::new();
        for i in 0..TIMED + TIMED / 5 {
            let dataset = self.body(made, &seen[i % seen.len()], validation)?;
            let request = json!({ "generator": self.generator, "dataset": dataset, "count": 1, "seed": i });
            let start = Instant::now();
            let generation = self.post(&request).await?;
            if i >= TIMED / 5 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            id = generation["id"].as_str().unwrap_or_default().to_owned();
        }
        times.sort_by(f64::total_cmp);
        Ok((times[times.len() / 2], id))
    }
}
