//! Fits many models of one architecture at once, each on its own task: every parameter has a leading model axis, and
//! one step advances all models. Used for the zoo and for fine-tuning generated weights.
//!
//! Batch normalisation is trained with the statistics of each batch. The statistics that a network stores are measured on
//! training images where its weights are kept, so that what is kept is complete.

mod engine;

use candle_core::{D, Device, Tensor, Var};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use weights::architecture::{Activation, Architecture};
use weights::layout::Layout;

use crate::backend::Models;
use crate::data::TaskData;
use crate::device;
use crate::direct::{Network, Workspace};
use crate::error::{Error, Result};
use crate::networks::target;
use crate::optim::{AdamConfig, AdamW};
use crate::random;
use crate::snapshots::Snapshot;

pub use super::net::{Net, split};
use engine::{Batch, Engine};

/// How models are fitted.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Images of a step, shared evenly between the classes.
    pub batch: usize,
    /// Adam's learning rate.
    pub lr: f64,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
}

impl Recipe {
    /// A recipe whose epoch sees about each example of the smallest of `tasks` once.
    pub fn new(batch: usize, lr: f64, tasks: &[TaskData<'_>]) -> Self {
        let examples = tasks.iter().map(|t| t.per_class() * t.classes()).min().unwrap_or(0);
        Self { batch, lr, steps_per_epoch: ((examples as f64 / batch as f64).round() as usize).max(1) }
    }
}

/// Accuracy and cross-entropy of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Share of examples classified rightly.
    pub accuracy: f64,
    /// Mean cross-entropy in nats.
    pub loss: f64,
}

/// Random weights `[d]`: normal with variance gain/fan-in (gain 2 before ReLU, else 1), biases zero.
pub fn init_theta(architecture: &Architecture, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let relu = matches!(
        architecture,
        Architecture::Mlp { activation: Activation::Relu, .. }
            | Architecture::ResnetCifar { .. }
            | Architecture::Resnet(_)
            | Architecture::MobilenetV3(_)
    );
    let layout = architecture.layout();
    let last = layout.params.len().saturating_sub(2);
    let mut theta = Vec::with_capacity(layout.parameters());
    for (i, param) in layout.params.iter().enumerate() {
        if param.shape.len() == 1 {
            // The scale of a normalisation, and the variance that it divides by.
            let one = param.name.ends_with(".weight") || param.name.ends_with(".running_var");
            theta.resize(theta.len() + param.len(), if one { 1.0 } else { 0.0 });
            continue;
        }
        let fan_in: usize = param.shape[1..].iter().product();
        let gain = if relu && i < last { 2.0 } else { 1.0 };
        let std = (gain / fan_in as f64).sqrt() as f32;
        theta.extend(random::normal_vec(param.len(), rng).into_iter().map(|v| v * std));
    }
    theta
}

/// The network `theta` (`[d]`) with the statistics of its normalisations measured on images (`n · input` values) in place
/// of those that it has; the same network where it has none.
///
/// # Errors
/// When shapes do not fit.
pub fn recalibrate(architecture: &Architecture, theta: &[f32], images: Vec<f32>) -> Result<Vec<f32>> {
    Net::new(architecture, None).recalibrate(theta, images)
}

/// Images that the statistics of a network are measured on, shared evenly between the classes.
const MEASURED_IMAGES: usize = 500;

/// As [`recalibrate`], on the first examples of a task.
///
/// # Errors
/// When shapes do not fit.
pub fn recalibrate_on(architecture: &Architecture, theta: &[f32], task: &TaskData<'_>) -> Result<Vec<f32>> {
    let net = Net::of(architecture, std::slice::from_ref(task));
    if net.layout().buffers().next().is_none() {
        return Ok(theta.to_vec());
    }
    net.recalibrate(theta, task.first((MEASURED_IMAGES / task.classes().max(1)).max(1)))
}

