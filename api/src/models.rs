//! Language models of the server's folder of models, and searches for better layers (paper 3.5, Algorithm 1) as jobs.

use std::path::{Path as FilePath, PathBuf};

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use language::evaluate::Question;
use language::lm::{Config, tokens};
use language::model::Model as Opened;
use language::search::{Proposal, SearchConfig};
use registry::Caller;
use registry::jobs::{self as rows, JobKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use training::stages::layers::LayersConfig;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Error, Result};
use crate::extract::{self, Path};
use crate::idempotency::IdempotencyKey;
use crate::jobs::{self, Job, JobOptions};
use crate::limits::{blocking, check_name};
use crate::problem::{CreateProblems, ListProblems};
use crate::state::AppState;

/// Most characters of a validation text.
const MOST_TEXT: usize = 4 << 20;
/// Most matrices that are named.
const MOST_MATRICES: usize = 1000;
/// Most candidates of a matrix.
const MOST_CANDIDATES: usize = 1000;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(search))
}

/// A language model of the server's folder.
#[derive(Serialize, ToSchema)]
pub(crate) struct Model {
    /// Its name, that of its directory.
    #[schema(example = "tiny-llama")]
    name: String,
    /// `model_type` of its configuration.
    #[schema(example = "llama")]
    family: String,
    /// Number of parameters.
    #[schema(example = 1057408)]
    parameters: u64,
    /// Number of files that they are in.
    #[schema(example = 1)]
    shards: usize,
}

/// The language models that there are.
#[derive(Serialize, ToSchema)]
pub(crate) struct Models {
    /// By name.
    items: Vec<Model>,
}

/// The folder of models.
///
/// # Errors
/// `models_unset`.
pub fn folder(state: &AppState) -> Result<PathBuf> {
    state.settings().models.clone().ok_or(Error::ModelsUnset)
}

/// List language models
///
/// Directories of the server's folder of models (`--models`) that hold a configuration and safetensors, and have a name of
/// lowercase letters, digits, `-` and `_`; others are passed over.
#[utoipa::path(
    get, path = "/v1/models", operation_id = "listModels", tag = "models",
    security(("token" = ["read"])),
    responses((status = 200, description = "All models.", body = Models, example = json!({
        "items": [{"name": "tiny-llama", "family": "llama", "parameters": 1057408, "shards": 1}]})), ListProblems)
)]
async fn list(State(state): State<AppState>, _caller: Caller) -> Result<Json<Models>> {
    // Without a folder there are none.
    let Some(folder) = state.settings().models.clone() else { return Ok(Json(Models { items: Vec::new() })) };
    let items = blocking(move || {
        let read = std::fs::read_dir(&folder);
        let entries = read.map_err(|error| Error::Internal(format!("{}: {error}", folder.display())))?;
        let mut items: Vec<Model> = entries.flatten().filter_map(|entry| described(&entry.path())).collect();
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    })
    .await?;
    Ok(Json(Models { items }))
}

fn described(dir: &FilePath) -> Option<Model> {
    let name = dir.file_name()?.to_str().filter(|name| check_name(name).is_ok())?.to_owned();
    let model = Opened::open(dir).ok()?;
    let family = model.config()["model_type"].as_str().unwrap_or_default().to_owned();
    let parameters = model.entries().values().map(|entry| entry.len() as u64).sum();
    Some(Model { name, family, parameters, shards: model.shards().len() })
}

/// What candidates are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Candidates {
    /// What a generator of the model's own layers gives.
    #[default]
    Generated,
    /// The control: random directions, as far as the generated ones are.
    Noise,
}

