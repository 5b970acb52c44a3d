//! Zoos of adapters for described tasks (paper 4.3), and the generator that is learned from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datasets::glue::{Example, Split, Task as Glue};
use datasets::sentences::{Phrases, from_tsv};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use training::export::Probe;
use training::progress::Progress;
use training::random;
use training::stages::rows::RowsConfig;
use weights::manifest::{DescribedTask, Pooling};
use weights::{Bundle, digest, tensors};

use crate::adapters::{About, Adapters, Member};
use crate::error::{Error, Result};
use crate::lora::{Adapted, Encoded, FitConfig, LoraConfig, accuracy, matthews};
use crate::rewrite::write_whole;
use crate::text::TextEncoder;

/// A generator of adapters, from its tasks on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedConfig {
    /// Name of the generator.
    pub name: String,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// The text encoder, as `peft` is to find it: a name of a hub, or a directory; the name of its directory by default.
    #[serde(default)]
    pub base: Option<String>,
    /// Seed.
    #[serde(default)]
    pub seed: u64,
    /// Examples of a task that adapters are trained on, at most.
    pub train_examples: usize,
    /// Examples of a task that they are measured on, at most.
    pub test_examples: usize,
    /// Tokens of an example at most.
    pub length: usize,
    /// Adapters that are trained for each task, of which the last epochs are kept.
    pub runs: u64,
    /// What embeddings of descriptions are: `mean` over the tokens, `first` or `last`.
    #[serde(default)]
    pub pooling: Pooling,
    /// What is adapted.
    pub lora: LoraConfig,
    /// How adapters are trained.
    pub fit: FitConfig,
    /// How the generator is.
    pub generator: RowsConfig,
    /// The tasks.
    pub tasks: Vec<TaskConfig>,
}

/// A task with its descriptions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Its name.
    pub name: String,
    /// Where its examples are: `phrases:NAME` (built in: opinion, subject, tense, setting), `glue:DIR#NAME` (sst2,
    /// cola, mrpc, rte) or `tsv:DIR`, with `train.tsv` and `test.tsv`; `${VARIABLE}` is replaced from the environment.
    pub from: String,
    /// Names of its classes, with `tsv`; the others know theirs.
    #[serde(default)]
    pub classes: Vec<String>,
    /// What it is, in different words.
    pub descriptions: Vec<String>,
}

/// A task's examples, with the names of its classes.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// Names of the classes, in the order of their labels.
    pub classes: Vec<String>,
    /// To train and to measure on.
    pub split: Split,
    /// Whether Matthews' correlation is its measure, and not accuracy.
    pub correlation: bool,
}

impl DescribedConfig {
    /// # Errors
    /// [`Error::Text`] names what makes no sense.
    pub fn check(&self) -> Result<()> {
        let fail = |text: String| Err(Error::Text(text));
        if self.tasks.len() < 2 {
            return fail("a generator for described tasks learns from two tasks or more".into());
        }
        for (i, task) in self.tasks.iter().enumerate() {
            if self.tasks[..i].iter().any(|other| other.name == task.name) {
                return fail(format!("two tasks have the name {}", task.name));
            }
            if task.descriptions.is_empty() || task.descriptions.iter().any(|text| text.trim().is_empty()) {
                return fail(format!("the task {} needs a description or more, none of them empty", task.name));
            }
        }
        if [self.train_examples, self.test_examples, self.length].contains(&0) || self.runs == 0 {
            return fail("train_examples, test_examples, length and runs must be at least 1".into());
        }
        Ok(self.generator.check()?)
    }
}

