//! The comparison that demo and report share: generated weights beside the zoo, retrieval, scratch, noise, average,
//! Gaussian, reconstruction and the shuffled condition, all on the same test images and fine-tuned by the same recipe
//! (METHOD: honest evaluation). Where generated weights and nearest runs come from is the caller's: HTTP and the
//! registry in the demo, a generator in this process in the report.

mod measure;
mod statistics;

use std::collections::{BTreeMap, BTreeSet};

use datasets::Task;
use serde::{Deserialize, Serialize};
use training::config::ZooFit;
use training::progress::Progress;
use training::stages::fit::{self, Recipe, init_theta};
use training::stages::vectors::{self, Vectors};
use training::stages::zoo::{self, Zoo};
use training::{Config, Part, Sources, TaskData, random};

pub use measure::{ArmReport, IOU_SAMPLE, SetReport};
pub use statistics::{best, mean_std, median_max, models, spread, within};

use crate::error::Result;

/// Checkpoints that the average is taken of, and runs that are asked for as the nearest.
pub const AVERAGED: usize = 16;

/// What is measured, by the names that tables and JSON use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// Generated for the task.
    Generated,
    /// Of what was generated for a task, the one that the predictor ranks first.
    Predicted,
    /// Of what was generated for a task, the best on validation images.
    Selected,
    /// Models trained on these very tasks: the zoo's own, or ones trained the same way.
    Zoo,
    /// The checkpoint of the run whose task has the nearest dataset embedding.
    Retrieval,
    /// Random initialisation.
    Scratch,
    /// Random initialisation, fine-tuned on the support images as what is generated.
    ScratchTuned,
    /// The retrieved checkpoint, fine-tuned on the support images as what is generated.
    RetrievalTuned,
    /// The retrieved checkpoint, moved in a random direction as far as generated weights are from the zoo.
    Noise,
    /// Mean of the nearest checkpoints in canonical form.
    Average,
    /// Drawn from the per-parameter Gaussian of the task's checkpoints in canonical form.
    Gaussian,
    /// Held-out (and training) checkpoints through the VAE and back.
    Reconstruction,
    /// Generated for another task.
    Shuffled,
    /// Ridge regression on the support images; for linear heads.
    ClosedFormRidge,
    /// Nearest centroid on the support images; for linear heads.
    ClosedFormCentroid,
    /// Weighted mean of the two; for linear heads.
    ClosedFormBlend,
    /// Ridge regression on the support images towards the mean of what is generated; for linear heads.
    Adapted,
    /// What the service hands out for linear heads: the first of the ranked candidates.
    Answer,
    /// What the runs of a zoo start from that trains a part of its networks.
    Start,
}

impl Arm {
    /// All arms, in the order of the tables.
    pub const ALL: [Self; 19] = [
        Self::Generated,
        Self::Predicted,
        Self::Selected,
        Self::Zoo,
        Self::Retrieval,
        Self::Scratch,
        Self::ScratchTuned,
        Self::RetrievalTuned,
        Self::Noise,
        Self::Average,
        Self::Gaussian,
        Self::Reconstruction,
        Self::Shuffled,
        Self::ClosedFormRidge,
        Self::ClosedFormCentroid,
        Self::ClosedFormBlend,
        Self::Adapted,
        Self::Answer,
        Self::Start,
    ];

