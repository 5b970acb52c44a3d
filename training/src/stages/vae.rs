//! Trains the VAE (Eq. 1) with the behaviour loss: the outputs of the decoded network are compared with those of the
//! original on images of its task. Perfect reconstruction is worthless when the latent space between the runs is
//! empty; the behaviour loss and a large β make its points working networks.

use candle_core::{D, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use weights::Architecture;
use weights::layout::NORM_EPSILON;

use super::course::{Course, Given};
use super::fit::{Net, score};
use super::predictor::Predictor;
use super::shards::{self, Shard};
use super::vectors::{Rows, Vectors, masked_mean, one_hot};
use super::zoo::Zoo;
use crate::backend::Eager;
use crate::config::{Config, VaeConfig, VaeKind};
use crate::curve::Curve;
use crate::data::{Part, Sources};
use crate::error::{Error, Result};
use crate::networks::vae::{VaeForm, VaeShape, decode, encode};
use crate::optim::{self, AdamConfig, AdamW};
use crate::params::Params;
use crate::random;
use crate::snapshots::Snapshot;

/// A trained VAE. A clone shares its parameters.
#[derive(Debug, Clone)]
pub struct Vae {
    /// Its sizes.
    pub shape: VaeShape,
    /// Its parameters.
    pub params: Params,
    /// Standardisation as tensors, `[kinds, length]` each.
    mean: Tensor,
    std: Tensor,
    /// 1 where the value is a variance, of which the logarithm is standardised.
    variances: Option<Tensor>,
}

impl Vae {
    fn new(config: &Config, zoo: &Zoo, vectors: &Vectors, device: &Device) -> Result<Self> {
        let (length, kinds) = (vectors.vectorise.length, vectors.vectorise.kinds());
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
        let s = &vectors.standardisation;
        let mask: Vec<f32> = s.variances.iter().map(|&v| f32::from(u8::from(v))).collect();
        let of_rows = |values: &[f32]| Tensor::from_slice(values, (kinds, length), device);
        Ok(Self {
            shape: VaeShape { length, hidden, latent, form, index: vectors.vectorise.index_dim(), rows },
            params: Params::new(config.seed, device),
            mean: of_rows(&s.mean)?,
            std: of_rows(&s.std)?,
            variances: if mask.is_empty() { None } else { Some(of_rows(&mask)?) },
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

    /// Undoes the standardisation of rows `[n, length]`, which are these pieces.
    fn undo(&self, x: &Tensor, pieces: &[u32]) -> Result<Tensor> {
        if self.mean.dim(0)? == 1 {
            let x = x.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?;
            return self.variances.as_ref().map_or_else(|| Ok(x.clone()), |mask| exponential(&x, mask));
        }
        let index = Tensor::new(pieces, x.device())?;
        let of_rows = |t: &Tensor| t.index_select(&index, 0);
        let x = ((x * of_rows(&self.std)?)? + of_rows(&self.mean)?)?;
        self.variances.as_ref().map_or_else(|| Ok(x.clone()), |mask| exponential(&x, &of_rows(mask)?))
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
        vectors.join(&self.undo(&decoded, &batch.pieces)?, batch.networks[0].0, &first)
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
    let length = vectors.vectorise.length;
    let batch = Batches {
        settings: &config.vae,
        guide,
        zoo,
        sources,
        vectors,
        x: Tensor::from_slice(&vectors.x, (vectors.x.len() / length, length), device)?,
        architectures: zoo.architectures().collect(),
    };
    let settings = &config.vae;
    let vars = vae.params.vars();
    let decay = AdamConfig { weight_decay: settings.weight_decay, clip: 1.0, ..Default::default() };
    let mut adam = AdamW::new(vars.clone(), decay);
    let mut shards = shards::shards(config.seed, "vae", || vae.clone());
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
        let (loss, grads) = shards::gradients(&mut shards, &vars, ("vae", step), |s| batch.loss(s, autoencoder))?;
        adam.step(&grads, optim::cosine(settings.lr, step, settings.steps))?;
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

/// Variances (`mask` 1, `[n or 1, length]`) of their logarithms in rows `x [n, length]`; other values stay.
fn exponential(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let largest = f64::from(weights::standardise::LARGEST_LOG);
    let variances = x.broadcast_mul(mask)?.minimum(largest)?.exp()?.affine(1.0, -NORM_EPSILON)?.relu()?;
    Ok((x.broadcast_mul(&mask.affine(-1.0, 1.0)?)? + variances.broadcast_mul(mask)?)?)
}

/// KL(q ‖ N(0, 1)) in nats, mean over batch and latent dimensions, of those that are there.
fn kl_divergence(mean: &Tensor, log_variance: &Tensor, there: Option<&Tensor>) -> Result<Tensor> {
    let sum = ((mean.sqr()? + log_variance.exp()?)? - log_variance)?;
    Ok(masked_mean(&sum, there)?.affine(0.5, -0.5)?)
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

/// What the batches are drawn from.
struct Batches<'a> {
    settings: &'a VaeConfig,
    guide: Option<&'a Predictor>,
    zoo: &'a Zoo,
    sources: &'a Sources,
    vectors: &'a Vectors,
    x: Tensor,
    architectures: Vec<&'a Architecture>,
}

impl Batches<'_> {
    /// The loss of one shard, without noise and KL while it is an autoencoder: mse · squared error + β · KL + behaviour · KL of outputs + predictor · Eq. 9's term.
    fn loss(&self, shard: &mut Shard<Vae>, autoencoder: bool) -> Result<Tensor> {
        let (vae, rng, settings) = (&mut shard.networks, &mut shard.rng, self.settings);
        let device = self.x.device();
        let picked = shards::pick(&self.vectors.train, settings.batch, rng);
        let batch = self.vectors.batch(picked.iter().map(|&i| i as usize));
        let x = self.x.index_select(&Tensor::new(batch.rows.as_slice(), device)?, 0)?;
        let noise = random::normal(x.dims(), device, rng)?;
        let noisy = (&x + noise.affine(settings.input_noise, 0.0)?)?;
        let (mean, log_variance) = vae.encode(&noisy, &batch.pieces)?;
        let log_variance = log_variance.clamp(-12.0, 4.0)?;
        let noise = random::normal(mean.dims(), device, rng)?.affine(if autoencoder { 0.0 } else { 1.0 }, 0.0)?;
        let z = (&mean + (log_variance.affine(0.5, 0.0)?.exp()? * noise)?)?;
        let decoded = vae.decode(&z, &batch.pieces)?;
        let beta = if autoencoder { 0.0 } else { settings.beta };
        let checkpoints: Vec<usize> = picked.iter().map(|&i| i as usize).collect();
        let kl = kl_divergence(&mean, &log_variance, there(self.vectors, &checkpoints, device)?.as_ref())?;
        let mask = self.vectors.mask(&checkpoints, device)?;
        let mse = masked_mean(&(&decoded - &x)?.sqr()?, mask.as_ref())?;
        let mut loss = (mse.affine(settings.mse, 0.0)? + kl.affine(beta, 0.0)?)?;
        if let Some(guide) = self.guide.filter(|_| settings.predictor > 0.0) {
            loss = (loss + guide.guidance(&x, &decoded)?.affine(settings.predictor, 0.0)?)?;
        }
        if settings.behaviour == 0.0 {
            return Ok(loss);
        }
        let (original, decoded) = (vae.undo(&x, &batch.pieces)?, vae.undo(&decoded, &batch.pieces)?);
        let behaviour = self.behaviour(&picked, &batch, &original, &decoded, rng)?;
        Ok((loss + behaviour.affine(settings.behaviour, 0.0)?)?)
    }

    /// KL between the outputs of original and decoded networks (weights of all rows, `[rows, length]` each) on training
    /// images of each network's task, mean over networks and images. Networks of one architecture go together.
    fn behaviour(
        &self,
        picked: &[u32],
        batch: &Rows,
        original: &Tensor,
        decoded: &Tensor,
        rng: &mut ChaCha8Rng,
    ) -> Result<Tensor> {
        let models = ((picked.len() as f64 * self.settings.behaviour_share).round() as usize).max(1);
        let mut sum: Option<Tensor> = None;
        for (index, architecture) in self.architectures.iter().enumerate() {
            let own = (0..models).filter(|&i| batch.networks[i].0 == index).collect::<Vec<_>>();
            if own.is_empty() {
                continue;
            }
            let mut images = Vec::new();
            for &i in &own {
                let task = self.zoo.task(picked[i] as usize);
                let data = self.sources.task(task, Part::Train)?;
                data.draw(self.settings.behaviour_images, rng, &mut images);
            }
            let net = Net::new(architecture, self.sources.frozen());
            let images = net.inputs(images, own.len(), original.device())?;
            let first: Vec<u32> = own.iter().map(|&i| batch.networks[i].1).collect();
            let outputs = |rows: &Tensor| -> Result<Tensor> {
                let theta = self.vectors.join(rows, index, &first)?;
                Ok(candle_nn::ops::log_softmax(&net.logits(&theta, &images)?, D::Minus1)?)
            };
            let (p, q) = (outputs(original)?.detach(), outputs(decoded)?);
            let kl = (p.exp()? * (&p - &q)?)?.sum(D::Minus1)?.mean_all()?;
            let kl = kl.affine(own.len() as f64 / models as f64, 0.0)?;
            sum = Some(match sum {
                Some(sum) => (sum + kl)?,
                None => kl,
            });
        }
        sum.map_or_else(|| Ok(Tensor::zeros((), candle_core::DType::F32, original.device())?), Ok)
    }
}