/// A search for better layers.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSearch {
    /// Name of the new model; the old one is not changed.
    #[schema(example = "tiny-llama-better", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    out: String,
    /// The text that decides, a text a line: the score is the mean log-likelihood of a token. This or `questions`.
    #[schema(example = "It was the best of times.\nIt was the worst of times.", min_length = 1)]
    text: Option<String>,
    /// Questions with choices that decide: the score is the share of right answers.
    #[schema(value_type = Option<Vec<Object>>, min_items = 1,
             example = json!([{"context": "The sky is", "choices": [" blue", " loud"], "answer": 0}]))]
    questions: Option<Vec<Question>>,
    /// Tokens of a window of the text.
    #[schema(minimum = 2, default = 64)]
    length: Option<usize>,
    /// The share of each group's matrices that is searched, those of the highest SNR.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 0.25)]
    top: Option<f64>,
    /// Matrices to search, in place of those.
    #[schema(min_items = 1)]
    matrices: Option<Vec<String>>,
    /// How the generator of layers is learned: the keys of `docs/LANGUAGE.md`.
    #[schema(value_type = Option<Object>)]
    layers: Option<LayersConfig>,
    /// Candidates of each matrix (K).
    #[schema(minimum = 1, maximum = 1000, default = 8)]
    candidates: Option<usize>,
    /// What they are.
    proposal: Option<Candidates>,
    /// How far candidates go from the matrix that there is to the generated one, in turn.
    #[schema(min_items = 1, example = json!([1.0, 0.5, 0.25, 0.125]))]
    shares: Option<Vec<f64>>,
    /// Further candidates in place of those that cannot be scored.
    #[schema(minimum = 0, maximum = 1000, default = 2)]
    retries: Option<usize>,
    /// Seed.
    #[schema(default = 0, format = "uint64")]
    seed: Option<u64>,
    /// How the job is to be done.
    job: Option<JobOptions>,
}

/// A search as its job keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// The model's name.
    pub model: String,
    /// The new model's name.
    pub out: String,
    /// Lines that decide.
    pub lines: Vec<String>,
    /// Questions that decide.
    pub questions: Vec<Question>,
    /// Tokens of a window.
    pub length: usize,
    /// The share of each group's matrices.
    pub top: f64,
    /// Matrices in place of those.
    pub matrices: Vec<String>,
    /// How the generator is learned.
    pub layers: LayersConfig,
    /// How the search goes.
    pub search: SearchConfig,
}

impl NewSearch {
    /// Checks it, and fills in what was left out.
    fn checked(self, model: String) -> Result<(Search, JobOptions)> {
        let invalid = |field: &str, rule: String| Err(Error::ValueInvalid(rule).in_field(field));
        check_name(&self.out).map_err(|error| error.in_field("out"))?;
        let lines: Vec<String> =
            self.text.iter().flat_map(|text| text.lines()).map(|line| line.trim().to_owned()).collect();
        let lines: Vec<String> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        let questions = self.questions.unwrap_or_default();
        match (&self.text, lines.is_empty(), questions.is_empty()) {
            (Some(_), false, true) | (None, true, false) => {}
            (Some(_), true, true) => return invalid("text", "the text is empty: give a text a line".into()),
            (None, _, true) => return invalid("text", "nothing decides: give `text` or `questions`".into()),
            _ => return invalid("questions", "give `text` or `questions`, not both".into()),
        }
        if self.text.as_ref().is_some_and(|text| text.len() > MOST_TEXT) {
            return invalid("text", format!("the text has more than {MOST_TEXT} bytes: a part of it decides as well"));
        }
        if let Some((at, reason)) = questions.iter().enumerate().find_map(|(at, q)| Some((at, q.wrong()?))) {
            return invalid(&format!("questions[{at}]"), format!("question {at}: {reason}"));
        }
        let (top, length) = (self.top.unwrap_or(0.25), self.length.unwrap_or(64));
        if !(top > 0.0 && top <= 1.0) {
            return invalid("top", format!("top is {top}; it is a share above 0 and at most 1"));
        }
        if length < 2 {
            return invalid("length", "length must be at least 2 tokens".into());
        }
        let matrices = self.matrices.unwrap_or_default();
        if let Some(twice) = matrices.iter().enumerate().find(|(at, name)| matrices[..*at].contains(name)) {
            return invalid("matrices", format!("{} is named twice: name it once", twice.1));
        }
        if matrices.len() > MOST_MATRICES {
            return invalid("matrices", format!("at most {MOST_MATRICES} matrices can be named: use `top`"));
        }
        if self.top.is_some() && !matrices.is_empty() {
            return invalid("matrices", "give `top` or `matrices`, not both".into());
        }
        let layers = self.layers.unwrap_or_default();
        layers.check().map_err(|error| Error::ValueInvalid(error.to_string()).in_field("layers"))?;
        let (candidates, retries) = (self.candidates.unwrap_or(8), self.retries.unwrap_or(2));
        if !(1..=MOST_CANDIDATES).contains(&candidates) {
            return invalid("candidates", format!("candidates must be 1 to {MOST_CANDIDATES}"));
        }
        if retries > MOST_CANDIDATES {
            return invalid("retries", format!("retries must be 0 to {MOST_CANDIDATES}"));
        }
        let shares = self.shares.unwrap_or_else(|| vec![1.0, 0.5, 0.25, 0.125]);
        let proposal = match self.proposal.unwrap_or_default() {
            Candidates::Generated => Proposal::Generated,
            Candidates::Noise => Proposal::Noise,
        };
        let search = SearchConfig { candidates, proposal, shares, seed: self.seed.unwrap_or_default(), retries };
        search.check().map_err(|error| Error::ValueInvalid(error.to_string()).in_field("shares"))?;
        let search = Search { model, out: self.out, lines, questions, length, top, matrices, layers, search };
        Ok((search, self.job.unwrap_or_default()))
    }
}

