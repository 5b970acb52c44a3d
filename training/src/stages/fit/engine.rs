//! What advances models that are fitted together: passes that are written out, model by model on all cores, where there
//! are such for the network; candle on tensors with a model axis for all others.

use std::sync::Mutex;

use candle_core::{D, Tensor, Var};
use rayon::prelude::*;
use weights::Architecture;
use weights::layout::Layout;

use super::{Epochs, join, one_hot};
use crate::backend::Models;
use crate::data::TaskData;
use crate::device;
use crate::direct::{Network, Workspace};
use crate::error::Result;
use crate::optim::{AdamConfig, AdamW, Rates};
use crate::snapshots::Snapshot;
use crate::stages::net::{Net, split};

/// A step's examples: the epoch's `step`th `per_class` examples of each class, in each model's own order.
pub(super) struct Batch<'b, 'a> {
    pub(super) orders: &'b mut [Epochs],
    pub(super) tasks: &'b [TaskData<'a>],
    pub(super) step: usize,
    pub(super) per_class: usize,
}

pub(super) enum Engine<'a> {
    Direct(Direct),
    Graph(Graph<'a>),
}

impl<'a> Engine<'a> {
    /// An engine for models `theta` (`[m·d]`) on batches of `per_class` examples of each class.
    pub(super) fn new(
        architecture: &Architecture,
        net: Net<'a>,
        theta: Vec<f32>,
        models: usize,
        per_class: usize,
    ) -> Result<Self> {
        let network = Network::of(architecture).filter(|_| net.is_whole() && device::current().is_cpu());
        match network {
            Some(network) => Ok(Self::Direct(Direct::new(network, architecture, theta, models, per_class)?)),
            None => Ok(Self::Graph(Graph::new(architecture, net, theta, models, per_class)?)),
        }
    }

    /// One step of all models; gives the mean of their losses.
    pub(super) fn advance(&mut self, batch: Batch<'_, '_>, lr: f64) -> Result<f32> {
        match self {
            Self::Direct(engine) => Ok(engine.advance(batch, lr)),
            Self::Graph(engine) => engine.advance(batch, lr),
        }
    }

    /// The weights now, `[m·d]`.
    pub(super) fn theta(&self) -> Result<Vec<f32>> {
        match self {
            Self::Direct(engine) => Ok(engine.theta.clone()),
            Self::Graph(engine) => join(&engine.params, engine.models),
        }
    }

    pub(super) fn save(&self, snapshot: &mut Snapshot) -> Result<()> {
        match self {
            Self::Direct(engine) => {
                engine.save(snapshot);
                Ok(())
            }
            Self::Graph(engine) => engine.adam.save("adam", snapshot),
        }
    }

    /// Takes the optimiser's state out of a snapshot, and the weights `theta` (`[m·d]`).
    pub(super) fn restore(&mut self, theta: Vec<f32>, snapshot: &mut Snapshot) -> Result<()> {
        match self {
            Self::Direct(engine) => engine.restore(theta, snapshot),
            Self::Graph(engine) => engine.restore(theta, snapshot),
        }
    }
}

/// Models one by one.
pub(super) struct Direct {
    network: Network,
    layout: Layout,
    labels: Vec<u32>,
    theta: Vec<f32>,
    /// Adam's moments, in the order of the weights.
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
    models: usize,
    /// Buffers that no step uses now.
    workspaces: Mutex<Vec<Workspace>>,
}

impl Direct {
    fn new(
        network: Network,
        architecture: &Architecture,
        theta: Vec<f32>,
        models: usize,
        per_class: usize,
    ) -> Result<Self> {
        let (layout, n) = (architecture.layout(), theta.len());
        check_len(n, models * layout.parameters())?;
        let labels = (0..architecture.classes() * per_class).map(|i| (i / per_class) as u32).collect();
        Ok(Self {
            network,
            layout,
            labels,
            theta,
            first: vec![0.0; n],
            second: vec![0.0; n],
            steps: 0,
            models,
            workspaces: Mutex::default(),
        })
    }

    fn advance(&mut self, batch: Batch<'_, '_>, lr: f64) -> f32 {
        self.steps += 1;
        // As the graph's: no weight decay, no clipping.
        let rates = Rates::new(&AdamConfig::default(), self.steps, lr, 0.0, 1.0);
        let Self { network, layout, labels, theta, first, second, models, workspaces, .. } = self;
        let (network, labels, workspaces) = (&*network, labels.as_slice(), &*workspaces);
        let d = layout.parameters().max(1);
        let (step, per_class) = (batch.step, batch.per_class);
        let data = batch.orders.par_iter_mut().zip(batch.tasks);
        let moments = first.par_chunks_mut(d).zip(second.par_chunks_mut(d));
        // Collected first, so that the sum's order does not depend on the threads.
        let losses: Vec<f32> = theta
            .par_chunks_mut(d)
            .zip(moments)
            .zip(data)
            .map(|((theta, (first, second)), (order, task))| {
                let mut workspace = take(workspaces);
                workspace.x.clear();
                order.fill(task, step, per_class, &mut workspace.x);
                let loss = network.gradient(theta, labels, &mut workspace);
                rates.update(theta, &workspace.grad, first, second);
                give(workspaces, workspace);
                loss
            })
            .collect();
        losses.iter().sum::<f32>() / (*models).max(1) as f32
    }

