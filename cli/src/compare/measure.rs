//! Measures arms: accuracy before and while fine-tuning, distance to the zoo, overlap of errors, disagreement.

use std::collections::BTreeMap;

use datasets::Task;
use rayon::prelude::*;
use training::stages::fit::{self, Recipe, fit_and_score};
use training::{Part, TaskData};
use weights::{Layout, canonical, novelty};

use super::statistics::{disagreement, error_iou, mean_std};
use super::{Arm, Comparison, Models};
use crate::error::Result;

/// Zoo models whose nearest neighbour gives the zoo's own spacing.
const SPACING_SAMPLE: usize = 64;
/// Training models of a task whose errors are compared with a model's.
pub const IOU_SAMPLE: usize = 32;
/// Models whose predictions are computed together.
const PREDICTED: usize = 8;

/// One model's numbers.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Index of its task.
    pub task: usize,
    /// Test accuracy after each number of epochs of fine-tuning.
    pub accuracy: Vec<f64>,
    /// Distance to the nearest checkpoint that the generator learned from, after alignment.
    pub distance: Option<f64>,
    /// Largest overlap of its errors with those of a training model of the task.
    pub iou: Option<f64>,
}

/// One arm's numbers.
#[derive(Debug, Clone)]
pub struct ArmReport {
    /// The arm.
    pub arm: Arm,
    /// Not the arm's main part: the reconstruction of training checkpoints.
    pub aside: bool,
    /// Its models.
    pub models: Vec<Measured>,
    /// Share of test images that two models of a task predict differently, mean over pairs and tasks.
    pub disagreement: Option<f64>,
}

/// The numbers of all arms on one set of tasks.
#[derive(Debug, Clone)]
pub struct SetReport {
    /// Names of the tasks; after those that were asked for, those of reconstructed checkpoints.
    pub tasks: Vec<String>,
    /// Epochs of fine-tuning.
    pub epochs: Vec<usize>,
    /// The arms.
    pub arms: Vec<ArmReport>,
    /// Mean distance of generated weights to the nearest checkpoint learned from, and of zoo models to the nearest
    /// of another run.
    pub novelty: (f64, f64),
    /// Test images of a task.
    pub test_images: usize,
}

impl ArmReport {
    /// Accuracies after the `i`th number of epochs, with their tasks.
    pub fn at(&self, i: usize) -> Vec<(usize, f64)> {
        self.models.iter().map(|m| (m.task, m.accuracy[i])).collect()
    }
}

/// The zoo in canonical form, for distances: those of weights, without the statistics that normalisations store.
pub struct Space<'a> {
    of: &'a Comparison<'a>,
    reference: Vec<f32>,
    learned: Vec<f32>,
    /// Mean distance of zoo models to the nearest of another run.
    spacing: f64,
}

impl<'a> Space<'a> {
    pub fn new(of: &'a Comparison<'a>, last: &[usize]) -> Self {
        let d = of.zoo.parameters();
        let rows = |checkpoints: &[usize]| -> Vec<f32> {
            checkpoints.iter().flat_map(|&c| of.aligned(c).iter().copied()).collect()
        };
        let reference = training::stages::vectors::mean(&rows(&of.vectors.train), d);
        let layout = of.zoo.layout(0);
        let weights = |checkpoints: &[usize]| {
            let mut rows = rows(checkpoints);
            rows.chunks_exact_mut(d).for_each(|row| without_statistics(row, &layout));
            rows
        };
        let (learned, rows) = (weights(&of.vectors.train), weights(last));
        let every = last.len().div_ceil(SPACING_SAMPLE).max(1);
        let zoo: Vec<usize> = (0..last.len()).step_by(every).collect();
        let nearest = |i: usize| novelty::nearest(&rows[i * d..(i + 1) * d], &rows, d, Some(i)).map(|(_, x)| x);
        let distances: Vec<f64> = zoo.into_par_iter().filter_map(nearest).collect();
        Self { of, reference, learned, spacing: mean_std(distances).0 }
    }

    /// Distance of weights in canonical form to the nearest checkpoint that the generator learned from.
    fn distance(&self, theta: &[f32]) -> Result<f64> {
        let zoo = self.of.zoo;
        let (groups, sweeps) = (zoo.hidden_groups(0), self.of.config.vectors.alignment_sweeps);
        let (mut theta, layout) = (theta.to_vec(), zoo.layout(0));
        canonical::align(&mut theta, &self.reference, &layout, &groups, sweeps)?;
        without_statistics(&mut theta, &layout);
        Ok(novelty::nearest(&theta, &self.learned, theta.len(), None).map_or(f64::NAN, |(_, distance)| distance))
    }

    fn distances(&self, models: &[(usize, Vec<f32>)]) -> Result<Vec<f64>> {
        models.par_iter().map(|(_, theta)| self.distance(theta)).collect()
    }

    /// Mean distance of these models; 0 for none.
    pub fn mean_distance(&self, models: &[(usize, Vec<f32>)]) -> Result<f64> {
        Ok(mean_std(self.distances(models)?).0)
    }
}

/// Sets the stored statistics of normalisations to zero: their size is that of the data.
fn without_statistics(theta: &mut [f32], layout: &Layout) {
    layout.buffers().for_each(|buffer| theta[buffer.range()].fill(0.0));
}

