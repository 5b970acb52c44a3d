//! A small convolutional network that learns to tell the classes of its sources apart; the features are what its last
//! layer sees.

use candle_core::{D, Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{INPUT, OUTPUT};
use crate::backend::onnx::{BATCH, Onnx};
use crate::backend::{Backend, Eager, Unary};
use crate::config::Config;
use crate::data::{Part, Source};
use crate::error::{Error, Result};
use crate::networks::layers::{conv, group_norm, layer_norm, linear};
use crate::optim::{self, AdamConfig, AdamW};
use crate::params::{Init, Params};
use crate::progress::Stage;
use crate::stages::shards::{self, Shard};

/// Sizes and steps of the network.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Channels of each convolution, which halves the sides.
    pub channels: Vec<usize>,
    /// Features.
    pub dim: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Images of a step.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Pixels that images are moved by at most, each way.
    pub shift: usize,
}

/// Weight decay.
const DECAY: f64 = 0.05;
/// Logits are products with features of length √dim; without it they would be too sure from the start.
const LOGIT_SCALE: f64 = 0.5;

/// `images [n, c, h, w]` → features `[n, dim]`, each of mean 0 and variance 1 before the last scale and shift.
fn features<B: Backend>(b: &mut B, s: &Settings, shape: [usize; 3], x: &B::T) -> Result<B::T> {
    let [mut channels, mut height, mut width] = shape;
    let mut x = x.clone();
    for (i, &next) in s.channels.iter().enumerate() {
        x = conv(b, &format!("conv.{i}"), &x, [channels, next, 3, 2], Init::Scaled(2.0))?;
        (channels, height, width) = (next, height.div_ceil(2), width.div_ceil(2));
        x = group_norm(b, &format!("norm.{i}"), &x, groups(channels), [channels, height, width], Unary::Relu)?;
    }
    let x = b.flatten(&x)?;
    let x = linear(b, "features", &x, channels * height * width, s.dim, Init::Scaled(1.0))?;
    layer_norm(b, "features.norm", &x, s.dim)
}

fn groups(channels: usize) -> usize {
    if channels.is_multiple_of(8) { channels / 8 } else { 1 }
}

/// One class of the network: its images as rows.
struct Class {
    rows: Vec<f32>,
}

/// Trains it on the training images of sources, whose classes are all different ones, and gives the graph
/// `images [batch, c, h, w]` → `features [batch, dim]`.
pub fn fit(config: &Config, from: &[&Source], shape: [usize; 3], s: &Settings, stage: &Stage) -> Result<Vec<u8>> {
    let classes = classes(from);
    if classes.len() < 2 {
        return Err(Error::Config("data.backbone conv needs at least two classes to learn from".into()));
    }
    let device = Device::Cpu;
    let batch = Batches { s, shape, classes: &classes };
    let params = shards::created(Params::new(config.seed ^ 0xbac8, &device), 0, |shard| batch.loss(shard))?;
    let vars = params.vars();
    let mut adam = AdamW::new(vars.clone(), AdamConfig { weight_decay: DECAY, clip: 1.0, ..Default::default() });
    let mut shards = shards::shards(config.seed, "backbone", || params.clone());
    for step in 0..s.steps {
        let (loss, grads) = shards::gradients(&mut shards, &vars, ("backbone", step), |shard| batch.loss(shard))?;
        adam.step(&grads, optim::cosine(s.lr, step, s.steps))?;
        stage.advance_with(1, loss)?;
    }
    let mut graph = Onnx::new("backbone", Some(&params));
    let [c, h, w] = shape;
    let x = graph.input(INPUT, &[BATCH, c, h, w]);
    let y = features(&mut graph, s, shape, &x)?;
    graph.output(&y, OUTPUT, &[BATCH, s.dim]);
    Ok(graph.finish())
}

fn classes(from: &[&Source]) -> Vec<Class> {
    let mut classes = Vec::new();
    for source in from {
        let data = source.dataset(Part::Train);
        let all: Vec<usize> = (0..data.len()).collect();
        classes.extend(data.class_indices(&all).iter().map(|own| Class { rows: data.gather(own) }));
    }
    classes
}

struct Batches<'a> {
    s: &'a Settings,
    shape: [usize; 3],
    classes: &'a [Class],
}

impl Batches<'_> {
    /// Cross-entropy of one shard: as many classes as images, drawn with replacement, each image moved at random.
    fn loss(&self, shard: &mut Shard<Params>) -> Result<Tensor> {
        let (params, rng) = (&mut shard.networks, &mut shard.rng);
        let device = Device::Cpu;
        let n = self.s.batch.div_ceil(shards::SHARDS).max(1);
        let pixels: usize = self.shape.iter().product();
        let (mut images, mut labels) = (Vec::with_capacity(n * pixels), Vec::with_capacity(n));
        for _ in 0..n {
            let label = rng.random_range(0..self.classes.len());
            let rows = &self.classes[label].rows;
            let at = rng.random_range(0..rows.len() / pixels) * pixels;
            moved(&rows[at..at + pixels], self.shape, self.s.shift, rng, &mut images);
            labels.push(label as u32);
        }
        let [c, h, w] = self.shape;
        let x = Tensor::from_vec(images, (n, c, h, w), &device)?;
        let mut b = Eager::new(params);
        let y = features(&mut b, self.s, self.shape, &x)?;
        let y = linear(&mut b, "classes", &y, self.s.dim, self.classes.len(), Init::Scaled(LOGIT_SCALE))?;
        let log_p = candle_nn::ops::log_softmax(&y, D::Minus1)?;
        let labels = Tensor::from_vec(labels, (n, 1), &device)?;
        Ok(log_p.gather(&labels, D::Minus1)?.mean_all()?.neg()?)
    }
}

/// Appends an image that is moved by up to `shift` pixels each way; what comes in has the value of the nearest edge.
fn moved(image: &[f32], [channels, height, width]: [usize; 3], shift: usize, rng: &mut ChaCha8Rng, out: &mut Vec<f32>) {
    let by = |rng: &mut ChaCha8Rng| rng.random_range(0..=2 * shift) as isize - shift as isize;
    let (dy, dx) = (by(rng), by(rng));
    let at = |i: usize, d: isize, n: usize| (i as isize + d).clamp(0, n as isize - 1) as usize;
    for plane in image.chunks_exact(height * width).take(channels) {
        for y in 0..height {
            let row = &plane[at(y, dy, height) * width..][..width];
            out.extend((0..width).map(|x| row[at(x, dx, width)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_move_and_edges_stay() {
        let image: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let mut seen = std::collections::BTreeSet::new();
        let mut rng = crate::random::stream(1, "moved");
        for _ in 0..200 {
            let mut out = Vec::new();
            moved(&image, [1, 3, 4], 1, &mut rng, &mut out);
            assert_eq!(out.len(), 12);
            seen.insert(out.iter().map(|v| *v as u32).collect::<Vec<_>>());
        }
        assert_eq!(seen.len(), 9);
        assert!(seen.contains(&(0..12).collect::<Vec<u32>>()));
        assert!(seen.contains(&vec![5, 6, 7, 7, 9, 10, 11, 11, 9, 10, 11, 11]), "{seen:?}");
        let mut still = Vec::new();
        moved(&image, [1, 3, 4], 0, &mut rng, &mut still);
        assert_eq!(still, image);
    }
}