impl DescribedConfig {
    /// What tells adapters apart that were trained otherwise: tasks, adapters, training, and the encoder in `dir`.
    fn key(&self, labelled: &[Labelled], dir: &Path) -> Result<String> {
        let path = dir.join("model.safetensors");
        let encoder = digest::sha256(&std::fs::read(&path).map_err(Error::io(&path))?);
        let examples = |labelled: &Labelled| {
            let of = |e: &Example| format!("{}\t{}\t{}\n", e.label, e.first, e.second.as_deref().unwrap_or_default());
            digest::sha256(labelled.split.train.iter().map(of).collect::<String>().as_bytes())
        };
        let tasks: Vec<_> = self.tasks.iter().map(|task| &task.name).zip(labelled.iter().map(examples)).collect();
        let all = json!({
            "seed": self.seed, "examples": self.train_examples, "length": self.length, "lora": self.lora,
            "fit": self.fit, "tasks": tasks, "encoder": encoder, "revision": training::REVISION,
        });
        Ok(digest::sha256(all.to_string().as_bytes())["sha256:".len()..][..16].to_owned())
    }
}

impl TaskConfig {
    /// Reads its examples; built-in ones as many as `config` asks for.
    ///
    /// # Errors
    /// [`Error::Text`] when it is of no known form; those of reading.
    pub fn read(&self, config: &DescribedConfig) -> Result<Labelled> {
        let fail = |text: String| Err(Error::Text(format!("task {}: {text}", self.name)));
        let owned = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let from = training::expand(&self.from)?;
        let labelled = match from.split_once(':') {
            Some(("phrases", name)) => {
                let known = Phrases::ALL.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
                let Some(phrases) = Phrases::ALL.into_iter().find(|p| p.name() == name) else {
                    return fail(format!("there are no built-in sentences {name}; there are {known}"));
                };
                let split = phrases.read(config.train_examples, config.test_examples, config.seed);
                Labelled { classes: owned(phrases.classes()), split, correlation: false }
            }
            Some(("glue", place)) => {
                let (dir, name) = place.rsplit_once('#').unwrap_or((place, self.name.as_str()));
                let known = Glue::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
                let Some(task) = Glue::ALL.into_iter().find(|t| t.name() == name) else {
                    return fail(format!("there is no task {name} of GLUE here; there are {known}"));
                };
                let split = task.read(Path::new(dir)).map_err(training::Error::from)?;
                Labelled { classes: owned(task.classes()), split, correlation: task == Glue::Cola }
            }
            Some(("tsv", dir)) => {
                if self.classes.len() < 2 {
                    return fail("with tsv, give the names of two `classes` or more".into());
                }
                let split = from_tsv(Path::new(dir), &self.classes).map_err(training::Error::from)?;
                Labelled { classes: self.classes.clone(), split, correlation: false }
            }
            _ => return fail(format!("from is {:?}; it must be phrases:NAME, glue:DIR#NAME or tsv:DIR", self.from)),
        };
        match self.classes.is_empty() || self.classes == labelled.classes {
            true => Ok(labelled),
            false => fail(format!("its classes are {}, in this order", labelled.classes.join(", "))),
        }
    }
}

/// Examples in an order of chance.
pub fn drawn(all: &[Example], seed: u64, purpose: &str) -> Vec<Example> {
    let mut all = all.to_vec();
    all.shuffle(&mut random::stream(seed, purpose));
    all
}

/// How adapters are measured.
///
/// # Errors
/// Those of running them.
pub fn score(adapted: &Adapted<'_>, theta: &[f32], on: &Encoded, correlation: bool) -> Result<f64> {
    let predicted = adapted.predict(theta, on)?;
    Ok(if correlation { matthews(&predicted, on.labels()) } else { accuracy(&predicted, on.labels()) })
}

/// The last adapters of each of a task's runs.
///
/// # Errors
/// Those of training and of files.
pub fn zoo(
    adapted: &Adapted<'_>,
    (task, runs): (&str, u64),
    train: &Encoded,
    kept: (&FitConfig, Option<&Path>),
    progress: &Progress,
) -> Result<Vec<Vec<f32>>> {
    let shown = progress.stage("adapters", runs as usize, 0);
    let one = |number: u64| -> Result<Vec<Vec<f32>>> {
        let last = run(adapted, (task, number), train, kept, progress)?;
        shown.advance(1)?;
        Ok(last)
    };
    let runs = (0..runs).into_par_iter().map(one).collect::<Result<Vec<_>>>()?;
    shown.finish();
    Ok(runs.into_iter().flatten().collect())
}

