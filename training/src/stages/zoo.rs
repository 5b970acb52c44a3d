//! The zoo: many runs on many tasks, their last checkpoints with accuracy and lineage, on disk as one file a group of
//! runs. A zoo that was interrupted continues with the groups that are missing, and ends the same.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use datasets::Task;
use rand::Rng;
use serde::{Deserialize, Serialize};
use weights::{Architecture, tensors};

use super::fit::{Recipe, fit, init_theta, score};
use crate::config::Config;
use crate::data::{Part, Sources};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::random;

/// A training run: one task, one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The ordered classes that it learned.
    pub task: Task,
    /// Seed of its initial weights and of its batches.
    pub seed: u64,
}

/// A kept checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checkpoint {
    /// Index of its run.
    pub run: usize,
    /// Epochs that it was trained.
    pub epoch: usize,
    /// Accuracy on test images.
    pub accuracy: f64,
    /// Cross-entropy on test images, nats.
    pub loss: f64,
}

/// A finished zoo in memory.
#[derive(Debug, Clone)]
pub struct Zoo {
    /// Name.
    pub name: String,
    /// Digest of configuration and weights.
    pub digest: String,
    /// Architecture of all models.
    pub architecture: Architecture,
    /// The runs.
    pub runs: Vec<Run>,
    /// The checkpoints, by run, then epoch.
    pub checkpoints: Vec<Checkpoint>,
    /// Weights of each checkpoint, `[checkpoints × d]`.
    pub theta: Vec<f32>,
}

/// `zoo.json`: what the zoo's weights depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    format: u32,
    name: String,
    seed: u64,
    data: Vec<(String, String)>,
    settings: serde_json::Value,
    architecture: Architecture,
    runs: Vec<Run>,
    group: usize,
    epochs: Vec<usize>,
}

const HEADER: &str = "zoo.json";

fn group_file(group: usize) -> String {
    format!("group-{group:04}.safetensors")
}

impl Zoo {
    /// Number of parameters of a model.
    pub fn parameters(&self) -> usize {
        self.architecture.layout().parameters()
    }

    /// Weights of one checkpoint, `[d]`.
    pub fn weights(&self, checkpoint: usize) -> &[f32] {
        let d = self.parameters();
        &self.theta[checkpoint * d..(checkpoint + 1) * d]
    }

    /// The task that a checkpoint's run learned.
    pub fn task(&self, checkpoint: usize) -> &Task {
        &self.runs[self.checkpoints[checkpoint].run].task
    }

    /// Mean accuracy of all checkpoints.
    pub fn mean_accuracy(&self) -> f64 {
        self.checkpoints.iter().map(|c| c.accuracy).sum::<f64>() / self.checkpoints.len().max(1) as f64
    }
}

/// Trains the zoo of `config` in `dir`, or what is missing of it, on all cores.
///
/// # Errors
/// [`Error::Zoo`] when `dir` holds another zoo; [`Error::Interrupted`] leaves the finished groups.
pub fn build(config: &Config, sources: &Sources, dir: &Path, progress: &Progress) -> Result<Zoo> {
    let header = header(config, sources)?;
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let _lock = lock(dir)?;
    let path = dir.join(HEADER);
    if path.exists() {
        if read_header(dir)? != header {
            let reason = "it was built with another configuration or other data; choose another folder, or remove it";
            return Err(Error::Zoo { path: dir.to_owned(), reason: reason.into() });
        }
    } else {
        let text = serde_json::to_vec_pretty(&header).map_err(|e| Error::Config(e.to_string()))?;
        write_whole(&path, &text)?;
    }
    train_missing(config, sources, &header, dir, progress)?;
    open(dir)
}

/// Whether `dir` holds the zoo, or part of it, of another configuration or of other data.
///
/// # Errors
/// When the configuration makes no zoo.
pub fn differs(config: &Config, sources: &Sources, dir: &Path) -> Result<bool> {
    let header = header(config, sources)?;
    Ok(dir.join(HEADER).exists() && read_header(dir).map_or(true, |found| found != header))
}

