//! Trains the VAE (Eq. 1) with the behaviour loss: the outputs of the decoded network are compared with those of the
//! original on images of its task. Perfect reconstruction is worthless when the latent space between the runs is
//! empty; the behaviour loss and a large β make its points working networks.

mod batches;
mod coding;
mod undo;

use candle_core::{D, Device, Tensor};

use super::course::{Course, Given};
use super::fit::score;
use super::predictor::Predictor;
use super::shards::{self, Shard};
use super::vectors::{Vectors, one_hot};
use super::zoo::Zoo;
use crate::backend::Eager;
use crate::config::{Config, VaeKind};
use crate::curve::Curve;
use crate::data::{Part, Sources};
use crate::error::{Error, Result};
use crate::networks::vae::{VaeForm, VaeShape, decode, encode};
use crate::optim::{self, AdamConfig, AdamW};
use crate::params::Params;
use crate::snapshots::Snapshot;
use batches::Batches;
pub(crate) use coding::{Coding, bounded, kl_divergence};
use undo::Undo;

/// A trained VAE. A clone shares its parameters.
#[derive(Debug, Clone)]
pub struct Vae {
    /// Its sizes.
    pub shape: VaeShape,
    /// Its parameters.
    pub params: Params,
    undo: Undo,
}

impl Vae {
    fn new(config: &Config, zoo: &Zoo, vectors: &Vectors, device: &Device) -> Result<Self> {
        let length = vectors.vectorise.length;
        let hidden = config.vae.hidden.clone();
        let (form, latent) = match config.vae.kind {
            VaeKind::Linear => (VaeForm::Linear, config.vae.latent.clone()),
            VaeKind::Conv => (VaeForm::Conv(config.vae.conv.clone()), config.vae.latent.clone()),
            VaeKind::Identity => (VaeForm::Identity, vec![length]),
        };
        let rows = config.vae.rows.then(|| config.most_classes().unwrap_or_else(|| zoo.architecture.classes()));
        if let Some(classes) = rows.filter(|classes| latent[0] != *classes) {
            let text = format!("with vae.rows the first number of vae.latent must be that of the classes, {classes}");
            return Err(Error::Config(text));
        }
        Ok(Self {
            shape: VaeShape { length, hidden, latent, form, index: vectors.vectorise.index_dim(), rows },
            params: Params::new(config.seed, device),
            undo: Undo::new(vectors, device)?,
        })
    }

    /// Makes all parameters, so that clones have them too.
    fn create(&mut self) -> Result<()> {
        let x = Tensor::zeros((1, self.shape.length), candle_core::DType::F32, self.params.device())?;
        let (z, _) = self.encode(&x, &[0])?;
        self.decode(&z, &[0])?;
        Ok(())
    }