/// The last adapters of one run; a run is kept as a file of `folder`, where there is one, and not trained again.
///
/// # Errors
/// Those of training and of files.
fn run(
    adapted: &Adapted<'_>,
    (task, run): (&str, u64),
    train: &Encoded,
    (fit, folder): (&FitConfig, Option<&Path>),
    progress: &Progress,
) -> Result<Vec<Vec<f32>>> {
    let path = folder.map(|folder| folder.join(format!("{task}-{run}.safetensors")));
    let epochs = fit.epochs + 1 - fit.keep.min(fit.epochs);
    let names = (epochs..=fit.epochs).map(|epoch| format!("epoch.{epoch}"));
    if let Some(bytes) = path.as_ref().and_then(|path| std::fs::read(path).ok()) {
        return names.map(|name| Ok(tensors::named_from_safetensors(&bytes, &name)?.1)).collect();
    }
    // All start from one initialisation: what differs is what was learned.
    let kept = adapted.fit(train, fit, (0, 1 + run), progress)?;
    if let Some(path) = path {
        let shape = [adapted.layout().parameters()];
        let named: Vec<(String, &[f32])> =
            kept.iter().map(|k| (format!("epoch.{}", k.epoch), k.theta.as_slice())).collect();
        let list: Vec<(&str, &[usize], &[f32])> =
            named.iter().map(|(name, theta)| (name.as_str(), shape.as_slice(), *theta)).collect();
        write_whole(&path, &tensors::named_to_safetensors(&list, &BTreeMap::new()))?;
    }
    Ok(kept.into_iter().map(|k| k.theta).collect())
}

/// Scores of a task's adapters on its test examples.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Its name.
    pub task: String,
    /// Mean of the trained adapters.
    pub zoo: f64,
    /// Mean of those generated for the task's first description.
    pub generated: f64,
    /// Mean of those generated for the first description of the task before it.
    pub shuffled: f64,
}

/// What came out.
#[derive(Debug)]
pub struct Learned {
    /// The generator.
    pub bundle: Bundle,
    /// What its graphs must give.
    pub probes: Vec<Probe>,
    /// Scores of each task.
    pub measured: Vec<Measured>,
}

struct Ready {
    classes: Vec<String>,
    correlation: bool,
    test: Encoded,
    zoo: Vec<Vec<f32>>,
    embeddings: Vec<Vec<f32>>,
}

/// Adapters that are generated to be measured.
const SAMPLES: usize = 5;