    /// As the optimiser of a graph has them: parameter by parameter, of all models each.
    fn by_parameter(&self, by_model: &[f32]) -> Vec<f32> {
        let d = self.layout.parameters();
        let models = || by_model.chunks_exact(d);
        self.layout.params.iter().flat_map(|p| models().flat_map(move |own| own[p.range()].iter().copied())).collect()
    }

    fn by_model(&self, by_parameter: &[f32]) -> Vec<f32> {
        let (d, mut all) = (self.layout.parameters(), vec![0.0; by_parameter.len()]);
        let places = self.layout.params.iter().flat_map(|p| (0..self.models).map(move |m| (m, p)));
        let mut rest = by_parameter;
        for (model, param) in places {
            let (own, others) = rest.split_at(param.len());
            all[model * d..(model + 1) * d][param.range()].copy_from_slice(own);
            rest = others;
        }
        all
    }

    fn save(&self, snapshot: &mut Snapshot) {
        snapshot.put("adam.m", self.by_parameter(&self.first));
        snapshot.put("adam.v", self.by_parameter(&self.second));
        snapshot.put_count("adam.step", self.steps as u64);
    }

    fn restore(&mut self, theta: Vec<f32>, snapshot: &mut Snapshot) -> Result<()> {
        check_len(theta.len(), self.theta.len())?;
        self.first = self.by_model(&snapshot.take_len("adam.m", theta.len())?);
        self.second = self.by_model(&snapshot.take_len("adam.v", theta.len())?);
        self.steps = snapshot.count("adam.step")? as i32;
        self.theta = theta;
        Ok(())
    }
}

fn check_len(found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(weights::Error::Length { what: "the weights of models".into(), found, expected }.into())
}

/// Buffers for a step: some that were used before, where there are any.
fn take(all: &Mutex<Vec<Workspace>>) -> Workspace {
    all.lock().ok().and_then(|mut all| all.pop()).unwrap_or_default()
}

fn give(all: &Mutex<Vec<Workspace>>, workspace: Workspace) {
    if let Ok(mut all) = all.lock() {
        all.push(workspace);
    }
}

/// All models in tensors with a model axis.
pub(super) struct Graph<'a> {
    net: Net<'a>,
    layout: Layout,
    /// The trained ones of the parameters, and which they are.
    vars: Vec<Var>,
    trained: Vec<usize>,
    params: Vec<Tensor>,
    adam: AdamW,
    target: Tensor,
    models: usize,
}

impl<'a> Graph<'a> {
    fn new(
        architecture: &Architecture,
        net: Net<'a>,
        theta: Vec<f32>,
        models: usize,
        per_class: usize,
    ) -> Result<Self> {
        let (device, layout) = (device::current(), net.layout());
        let start = Tensor::from_vec(theta, (models, layout.parameters()), &device)?;
        let mut params = split(&start, &layout)?;
        let trained: Vec<usize> = (0..params.len()).filter(|&i| net.trains(i)).collect();
        let vars = trained.iter().map(|&i| Var::from_tensor(&params[i])).collect::<candle_core::Result<Vec<_>>>()?;
        vars.iter().zip(&trained).for_each(|(var, &i)| params[i] = var.as_tensor().clone());
        Ok(Self {
            adam: AdamW::new(vars.clone(), AdamConfig::default()),
            target: one_hot(architecture.classes(), per_class, &device)?,
            net,
            layout,
            vars,
            trained,
            params,
            models,
        })
    }

    fn advance(&mut self, batch: Batch<'_, '_>, lr: f64) -> Result<f32> {
        let n = self.target.dim(1)?;
        let mut x = Vec::with_capacity(self.models * n * self.net.input_dim());
        for (order, task) in batch.orders.iter_mut().zip(batch.tasks) {
            order.fill(task, batch.step, batch.per_class, &mut x);
        }
        let x = self.net.inputs(x, self.models, self.target.device())?;
        let y = self.net.forward(&mut Models::training(), &self.params, &x)?;
        // Summed over models: each has its own parameters, so each gets its own gradient.
        let log_p = candle_nn::ops::log_softmax(&y, D::Minus1)?;
        let loss = (log_p.broadcast_mul(&self.target)?.sum_all()? * (-1.0 / n as f64))?;
        let grads = loss.backward()?;
        let grads: Vec<_> = self.vars.iter().map(|v| grads.get(v).cloned()).collect();
        self.adam.step(&grads, lr)?;
        Ok(loss.to_scalar::<f32>()? / self.models.max(1) as f32)
    }

    fn restore(&mut self, theta: Vec<f32>, snapshot: &mut Snapshot) -> Result<()> {
        let theta = Tensor::from_vec(theta, (self.models, self.layout.parameters()), self.target.device())?;
        self.adam.restore("adam", snapshot)?;
        let values = split(&theta, &self.layout)?;
        for (var, &i) in self.vars.iter().zip(&self.trained) {
            var.set(&values[i])?;
        }
        Ok(())
    }
}