    /// Mean and log-variance of the latents of standardised rows `x [n, length]`, which are these pieces.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn encode(&mut self, x: &Tensor, pieces: &[u32]) -> Result<(Tensor, Tensor)> {
        let index = one_hot(pieces, self.shape.index, x.device())?;
        encode(&mut Eager::new(&mut self.params), &self.shape, x, index.as_ref())
    }

    /// Standardised rows `[n, length]` of latents `[n, latent…]` of these pieces.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn decode(&mut self, z: &Tensor, pieces: &[u32]) -> Result<Tensor> {
        let index = one_hot(pieces, self.shape.index, z.device())?;
        decode(&mut Eager::new(&mut self.params), &self.shape, z, index.as_ref())
    }

    /// Latent means of all rows of a zoo, `[rows, latent…]`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn means(&mut self, vectors: &Vectors) -> Result<Tensor> {
        let length = vectors.vectorise.length;
        let all = vectors.batch(0..vectors.checkpoints());
        let parts = vectors
            .x
            .chunks(512 * length)
            .zip(all.pieces.chunks(512))
            .map(|(rows, pieces)| {
                let x = Tensor::from_slice(rows, (rows.len() / length, length), self.params.device())?;
                Ok(self.encode(&x, pieces)?.0.detach())
            })
            .collect::<Result<Vec<_>>>()?;
        let means = Tensor::cat(&parts, 0)?;
        let checkpoints: Vec<usize> = (0..vectors.checkpoints()).collect();
        match there(vectors, &checkpoints, means.device())? {
            Some(there) => Ok(means.broadcast_mul(&there)?),
            None => Ok(means),
        }
    }

    /// How much the latents of training checkpoints differ, of at most 512.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn dispersion(&mut self, vectors: &Vectors) -> Result<Dispersion> {
        let length = vectors.vectorise.length;
        let every = vectors.train.len().div_ceil(512).max(1);
        let checkpoints: Vec<usize> = vectors.train.iter().copied().step_by(every).collect();
        let few = vectors.batch(checkpoints.iter().copied());
        let row = |&row: &u32| &vectors.x[row as usize * length..(row as usize + 1) * length];
        let rows: Vec<f32> = few.rows.iter().flat_map(row).copied().collect();
        let x = Tensor::from_vec(rows, (few.rows.len(), length), self.params.device())?;
        let z = self.encode(&x, &few.pieces)?.0;
        // Of class rows each is an example by itself: not all heads have the same.
        let z = match vectors.presence(&checkpoints, z.device())? {
            Some(presence) => present(&z, &presence)?,
            None => z.flatten_from(1)?,
        };
        let variance = z.broadcast_sub(&z.mean_keepdim(0)?)?.sqr()?.mean(0)?.to_vec1::<f32>()?;
        let active = variance.iter().filter(|v| v.sqrt() >= INACTIVE).count();
        let largest = variance.iter().fold(0f32, |m, v| m.max(v.sqrt()));
        Ok(Dispersion { largest, active: active as f64 / variance.len().max(1) as f64 })
    }

    /// Mean test accuracy of the reconstructions of these checkpoints.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn reconstruction_accuracy(
        &mut self,
        zoo: &Zoo,
        vectors: &Vectors,
        sources: &Sources,
        checkpoints: &[usize],
        part: Part,
    ) -> Result<f64> {
        let mut sum = 0.0;
        for (index, architecture) in zoo.architectures().enumerate() {
            let own: Vec<usize> = checkpoints.iter().copied().filter(|&c| zoo.kind(c) == index).collect();
            if own.is_empty() {
                continue;
            }
            let theta = self.reconstruct(vectors, &own)?.flatten_all()?.to_vec1::<f32>()?;
            let tasks = own.iter().map(|&i| sources.task(zoo.task(i), part)).collect::<Result<Vec<_>>>()?;
            let per_class = tasks.iter().map(|t| t.per_class()).min().unwrap_or(0);
            sum += score(architecture, &tasks, &theta, per_class)?.iter().map(|s| s.accuracy).sum::<f64>();
        }
        // Not a number where there is none.
        Ok(sum / checkpoints.len() as f64)
    }

    /// Weights `[n, d]` of checkpoints of one architecture through the VAE and back.
    fn reconstruct(&mut self, vectors: &Vectors, checkpoints: &[usize]) -> Result<Tensor> {
        let batch = vectors.batch(checkpoints.iter().copied());
        let length = vectors.vectorise.length;
        let row = |&row: &u32| &vectors.x[row as usize * length..(row as usize + 1) * length];
        let x: Vec<f32> = batch.rows.iter().flat_map(row).copied().collect();
        let x = Tensor::from_vec(x, (batch.rows.len(), length), self.params.device())?;
        let z = self.encode(&x, &batch.pieces)?.0;
        let decoded = self.decode(&z, &batch.pieces)?;
        let first: Vec<u32> = batch.networks.iter().map(|&(_, first)| first).collect();
        vectors.join(&self.undo.rows(&decoded, &batch.pieces)?, batch.networks[0].0, &first)
    }
}