/// Fine-tunes and scores the models of all arms together; `distance` is the generated weights' mean distance to the
/// zoo.
pub fn measure(
    of: &Comparison<'_>,
    space: &Space<'_>,
    distance: f64,
    tasks: &[Task],
    arms: &[Models],
) -> Result<SetReport> {
    let settings = of.settings;
    let models: Vec<&(usize, Vec<f32>)> = arms.iter().flat_map(|arm| &arm.models).collect();
    let order = || models.iter().map(|(task, _)| *task);
    let (train, test) = (of.data(tasks, Part::Train, order())?, of.data(tasks, Part::Test, order())?);
    let theta: Vec<f32> = models.iter().flat_map(|(_, w)| w.iter().copied()).collect();
    let seeds: Vec<u64> = (0..models.len() as u64).map(|i| (settings.seed << 32) + i).collect();
    let recipe = Recipe::new(settings.batch, settings.lr, &train);
    let steps = models.len() * recipe.steps_per_epoch * settings.epochs.last().copied().unwrap_or(0);
    let (architecture, epochs) = (&of.zoo.architecture, &settings.epochs);
    let stage = of.progress.stage("fine-tuning", steps, 0);
    let scores = fit_and_score(architecture, &train, &test, &theta, &seeds, &recipe, epochs, &stage)?;
    stage.finish();
    let per_class = test.iter().map(TaskData::per_class).min().unwrap_or(0);
    let details = Details { of, space, tasks, per_class, trained: trained(of, tasks, per_class)? };
    let mut reports = Vec::with_capacity(arms.len());
    let mut start = 0;
    for arm in arms {
        let own = start..start + arm.models.len();
        let accuracy = |i: usize| scores.iter().map(|at| at[own.start + i].accuracy).collect();
        let measured = arm.models.iter().enumerate();
        let measured =
            measured.map(|(i, (task, _))| Measured { task: *task, accuracy: accuracy(i), distance: None, iou: None });
        let mut report = ArmReport { arm: arm.arm, aside: arm.aside, models: measured.collect(), disagreement: None };
        if settings.details {
            details.add(&mut report, &arm.models, &test[own.clone()])?;
        }
        reports.push(report);
        start = own.end;
    }
    Ok(SetReport {
        tasks: tasks.iter().map(ToString::to_string).collect(),
        epochs: epochs.clone(),
        arms: reports,
        novelty: (distance, space.spacing),
        test_images: per_class * architecture.classes(),
    })
}

/// Weights and predictions of training models, by task.
type Trained<'a> = BTreeMap<usize, Vec<(&'a [f32], Vec<u32>)>>;

/// Predictions of a sample of the runs that the generator learned from.
fn trained<'a>(of: &'a Comparison<'_>, tasks: &[Task], per_class: usize) -> Result<Trained<'a>> {
    let mut all = BTreeMap::new();
    if !of.settings.details {
        return Ok(all);
    }
    let last = of.zoo.last_checkpoints();
    let learned: std::collections::BTreeSet<usize> =
        of.vectors.train.iter().map(|&c| of.zoo.checkpoints[c].run).collect();
    for (t, task) in tasks.iter().enumerate() {
        let own: Vec<usize> = learned.iter().copied().filter(|&run| of.zoo.runs[run].task == *task).collect();
        let every = own.len().div_ceil(IOU_SAMPLE).max(1);
        let theta: Vec<&[f32]> = own.iter().step_by(every).map(|&run| of.zoo.weights(last[run])).collect();
        let data = of.data(tasks, Part::Test, theta.iter().map(|_| t))?;
        let predictions = predict(of, &data, &theta, per_class)?;
        all.insert(t, theta.into_iter().zip(predictions).collect());
    }
    Ok(all)
}

/// Predictions of models, on all cores.
fn predict(of: &Comparison<'_>, test: &[TaskData<'_>], theta: &[&[f32]], per_class: usize) -> Result<Vec<Vec<u32>>> {
    let chunks: Vec<_> = test.chunks(PREDICTED).zip(theta.chunks(PREDICTED)).collect();
    let one = |(test, theta): (&[TaskData<'_>], &[&[f32]])| {
        of.progress.check()?;
        fit::predictions(&of.zoo.architecture, test, &theta.concat(), per_class)
    };
    let all: Vec<Vec<Vec<u32>>> = chunks.into_par_iter().map(one).collect::<training::Result<_>>()?;
    Ok(all.into_iter().flatten().collect())
}

/// What is measured beside accuracy.
struct Details<'a> {
    of: &'a Comparison<'a>,
    space: &'a Space<'a>,
    tasks: &'a [Task],
    per_class: usize,
    trained: Trained<'a>,
}

impl Details<'_> {
    fn add(&self, report: &mut ArmReport, models: &[(usize, Vec<f32>)], test: &[TaskData<'_>]) -> Result<()> {
        let theta: Vec<&[f32]> = models.iter().map(|(_, w)| w.as_slice()).collect();
        let predictions = predict(self.of, test, &theta, self.per_class)?;
        // A model of the zoo is at no distance from it.
        if !matches!(report.arm, Arm::Zoo | Arm::Retrieval) {
            let distances = self.space.distances(models)?;
            report.models.iter_mut().zip(distances).for_each(|(m, distance)| m.distance = Some(distance));
        }
        let truth = |i: usize| (i / self.per_class.max(1)) as u32;
        for ((model, own), theta) in report.models.iter_mut().zip(&predictions).zip(&theta) {
            let trained = self.trained.get(&model.task).into_iter().flatten();
            // Not with itself, where it is one of them.
            let others = trained.filter(|(weights, _)| weights != theta);
            model.iou = others.filter_map(|(_, other)| error_iou(own, other, truth)).reduce(f64::max);
        }
        let of_task = |task: usize| {
            let own = models.iter().zip(&predictions).filter(|((t, _), _)| *t == task);
            disagreement(&own.map(|(_, p)| p).collect::<Vec<_>>())
        };
        let shares: Vec<f64> = (0..self.tasks.len()).filter_map(of_task).collect();
        report.disagreement = (!shares.is_empty()).then(|| mean_std(shares).0);
        Ok(())
    }
}