/// Search a language model for better layers
///
/// Algorithm 1, as a job: learns the model's matrices of the highest SNR as chunks, then goes through them, and keeps the
/// best of K candidates where it does not lower the score. The result is a new directory in the folder of models, and the
/// score of every candidate; the model itself is not changed. A worker that is killed loses what it was learning, or one
/// matrix's candidates.
#[utoipa::path(
    post, path = "/v1/models/{name}/searches", operation_id = "searchModel", tag = "models",
    params(("name" = String, Path, description = "The model's name.", example = "tiny-llama")),
    request_body(content = NewSearch, description = "What decides, and how to search.", example = json!({
        "out": "tiny-llama-better", "text": "It was the best of times.\nIt was the worst of times.", "length": 16,
        "top": 0.25, "candidates": 8})),
    security(("token" = ["train"])),
    responses((status = 202, description = "The job.", body = Job,
               headers(("Location" = String, description = "The job's address."))), CreateProblems)
)]
async fn search(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Path(name): Path<String>,
    extract::Json(new): extract::Json<NewSearch>,
) -> Result<Response> {
    check_name(&name)?;
    let (search, options) = new.checked(name)?;
    let folder = folder(&state)?;
    let given = search.clone();
    blocking(move || searchable(&folder, &given)).await?;
    if rows::writes_model(state.registry(), &search.out).await? {
        let rule = format!("a search that has not ended writes {}: name another model", search.out);
        return Err(Error::ValueInvalid(rule).in_field("out"));
    }
    let request: Value = serde_json::to_value(&search).map_err(|error| Error::Internal(error.to_string()))?;
    jobs::accept(&state, &caller, &key, JobKind::Search, json!(request), options, &[], 0).await
}

/// Refuses now what the worker would refuse.
fn searchable(folder: &FilePath, search: &Search) -> Result<()> {
    let dir = folder.join(&search.model);
    if !dir.is_dir() {
        return Err(Error::ModelUnknown(search.model.clone()));
    }
    let model = Opened::open(&dir).map_err(|error| refused(&error, folder))?;
    let matrices = model.matrices();
    if let Some(name) = search.matrices.iter().find(|name| matrices.iter().all(|matrix| matrix.name != **name)) {
        let known = matrices.iter().take(6).map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
        let rule = format!("{name:?} is no matrix of a block of {}; there are {known}, …", search.model);
        return Err(Error::ValueInvalid(rule).in_field("matrices"));
    }
    let config = Config::of(&model).map_err(|error| refused(&error, folder))?;
    if search.questions.is_empty() {
        let tokenizer = tokens::open(&dir, config.vocabulary).map_err(|error| refused(&error, folder))?;
        let found = tokens::encode(&tokenizer, &search.lines).map_err(|error| refused(&error, folder))?.len();
        let window = search.length.min(config.positions) + 1;
        if found < window {
            let rule =
                format!("the text has {found} tokens, and a window {window}: give more text, or a smaller `length`");
            return Err(Error::ValueInvalid(rule).in_field("text"));
        }
    }
    if folder.join(&search.out).exists() {
        let rule = format!("there is a model {} already: name one that there is not", search.out);
        return Err(Error::ValueInvalid(rule).in_field("out"));
    }
    Ok(())
}

/// Why a model cannot be searched, without the folder that it is in.
fn refused(error: &language::Error, folder: &FilePath) -> Error {
    Error::ValueInvalid(error.within(folder))
}
