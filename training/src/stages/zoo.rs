//! The zoo: many runs on many tasks, their last checkpoints with accuracy and lineage, on disk as one file a group of
//! runs. A zoo that was interrupted continues with the groups that are missing, and ends the same.

mod group;
mod header;
mod parallel;
mod start;
mod trainer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use datasets::Task;
use serde::{Deserialize, Serialize};
use weights::canonical::HiddenGroup;
use weights::{Architecture, Layout, tensors};

use super::fit::{Recipe, score};
use crate::config::{Config, ZooFit};
use crate::data::{Part, Sources, TaskData};
use crate::error::{Error, Result};
use crate::progress::{Progress, Stage};
use crate::snapshots::{self, Folder, Keep, Snapshots};

use group::Group;
use header::{HEADER, Header, header, read_header};
use start::CONSTANTS;
pub(crate) use start::ridge_head;
pub use start::{initial, ridge};
pub use trainer::{Plan, Trainer};
use trainer::{Prepared, recipes, tasks};

/// A training run: one task, one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The ordered classes that it learned.
    pub task: Task,
    /// Seed of its initial weights and of its batches.
    pub seed: u64,
    /// Its architecture, as an index into the zoo's.
    #[serde(default, skip_serializing_if = "is_first")]
    pub architecture: usize,
}

/// Left out of what is written, so that the digest of a zoo of one architecture stays.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
fn is_first(architecture: &usize) -> bool {
    *architecture == 0
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
    /// Architecture of the models, or the first of them.
    pub architecture: Architecture,
    /// Further architectures, of a mixed zoo.
    pub further: Vec<Architecture>,
    /// The runs.
    pub runs: Vec<Run>,
    /// The checkpoints, by run, then epoch.
    pub checkpoints: Vec<Checkpoint>,
    /// What of the models the weights below are, where the rest of all of them is the same constants.
    pub part: Option<weights::Part>,
    /// Weights of each checkpoint, one after the other: `[checkpoints × d]` where there is one architecture. Of a part
    /// its values alone.
    pub theta: Vec<f32>,
    /// Where the weights of each checkpoint begin, and where the last one's end.
    pub offsets: Vec<usize>,
}

fn group_file(group: usize) -> String {
    format!("group-{group:04}.safetensors")
}

impl Zoo {
    /// A zoo of checkpoints whose weights lie one after the other in `theta`.
    ///
    /// # Errors
    /// [`weights::Error::Length`] when they are not those of the runs' architectures.
    pub fn new(
        name: String,
        digest: String,
        architectures: Vec<Architecture>,
        runs: Vec<Run>,
        checkpoints: Vec<Checkpoint>,
        theta: Vec<f32>,
    ) -> Result<Self> {
        Self::assemble(name, digest, architectures, None, runs, checkpoints, theta)
    }

    fn assemble(
        name: String,
        digest: String,
        architectures: Vec<Architecture>,
        part: Option<weights::Part>,
        runs: Vec<Run>,
        checkpoints: Vec<Checkpoint>,
        theta: Vec<f32>,
    ) -> Result<Self> {
        let sizes: Vec<usize> = architectures.iter().map(|a| layout_of(part.as_ref(), a).parameters()).collect();
        let mut offsets = vec![0];
        for checkpoint in &checkpoints {
            let size = runs.get(checkpoint.run).and_then(|run| sizes.get(run.architecture)).copied().unwrap_or(0);
            offsets.push(offsets[offsets.len() - 1] + size);
        }
        let expected = offsets[offsets.len() - 1];
        let mut architectures = architectures.into_iter();
        let first = architectures.next().filter(|_| theta.len() == expected);
        let architecture = first.ok_or_else(|| weights::Error::Length {
            what: format!("the weights of the zoo {name}"),
            found: theta.len(),
            expected,
        })?;
        Ok(Self {
            name,
            digest,
            architecture,
            further: architectures.collect(),
            part,
            runs,
            checkpoints,
            theta,
            offsets,
        })
    }

    /// Number of weights of a model, of the first architecture: of those that differ between models.
    pub fn parameters(&self) -> usize {
        self.layout(0).parameters()
    }

    /// Layout of the weights of models of one architecture.
    pub fn layout(&self, index: usize) -> Layout {
        let architecture = self.architectures().nth(index).unwrap_or(&self.architecture);
        layout_of(self.part.as_ref(), architecture)
    }

