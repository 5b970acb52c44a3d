//! Jobs that train: zoo builds and generators. An attempt that is cut off goes on from what its store has.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::AppState;
use datasets::{Dataset, Limits, Task};
use futures::{StreamExt, TryStreamExt};
use inference::Generator;
use registry::jobs::work;
use registry::jobs::{Attempt, Progress as JobProgress};
use registry::{Caller, Registry, checkpoints, datasets as stored, runs, zoos};
use serde::Deserialize;
use serde_json::{Value, json};
use training::config::Config;
use training::progress::{Observer, Progress, Report};
use training::snapshots::Keep;
use training::stages::generator::{self, Trained};
use training::stages::zoo::{Checkpoint, Run, Zoo};
use training::{Part, Sources, stages};
use weights::{Architecture, Layout, tensors};

use super::store::JobStore;
use super::{parse, registry};
use crate::context::blocking;
use crate::error::{Error, Result};
use crate::extractor::{extracted, with_backbone};
use crate::publish::{self, KindOfRuns};
use crate::train::verify;

/// Artifacts read at a time.
const READS: usize = 16;

/// What a zoo build is asked for.
#[derive(Deserialize)]
struct ZooBuild {
    build: Value,
}

/// What a training is asked for.
#[derive(Deserialize)]
struct Train {
    generator: String,
    zoo: String,
    config: Value,
}

/// Tells the job how far its training is, and the log what else is worth a line.
struct Told(Attempt);

impl Observer for Told {
    fn report(&self, report: &Report) {
        self.0.report(JobProgress {
            stage: report.stage.into(),
            step: report.step as u64,
            steps: report.steps as u64,
            loss: report.loss.map(f64::from).filter(|loss| loss.is_finite()),
            rate: report.rate,
            seconds_left: report.seconds_left,
        });
    }

    fn note(&self, text: &str) {
        tracing::info!(job = %self.0.job.id, "{text}");
    }
}

pub(super) fn progress(attempt: &Attempt) -> Progress {
    Progress::new(false, attempt.stop.clone()).observed(Arc::new(Told(attempt.clone())))
}

/// Trains the models of a zoo and registers them.
pub async fn zoo_build(state: &AppState, attempt: Attempt, every: Duration) -> Result<()> {
    let request: ZooBuild = parse(&attempt.job.request)?;
    let config = Config::from_json(&request.build)?;
    let sources = Arc::new(sources(state, &attempt.caller, &config, &progress(&attempt)).await?);
    let store = JobStore::new(registry(state), attempt.claim);
    let (shown, given) = (progress(&attempt), sources.clone());
    let zoo = blocking(move || {
        let keep = Keep::new(&store, every);
        Ok(stages::zoo::build_in(&config, &given, &store, &shown, keep)?)
    })
    .await?;
    let mut write = registry(state).write(&attempt.caller).await?;
    let made = publish::zoo(registry(state), &mut write, &sources, &zoo).await?;
    let result = json!({ "kind": "zoo", "url": format!("/v1/zoos/{}", made.id),
        "detail": { "id": made.id, "name": made.name, "digest": made.digest, "runs": zoo.runs.len(),
            "checkpoints": zoo.checkpoints.len(), "mean_accuracy": zoo.mean_accuracy() } });
    work::succeed(&mut write, attempt.claim, &result).await?;
    Ok(write.commit().await?)
}

/// Trains a generator on a registered zoo and publishes it.
pub async fn train(state: &AppState, attempt: Attempt, every: Duration) -> Result<()> {
    let request: Train = parse(&attempt.job.request)?;
    let config = Arc::new(Config::from_json(&request.config)?);
    let sources = Arc::new(sources(state, &attempt.caller, &config, &progress(&attempt)).await?);
    let row = find_zoo(registry(state), &attempt.caller, &request.zoo).await?;
    let zoo = Arc::new(load_zoo(registry(state), &attempt.caller, &row, &sources).await?);
    let store = JobStore::new(registry(state), attempt.claim);
    let (shown, runtime) = (progress(&attempt), state.runtime().clone());
    let (config_, sources_, zoo_) = (config.clone(), sources.clone(), zoo.clone());
    let (trained, loaded, difference) = blocking(move || {
        let keep = Keep::new(&store, every);
        let trained = generator::train(&config_, &zoo_, &sources_, &training::device::current(), &shown, keep)?;
        let difference = verify(&runtime, &trained.bundle, &trained.probes)?;
        let loaded = Generator::load(&runtime, trained.bundle.clone())?;
        Ok((trained, loaded, difference))
    })
    .await?;
    let mut write = registry(state).write(&attempt.caller).await?;
    let version =
        publish::generator(registry(state), &mut write, &trained.bundle, &request.generator, Some(row.id)).await?;
    publish::run_embeddings(&mut write, &version, row.id, &loaded, &zoo, &sources).await?;
    let result = json!({ "kind": "generator_version",
        "url": format!("/v1/generators/{}/versions/{}", version.generator, version.version),
        "detail": detail(&trained, &version, difference) });
    work::succeed(&mut write, attempt.claim, &result).await?;
    Ok(write.commit().await?)
}

