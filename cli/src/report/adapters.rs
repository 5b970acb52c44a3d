//! The experiment `table-5` (paper 4.3): LoRA adapters with classifiers, generated for a described task, beside those
//! they were learned from and what is found by description.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ::language::adapters::{Adapters, Member};
use ::language::described;
use ::language::lora::{Adapted, Encoded, FitConfig, LoraConfig};
use ::language::text::TextEncoder;
use datasets::glue::{Example, Task};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use training::stages::rows::RowsConfig;
use weights::digest;

use super::experiment::Place;
use super::{language, own};
use crate::compare::mean_std;
use crate::context::peak_rss_mib;
use crate::error::{Error, Result};

/// Its name.
pub const NAME: &str = "table-5";
/// Its title.
pub const TITLE: &str = "LoRA adapters generated for a described task";

const FILE: &str = include_str!("../../../configs/report/table-5.toml");
/// Samples of the `top 5`.
const TOP: usize = 5;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    train_examples: usize,
    validation_examples: usize,
    test_examples: usize,
    length: usize,
    runs: u64,
    samples: usize,
    lora: LoraConfig,
    fit: FitConfig,
    generator: RowsConfig,
    descriptions: BTreeMap<String, Vec<String>>,
}

/// Why its data is not there, if so.
pub fn missing_data(data: Option<&Path>) -> Option<String> {
    language::missing_data(data)
}

/// A task with its examples behind the frozen blocks, and its adapters.
struct Described {
    task: Task,
    validation: Encoded,
    test: Encoded,
    zoo: Vec<Vec<f32>>,
    /// Embeddings that are learned from.
    told: Vec<Vec<f32>>,
    /// The embedding of the paraphrase.
    paraphrase: Vec<f32>,
}

impl Described {
    /// Accuracy, or Matthews' correlation of CoLA, as GLUE has it.
    fn score(&self, adapted: &Adapted<'_>, theta: &[f32], on: &Encoded) -> Result<f64> {
        Ok(described::score(adapted, theta, on, self.task == Task::Cola)?)
    }

    fn scores(&self, adapted: &Adapted<'_>, thetas: &[Vec<f32>]) -> Result<Vec<f64>> {
        thetas.par_iter().map(|theta| self.score(adapted, theta, &self.test)).collect()
    }
}

struct Bench<'a> {
    place: &'a Place<'a>,
    settings: &'a Settings,
    encoder: &'a TextEncoder,
    adapted: &'a Adapted<'a>,
    folder: PathBuf,
}

impl Bench<'_> {
    fn describe(&self, data: &Path, task: Task) -> Result<Described> {
        let s = self.settings;
        let split = task.read(&data.join("text"))?;
        let (mut train, mut test) =
            (described::drawn(&split.train, 0, task.name()), described::drawn(&split.test, 1, task.name()));
        let mut validation = train.split_off(s.train_examples.min(train.len() / 2));
        validation.truncate(s.validation_examples);
        test.truncate(s.test_examples);
        let encode = |examples: &[Example]| self.adapted.encode(self.encoder, examples, s.length);
        let (train, validation, test) = (encode(&train)?, encode(&validation)?, encode(&test)?);
        let missing = || Error::input("config_invalid", format!("{} needs two descriptions or more", task.name()));
        let texts = s.descriptions.get(task.name()).filter(|texts| texts.len() > 1).ok_or_else(missing)?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut told = self.encoder.embed(&texts)?;
        let paraphrase = told.pop().ok_or_else(missing)?;
        let zoo = self.zoo(task, &train)?;
        Ok(Described { task, validation, test, zoo, told, paraphrase })
    }

    /// The last adapters of each run; a run is kept as a file, and not trained again.
    fn zoo(&self, task: Task, train: &Encoded) -> Result<Vec<Vec<f32>>> {
        self.place.progress.note(&format!("adapters of {}", task.name()));
        let fit = (&self.settings.fit, Some(self.folder.as_path()));
        let runs = (task.name(), self.settings.runs);
        Ok(described::zoo(self.adapted, runs, train, fit, self.place.progress)?)
    }

    fn learn<'b>(&self, tasks: impl Iterator<Item = &'b Described>) -> Result<Adapters> {
        let members: Vec<Member<'_>> =
            tasks.flat_map(|t| t.zoo.iter().map(|theta| Member { theta, descriptions: &t.told })).collect();
        Ok(Adapters::learn(&members, self.adapted.lora(), &self.settings.generator, self.place.progress)?)
    }
}