    /// Hidden units of models of one architecture that may change places. Constants around a part fix their places.
    pub fn hidden_groups(&self, index: usize) -> Vec<HiddenGroup> {
        let free = self.architectures().nth(index).filter(|_| self.part.is_none());
        free.map(Architecture::hidden_groups).unwrap_or_default()
    }

    /// The network with these weights: where they are a part of it, with the constants around them.
    ///
    /// # Errors
    /// [`weights::Error::Length`] when they are not the zoo's.
    pub fn whole(&self, weights: &[f32]) -> Result<Vec<f32>> {
        match &self.part {
            Some(part) => Ok(part.complete(weights)?),
            None => Ok(weights.to_vec()),
        }
    }

    /// Of a network the weights as this zoo has them: the inverse of [`Self::whole`].
    ///
    /// # Errors
    /// [`weights::Error::Length`] when it is of another architecture.
    pub fn own(&self, network: Vec<f32>) -> Result<Vec<f32>> {
        match &self.part {
            Some(part) => Ok(part.take(&network)?),
            None => Ok(network),
        }
    }

    /// All architectures; the first is the default.
    pub fn architectures(&self) -> impl Iterator<Item = &Architecture> {
        std::iter::once(&self.architecture).chain(&self.further)
    }

    /// Index of a checkpoint's architecture.
    pub fn kind(&self, checkpoint: usize) -> usize {
        self.runs[self.checkpoints[checkpoint].run].architecture
    }

    /// The zoo's models of one architecture, as a zoo of that alone, and which checkpoints of this zoo they are; none
    /// when there are none.
    pub fn of_architecture(&self, index: usize) -> Option<(Self, Vec<usize>)> {
        let architecture = self.architectures().nth(index)?.clone();
        let mut only = self.subset(|_, run| run.architecture == index)?;
        (only.architecture, only.further) = (architecture, Vec::new());
        only.runs.iter_mut().for_each(|run| run.architecture = 0);
        let own = (0..self.checkpoints.len()).filter(|&c| self.kind(c) == index);
        Some((only, own.collect()))
    }

    /// Weights of one checkpoint, `[d]`.
    pub fn weights(&self, checkpoint: usize) -> &[f32] {
        &self.theta[self.offsets[checkpoint]..self.offsets[checkpoint + 1]]
    }

    /// The task that a checkpoint's run learned.
    pub fn task(&self, checkpoint: usize) -> &Task {
        &self.runs[self.checkpoints[checkpoint].run].task
    }

