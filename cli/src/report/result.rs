//! What an experiment measured, by arm, and the same as JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::cache::Seconds;
use super::config::Experiment;
use super::weights_figure::WeightsFigure;
use crate::compare::{self, Arm, SetReport, mean_std, median_max};
use crate::error::{Error, Result};

/// What the service would have answered on one set of tasks.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// How often each origin (a closed form by its own name) came first.
    pub origins: BTreeMap<String, usize>,
    /// How far each task's support is from the zoo, in units of the zoo's own spread.
    pub distances: Vec<f64>,
    /// How far each class of each task is from the zoo's classes, in units of what other images of those have; empty where the
    /// generator does not know them.
    pub class_distances: Vec<Vec<f64>>,
}

/// One generator's numbers on one set of tasks.
pub struct Piece {
    /// The seed.
    pub seed: u64,
    /// The source whose runs it did not learn from.
    pub left_out: Option<String>,
    /// The bundle's digest.
    pub digest: String,
    /// Bytes of the bundle.
    pub bundle_bytes: usize,
    /// Runs that it learned from (held-out ones among them).
    pub zoo_runs: usize,
    /// The numbers.
    pub report: SetReport,
    /// What one model of each task costs.
    pub timing: Option<Timing>,
    /// Of the arm `answer`.
    pub answers: Option<Answers>,
}

/// Seconds for one model of each task, on the same machine in one run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Timing {
    /// Tasks.
    pub tasks: usize,
    /// Embedding the support images, sampling and decoding, one task after the other.
    pub generated_seconds: f64,
    /// Training by the zoo's recipe, all in one batched tensor.
    pub trained_seconds: f64,
}

/// The numbers of one variant on one set of tasks, over all seeds.
pub struct Group {
    /// The variant.
    pub variant: String,
    /// `seen`, `unseen` or `left out`.
    pub set: String,
    /// Its generators.
    pub pieces: Vec<Piece>,
}

/// Everything that an experiment measured.
pub struct Outcome {
    /// Its configuration.
    pub experiment: Experiment,
    /// The zoo's digest.
    pub zoo: String,
    /// Mean accuracy of its checkpoints.
    pub zoo_accuracy: f64,
    /// Its runs.
    pub zoo_runs: usize,
    /// Its checkpoints.
    pub zoo_checkpoints: usize,
    /// Name of the architecture.
    pub architecture: String,
    /// Its parameters.
    pub parameters: usize,
    /// How many of them are generated, where that is a part.
    pub generated: Option<usize>,
    /// Seconds of each stage, over all generators.
    pub seconds: Seconds,
    /// Peak resident memory, MiB.
    pub peak_rss_mib: f64,
    /// The numbers.
    pub groups: Vec<Group>,
    /// The first generator's weights beside the zoo's.
    pub weights: Option<WeightsFigure>,
}

/// One model of an arm.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its task, for people.
    pub task: String,
    /// Seed of the generator it is compared with.
    pub seed: u64,
    /// Accuracy after each number of epochs.
    pub accuracy: Vec<f64>,
    /// Distance to the nearest training model over the zoo's own nearest-neighbour distance.
    pub novelty: Option<f64>,
    /// Largest overlap of errors with a training model.
    pub iou: Option<f64>,
}

/// One arm of a group.
#[derive(Debug, Clone)]
pub struct Column {
    /// The arm.
    pub arm: Arm,
    /// Not its main part: reconstructions of training checkpoints.
    pub aside: bool,
    /// Its models.
    pub rows: Vec<Row>,
    /// Pairwise disagreement of predictions inside a task, one value a generator.
    pub disagreement: Vec<f64>,
}

impl Column {
    /// Accuracies after the `i`th number of epochs, of one task or of all.
    pub fn at(&self, i: usize, task: Option<&str>) -> Vec<f64> {
        self.rows.iter().filter(|r| task.is_none_or(|t| r.task == t)).map(|r| r.accuracy[i]).collect()
    }