    /// Whether an experiment must ask for it: the best of what another arm has, and what few of them have.
    pub fn chosen(self) -> bool {
        matches!(self, Self::Predicted | Self::Selected | Self::Start | Self::ScratchTuned | Self::RetrievalTuned)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Predicted => "predicted",
            Self::Selected => "selected",
            Self::Zoo => "zoo",
            Self::Retrieval => "retrieval",
            Self::Start => "start",
            Self::Scratch => "scratch",
            Self::ScratchTuned => "scratch_tuned",
            Self::RetrievalTuned => "retrieval_tuned",
            Self::Noise => "noise",
            Self::Average => "average",
            Self::Gaussian => "gaussian",
            Self::Reconstruction => "reconstruction",
            Self::Shuffled => "shuffled",
            Self::ClosedFormRidge => "closed_form_ridge",
            Self::ClosedFormCentroid => "closed_form_centroid",
            Self::ClosedFormBlend => "closed_form_blend",
            Self::Adapted => "adapted",
            Self::Answer => "answer",
        }
    }
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The arms, in this order.
    pub arms: Vec<Arm>,
    /// Models of a task, in arms that draw them.
    pub samples: usize,
    /// Epochs of fine-tuning after which accuracy is measured.
    pub epochs: Vec<usize>,
    /// Images of a fine-tuning step.
    pub batch: usize,
    /// Adam's learning rate in fine-tuning.
    pub lr: f64,
    /// Seed of all that is drawn here.
    pub seed: u64,
    /// Also measure distances, disagreement and the overlap of errors of every arm.
    pub details: bool,
}

/// Checkpoints that went through the VAE and back: the task of each, and its weights.
#[derive(Debug, Clone, Default)]
pub struct Reconstructions {
    /// Of runs that the VAE did not learn from.
    pub held_out: Vec<(Task, Vec<f32>)>,
    /// Of runs that it learned from.
    pub train: Vec<(Task, Vec<f32>)>,
}

/// Fine-tunes models of a task (its index) on its support images, as what was generated for it.
pub type Tune<'a> = dyn Fn(usize, Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> + 'a;

/// What is compared.
pub struct Comparison<'a> {
    /// The configuration of the zoo: how a model of a new task is trained.
    pub config: &'a Config,
    /// The labelled data.
    pub sources: &'a Sources,
    /// The zoo that the generator learned from: of a mixed one the models of one architecture, and so for all that
    /// follows.
    pub zoo: &'a Zoo,
    /// Its vectors in canonical form; `train` are the checkpoints that the generator learned from.
    pub vectors: &'a Vectors,
    /// Where models of the targets are taken from when it has them: the zoo, or one that holds more of it.
    pub whole: &'a Zoo,
    /// All tasks; the condition of one is the shuffled condition of the next.
    pub tasks: &'a [Task],
    /// The tasks that are measured, as indices into `tasks`.
    pub targets: &'a [usize],
    /// Generated weights by task, `[d]` a sample.
    pub generated: &'a [Vec<Vec<f32>>],
    /// Accuracies that a predictor expects of them; empty without one.
    pub predicted: &'a [Vec<f64>],
    /// Runs of the zoo by task, those with the nearest dataset embedding first.
    pub near: &'a [Vec<usize>],
    /// What the VAE makes of checkpoints.
    pub reconstructions: Reconstructions,
    /// Models of arms that are made where the generator is, by task.
    pub made: BTreeMap<Arm, Vec<(usize, Vec<f32>)>>,
    /// How it is measured.
    pub settings: &'a Settings,
    /// Progress.
    pub progress: &'a Progress,
}

/// One arm's models: the task that each is for, and its weights.
struct Models {
    arm: Arm,
    /// Not the arm's main part, such as the reconstruction of training checkpoints.
    aside: bool,
    models: Vec<(usize, Vec<f32>)>,
}