    /// The zoo with only those runs (index, run) that `keep` takes, renumbered in their order; `None` when none is
    /// left. Its digest follows from this zoo's and the runs kept.
    #[must_use]
    pub fn subset(&self, keep: impl Fn(usize, &Run) -> bool) -> Option<Self> {
        let kept: Vec<usize> = (0..self.runs.len()).filter(|&i| keep(i, &self.runs[i])).collect();
        if kept.len() == self.runs.len() {
            return Some(self.clone());
        }
        let mut place = vec![None; self.runs.len()];
        kept.iter().enumerate().for_each(|(new, &old)| place[old] = Some(new));
        let (mut checkpoints, mut theta, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
        for (i, checkpoint) in self.checkpoints.iter().enumerate() {
            if let Some(run) = place[checkpoint.run] {
                checkpoints.push(Checkpoint { run, ..*checkpoint });
                theta.extend_from_slice(self.weights(i));
                offsets.push(theta.len());
            }
        }
        let text = format!("{} {kept:?}", self.digest);
        (!kept.is_empty()).then(|| Self {
            name: self.name.clone(),
            digest: weights::digest::sha256(text.as_bytes()),
            architecture: self.architecture.clone(),
            further: self.further.clone(),
            part: self.part.clone(),
            runs: kept.iter().map(|&i| self.runs[i].clone()).collect(),
            checkpoints,
            theta,
            offsets,
        })
    }

    /// The last checkpoint of each run.
    pub fn last_checkpoints(&self) -> Vec<usize> {
        let mut last = vec![0; self.runs.len()];
        for (i, checkpoint) in self.checkpoints.iter().enumerate() {
            last[checkpoint.run] = i;
        }
        last
    }

    /// Mean accuracy of all checkpoints.
    pub fn mean_accuracy(&self) -> f64 {
        self.checkpoints.iter().map(|c| c.accuracy).sum::<f64>() / self.checkpoints.len().max(1) as f64
    }
}

/// Layout of weights: of whole networks, or of a part of them.
fn layout_of(part: Option<&weights::Part>, architecture: &Architecture) -> Layout {
    part.map_or_else(|| architecture.layout(), |part| part.layout().clone())
}

/// Trains the zoo of `config` in `dir`, or what is missing of it, on all cores. Groups that are under way keep
/// snapshots in `keep`.
///
/// # Errors
/// [`Error::Zoo`] when `dir` holds another zoo; [`Error::Interrupted`] leaves the finished groups.
pub fn build(config: &Config, sources: &Sources, dir: &Path, progress: &Progress, keep: Keep<'_>) -> Result<Zoo> {
    sources.check_extractor(config)?;
    // A configuration that makes no zoo leaves no folder.
    header(config, sources)?;
    let folder = Folder::new(dir);
    let _lock = folder.lock().map_err(|error| match error {
        Error::Snapshots(_) => Error::Zoo {
            path: dir.to_owned(),
            reason: "another process builds it; wait for it, or choose another folder".into(),
        },
        other => other,
    })?;
    build_in(config, sources, &folder, progress, keep)
}

/// Trains the zoo of `config` in a store of files that can be another machine's, or what is missing of it. `keep` may
/// be over the same store.
///
/// # Errors
/// As [`build`].
pub fn build_in(
    config: &Config,
    sources: &Sources,
    store: &dyn Snapshots,
    progress: &Progress,
    keep: Keep<'_>,
) -> Result<Zoo> {
    let header = header(config, sources)?;
    if store.has(HEADER)? {
        if read_header(store)? != header {
            let reason = "it was built with another configuration or other data; choose another folder, or remove it";
            return Err(Error::Zoo { path: store.place(), reason: reason.into() });
        }
    } else {
        // First what the header speaks of.
        if let Some(frozen) = sources.frozen() {
            store.save(CONSTANTS, &frozen.part().to_safetensors())?;
        }
        let text = serde_json::to_vec_pretty(&header).map_err(|e| Error::Config(e.to_string()))?;
        store.save(HEADER, &text)?;
    }
    let identity = snapshots::identity(&header)?;
    let builder = Builder { config, sources, header: &header, identity: &identity, store, progress, keep };
    builder.train_missing()?;
    open_in(store)
}

/// Whether `dir` holds the zoo, or part of it, of another configuration or of other data.
///
/// # Errors
/// When the configuration makes no zoo.
pub fn differs(config: &Config, sources: &Sources, dir: &Path) -> Result<bool> {
    let header = header(config, sources)?;
    let folder = Folder::new(dir);
    Ok(folder.has(HEADER)? && read_header(&folder).map_or(true, |found| found != header))
}

/// Digest of all that the zoo of `config` depends on: equal ones are the same zoo.
///
/// # Errors
/// When the configuration makes no zoo.
pub fn key(config: &Config, sources: &Sources) -> Result<String> {
    let text = serde_json::to_vec(&header(config, sources)?).map_err(|e| Error::Config(e.to_string()))?;
    Ok(weights::digest::sha256(&text))
}

/// A zoo under way.
struct Builder<'a> {
    config: &'a Config,
    sources: &'a Sources,
    header: &'a Header,
    identity: &'a str,
    store: &'a dyn Snapshots,
    progress: &'a Progress,
    keep: Keep<'a>,
}

