//! Small networks trained without a graph: forward and backward pass written out for the layers that there are many of,
//! model by model, so that all that a step of one model needs stays in the cache of its core.
//!
//! The definition is the one of [`crate::networks::target`], recorded once ([`Network::of`]); what has layers that are not
//! written out here goes through candle.

mod conv;
mod lanes;
mod record;

use std::ops::Range;

use kernels::{View, product};
use weights::Architecture;

use conv::Conv;

/// A network of convolutions with tanh and linear layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    layers: Vec<Layer>,
    /// Values of an example.
    input: usize,
    /// Width of the logits.
    classes: usize,
}

/// A layer, and where its parameters lie in the network's.
#[derive(Debug, Clone, PartialEq)]
struct Layer {
    kind: Kind,
    weight: Range<usize>,
    bias: Range<usize>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Conv(Conv),
    Linear { inputs: usize, outputs: usize, then: Then },
}

/// What follows a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    Tanh,
    Relu,
}

/// Buffers of a step of one model; they are used again.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// The batch, `[n · input]`.
    pub(crate) x: Vec<f32>,
    /// Gradient of the parameters, `[d]`.
    pub(crate) grad: Vec<f32>,
    /// Outputs of each layer, `[n · output]`.
    outputs: Vec<Vec<f32>>,
    /// Of each pooling layer's outputs their places.
    places: Vec<Vec<u32>>,
    /// Outputs that others are compared with, `[n · classes]`.
    target: Vec<f32>,
    /// Gradients of a layer's outputs and inputs.
    upper: Vec<f32>,
    lower: Vec<f32>,
    scratch: conv::Scratch,
}

impl Workspace {
    /// Buffers with a batch (`[n · input]`) in them.
    pub(crate) fn of(x: Vec<f32>) -> Self {
        Self { x, ..Self::default() }
    }
}

impl Layer {
    fn output(&self) -> usize {
        match &self.kind {
            Kind::Conv(conv) => conv.output(),
            Kind::Linear { outputs, .. } => *outputs,
        }
    }
}

impl Network {
    /// The network, where all its layers are written out here.
    pub(crate) fn of(architecture: &Architecture) -> Option<Self> {
        record::record(architecture)
    }

    /// Mean cross-entropy (nats) of the network `theta` (`[d]`) on the batch in `workspace` with these labels; leaves the
    /// gradient there.
    pub(crate) fn gradient(&self, theta: &[f32], labels: &[u32], workspace: &mut Workspace) -> f32 {
        let n = labels.len();
        self.forward(theta, n, workspace);
        workspace.grad.clear();
        workspace.grad.resize(theta.len(), 0.0);
        let Workspace { outputs, upper, .. } = workspace;
        let logits = outputs.last().map_or(&[][..], Vec::as_slice);
        let loss = cross_entropy(logits, labels, self.classes, upper);
        self.backward(theta, n, workspace);
        loss
    }

    /// KL(p ‖ q) in nats, mean over the batch in `workspace`, of what the network `of` (`[d]`) says, p, and what `theta`
    /// (`[d]`) does, q; leaves its gradient with respect to `theta` there.
    pub(crate) fn divergence(&self, of: &[f32], theta: &[f32], workspace: &mut Workspace) -> f32 {
        let n = workspace.x.len() / self.input.max(1);
        let mut target = std::mem::take(&mut workspace.target);
        target.clear();
        target.extend_from_slice(self.logits(of, workspace));
        self.forward(theta, n, workspace);
        workspace.grad.clear();
        workspace.grad.resize(theta.len(), 0.0);
        let Workspace { outputs, upper, .. } = &mut *workspace;
        let logits = outputs.last().map_or(&[][..], Vec::as_slice);
        let loss = divergence(&mut target, logits, self.classes, upper);
        workspace.target = target;
        self.backward(theta, n, workspace);
        loss
    }