fn detail(trained: &Trained, version: &registry::generators::GeneratorVersion, difference: f32) -> Value {
    let seconds: serde_json::Map<String, Value> =
        trained.seconds.iter().map(|(stage, seconds)| ((*stage).to_owned(), json!(seconds))).collect();
    json!({ "generator": version.generator, "version": version.version, "digest": version.digest,
        "metrics": trained.bundle.manifest().metrics, "seconds": seconds, "difference_from_candle": difference })
}

/// The labelled data of a configuration: built in, or registered and seen by the caller.
async fn sources(state: &AppState, caller: &Caller, config: &Config, shown: &Progress) -> Result<Sources> {
    config.check_sources_of_job()?;
    let mut found: HashMap<String, Dataset> = HashMap::new();
    let names: Vec<String> =
        config.data.sources.iter().filter_map(|source| source.registered().map(str::to_owned)).collect();
    for name in names {
        let row = find_dataset(registry(state), caller, &name).await?;
        if row.modality == "text" {
            let text = format!("the dataset {name} is a text: networks are trained on labelled examples");
            return Err(Error::input("modality_mismatch", text));
        }
        let npz = registry(state).artifacts().read(&row.artifact_digest).await?;
        // What is stored was checked when it came.
        found.insert(name, datasets::npz::from_npz(&npz, &Limits::default())?);
    }
    let given = config.clone();
    let sources = blocking(move || {
        Ok(Sources::load_with(&given, &mut |source| {
            let stored = source.registered().and_then(|name| found.get(name).cloned());
            stored.map_or_else(|| Ok(datasets::load_source(&source.from)?), Ok)
        })?)
    })
    .await?;
    match config.extractor() {
        None => Ok(sources),
        Some(_) if config.data.backbone.is_some() => {
            let (config, runtime, shown) = (config.clone(), state.runtime().clone(), shown.clone());
            blocking(move || with_backbone(&runtime, &config, sources, &shown, None)).await
        }
        Some(name) => extracted(registry(state), caller, state.runtime(), config, sources, name).await,
    }
}

async fn find_dataset(registry: &Registry, caller: &Caller, name: &str) -> Result<stored::Dataset> {
    match name.parse() {
        Ok(id) => Ok(stored::get(registry, caller, id).await?),
        Err(_) => Ok(stored::by_name(registry, caller, name).await?),
    }
}

async fn find_zoo(registry: &Registry, caller: &Caller, name: &str) -> Result<zoos::Zoo> {
    match name.parse() {
        Ok(id) => Ok(zoos::by_id(registry, caller, id).await?),
        Err(_) => Ok(zoos::get(registry, caller, name).await?),
    }
}

/// A registered zoo in memory. Its runs were trained on the training parts of these very sources.
async fn load_zoo(registry: &Registry, caller: &Caller, row: &zoos::Zoo, sources: &Sources) -> Result<Zoo> {
    let mut runs = load_runs(registry, caller, row, sources).await?;
    let rows = checkpoints::all_of_zoo(registry, row.id).await?;
    let found: Option<Vec<Checkpoint>> = rows.iter().map(|row| checkpoint(row, runs.len())).collect();
    let checkpoints = found.filter(|found| !found.is_empty()).ok_or_else(|| foreign(row))?;
    let architectures = match row.config.get(publish::ARCHITECTURES) {
        None => vec![architecture(registry, caller, row).await?],
        Some(kinds) => {
            let kinds: Vec<KindOfRuns> = serde_json::from_value(kinds.clone()).map_err(|_| foreign(row))?;
            let of = kinds.iter().enumerate().flat_map(|(index, kind)| std::iter::repeat_n(index, kind.runs));
            if of.clone().count() != runs.len() {
                return Err(foreign(row));
            }
            runs.iter_mut().zip(of).for_each(|(run, index)| run.architecture = index);
            kinds.into_iter().map(|kind| kind.config).collect()
        }
    };
    let layouts: Vec<Layout> = architectures.iter().map(Architecture::layout).collect();
    let files = rows.iter().zip(&checkpoints).map(|(row, of)| (row, &layouts[runs[of.run].architecture]));
    let theta = weights_of(registry, files.collect()).await?;
    let digest = row.digest.clone().ok_or_else(|| foreign(row))?;
    Ok(Zoo::new(row.name.clone(), digest, architectures, runs, checkpoints, theta)?)
}

