//! The comparison: generated weights beside the zoo, retrieval, scratch, noise, average and the shuffled condition,
//! all on the same test images and fine-tuned by the same recipe (METHOD: honest evaluation).

use std::collections::BTreeMap;

use datasets::Task;
use inference::Generator;
use rayon::prelude::*;
use registry::embeddings::{self, SubjectKind};
use registry::{Registry, VersionId, runs};
use training::progress::Progress;
use training::stages::fit::{self, Recipe, Score, fit_and_score, init_theta};
use training::stages::{vectors, zoo};
use training::{Part, random};
use weights::novelty;

use super::Made;
use super::client::Answer;
use crate::context::caller;
use crate::error::{Error, Result};

/// Checkpoints that the average is taken of.
const AVERAGED: usize = 16;
/// Zoo models whose nearest neighbour gives the zoo's own spacing.
const SPACING_SAMPLE: usize = 64;

/// One arm's models: the task that each is for, and its weights.
struct Arm {
    name: &'static str,
    models: Vec<(usize, Vec<f32>)>,
}

/// Accuracies of one arm.
pub struct ArmReport {
    /// Name.
    pub name: &'static str,
    /// Per number of epochs: accuracy of each model, with its task.
    pub epochs: Vec<(usize, Vec<(usize, f64)>)>,
}

/// Accuracies of all arms on one set of tasks.
pub struct SetReport {
    /// Names of the tasks.
    pub tasks: Vec<String>,
    /// The arms.
    pub arms: Vec<ArmReport>,
    /// Mean distance of generated weights to the nearest zoo model, and of zoo models to theirs.
    pub novelty: Option<(f64, f64)>,
    /// Largest difference between the server's accuracies and those measured from the downloaded files.
    pub server_difference: f64,
}

/// What is compared.
pub struct Comparison<'a> {
    /// Zoo and generator.
    pub made: &'a Made,
    /// The tasks.
    pub tasks: &'a [Task],
    /// Whether the zoo has these tasks.
    pub seen: bool,
    /// What the server answered.
    pub answers: &'a [Answer],
    /// Progress.
    pub progress: &'a Progress,
}