impl Builder<'_> {
    fn train_missing(&self) -> Result<()> {
        let runs = &self.header.runs;
        let groups = self.header.groups();
        let mut missing = Vec::new();
        for group in 0..groups.len() {
            if !self.store.has(&group_file(group))? {
                missing.push(group);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let recipes = recipes(self.config, self.sources, self.header)?;
        let recipe = |group: usize| &recipes[runs[groups[group].start].architecture];
        let steps = |group: usize| match self.config.zoo.fit {
            ZooFit::Adam => groups[group].len() * recipe(group).steps_per_epoch * self.config.zoo.epochs,
            ZooFit::Ridge => groups[group].len(),
        };
        let todo: usize = missing.iter().map(|&g| steps(g)).sum();
        let total = (0..groups.len()).map(steps).sum();
        let stage = self.progress.stage("zoo", total, total - todo);
        let trained =
            parallel::for_each(missing, |group| self.train_group(group, groups[group].clone(), recipe(group), &stage));
        stage.finish();
        trained
    }

    fn train_group(&self, group: usize, range: Range<usize>, recipe: &Recipe, stage: &Stage) -> Result<()> {
        if self.config.zoo.fit == ZooFit::Ridge {
            return self.ridge_group(group, &range, stage);
        }
        let prepared = Prepared::new(self.config, self.sources, self.header, &range, recipe)?;
        let test = tasks(self.sources, self.header, &range, Part::Test)?;
        let mut models = prepared.fit()?;
        let mut keeper = self.keep.stage(format!("group-{group:04}"), self.identity, self.progress);
        if let Some(snapshot) = keeper.load()? {
            models.restore(snapshot)?;
            stage.resumed(models.steps() * range.len());
        }
        let kept = models.run(&mut |models, loss| {
            keeper.after(stage.advance_with(range.len(), loss), false, || models.snapshot())
        })?;
        self.store.save(&group_file(group), &self.finished(&range, &kept, &test)?)?;
        keeper.remove();
        Ok(())
    }

    /// The heads of a group by ridge regression, each on images that its run draws.
    fn ridge_group(&self, group: usize, range: &Range<usize>, stage: &Stage) -> Result<()> {
        let tasks = |part| tasks(self.sources, self.header, range, part);
        let mut theta = Vec::new();
        for (run, task) in self.header.runs[range.clone()].iter().zip(tasks(Part::Train)?) {
            theta.extend(ridge(&task, self.config.zoo.images, run.seed)?);
            stage.advance(1)?;
        }
        self.store.save(&group_file(group), &self.finished(range, &[theta], &tasks(Part::Test)?)?)
    }

    /// The file of a group whose weights after each of the last epochs are `kept`.
    fn finished(&self, range: &Range<usize>, kept: &[Vec<f32>], test: &[TaskData<'_>]) -> Result<Vec<u8>> {
        let architecture = self.header.architecture_of(range);
        let per_class = test.iter().map(TaskData::per_class).min().unwrap_or(0);
        let (mut accuracy, mut loss, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for theta in kept {
            for s in score(architecture, test, theta, per_class)? {
                accuracy.push(s.accuracy as f32);
                loss.push(s.loss as f32);
            }
            all.extend_from_slice(theta);
        }
        weights::error::check_finite("a checkpoint", &all)?;
        let (k, m, d) = (kept.len(), test.len(), all.len() / kept.len() / test.len());
        Ok(tensors::named_to_safetensors(
            &[("accuracy", &[k, m], &accuracy), ("loss", &[k, m], &loss), ("weights", &[k, m, d], &all)],
            &BTreeMap::from([("first_run".to_owned(), range.start.to_string())]),
        ))
    }
}

/// Reads a finished zoo.
///
/// # Errors
/// [`Error::Zoo`] when a group is missing or damaged.
pub fn open(dir: &Path) -> Result<Zoo> {
    open_in(&Folder::new(dir))
}

/// Reads a finished zoo from a store of files.
///
/// # Errors
/// As [`open`].
pub fn open_in(store: &dyn Snapshots) -> Result<Zoo> {
    let header = read_header(store)?;
    let part = header.part.as_ref().map(|part| part.read(store, &header.architecture)).transpose()?;
    let (n, k) = (header.runs.len(), header.epochs.len());
    let mut checkpoints = Vec::with_capacity(n * k);
    let mut theta = Vec::new();
    for (group, range) in header.groups().into_iter().enumerate() {
        let own = Group::read(store, &group_file(group))?;
        let (first, models) = (range.start, range.len());
        let d = layout_of(part.as_ref(), header.architecture_of(&range)).parameters();
        if own.theta.len() != k * models * d || own.accuracy.len() != k * models {
            let reason = format!("{} does not fit {HEADER}; remove it and build again", group_file(group));
            return Err(Error::Zoo { path: store.place(), reason });
        }
        for model in 0..models {
            for (i, &epoch) in header.epochs.iter().enumerate() {
                let at = i * models + model;
                checkpoints.push(Checkpoint {
                    run: first + model,
                    epoch,
                    accuracy: f64::from(own.accuracy[at]),
                    loss: f64::from(own.loss[at]),
                });
                theta.extend_from_slice(&own.theta[at * d..(at + 1) * d]);
            }
        }
    }
    let text = serde_json::to_vec(&header).map_err(|e| Error::Config(e.to_string()))?;
    let both = format!("{}{}", weights::digest::sha256(&text), weights::digest::of_weights(&theta));
    let digest = weights::digest::sha256(both.as_bytes());
    let architectures = header.architectures().cloned().collect();
    Zoo::assemble(header.name, digest, architectures, part, header.runs, checkpoints, theta)
}