fn header(config: &Config, sources: &Sources) -> Result<Header> {
    let (seen, _) = sources.tasks(config)?;
    let classes = seen.first().map_or(0, |t| t.classes.len());
    if let Some(other) = seen.iter().find(|t| t.classes.len() != classes) {
        let text = format!("task {other} has {} classes, the first {classes}; all must be equal", other.classes.len());
        return Err(Error::Config(text));
    }
    let architecture = config.architecture.build(sources.input_shape(), classes)?;
    let mut rng = random::stream(config.seed, "runs");
    let runs = (0..config.zoo.runs_per_task)
        .flat_map(|_| seen.iter().cloned())
        .map(|task| Run { task, seed: rng.random_range(0..1 << 53) })
        .collect();
    let settings = serde_json::to_value((&config.data, &config.tasks, &config.zoo));
    Ok(Header {
        format: 1,
        name: config.name.clone(),
        seed: config.seed,
        data: sources.list().iter().map(|s| (s.name.clone(), s.data.digest())).collect(),
        settings: settings.map_err(|e| Error::Config(e.to_string()))?,
        architecture,
        runs,
        group: config.zoo.group,
        epochs: (config.zoo.epochs + 1 - config.zoo.keep..=config.zoo.epochs).collect(),
    })
}

fn read_header(dir: &Path) -> Result<Header> {
    let path = dir.join(HEADER);
    let text = std::fs::read(&path).map_err(Error::io(&path))?;
    let damaged = |e: String| Error::Zoo { path: dir.to_owned(), reason: format!("{HEADER} cannot be read: {e}") };
    let header: Header = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    header.architecture.validate()?;
    if header.group == 0 || header.epochs.is_empty() || header.runs.is_empty() {
        return Err(damaged("it has no runs, no epochs or groups of no runs".into()));
    }
    Ok(header)
}

/// Writes a whole file or none, also when the power fails.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = std::fs::File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    });
    if written.is_err() {
        // What is left of it is of no use; the first error is the one to tell.
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(Error::io(path))
}

/// Holds the zoo's folder for this process.
fn lock(dir: &Path) -> Result<std::fs::File> {
    let path = dir.join("lock");
    let file = std::fs::File::create(&path).map_err(Error::io(&path))?;
    file.try_lock().map_err(|_| Error::Zoo {
        path: dir.to_owned(),
        reason: "another process builds it; wait for it, or choose another folder".into(),
    })?;
    Ok(file)
}