impl Comparison<'_> {
    /// Runs of the zoo nearest to each task by dataset embedding, nearest first, from the registry.
    /// The support images are those of the task's request.
    pub async fn neighbours(
        &self,
        registry: &Registry,
        version: VersionId,
        generator: &Generator,
    ) -> Result<Vec<Vec<usize>>> {
        let validation: BTreeMap<&str, datasets::Dataset> =
            self.made.sources.list().iter().map(|s| (s.name.as_str(), s.dataset(Part::Validation))).collect();
        let mut near = Vec::with_capacity(self.tasks.len());
        for (seed, task) in self.tasks.iter().enumerate() {
            let data = validation.get(task.source.as_str());
            let data = data.ok_or_else(|| Error::Internal(format!("no data for task {task}")))?;
            let features = generator.features(data, &task.classes, seed as u64)?;
            let query = generator.embed(&features)?.dataset;
            let found = embeddings::nearest(registry, version, SubjectKind::Run, &query, AVERAGED as u32).await?;
            let mut indices = Vec::with_capacity(found.len());
            for neighbour in found {
                indices.push(runs::get(registry, &caller(), neighbour.subject_id.into()).await?.index as usize);
            }
            near.push(indices);
        }
        Ok(near)
    }

    /// Measures all arms.
    pub fn run(&self, near: &[Vec<usize>]) -> Result<SetReport> {
        let names = self.tasks.iter().map(ToString::to_string).collect();
        if self.tasks.is_empty() {
            return Ok(SetReport { tasks: names, arms: Vec::new(), novelty: None, server_difference: 0.0 });
        }
        let last = last_checkpoints(self.made);
        let novelty = self.novelty(&last);
        let sigma = novelty.0 / (self.made.zoo.parameters() as f64).sqrt();
        let arms = [
            self.generated(),
            self.zoo(&last)?,
            self.retrieval(near, &last),
            self.scratch(),
            self.noise(near, &last, sigma as f32),
            self.average(near, &last),
            self.shuffled(),
        ];
        let arms: Vec<Arm> = arms.into_iter().filter(|arm| !arm.models.is_empty()).collect();
        let arms = self.measure(&arms)?;
        Ok(SetReport {
            tasks: names,
            server_difference: self.server_difference(&arms[0]),
            arms,
            novelty: Some(novelty),
        })
    }

    fn generated(&self) -> Arm {
        let models = self.answers.iter().enumerate().flat_map(|(t, a)| a.theta.iter().map(move |w| (t, w.clone())));
        Arm { name: "generated", models: models.collect() }
    }

    /// The condition of another task: what was generated for one task is measured on the next; nothing for one task.
    fn shuffled(&self) -> Arm {
        let n = self.tasks.len();
        let mut models = self.generated().models;
        for (task, _) in &mut models {
            *task = (*task + 1) % n;
        }
        if n < 2 {
            models.clear();
        }
        Arm { name: "shuffled", models }
    }

    /// Models trained on these very tasks: the zoo's own, or for unseen tasks ones trained the same way.
    fn zoo(&self, last: &[usize]) -> Result<Arm> {
        let made = self.made;
        let mut models = Vec::new();
        if self.seen {
            let mut by_task: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for (run, _) in last.iter().enumerate() {
                by_task.entry(made.zoo.runs[run].task.to_string()).or_default().push(run);
            }
            for (t, task) in self.tasks.iter().enumerate() {
                let runs = by_task.get(&task.to_string()).into_iter().flatten();
                for &run in runs.take(made.config.evaluation.samples) {
                    models.push((t, made.zoo.weights(last[run]).to_vec()));
                }
            }
            return Ok(Arm { name: "zoo", models });
        }
        let seeds: Vec<u64> = (0..self.tasks.len() as u64).map(|i| i + 1_000_000).collect();
        let train = self.data(Part::Train, 0..self.tasks.len())?;
        let recipe = Recipe::new(made.config.zoo.batch, made.config.zoo.lr, &train);
        let start = zoo::initial(&made.config, &made.zoo.architecture, &seeds);
        let epochs = [made.config.zoo.epochs];
        let theta =
            fit::fit(&made.zoo.architecture, &train, start, &seeds, &recipe, &epochs, &mut || self.progress.check())?;
        let rows = theta[0].chunks_exact(made.zoo.parameters()).map(<[f32]>::to_vec);
        Ok(Arm { name: "zoo", models: rows.enumerate().collect() })
    }

    fn retrieval(&self, near: &[Vec<usize>], last: &[usize]) -> Arm {
        let pick =
            |(t, runs): (usize, &Vec<usize>)| runs.first().map(|&run| (t, self.made.zoo.weights(last[run]).to_vec()));
        Arm { name: "retrieval", models: near.iter().enumerate().filter_map(pick).collect() }
    }

    fn scratch(&self) -> Arm {
        let mut rng = random::stream(2, "scratch");
        let n = self.made.config.evaluation.samples;
        let models = (0..self.tasks.len() * n).map(|i| (i / n, init_theta(&self.made.zoo.architecture, &mut rng)));
        Arm { name: "scratch", models: models.collect() }
    }

    /// The retrieved checkpoint moved as far as generated weights are from the zoo, in a random direction.
    fn noise(&self, near: &[Vec<usize>], last: &[usize], sigma: f32) -> Arm {
        let mut rng = random::stream(3, "noise");
        let mut models = Vec::new();
        for (t, theta) in self.retrieval(near, last).models {
            for _ in 0..self.made.config.evaluation.samples {
                let noise = random::normal_vec(theta.len(), &mut rng);
                models.push((t, theta.iter().zip(noise).map(|(w, n)| w + sigma * n).collect()));
            }
        }
        Arm { name: "noise", models }
    }

    /// Mean of the nearest checkpoints in canonical form.
    fn average(&self, near: &[Vec<usize>], last: &[usize]) -> Arm {
        let d = self.made.zoo.parameters();
        let mean = |runs: &Vec<usize>| {
            let rows: Vec<f32> = runs.iter().flat_map(|&run| self.aligned(last[run]).iter().copied()).collect();
            vectors::mean(&rows, d)
        };
        Arm { name: "average", models: near.iter().map(mean).enumerate().collect() }
    }

    fn aligned(&self, checkpoint: usize) -> &[f32] {
        let d = self.made.trained.vectors.vectorise.length;
        &self.made.trained.vectors.aligned[checkpoint * d..][..self.made.zoo.parameters()]
    }

    /// Mean distance, in canonical form, of generated weights to the nearest checkpoint that the generator learned
    /// from, and of the zoo's models to the nearest of another run.
    fn novelty(&self, last: &[usize]) -> (f64, f64) {
        let d = self.made.zoo.parameters();
        let rows = |checkpoints: &[usize]| -> Vec<f32> {
            checkpoints.iter().flat_map(|&c| self.aligned(c).iter().copied()).collect()
        };
        let mean = |distances: Vec<f64>| distances.iter().sum::<f64>() / distances.len().max(1) as f64;
        let learned = rows(&self.made.trained.vectors.train);
        let generated: Vec<&Vec<f32>> = self.answers.iter().flat_map(|a| &a.theta).collect();
        let generated = generated.par_iter().filter_map(|w| novelty::nearest(w, &learned, d, None));
        let generated = generated.map(|(_, x)| x).collect();
        let rows = rows(last);
        let every = last.len().div_ceil(SPACING_SAMPLE).max(1);
        let zoo = (0..last.len()).step_by(every);
        let zoo = zoo.filter_map(|i| novelty::nearest(&rows[i * d..(i + 1) * d], &rows, d, Some(i))).map(|(_, x)| x);
        (mean(generated), mean(zoo.collect()))
    }

    fn data(&self, part: Part, tasks: impl IntoIterator<Item = usize>) -> Result<Vec<training::TaskData<'_>>> {
        Ok(tasks
            .into_iter()
            .map(|t| self.made.sources.task(&self.tasks[t], part))
            .collect::<training::Result<Vec<_>>>()?)
    }

    /// Fine-tunes and scores the models of all arms together.
    fn measure(&self, arms: &[Arm]) -> Result<Vec<ArmReport>> {
        let made = self.made;
        let e = &made.config.evaluation;
        let models: Vec<&(usize, Vec<f32>)> = arms.iter().flat_map(|arm| &arm.models).collect();
        let order = || models.iter().map(|(task, _)| *task);
        let (train, test) = (self.data(Part::Train, order())?, self.data(Part::Test, order())?);
        let theta: Vec<f32> = models.iter().flat_map(|(_, w)| w.iter().copied()).collect();
        let seeds: Vec<u64> = (0..models.len() as u64).collect();
        let recipe = Recipe::new(e.batch, e.lr, &train);
        let steps = models.len() * recipe.steps_per_epoch * e.epochs.last().copied().unwrap_or(0);
        let stage = self.progress.stage("fine-tuning", steps, 0);
        let scores = fit_and_score(&made.zoo.architecture, &train, &test, &theta, &seeds, &recipe, &e.epochs, &stage)?;
        stage.finish();
        let mut start = 0;
        let mut reports = Vec::with_capacity(arms.len());
        for arm in arms {
            let end = start + arm.models.len();
            let of = |scores: &Vec<Score>| -> Vec<(usize, f64)> {
                arm.models.iter().zip(&scores[start..end]).map(|((task, _), s)| (*task, s.accuracy)).collect()
            };
            reports.push(ArmReport {
                name: arm.name,
                epochs: e.epochs.iter().copied().zip(scores.iter().map(of)).collect(),
            });
            start = end;
        }
        Ok(reports)
    }

    /// The server evaluates on all test images of the classes, the comparison on as many of each class.
    fn server_difference(&self, generated: &ArmReport) -> f64 {
        let ours = generated.epochs.iter().find(|(epoch, _)| *epoch == 0);
        let server = self.answers.iter().flat_map(|a| a.accuracy.iter());
        ours.map_or(0.0, |(_, ours)| ours.iter().zip(server).fold(0.0, |m, ((_, a), b)| f64::max(m, (a - b).abs())))
    }
}

/// The last checkpoint of each run.
fn last_checkpoints(made: &Made) -> Vec<usize> {
    let mut last = vec![0; made.zoo.runs.len()];
    for (i, checkpoint) in made.zoo.checkpoints.iter().enumerate() {
        last[checkpoint.run] = i;
    }
    last
}