    /// Standard deviation of the seeds' means.
    pub fn over_seeds(&self, i: usize, task: Option<&str>) -> f64 {
        let mut by_seed: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for row in self.rows.iter().filter(|r| task.is_none_or(|t| r.task == t)) {
            by_seed.entry(row.seed).or_default().push(row.accuracy[i]);
        }
        mean_std(by_seed.into_values().map(|own| mean_std(own).0)).1
    }

    /// Mean over tasks and seeds of the deviation between the models of one task and seed.
    pub fn within(&self, i: usize) -> f64 {
        compare::within(&self.cells(i))
    }

    /// Mean over tasks and seeds of the best model of each, and the models there are to choose from.
    pub fn best(&self, i: usize) -> (f64, f64) {
        let cells = self.cells(i);
        (compare::best(&cells), compare::models(&cells))
    }

    fn cells(&self, i: usize) -> Vec<((&str, u64), f64)> {
        self.rows.iter().map(|row| ((row.task.as_str(), row.seed), row.accuracy[i])).collect()
    }

    /// Its tasks, in the order of the models.
    pub fn tasks(&self) -> Vec<&str> {
        let mut tasks: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !tasks.contains(&row.task.as_str()) {
                tasks.push(&row.task);
            }
        }
        tasks
    }

    /// Ratios of novelty.
    pub fn novelty(&self) -> Vec<f64> {
        self.rows.iter().filter_map(|r| r.novelty).collect()
    }

    /// Largest overlaps of errors.
    pub fn iou(&self) -> Vec<f64> {
        self.rows.iter().filter_map(|r| r.iou).collect()
    }

    /// Name in tables.
    pub fn label(&self) -> String {
        if self.aside { format!("{}, training", self.arm.name()) } else { self.arm.name().to_owned() }
    }
}

/// A task's name: that of its source where that says all.
fn short(task: &str, sources: bool) -> &str {
    if sources { task.split('[').next().unwrap_or(task).trim() } else { task }
}

impl Group {
    /// The arms over all generators.
    pub fn columns(&self, sources: bool) -> Vec<Column> {
        let mut columns: Vec<Column> = Vec::new();
        for piece in &self.pieces {
            let spacing = piece.report.novelty.1;
            for arm in &piece.report.arms {
                let rows = arm.models.iter().map(|m| Row {
                    task: short(&piece.report.tasks[m.task], sources).to_owned(),
                    seed: piece.seed,
                    accuracy: m.accuracy.clone(),
                    novelty: m.distance.map(|d| d / spacing).filter(|n| n.is_finite()),
                    iou: m.iou,
                });
                let found = columns.iter().position(|c| c.arm == arm.arm && c.aside == arm.aside);
                let place = found.unwrap_or_else(|| {
                    columns.push(Column { arm: arm.arm, aside: arm.aside, rows: Vec::new(), disagreement: Vec::new() });
                    columns.len() - 1
                });
                columns[place].rows.extend(rows);
                columns[place].disagreement.extend(arm.disagreement);
            }
        }
        columns.sort_by_key(|c| (Arm::ALL.iter().position(|a| *a == c.arm), c.aside));
        columns
    }
}

impl Outcome {
    /// Whether a task is a whole source.
    pub fn of_sources(&self) -> bool {
        self.experiment.generator.tasks == training::config::TasksConfig::Sources
    }

    /// Seconds of all stages.
    pub fn all_seconds(&self) -> f64 {
        self.seconds.iter().map(|(_, s)| s).sum()
    }

    /// The command that made it.
    pub fn command(&self, config: Option<&str>) -> String {
        let quick = if self.experiment.quick { " --quick" } else { "" };
        let which = config.map_or_else(|| self.experiment.name.clone(), |file| format!("--config {file}"));
        let data = if self.experiment.folders().is_empty() { "" } else { " --data DIR" };
        format!("weightsmith report {which}{data}{quick}")
    }