/// Logits `[m, n, classes]` of `m` models with `theta [m, d]` on inputs `x` (`m·n·input` values).
///
/// # Errors
/// When shapes do not fit.
pub fn logits(architecture: &Architecture, layout: &Layout, theta: &Tensor, x: &Tensor) -> Result<Tensor> {
    let params = split(theta, layout)?;
    target::forward(&mut Models::default(), architecture, &params, x)
}

/// One-hot labels `[1, n, classes]` of class-major examples, `per_class` of each.
fn one_hot(classes: usize, per_class: usize, device: &Device) -> Result<Tensor> {
    let n = classes * per_class;
    let mut data = vec![0f32; n * classes];
    for i in 0..n {
        data[i * classes + i / per_class] = 1.0;
    }
    Ok(Tensor::from_vec(data, (1, n, classes), device)?)
}

/// The order in which one model sees its examples.
struct Epochs {
    rng: ChaCha8Rng,
    lists: Vec<Vec<usize>>,
}

impl Epochs {
    /// A new epoch begins.
    fn shuffle(&mut self) {
        for list in &mut self.lists {
            list.shuffle(&mut self.rng);
        }
    }

    fn fill(&mut self, task: &TaskData<'_>, step: usize, per_class: usize, out: &mut Vec<f32>) {
        if step == 0 {
            self.shuffle();
        }
        for list in &self.lists {
            for i in step * per_class..(step + 1) * per_class {
                task.push(list[i % list.len()], out);
            }
        }
    }
}

/// Models that are fitted together: their weights, optimiser and place in the data.
pub struct Fit<'a> {
    architecture: &'a Architecture,
    layout: Layout,
    tasks: &'a [TaskData<'a>],
    recipe: &'a Recipe,
    stops: &'a [usize],
    engine: Engine<'a>,
    orders: Vec<Epochs>,
    per_class: usize,
    step: usize,
    kept: Vec<Vec<f32>>,
}