/// `None` when something is not known of it.
fn checkpoint(row: &checkpoints::Checkpoint, runs: usize) -> Option<Checkpoint> {
    Some(Checkpoint {
        run: usize::try_from(row.run_index).ok().filter(|run| *run < runs)?,
        epoch: usize::try_from(row.epoch?).ok()?,
        accuracy: f64::from(row.accuracy?),
        loss: f64::from(row.loss?),
    })
}

/// The runs of a zoo, on the sources whose training parts they were trained on.
async fn load_runs(registry: &Registry, caller: &Caller, row: &zoos::Zoo, sources: &Sources) -> Result<Vec<Run>> {
    let parts: HashMap<String, &str> =
        sources.list().iter().map(|source| (source.dataset(Part::Train).digest(), source.name.as_str())).collect();
    let mut names: HashMap<registry::DatasetId, String> = HashMap::new();
    let mut found = Vec::new();
    for run in runs::all_of_zoo(registry, row.id).await? {
        let (Some(dataset), Some(seed)) = (run.dataset_id, run.seed) else {
            return Err(foreign(row));
        };
        let source = match names.get(&dataset) {
            Some(source) => source.clone(),
            None => {
                let data = stored::get(registry, caller, dataset).await?;
                let source = *parts.get(&data.digest).ok_or_else(|| other_data(&row.name, &data.name))?;
                names.insert(dataset, source.to_owned());
                source.to_owned()
            }
        };
        let classes = run.classes.iter().map(|&class| class.unsigned_abs()).collect();
        found.push(Run { task: Task { source, classes }, seed: seed.0, architecture: 0 });
    }
    Ok(found)
}

fn foreign(row: &zoos::Zoo) -> Error {
    let text = format!(
        "not everything is known of the runs of the zoo {} (dataset, seed, epoch, accuracy, loss), or it has none: \
         train on a zoo that was built here",
        row.name
    );
    Error::input("zoo_invalid", text)
}

fn other_data(zoo: &str, data: &str) -> Error {
    let text = format!(
        "the zoo {zoo} was trained on {data}, which is not the training part of any source: give the seed, data and \
         tasks that the zoo was built with"
    );
    Error::input("zoo_invalid", text)
}

async fn architecture(registry: &Registry, caller: &Caller, row: &zoos::Zoo) -> Result<Architecture> {
    let id = row.architecture_id.ok_or_else(|| foreign(row))?;
    let found = registry::architectures::by_id(registry, caller, id).await?;
    serde_json::from_value(found.config).map_err(|_| {
        let text = format!("models of the architecture {} cannot be trained here: build a zoo of another", found.name);
        Error::input("architecture_unsupported", text)
    })
}

/// The weights of checkpoints, each with its layout, one after the other.
async fn weights_of(registry: &Registry, rows: Vec<(&checkpoints::Checkpoint, &Layout)>) -> Result<Vec<f32>> {
    let mut theta = Vec::new();
    let digests: Vec<String> = rows.iter().map(|(row, _)| row.artifact_digest.clone()).collect();
    let read = |digest: String| {
        let registry = registry.clone();
        async move { registry.artifacts().read(&digest).await }
    };
    let mut files = futures::stream::iter(digests).map(read).buffered(READS);
    let mut layouts = rows.iter().map(|(_, layout)| layout);
    while let (Some(file), Some(layout)) = (files.try_next().await?, layouts.next()) {
        theta.extend(tensors::from_safetensors(&file, layout)?);
    }
    Ok(theta)
}