/// Scores by arm and task.
type Arms = BTreeMap<&'static str, BTreeMap<&'static str, Vec<f64>>>;

const ARMS: [(&str, &str); 9] = [
    ("generated", "adapters generated for a description that was learned from"),
    ("generated, top 5", "of those the five that are best on validation examples"),
    ("paraphrased", "generated for a description that was never learned from"),
    ("zoo", "the adapters that were trained, the last epochs of each run"),
    ("average", "the mean of a task's adapters"),
    ("retrieval", "the adapters of the task whose descriptions are nearest to the paraphrase"),
    ("left out", "generated for the description by a generator that never saw the task"),
    ("shuffled", "generated for the description of the task before it"),
    ("zero", "no adapter, and a classifier of chance"),
];

fn measure(bench: &Bench<'_>, tasks: &[Described]) -> Result<Arms> {
    let (adapted, samples) = (bench.adapted, bench.settings.samples);
    let mut arms = Arms::new();
    let all = bench.learn(tasks.iter())?;
    let zero = adapted.start(0)?;
    for (i, task) in tasks.iter().enumerate() {
        bench.place.progress.note(&format!("{NAME}: {}", task.task.name()));
        let mut add =
            |arm: &'static str, scores: Vec<f64>| arms.entry(arm).or_default().insert(task.task.name(), scores);
        let generated = all.sample(&task.told[0], samples, 1)?;
        let mut ranked: Vec<(f64, f64)> = generated
            .par_iter()
            .map(|theta| Ok((task.score(adapted, theta, &task.validation)?, task.score(adapted, theta, &task.test)?)))
            .collect::<Result<_>>()?;
        add("generated", ranked.iter().map(|r| r.1).collect());
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        add("generated, top 5", ranked.iter().take(TOP).map(|r| r.1).collect());
        add("paraphrased", task.scores(adapted, &all.sample(&task.paraphrase, samples, 2)?)?);
        let before = &tasks[(i + tasks.len() - 1) % tasks.len()];
        add("shuffled", task.scores(adapted, &all.sample(&before.told[0], samples, 1)?)?);
        add("zoo", task.scores(adapted, &task.zoo)?);
        add("average", task.scores(adapted, &[average(&task.zoo)])?);
        let near = |t: &&Described| t.told.iter().map(|d| cosine(d, &task.paraphrase)).fold(f32::MIN, f32::max);
        let nearest = tasks.iter().max_by(|a, b| near(a).total_cmp(&near(b))).unwrap_or(task);
        add("retrieval", task.scores(adapted, &nearest.zoo)?);
        add("zero", task.scores(adapted, std::slice::from_ref(&zero))?);
        let others = bench.learn(tasks.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, t)| t))?;
        add("left out", task.scores(adapted, &others.sample(&task.told[0], samples, 1)?)?);
    }
    Ok(arms)
}