impl<'a> Fit<'a> {
    /// Models with weights `theta` (`[m·d]`), one per task, whose weights after each number of epochs in `stops`
    /// (ascending; 0 gives the start) are asked for.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn new(
        architecture: &'a Architecture,
        tasks: &'a [TaskData<'a>],
        theta: Vec<f32>,
        seeds: &[u64],
        recipe: &'a Recipe,
        stops: &'a [usize],
    ) -> Result<Self> {
        let net = Net::of(architecture, tasks);
        let layout = net.layout();
        let order = |(task, &seed): (&TaskData<'_>, &u64)| Epochs {
            rng: random::stream(seed, "batches"),
            lists: task.index_lists(),
        };
        let per_class = (recipe.batch / architecture.classes()).max(1);
        Ok(Self {
            engine: Engine::new(architecture, net, theta, tasks.len(), per_class)?,
            orders: tasks.iter().zip(seeds).map(order).collect(),
            step: 0,
            kept: Vec::new(),
            architecture,
            layout,
            tasks,
            recipe,
            stops,
            per_class,
        })
    }

    /// Steps of an epoch.
    fn epoch(&self) -> usize {
        self.recipe.steps_per_epoch.max(1)
    }

    /// Trains to the last stop and returns the weights (`[m·d]`) after each. `on_step` is called after each step,
    /// with the mean loss of the models.
    ///
    /// # Errors
    /// [`Error::Diverged`] when the loss is not finite; whatever `on_step` returns.
    pub fn run(mut self, on_step: &mut dyn FnMut(&Self, f32) -> Result<()>) -> Result<Vec<Vec<f32>>> {
        while let Some(loss) = self.advance()? {
            on_step(&self, loss)?;
        }
        Ok(self.kept)
    }

    /// One step of all models, and their mean loss; nothing behind the last stop. What was asked for is kept on the way.
    ///
    /// # Errors
    /// [`Error::Diverged`] when the loss is not finite.
    pub fn advance(&mut self) -> Result<Option<f32>> {
        if self.step.is_multiple_of(self.epoch()) && self.stops.contains(&(self.step / self.epoch())) {
            self.kept.push(self.complete()?);
        }
        let end = self.stops.last().copied().unwrap_or(0) * self.epoch();
        if self.step >= end { Ok(None) } else { self.step().map(Some) }
    }

    fn step(&mut self) -> Result<f32> {
        let step = self.step % self.epoch();
        let batch = Batch { orders: &mut self.orders, tasks: self.tasks, step, per_class: self.per_class };
        let loss = self.engine.advance(batch, self.recipe.lr)?;
        if !loss.is_finite() {
            return Err(Error::Diverged { stage: "fit", step: self.step });
        }
        self.step += 1;
        Ok(loss)
    }

    /// The weights now, `[m·d]`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn theta(&self) -> Result<Vec<f32>> {
        self.engine.theta()
    }

    /// The weights now, with the statistics that their normalisations have on training images; before the first step
    /// those that they came with.
    fn complete(&self) -> Result<Vec<f32>> {
        let theta = self.theta()?;
        if self.step == 0 || self.layout.buffers().next().is_none() {
            return Ok(theta);
        }
        let models = theta.chunks_exact(self.layout.parameters()).zip(self.tasks);
        let complete = models.map(|(theta, task)| recalibrate_on(self.architecture, theta, task));
        Ok(complete.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Steps that were made.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// What [`Self::restore`] needs to go on from here.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut snapshot = Snapshot::new(self.step);
        snapshot.put("theta", self.theta()?);
        self.engine.save(&mut snapshot)?;
        for (i, kept) in self.kept.iter().enumerate() {
            snapshot.put(&format!("kept.{i}"), kept.clone());
        }
        Ok(snapshot)
    }

    /// Goes on from a snapshot; only for models that were just made. The order of the data is not part of it: the
    /// shuffles up to there are done again.
    ///
    /// # Errors
    /// When the snapshot is of other models.
    pub fn restore(&mut self, mut snapshot: Snapshot) -> Result<()> {
        let (models, d) = (self.tasks.len(), self.layout.parameters());
        let theta = snapshot.take_len("theta", models * d)?;
        self.engine.restore(theta, &mut snapshot)?;
        // Those at the very place of the snapshot are taken when training goes on.
        let passed = self.stops.iter().filter(|&&stop| stop * self.epoch() < snapshot.step).count();
        self.kept = (0..passed).map(|i| snapshot.take_len(&format!("kept.{i}"), models * d)).collect::<Result<_>>()?;
        let begun = snapshot.step.div_ceil(self.epoch());
        for order in &mut self.orders {
            (0..begun).for_each(|_| order.shuffle());
        }
        self.step = snapshot.step;
        Ok(())
    }
}