impl Comparison<'_> {
    /// Measures all arms. Where what was generated was fine-tuned on the support images, `tune` does the same with others.
    ///
    /// # Errors
    /// Those of fine-tuning, and [`training::Error::Interrupted`].
    pub fn run(&self, tune: Option<&Tune<'_>>) -> Result<SetReport> {
        let last = self.zoo.last_checkpoints();
        let space = measure::Space::new(self, &last);
        let generated = self.generated();
        let distance = space.mean_distance(&generated)?;
        let layout = self.zoo.layout(0);
        let statistics: usize = layout.buffers().map(weights::ParamSpec::len).sum();
        let sigma = distance / ((layout.parameters() - statistics) as f64).sqrt();
        // Tasks of reconstructed checkpoints need not be among those asked for.
        let mut tasks = self.tasks.to_vec();
        let mut arms = Vec::new();
        for &arm in &self.settings.arms {
            let models = match arm {
                Arm::Generated => generated.clone(),
                Arm::Predicted => self.predicted()?,
                Arm::Selected => self.selected()?,
                Arm::Zoo => self.zoo_models()?,
                Arm::Retrieval => self.retrieval(&last),
                Arm::Start => self.starts()?,
                Arm::Scratch => self.scratch()?,
                Arm::ScratchTuned => tuned(tune, self.scratch()?)?,
                Arm::RetrievalTuned => tuned(tune, self.retrieval(&last))?,
                Arm::Noise => self.measured(self.noise(&last, sigma as f32))?,
                Arm::Average => self.measured(self.average(&last))?,
                Arm::Gaussian => self.measured(self.gaussian())?,
                Arm::Reconstruction => placed(&mut tasks, &self.reconstructions.held_out),
                Arm::Shuffled => self.shuffled(),
                Arm::ClosedFormRidge | Arm::ClosedFormCentroid | Arm::ClosedFormBlend | Arm::Adapted | Arm::Answer => {
                    self.made.get(&arm).cloned().unwrap_or_default()
                }
            };
            arms.push(Models { arm, aside: false, models });
            if arm == Arm::Reconstruction {
                arms.push(Models { arm, aside: true, models: placed(&mut tasks, &self.reconstructions.train) });
            }
        }
        arms.retain(|arm| !arm.models.is_empty());
        measure::measure(self, &space, distance, &tasks, &arms)
    }

    fn generated(&self) -> Vec<(usize, Vec<f32>)> {
        self.targets.iter().flat_map(|&t| self.generated[t].iter().map(move |w| (t, w.clone()))).collect()
    }

    /// Of what was generated for each target, the one with the largest score; the first of equals.
    fn best(&self, scores: impl Fn(usize) -> Result<Vec<f64>>) -> Result<Vec<(usize, Vec<f32>)>> {
        let mut models = Vec::with_capacity(self.targets.len());
        for &t in self.targets {
            let scores = scores(t)?;
            let first = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            models.extend(first.and_then(|(i, _)| self.generated[t].get(i)).map(|theta| (t, theta.clone())));
        }
        Ok(models)
    }

    fn predicted(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        self.best(|t| Ok(self.predicted.get(t).cloned().unwrap_or_default()))
    }

    fn selected(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        self.best(|t| {
            let theta = self.generated[t].concat();
            let data = self.data(self.tasks, Part::Validation, self.generated[t].iter().map(|_| t))?;
            let per_class = data.iter().map(TaskData::per_class).min().unwrap_or(0);
            let scores = fit::score(&self.zoo.architecture, &data, &theta, per_class)?;
            Ok(scores.iter().map(|s| s.accuracy).collect())
        })
    }

    /// What was generated for one task is measured on the next; nothing where there is one task.
    fn shuffled(&self) -> Vec<(usize, Vec<f32>)> {
        let n = self.tasks.len();
        let other = |t: usize| (t + n - 1) % n;
        let targets = self.targets.iter().filter(|_| n > 1);
        targets.flat_map(|&t| self.generated[other(t)].iter().map(move |w| (t, w.clone()))).collect()
    }

    /// Models trained on these very tasks: the zoo's own, or for unseen tasks ones trained the same way.
    fn zoo_models(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        let whole = self.whole;
        let last = whole.last_checkpoints();
        let mut by_task: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (run, &checkpoint) in last.iter().enumerate() {
            by_task.entry(whole.runs[run].task.to_string()).or_default().push(checkpoint);
        }
        let (mut models, mut missing) = (Vec::new(), Vec::new());
        for &t in self.targets {
            match by_task.get(&self.tasks[t].to_string()) {
                Some(own) => {
                    models.extend(own.iter().take(self.settings.samples).map(|&c| (t, whole.weights(c).to_vec())));
                }
                None => missing.push(t),
            }
        }
        models.extend(self.trained(&missing)?);
        Ok(models)
    }

    /// One model of each of these tasks, trained as the zoo's are, all in one batched tensor.
    ///
    /// # Errors
    /// Those of training, and [`training::Error::Interrupted`].
    pub fn trained(&self, targets: &[usize]) -> Result<Vec<(usize, Vec<f32>)>> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let seeds: Vec<u64> = targets.iter().map(|&t| t as u64 + 1_000_000).collect();
        let train = self.data(self.tasks, Part::Train, targets.iter().copied())?;
        if self.config.zoo.fit == ZooFit::Ridge {
            let heads = targets.iter().zip(train.iter().zip(&seeds));
            let head = |(&t, (task, &seed)): (&usize, (&TaskData<'_>, &u64))| {
                Ok((t, zoo::ridge(task, self.config.zoo.images, seed)?))
            };
            return heads.map(head).collect();
        }
        let recipe = Recipe::new(self.config.zoo.batch, self.config.zoo.lr, &train);
        let architecture = &self.zoo.architecture;
        let start = zoo::initial(self.config, architecture, &train, &seeds)?;
        let epochs = [self.config.zoo.epochs];
        let theta = fit::fit(architecture, &train, start, &seeds, &recipe, &epochs, &mut || self.progress.check())?;
        let rows = theta[0].chunks_exact(self.zoo.parameters()).map(<[f32]>::to_vec);
        Ok(targets.iter().copied().zip(rows).collect())
    }

    fn retrieval(&self, last: &[usize]) -> Vec<(usize, Vec<f32>)> {
        let first = |&t: &usize| self.near[t].first().map(|&run| (t, self.zoo.weights(last[run]).to_vec()));
        self.targets.iter().filter_map(first).collect()
    }

    /// What runs on each target start from, where they train a part of it.
    fn starts(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        let Some(frozen) = self.sources.frozen() else { return Ok(Vec::new()) };
        let start = |&t: &usize| Ok((t, frozen.start(&self.sources.task(&self.tasks[t], Part::Train)?)?));
        self.targets.iter().map(start).collect()
    }

    fn scratch(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        let mut rng = random::stream(2 + self.settings.seed, "scratch");
        let samples = 0..self.settings.samples;
        let tasks = self.targets.iter().flat_map(|&t| samples.clone().map(move |_| t));
        tasks.map(|t| Ok((t, self.zoo.own(init_theta(&self.zoo.architecture, &mut rng))?))).collect()
    }

    fn noise(&self, last: &[usize], sigma: f32) -> Vec<(usize, Vec<f32>)> {
        let mut rng = random::stream(3 + self.settings.seed, "noise");
        let mut models = Vec::new();
        for (t, theta) in self.retrieval(last) {
            for _ in 0..self.settings.samples {
                let noise = random::normal_vec(theta.len(), &mut rng);
                models.push((t, theta.iter().zip(noise).map(|(w, n)| w + sigma * n).collect()));
            }
        }
        models
    }

    fn average(&self, last: &[usize]) -> Vec<(usize, Vec<f32>)> {
        let mean = |&t: &usize| {
            let near = self.near[t].iter().take(AVERAGED);
            let rows: Vec<f32> = near.flat_map(|&run| self.aligned(last[run]).iter().copied()).collect();
            // Nothing is near where the zoo has nothing of this number of classes.
            (!rows.is_empty()).then(|| (t, vectors::mean(&rows, self.zoo.parameters())))
        };
        self.targets.iter().filter_map(mean).collect()
    }

    /// Mean and deviation of each parameter over the task's training checkpoints; over those of the nearest runs
    /// where the zoo has fewer than two runs of the task.
    fn gaussian(&self) -> Vec<(usize, Vec<f32>)> {
        let (d, mut rng) = (self.zoo.parameters(), random::stream(4 + self.settings.seed, "gaussian"));
        let mut models = Vec::new();
        for &t in self.targets {
            let mut runs: BTreeSet<usize> = self.runs_of(t).collect();
            if runs.len() < 2 {
                runs = self.near[t].iter().copied().take(AVERAGED).collect();
            }
            let of_runs = |c: &&usize| runs.contains(&self.zoo.checkpoints[**c].run);
            let checkpoints: Vec<usize> = self.vectors.train.iter().filter(of_runs).copied().collect();
            let rows: Vec<f32> = checkpoints.iter().flat_map(|&c| self.aligned(c).iter().copied()).collect();
            if rows.is_empty() {
                continue;
            }
            let (mean, std) = statistics::columns(&rows, d);
            for _ in 0..self.settings.samples {
                let noise = random::normal_vec(d, &mut rng);
                let theta = mean.iter().zip(&std).zip(noise).map(|((m, s), n)| m + s * n);
                models.push((t, theta.collect()));
            }
        }
        models
    }

    /// Models whose weights were moved, with the statistics that their normalisations then have on training images of
    /// their tasks, as a trained model's: without that an arm would be measured by what it breaks.
    fn measured(&self, models: Vec<(usize, Vec<f32>)>) -> Result<Vec<(usize, Vec<f32>)>> {
        let architecture = &self.zoo.architecture;
        let one = |(t, theta): (usize, Vec<f32>)| -> training::Result<_> {
            let task = self.sources.task(&self.tasks[t], Part::Train)?;
            Ok((t, fit::recalibrate_on(architecture, &theta, &task)?))
        };
        Ok(models.into_iter().map(one).collect::<training::Result<_>>()?)
    }

    /// Runs of the generator's zoo on a task.
    fn runs_of(&self, task: usize) -> impl Iterator<Item = usize> {
        let runs = self.zoo.runs.iter().enumerate();
        runs.filter(move |(_, run)| run.task == self.tasks[task]).map(|(i, _)| i)
    }

    fn aligned(&self, checkpoint: usize) -> &[f32] {
        let d = self.zoo.parameters();
        &self.vectors.aligned[checkpoint * d..][..d]
    }

    fn data(&self, tasks: &[Task], part: Part, which: impl IntoIterator<Item = usize>) -> Result<Vec<TaskData<'_>>> {
        let data = which.into_iter().map(|t| self.sources.task(&tasks[t], part));
        Ok(data.collect::<training::Result<Vec<_>>>()?)
    }
}

/// Fine-tuned on the support images; nothing where what was generated was not.
fn tuned(tune: Option<&Tune<'_>>, models: Vec<(usize, Vec<f32>)>) -> Result<Vec<(usize, Vec<f32>)>> {
    let Some(tune) = tune else { return Ok(Vec::new()) };
    let mut tuned = Vec::with_capacity(models.len());
    for of_task in models.chunk_by(|a, b| a.0 == b.0) {
        let weights = of_task.iter().map(|(_, theta)| theta.clone()).collect();
        tuned.extend(tune(of_task[0].0, weights)?.into_iter().map(|theta| (of_task[0].0, theta)));
    }
    Ok(tuned)
}

/// Models with the index of their task in `tasks`, which grows by those that it lacks.
fn placed(tasks: &mut Vec<Task>, models: &[(Task, Vec<f32>)]) -> Vec<(usize, Vec<f32>)> {
    let mut place = |task: &Task| match tasks.iter().position(|t| t == task) {
        Some(place) => place,
        None => {
            tasks.push(task.clone());
            tasks.len() - 1
        }
    };
    models.iter().map(|(task, theta)| (place(task), theta.clone())).collect()
}