fn train_missing(config: &Config, sources: &Sources, header: &Header, dir: &Path, progress: &Progress) -> Result<()> {
    let groups = header.runs.len().div_ceil(header.group);
    let missing: Vec<usize> = (0..groups).filter(|&g| !dir.join(group_file(g)).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let all = header.runs.iter().map(|r| sources.task(&r.task, Part::Train)).collect::<Result<Vec<_>>>()?;
    let recipe = Recipe::new(config.zoo.batch, config.zoo.lr, &all);
    let steps = recipe.steps_per_epoch * config.zoo.epochs;
    let runs_in = |g: usize| header.runs.len().min((g + 1) * header.group) - g * header.group;
    let todo: usize = missing.iter().map(|&g| runs_in(g) * steps).sum();
    let total = header.runs.len() * steps;
    let stage = progress.stage("zoo (model steps)", total, total - todo);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        while let Some(&group) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = train_group(config, sources, header, group, &recipe, dir, &mut |n| stage.advance(n));
            if let Err(error) = result {
                // The other workers stop at their next group; the first error is the one to tell.
                next.store(missing.len(), Ordering::Relaxed);
                if let Ok(mut slot) = failure.lock() {
                    slot.get_or_insert(error);
                }
                return;
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    stage.finish();
    match failure.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => Err(Error::Config("a zoo worker stopped without a word".into())),
    }
}

fn train_group(
    config: &Config,
    sources: &Sources,
    header: &Header,
    group: usize,
    recipe: &Recipe,
    dir: &Path,
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let first = group * header.group;
    let runs = &header.runs[first..header.runs.len().min(first + header.group)];
    let train = runs.iter().map(|r| sources.task(&r.task, Part::Train)).collect::<Result<Vec<_>>>()?;
    let test = runs.iter().map(|r| sources.task(&r.task, Part::Test)).collect::<Result<Vec<_>>>()?;
    let seeds: Vec<u64> = runs.iter().map(|r| r.seed).collect();
    let theta = initial(config, &header.architecture, &seeds);
    let stops = &header.epochs;
    let kept = fit(&header.architecture, &train, theta, &seeds, recipe, stops, &mut || advance(runs.len()))?;
    let per_class = test.iter().map(|t| t.per_class()).min().unwrap_or(0);
    let (mut accuracy, mut loss, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for theta in &kept {
        for s in score(&header.architecture, &test, theta, per_class)? {
            accuracy.push(s.accuracy as f32);
            loss.push(s.loss as f32);
        }
        all.extend_from_slice(theta);
    }
    weights::error::check_finite("a checkpoint", &all)?;
    let (k, m, d) = (kept.len(), runs.len(), all.len() / kept.len() / runs.len());
    let bytes = tensors::named_to_safetensors(
        &[("accuracy", &[k, m], &accuracy), ("loss", &[k, m], &loss), ("weights", &[k, m, d], &all)],
        &BTreeMap::from([("first_run".to_owned(), first.to_string())]),
    );
    write_whole(&dir.join(group_file(group)), &bytes)
}

/// Starting weights (`[m·d]`) of runs with these seeds.
pub fn initial(config: &Config, architecture: &Architecture, seeds: &[u64]) -> Vec<f32> {
    seeds
        .iter()
        .flat_map(|&seed| {
            let seed = if config.zoo.common_init { config.seed } else { seed };
            init_theta(architecture, &mut random::stream(seed, "initial weights"))
        })
        .collect()
}

/// Reads a finished zoo.
///
/// # Errors
/// [`Error::Zoo`] when a group is missing or damaged.
pub fn open(dir: &Path) -> Result<Zoo> {
    let header = read_header(dir)?;
    let d = header.architecture.layout().parameters();
    let (n, k) = (header.runs.len(), header.epochs.len());
    let mut checkpoints = Vec::with_capacity(n * k);
    let mut theta = Vec::with_capacity(n * k * d);
    for group in 0..n.div_ceil(header.group) {
        let part = Group::read(&dir.join(group_file(group)), dir)?;
        let first = group * header.group;
        let models = n.min(first + header.group) - first;
        if part.theta.len() != k * models * d || part.accuracy.len() != k * models {
            let reason = format!("{} does not fit {HEADER}; remove it and build again", group_file(group));
            return Err(Error::Zoo { path: dir.to_owned(), reason });
        }
        for model in 0..models {
            for (i, &epoch) in header.epochs.iter().enumerate() {
                let at = i * models + model;
                checkpoints.push(Checkpoint {
                    run: first + model,
                    epoch,
                    accuracy: f64::from(part.accuracy[at]),
                    loss: f64::from(part.loss[at]),
                });
                theta.extend_from_slice(&part.theta[at * d..(at + 1) * d]);
            }
        }
    }
    let text = serde_json::to_vec(&header).map_err(|e| Error::Config(e.to_string()))?;
    let both = format!("{}{}", weights::digest::sha256(&text), weights::digest::of_weights(&theta));
    Ok(Zoo {
        name: header.name,
        digest: weights::digest::sha256(both.as_bytes()),
        architecture: header.architecture,
        runs: header.runs,
        checkpoints,
        theta,
    })
}

struct Group {
    accuracy: Vec<f32>,
    loss: Vec<f32>,
    theta: Vec<f32>,
}

impl Group {
    fn read(path: &PathBuf, dir: &Path) -> Result<Self> {
        let fail = |reason: String| Error::Zoo { path: dir.to_owned(), reason };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(fail("it is not finished; the same `zoo build` continues".into()));
            }
            Err(e) => return Err(Error::io(path)(e)),
        };
        let tensor = |name: &str| -> weights::Result<Vec<f32>> {
            let (_, values) = tensors::named_from_safetensors(&bytes, name)?;
            weights::error::check_finite(name, &values)?;
            Ok(values)
        };
        let read = || Ok(Self { accuracy: tensor("accuracy")?, loss: tensor("loss")?, theta: tensor("weights")? });
        let damaged = |e: weights::Error| {
            fail(format!("{} is damaged ({e}); remove it, and the same `zoo build` makes it anew", path.display()))
        };
        read().map_err(damaged)
    }
}