/// Trains models from `theta` (`[m·d]`), one per task, and returns the weights (`[m·d]`) after each number of epochs
/// in `stops` (ascending; 0 gives the start). `on_step` is called after each step.
///
/// # Errors
/// [`Error::Diverged`] when the loss is not finite; whatever `on_step` returns.
pub fn fit(
    architecture: &Architecture,
    tasks: &[TaskData<'_>],
    theta: Vec<f32>,
    seeds: &[u64],
    recipe: &Recipe,
    stops: &[usize],
    on_step: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Vec<f32>>> {
    Fit::new(architecture, tasks, theta, seeds, recipe, stops)?.run(&mut |_, _| on_step())
}

/// Trains each of these models on all of a dataset's examples (class k is the head's row k) in each of `steps` steps.
///
/// # Errors
/// When shapes do not fit; [`Error::Diverged`] when the loss is not finite.
pub fn adapt(
    architecture: &Architecture,
    data: &datasets::Dataset,
    theta: Vec<Vec<f32>>,
    steps: usize,
    lr: f64,
) -> Result<Vec<Vec<f32>>> {
    let (device, net, models) = (device::current(), Net::new(architecture, None), theta.len());
    let layout = net.layout();
    if steps == 0 || models == 0 {
        return Ok(theta);
    }
    let (n, classes) = (data.len(), architecture.classes());
    let start = Tensor::from_vec(theta.concat(), (models, layout.parameters()), &device)?;
    let vars = split(&start, &layout)?.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let params: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let x = net.inputs(data.gather(&(0..n).collect::<Vec<_>>()).repeat(models), models, &device)?;
    let mut target = vec![0f32; n * classes];
    data.labels.iter().enumerate().for_each(|(i, &label)| target[i * classes + label as usize] = 1.0);
    let target = Tensor::from_vec(target, (1, n, classes), &device)?;
    let mut adam = AdamW::new(vars.clone(), AdamConfig::default());
    for step in 0..steps {
        // So few examples have no statistics of their own: those that are stored stay.
        let y = net.forward(&mut Models::default(), &params, &x)?;
        let log_p = candle_nn::ops::log_softmax(&y, D::Minus1)?;
        let loss = (log_p.broadcast_mul(&target)?.sum_all()? * (-1.0 / n as f64))?;
        if !loss.to_scalar::<f32>()?.is_finite() {
            return Err(Error::Diverged { stage: "fit", step });
        }
        let grads = loss.backward()?;
        let trained = vars.iter().zip(&layout.params);
        let grads: Vec<_> = trained.map(|(v, p)| grads.get(v).filter(|_| !p.is_buffer()).cloned()).collect();
        adam.step(&grads, lr)?;
    }
    Ok(join(&params, models)?.chunks_exact(layout.parameters()).map(<[f32]>::to_vec).collect())
}

/// Most models that one thread advances together in [`fit_and_score`]; fewer where a step's inputs are large.
const FIT_GROUP: usize = 128;

/// Fits models as [`fit`] does, on all cores, and scores them on `test` after each number of epochs in `stops`:
/// `[stops][models]`.
///
/// # Errors
/// As [`fit`] and [`score`].
#[allow(clippy::too_many_arguments)] // train and test, start and recipe: each a plain list
pub fn fit_and_score(
    architecture: &Architecture,
    train: &[TaskData<'_>],
    test: &[TaskData<'_>],
    theta: &[f32],
    seeds: &[u64],
    recipe: &Recipe,
    stops: &[usize],
    progress: &crate::progress::Stage,
) -> Result<Vec<Vec<Score>>> {
    let net = Net::of(architecture, train);
    let d = net.layout().parameters();
    let per_class = test.iter().map(TaskData::per_class).min().unwrap_or(0);
    let group = (PASS_VALUES / (recipe.batch * net.activations()).max(1)).clamp(1, FIT_GROUP);
    let starts: Vec<usize> = (0..train.len()).step_by(group).collect();
    let fit_one = |&start: &usize| {
        let range = start..train.len().min(start + group);
        let models = range.len();
        let own = theta[range.start * d..range.end * d].to_vec();
        let mut on_step = || progress.advance(models);
        let kept = fit(architecture, &train[range.clone()], own, &seeds[range.clone()], recipe, stops, &mut on_step)?;
        kept.iter().map(|theta| score(architecture, &test[range.clone()], theta, per_class)).collect()
    };
    let groups: Vec<Vec<Vec<Score>>> = device::each(&starts, fit_one)?;
    Ok((0..stops.len()).map(|stop| groups.iter().flat_map(|g| g[stop].iter().copied()).collect()).collect())
}

/// Joins parameters `[m, …shape]` to flat vectors `[m·d]`.
fn join(params: &[Tensor], models: usize) -> Result<Vec<f32>> {
    let flat = params.iter().map(|p| p.reshape((models, ()))).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&flat, 1)?.flatten_all()?.to_vec1()?)
}

/// Values that one pass may hold, of inputs or of the largest layer; bounds memory.
const PASS_VALUES: usize = 1 << 21;

/// Scores of models `theta` (`[m·d]`), one per task, on the first `per_class` examples of each class.
///
/// # Errors
/// When shapes do not fit.
pub fn score(
    architecture: &Architecture,
    tasks: &[TaskData<'_>],
    theta: &[f32],
    per_class: usize,
) -> Result<Vec<Score>> {
    let mut scores = Vec::with_capacity(tasks.len());
    passes(architecture, tasks, theta, per_class, |logits| {
        let log_p = candle_nn::ops::log_softmax(logits, D::Minus1)?.to_vec3::<f32>()?;
        scores.extend(log_p.iter().map(|rows| score_of(rows, per_class)));
        Ok(())
    })?;
    Ok(scores)
}

/// Score from log-probabilities of `per_class` examples of each class, class-major.
fn score_of(rows: &[Vec<f32>], per_class: usize) -> Score {
    let (mut right, mut loss) = (0usize, 0.0f64);
    for (i, row) in rows.iter().enumerate() {
        let label = i / per_class;
        loss -= f64::from(row[label]);
        // Ties and NaN do not count as right.
        right += usize::from(row.iter().enumerate().all(|(c, &v)| c == label || v < row[label]));
    }
    let n = rows.len().max(1) as f64;
    Score { accuracy: right as f64 / n, loss: loss / n }
}

/// Gives the logits `[models, examples, classes]` of groups of models on the first `per_class` examples of each class,
/// class-major, to `each`, in order.
fn passes(
    architecture: &Architecture,
    tasks: &[TaskData<'_>],
    theta: &[f32],
    per_class: usize,
    mut each: impl FnMut(&Tensor) -> Result<()>,
) -> Result<()> {
    let (net, device) = (Net::of(architecture, tasks), device::current());
    let network = Network::of(architecture).filter(|_| net.is_whole() && device.is_cpu());
    let d = net.layout().parameters();
    let values = per_class * architecture.classes() * net.activations();
    let group = (PASS_VALUES / values.max(1)).max(1);
    for (tasks, theta) in tasks.chunks(group).zip(theta.chunks(group * d)) {
        if let Some(network) = &network {
            each(&direct_logits(network, architecture.classes(), tasks, theta, per_class)?)?;
            continue;
        }
        let x: Vec<f32> = tasks.iter().flat_map(|task| task.first(per_class)).collect();
        let theta = Tensor::from_slice(theta, (tasks.len(), d), &device)?;
        each(&net.logits(&theta, &net.inputs(x, tasks.len(), &device)?)?)?;
    }
    Ok(())
}

/// Logits `[m, n, classes]` of models `theta` (`[m·d]`), each for itself, on all cores.
fn direct_logits(
    network: &Network,
    classes: usize,
    tasks: &[TaskData<'_>],
    theta: &[f32],
    per_class: usize,
) -> Result<Tensor> {
    use rayon::prelude::*;
    let d = theta.len() / tasks.len().max(1);
    let logits = |(theta, task): (&[f32], &TaskData<'_>)| {
        let mut workspace = Workspace::of(task.first(per_class));
        network.logits(theta, &mut workspace).to_vec()
    };
    let all: Vec<Vec<f32>> = theta.par_chunks(d.max(1)).zip(tasks).map(logits).collect();
    Ok(Tensor::from_vec(all.concat(), (tasks.len(), (), classes), &Device::Cpu)?)
}

/// Predicted class of each of the first `per_class` examples of each class, class-major, by models `theta` (`[m·d]`),
/// one per task; a model whose outputs are not numbers predicts [`u32::MAX`].
///
/// # Errors
/// When shapes do not fit.
pub fn predictions(
    architecture: &Architecture,
    tasks: &[TaskData<'_>],
    theta: &[f32],
    per_class: usize,
) -> Result<Vec<Vec<u32>>> {
    let best = |row: &Vec<f32>| -> u32 {
        let mut order = (0..row.len()).filter(|&c| row[c].is_finite());
        let first = order.next();
        let best = first.map(|first| order.fold(first, |best, c| if row[c] > row[best] { c } else { best }));
        best.map_or(u32::MAX, |c| c as u32)
    };
    let mut all = Vec::with_capacity(tasks.len());
    passes(architecture, tasks, theta, per_class, |logits| {
        all.extend(logits.to_vec3::<f32>()?.iter().map(|rows| rows.iter().map(best).collect()));
        Ok(())
    })?;
    Ok(all)
}