/// Trains the adapters of all tasks on the text encoder in `dir`, and a generator of them. In `zoo`, a folder, adapters are
/// kept, so that an interrupted run goes on; those that were trained otherwise are not taken.
///
/// # Errors
/// [`Error::Text`] for what makes no sense; those of reading, training and interruption.
pub fn learn(config: &DescribedConfig, dir: &Path, zoo: Option<&Path>, progress: &Progress) -> Result<Learned> {
    config.check()?;
    let encoder = TextEncoder::open(dir)?.with_pooling(config.pooling);
    let labelled = config.tasks.iter().map(|task| task.read(config)).collect::<Result<Vec<_>>>()?;
    let classes = labelled.first().map_or(2, |l| l.classes.len());
    if labelled.iter().any(|l| l.classes.len() != classes) {
        return Err(Error::Text("all tasks of a generator have the same number of classes".into()));
    }
    let folder = zoo.map(|zoo| -> Result<PathBuf> { Ok(zoo.join(config.key(&labelled, dir)?)) }).transpose()?;
    if let Some(folder) = &folder {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let base = config.base.clone().unwrap_or_else(|| base(dir));
    let adapted = Adapted::new(encoder.bert(), &base, &config.lora, classes)?;
    let tasks = config
        .tasks
        .iter()
        .zip(labelled)
        .map(|(task, labelled)| ready(config, task, labelled, (&encoder, &adapted), folder.as_deref(), progress))
        .collect::<Result<Vec<_>>>()?;
    let of = |ready| -> Vec<Member<'_>> { members(ready) };
    let all: Vec<Member<'_>> = tasks.iter().flat_map(of).collect();
    let adapters = Adapters::learn(&all, adapted.lora(), &config.generator, progress)?;
    let measured = measure(config, &tasks, &adapted, &adapters)?;
    let described = config.tasks.iter().zip(&tasks).map(|(task, ready)| DescribedTask {
        name: task.name.clone(),
        classes: ready.classes.clone(),
        descriptions: task.descriptions.clone(),
    });
    let embeddings: Vec<Vec<Vec<f32>>> = tasks.iter().map(|ready| ready.embeddings.clone()).collect();
    let invalid = |e: serde_json::Error| Error::Text(e.to_string());
    let about = About {
        name: &config.name,
        description: &config.description,
        tasks: described.collect(),
        pooling: config.pooling,
        embeddings: &embeddings,
        encoder: dir,
        training: json!({
            "config": serde_json::to_value(config).map_err(invalid)?,
            "zoo": { "runs": tasks.len() as u64 * config.runs, "checkpoints": all.len() },
            "version": env!("CARGO_PKG_VERSION"), "revision": training::REVISION,
        }),
        metrics: json!({ "tasks": measured }),
    };
    Ok(Learned { bundle: adapters.bundle(&about)?, probes: adapters.probes()?, measured })
}

/// How `peft` is to find the base model: by the name of its directory.
fn base(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let named = dir.components().rev().filter_map(|c| c.as_os_str().to_str()).find(|name| *name != "model");
    named.unwrap_or("base").to_owned()
}

fn members(ready: &Ready) -> Vec<Member<'_>> {
    ready.zoo.iter().map(|theta| Member { theta, descriptions: &ready.embeddings }).collect()
}

fn ready(
    config: &DescribedConfig,
    task: &TaskConfig,
    labelled: Labelled,
    (encoder, adapted): (&TextEncoder, &Adapted<'_>),
    folder: Option<&Path>,
    progress: &Progress,
) -> Result<Ready> {
    let some = |all: &[Example], most: usize, purpose: &str| {
        let mut all = drawn(all, config.seed, &format!("{purpose} of {}", task.name));
        all.truncate(most);
        all
    };
    let encode = |examples: &[Example]| adapted.encode(encoder, examples, config.length);
    let train = encode(&some(&labelled.split.train, config.train_examples, "train"))?;
    let test = encode(&some(&labelled.split.test, config.test_examples, "test"))?;
    let zoo = zoo(adapted, (&task.name, config.runs), &train, (&config.fit, folder), progress)?;
    let texts: Vec<&str> = task.descriptions.iter().map(String::as_str).collect();
    let embeddings = encoder.embed(&texts)?;
    Ok(Ready { classes: labelled.classes, correlation: labelled.correlation, test, zoo, embeddings })
}

fn measure(
    config: &DescribedConfig,
    tasks: &[Ready],
    adapted: &Adapted<'_>,
    adapters: &Adapters,
) -> Result<Vec<Measured>> {
    let mut all = Vec::with_capacity(tasks.len());
    for (i, (task, ready)) in config.tasks.iter().zip(tasks).enumerate() {
        let mean = |thetas: &[Vec<f32>]| -> Result<f64> {
            let scores = thetas.iter().map(|theta| score(adapted, theta, &ready.test, ready.correlation));
            Ok(scores.collect::<Result<Vec<_>>>()?.iter().sum::<f64>() / thetas.len().max(1) as f64)
        };
        let before = &tasks[(i + tasks.len() - 1) % tasks.len()];
        let sampled = |of: &Ready| adapters.sample(&of.embeddings[0], SAMPLES, config.seed);
        all.push(Measured {
            task: task.name.clone(),
            zoo: mean(&ready.zoo)?,
            generated: mean(&sampled(ready)?)?,
            shuffled: mean(&sampled(before)?)?,
        });
    }
    Ok(all)
}