    /// Logits `[n · classes]` of the network `theta` (`[d]`) on the batch in `workspace`.
    pub(crate) fn logits<'w>(&self, theta: &[f32], workspace: &'w mut Workspace) -> &'w [f32] {
        self.forward(theta, workspace.x.len() / self.input.max(1), workspace);
        workspace.outputs.last().map_or(&[], Vec::as_slice)
    }

    fn forward(&self, theta: &[f32], n: usize, workspace: &mut Workspace) {
        let Workspace { x, outputs, places, scratch, .. } = workspace;
        outputs.resize_with(self.layers.len(), Vec::new);
        places.resize_with(self.layers.len(), Vec::new);
        for (i, layer) in self.layers.iter().enumerate() {
            let (before, rest) = outputs.split_at_mut(i);
            let x = before.last().map_or(x.as_slice(), Vec::as_slice);
            let y = &mut rest[0];
            y.resize(n * layer.output(), 0.0);
            let (weight, bias) = (&theta[layer.weight.clone()], &theta[layer.bias.clone()]);
            match &layer.kind {
                Kind::Conv(conv) => {
                    places[i].resize(y.len(), 0);
                    conv.forward([weight, bias], x, y, &mut places[i], scratch);
                }
                &Kind::Linear { inputs, outputs, then } => {
                    y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
                    product(View::new(x, n, inputs), View::new(weight, outputs, inputs).t(), y, outputs, 1.0, true);
                    match then {
                        Then::Nothing => {}
                        Then::Tanh => lanes::tanh(y),
                        Then::Relu => y.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v }),
                    }
                }
            }
        }
    }

    /// From the gradient of the logits in `upper` to that of the parameters.
    fn backward(&self, theta: &[f32], n: usize, workspace: &mut Workspace) {
        let Workspace { x, grad, outputs, places, upper, lower, scratch, .. } = workspace;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let y = &outputs[i];
            let x = if i == 0 { x.as_slice() } else { &outputs[i - 1] };
            let weight = &theta[layer.weight.clone()];
            let [dw, db] = both(grad, &layer.weight, &layer.bias);
            lower.resize(if i == 0 { 0 } else { x.len() }, 0.0);
            match &layer.kind {
                Kind::Conv(conv) => {
                    through_tanh(upper, y);
                    let dx = (i > 0).then_some(lower.as_mut_slice());
                    conv.backward(weight, [x, upper], &places[i], [dw, db], dx, scratch);
                }
                &Kind::Linear { inputs, outputs, then } => {
                    match then {
                        Then::Nothing => {}
                        Then::Tanh => through_tanh(upper, y),
                        Then::Relu => upper.iter_mut().zip(y).for_each(|(g, y)| *g = if *y > 0.0 { *g } else { 0.0 }),
                    }
                    for row in upper.chunks_exact(outputs) {
                        db.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
                    }
                    product(View::new(upper, n, outputs).t(), View::new(x, n, inputs), dw, inputs, 1.0, false);
                    if i > 0 {
                        product(
                            View::new(upper, n, outputs),
                            View::new(weight, outputs, inputs),
                            lower,
                            inputs,
                            1.0,
                            false,
                        );
                    }
                }
            }
            std::mem::swap(upper, lower);
        }
    }
}

/// The gradients of a layer's weight and bias; the bias lies behind the weight.
fn both<'a>(grad: &'a mut [f32], weight: &Range<usize>, bias: &Range<usize>) -> [&'a mut [f32]; 2] {
    let (before, after) = grad.split_at_mut(bias.start);
    [&mut before[weight.clone()], &mut after[..bias.len()]]
}

/// The gradient before tanh, of that behind it and what tanh gave.
fn through_tanh(grad: &mut [f32], y: &[f32]) {
    grad.iter_mut().zip(y).for_each(|(g, y)| *g *= 1.0 - y * y);
}

/// Mean cross-entropy of logits `[n · classes]`, and its gradient.
fn cross_entropy(logits: &[f32], labels: &[u32], classes: usize, grad: &mut Vec<f32>) -> f32 {
    grad.resize(logits.len(), 0.0);
    let share = 1.0 / labels.len().max(1) as f32;
    let mut loss = 0.0;
    let rows = logits.chunks_exact(classes).zip(grad.chunks_exact_mut(classes));
    for ((row, grad), label) in rows.zip(labels) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        grad.iter_mut().zip(row).for_each(|(g, v)| *g = (v - most).exp());
        let sum: f32 = grad.iter().sum();
        grad.iter_mut().for_each(|g| *g *= share / sum);
        let label = *label as usize;
        grad[label] -= share;
        loss += f64::from(sum.ln() + most - row[label]);
    }
    (loss * f64::from(share)) as f32
}

/// Logs of the probabilities that a row of logits stands for, in their place.
fn log_softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|v| (v - most).exp()).sum();
    let log = sum.ln() + most;
    row.iter_mut().for_each(|v| *v -= log);
}

/// Mean KL(p ‖ q) of logits of p and of q (`[n · classes]` each), and its gradient with respect to those of q; leaves the logs
/// of p.
fn divergence(p: &mut [f32], q: &[f32], classes: usize, grad: &mut Vec<f32>) -> f32 {
    grad.clear();
    grad.extend_from_slice(q);
    let share = 1.0 / (q.len() / classes.max(1)).max(1) as f32;
    let mut loss = 0.0;
    for (p, q) in p.chunks_exact_mut(classes).zip(grad.chunks_exact_mut(classes)) {
        log_softmax(p);
        log_softmax(q);
        for (p, q) in p.iter().zip(q) {
            let likely = p.exp();
            loss += f64::from(likely * (p - *q));
            *q = (q.exp() - likely) * share;
        }
    }
    (loss * f64::from(share)) as f32
}

#[cfg(test)]
mod tests;