fn average(zoo: &[Vec<f32>]) -> Vec<f32> {
    let mut mean = vec![0f32; zoo.first().map_or(0, Vec::len)];
    zoo.iter().for_each(|theta| mean.iter_mut().zip(theta).for_each(|(m, v)| *m += v / zoo.len() as f32));
    mean
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Runs it, and writes its page and its numbers.
///
/// # Errors
/// `data_missing`, and those of reading and training.
pub fn run(place: &Place<'_>, quick: bool) -> Result<()> {
    let start = Instant::now();
    let settings: Settings = own::settings(NAME, FILE, quick)?;
    let data = place.data.ok_or_else(|| Error::Internal("no data".into()))?;
    let needs = "experiment table-5 needs a text encoder (BERT's form, as MiniLM): give its directory with \
                 --text-encoder, or in WEIGHTSMITH_TEXT_ENCODER, which `make text-encoder` sets";
    let dir = place.text_encoder.ok_or_else(|| Error::input("data_missing", needs))?;
    let encoder = TextEncoder::open(dir)?;
    let adapted = Adapted::new(encoder.bert(), "text-encoder", &settings.lora, 2)?;
    let key = json!({
        "lora": settings.lora, "fit": settings.fit, "examples": settings.train_examples, "length": settings.length,
        "encoder": encoder.bert().config().hidden, "revision": training::REVISION,
    });
    let key = digest::sha256(key.to_string().as_bytes());
    let key: String = key.trim_start_matches("sha256:").chars().take(16).collect();
    let folder = place.out.join("cache/adapters").join(key);
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let bench = Bench { place, settings: &settings, encoder: &encoder, adapted: &adapted, folder };
    let tasks = Task::ALL.iter().map(|task| bench.describe(data, *task)).collect::<Result<Vec<_>>>()?;
    let arms = measure(&bench, &tasks)?;
    let seconds = start.elapsed().as_secs_f64();
    let by_arm: BTreeMap<&str, BTreeMap<&str, serde_json::Value>> =
        arms.iter().map(|(arm, by)| (*arm, by.iter().map(|(task, s)| (*task, own::numbers(s))).collect())).collect();
    let parameters = adapted.layout().parameters();
    let out = json!({
        "seeds": [settings.generator.seed], "seconds": seconds, "peak_rss_mib": peak_rss_mib(), "arms": by_arm,
        "adapter": { "parameters": parameters },
    });
    own::finish(place, (NAME, quick), &settings, out, &page(&settings, &arms, (parameters, seconds), quick))
}

fn page(settings: &Settings, arms: &Arms, (parameters, seconds): (usize, f64), quick: bool) -> String {
    let mut out = format!("# {TITLE}\n\n{}", own::warning(quick));
    let _ = write!(
        out,
        "Table 5 of the paper (section 4.3). Four tasks of GLUE and adapters of rank {} on the last {} blocks of a MiniLM ({parameters} values \
         with the classifier; {} runs a task from one initialisation, {} training examples) stand in for six tasks and RoBERTa. Accuracy in %, CoLA \
         Matthews' correlation × 100, on {} test examples; ± over adapters.\n\n| arm |",
        settings.lora.rank, settings.lora.blocks, settings.runs, settings.train_examples, settings.test_examples
    );
    for task in Task::ALL {
        let _ = write!(out, " {} |", task.name());
    }
    let _ = writeln!(out, " mean |\n|---|{}---|", "---|".repeat(Task::ALL.len()));
    for (arm, _) in ARMS {
        let _ = write!(out, "| {arm} |");
        let mut means = Vec::new();
        for task in Task::ALL {
            let scores = arms.get(arm).and_then(|by| by.get(task.name())).map(Vec::as_slice).unwrap_or_default();
            let percent: Vec<f64> = scores.iter().map(|s| 100.0 * s).collect();
            let _ = write!(out, " {} |", own::cell(&percent, 1));
            means.push(mean_std(percent).0);
        }
        let _ = writeln!(out, " {:.1} |", mean_std(means).0);
    }
    out.push('\n');
    out.push_str(&own::legend(&ARMS));
    let (revision, samples) = (training::REVISION, settings.samples);
    let command = own::command(NAME, quick);
    let _ = writeln!(
        out,
        "- {samples} samples a task; {seconds:.0} seconds, with the adapters that earlier runs left. `{command}`, revision {revision}."
    );
    out
}