    /// The document.
    ///
    /// # Errors
    /// When the configuration cannot be written down.
    pub fn json(&self, command: &str) -> Result<Value> {
        let sources = self.of_sources();
        let configuration = serde_json::to_value(&self.experiment).map_err(|e| Error::Internal(e.to_string()))?;
        let groups: Vec<Value> = self.groups.iter().map(|g| self.group(g, sources)).collect();
        let first = |key: &str| groups.first().map_or(Value::Null, |g| g[key].clone());
        let stages: Vec<Value> = self.seconds.iter().map(|(name, s)| json!({"name": name, "seconds": s})).collect();
        let mut out = json!({
            "experiment": self.experiment.name,
            "quick": self.experiment.quick,
            "configuration": configuration,
            "revision": training::REVISION,
            "version": env!("CARGO_PKG_VERSION"),
            "command": command,
            "seeds": self.experiment.seeds,
            "seconds": self.all_seconds(),
            "stages": stages,
            "peak_rss_mib": self.peak_rss_mib,
            "zoo": {
                "digest": self.zoo, "runs": self.zoo_runs, "checkpoints": self.zoo_checkpoints,
                "mean_accuracy": self.zoo_accuracy,
            },
            "architecture": {
                "name": self.architecture, "parameters": self.parameters, "generated": self.generated,
            },
            "generators": first("generators"),
            "arms": first("arms"),
        });
        if let Some(figure) = &self.weights {
            out["weights"] = serde_json::to_value(figure).map_err(|e| Error::Internal(e.to_string()))?;
        }
        // The first is there already.
        if groups.len() > 1
            && let Some(map) = out.as_object_mut()
        {
            map.insert("groups".into(), Value::Array(groups));
        }
        Ok(out)
    }

    fn group(&self, group: &Group, sources: bool) -> Value {
        let mut arms = Map::new();
        for column in group.columns(sources) {
            let value = self.column(&column);
            match (column.aside, arms.get_mut(column.arm.name())) {
                (true, Some(main)) => main["train"] = value,
                (true, None) => {
                    arms.insert(column.arm.name().to_owned(), json!({ "train": value }));
                }
                (false, _) => {
                    arms.insert(column.arm.name().to_owned(), value);
                }
            }
        }
        let generators = group.pieces.iter().map(|p| {
            json!({
                "seed": p.seed, "left_out": p.left_out, "digest": p.digest, "bundle_bytes": p.bundle_bytes,
                "zoo_runs": p.zoo_runs, "test_images": p.report.test_images,
                "distance": { "generated": p.report.novelty.0, "zoo": p.report.novelty.1 }, "timing": p.timing,
                "answers": p.answers.as_ref().map(|a| json!({
                    "origins": a.origins, "distances": a.distances, "class_distances": a.class_distances,
                })),
            })
        });
        let generators: Vec<Value> = generators.collect();
        json!({ "variant": group.variant, "set": group.set, "generators": generators, "arms": arms })
    }

    fn column(&self, column: &Column) -> Value {
        let tasks = column.tasks();
        let epochs = self.experiment.epochs.iter().enumerate().map(|(i, epoch)| {
            let numbers = |task: Option<&str>| {
                let values = column.at(i, task);
                let (mean, std) = mean_std(values.iter().copied());
                let over_seeds = column.over_seeds(i, task);
                let (median, max) = median_max(&values);
                let models = values.len();
                json!({
                    "mean": mean, "median": median, "max": max, "std": std, "std_over_seeds": over_seeds, "models": models,
                })
            };
            let mut all = numbers(None);
            let (best, of) = column.best(i);
            all["std_within_task"] = json!(column.within(i));
            all["best"] = json!({ "mean": best, "of": of });
            let by_task = tasks.iter().map(|task| {
                let mut own = numbers(Some(task));
                own["accuracies"] = json!(column.at(i, Some(task)));
                ((*task).to_owned(), own)
            });
            all["tasks"] = Value::Object(by_task.collect());
            (format!("epoch_{epoch}"), all)
        });
        let mut out = json!({ "epochs": Value::Object(epochs.collect()) });
        let summary = |values: Vec<f64>| {
            let (mean, std) = mean_std(values.iter().copied());
            let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (!values.is_empty()).then(|| json!({ "mean": mean, "std": std, "largest": largest, "values": values }))
        };
        out["novelty"] = json!(summary(column.novelty()));
        out["error_iou"] = json!(summary(column.iou()));
        let disagreement = (!column.disagreement.is_empty()).then(|| mean_std(column.disagreement.clone()).0);
        out["disagreement"] = json!(disagreement);
        out
    }
}