/// Trains the VAE on the training checkpoints; `guide` is the predictor of Eq. 9.
///
/// # Errors
/// [`Error::Diverged`] when the loss is not finite; [`Error::Interrupted`].
pub fn train(given: &Given<'_>, guide: Option<&Predictor>, device: &Device) -> Result<(Vae, Curve)> {
    let Given { config, zoo, vectors, sources, .. } = *given;
    let mut vae = Vae::new(config, zoo, vectors, device)?;
    vae.create()?;
    if vae.params.vars().is_empty() {
        // Nothing to learn.
        return Ok((vae, Curve::new("vae", 0)));
    }
    let batch = Batches::new(given, guide, device)?;
    let settings = &config.vae;
    let decay = AdamConfig { weight_decay: settings.weight_decay, clip: 1.0, ..Default::default() };
    let mut adam = AdamW::new(vae.params.vars(), decay);
    let learning = || Vae { params: vae.params.learning_in(config.arithmetic), ..vae.clone() };
    let mut shards = shards::shards(config.seed, "vae", learning);
    let mut best = Best::default();
    let mut course = Course::begin(given, "vae", settings.steps, |snapshot| {
        snapshot.restore("params", &vae.params)?;
        adam.restore("adam", snapshot)?;
        shards::restore(&mut shards, snapshot)?;
        best.restore(snapshot, device)
    })?;
    for step in course.steps() {
        let autoencoder =
            step + 1 < settings.steps && step < (settings.kl_from * settings.steps as f64).round() as usize;
        let learn = |shard: &mut Shard<Vae>, share| batch.learn(shard, share, autoencoder);
        let (loss, grads) = shards::learn(&mut shards, ("vae", step), learn)?;
        adam.step_sums(grads, optim::cosine(settings.lr, step, settings.steps))?;
        if step % 20 == 0 {
            course.message(format!("loss {loss:.4}, held-out accuracy {:.3}", best.accuracy));
        }
        if (step + 1) % (settings.steps / CHECKS).max(1) == 0 || step + 1 == settings.steps {
            let held_out = &vectors.held_out[..vectors.held_out.len().min(CHECKED)];
            let accuracy = vae.reconstruction_accuracy(zoo, vectors, sources, held_out, Part::Validation)?;
            // What an autoencoder makes of its latent space says little of what the VAE will.
            if !autoencoder {
                best.offer(accuracy, &vae.params)?;
            }
            let gauge = vae.dispersion(vectors)?;
            if 2 * (step + 1) > settings.steps && gauge.largest < COLLAPSED {
                return Err(Error::Collapsed { stage: "vae", step: step + 1, deviation: gauge.largest });
            }
            if step + 1 == settings.steps && gauge.active < FEW {
                let share = 100.0 * gauge.active;
                given.progress.note(&format!(
                    "vae: only {share:.1} % of the latent's dimensions differ between checkpoints; a smaller vae.latent \
                     would do, or a smaller vae.beta would use more of it"
                ));
            }
        }
        course.made(step, loss, |snapshot| {
            snapshot.put_all("params", &vae.params.snapshot()?)?;
            adam.save("adam", snapshot)?;
            shards::save(&shards, snapshot);
            best.save(snapshot)
        })?;
    }
    vae.params.restore(&best.snapshot)?;
    Ok((vae, course.finish()))
}

/// A latent whose largest deviation over checkpoints is below this is a point.
const COLLAPSED: f32 = 1e-2;
/// A dimension that differs less than this between checkpoints carries nothing.
const INACTIVE: f32 = 0.1;
/// Share of active dimensions that is worth a line when there are fewer.
const FEW: f64 = 0.05;

/// How much the latents of checkpoints differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dispersion {
    /// Largest standard deviation of a dimension's mean over checkpoints.
    pub largest: f32,
    /// Share of dimensions whose deviation is above a tenth of the prior's.
    pub active: f64,
}

/// Times that held-out runs are looked at.
const CHECKS: usize = 10;
/// Held-out checkpoints that are looked at.
const CHECKED: usize = 200;

/// The parameters with the best held-out reconstruction, measured on validation images: a few hundred runs are
/// memorised in minutes. Without held-out runs the last ones.
#[derive(Default)]
struct Best {
    accuracy: f64,
    snapshot: std::collections::BTreeMap<String, Tensor>,
}

impl Best {
    fn offer(&mut self, accuracy: f64, params: &Params) -> Result<()> {
        // NaN: nothing is held out.
        if accuracy.is_nan() || accuracy >= self.accuracy {
            self.accuracy = accuracy;
            self.snapshot = params.snapshot()?;
        }
        Ok(())
    }

    fn save(&self, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.put_f64("best.accuracy", self.accuracy);
        snapshot.put_all("best", &self.snapshot)
    }

    fn restore(&mut self, snapshot: &mut Snapshot, device: &Device) -> Result<()> {
        self.accuracy = snapshot.f64("best.accuracy")?;
        self.snapshot = snapshot.take_all("best", device)?;
        Ok(())
    }
}

/// Of each class row whether these checkpoints have it, `[n, classes, 1]`: as a mask of latents.
fn there(vectors: &Vectors, checkpoints: &[usize], device: &Device) -> Result<Option<Tensor>> {
    let presence = vectors.presence(checkpoints, device)?;
    Ok(presence.map(|presence| presence.unsqueeze(D::Minus1)).transpose()?)
}

/// The class rows of latents `[n, classes, width]` that there are, `[rows, width]`.
pub(crate) fn present(latents: &Tensor, presence: &Tensor) -> Result<Tensor> {
    let all = presence.flatten_all()?.to_vec1::<f32>()?;
    let own: Vec<u32> = (0u32..).zip(&all).filter(|(_, there)| **there > 0.0).map(|(row, _)| row).collect();
    Ok(latents.flatten(0, 1)?.index_select(&Tensor::new(own.as_slice(), latents.device())?, 0)?)
}

#[cfg(test)]
mod tests;
