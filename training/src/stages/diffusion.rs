//! Trains the denoiser on latents of unit deviation (Eq. 3), conditioned on the dataset, with a moving average of its
//! parameters and condition dropout for classifier-free guidance.

use candle_core::{D, Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use weights::manifest::{Latent, Prediction, Schedule};

use super::course::{Course, Given};
use super::encoder::{Encoder, Encoding, Supports};
use super::shards::{self, Shard};
use super::vae::present;
use super::vectors::{Vectors, masked_mean, one_hot};
use super::zoo::Zoo;
use crate::backend::Eager;
use crate::config::Config;
use crate::curve::Curve;
use crate::data::{Part, Sources};
use crate::error::Result;
use crate::networks::denoiser::{DenoiserShape, denoise};
use crate::optim::{self, AdamConfig, AdamW, Ema, Gradient};
use crate::params::Params;
use crate::random;
use crate::snapshots::Snapshot;
use crate::tape::{self, Learned, Learning, Pass};

/// A trained denoiser. A clone shares its parameters.
#[derive(Debug, Clone)]
pub struct Denoiser {
    /// Its sizes.
    pub shape: DenoiserShape,
    /// Its parameters, averaged.
    pub params: Params,
    /// The noise schedule.
    pub schedule: Schedule,
    /// Latent shape and scale.
    pub latent: Latent,
}

impl Denoiser {
    /// Prediction for noisy latents `[n, latent…]`, timesteps `[n]`, conditions `[n, condition_dim]`, which end with the
    /// index of the piece where there are several, and with the presence of each class where there is any number.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn denoise(&mut self, latent: &Tensor, timestep: &Tensor, condition: &Tensor) -> Result<Tensor> {
        denoise(&mut Eager::new(&mut self.params), &self.shape, latent, timestep, condition)
    }

    /// `share` of the loss of a prediction, which `loss` gives, and the gradients of that with respect to the parameters
    /// in order of their names and to those inputs that candle tracks.
    ///
    /// # Errors
    /// When shapes do not fit; whatever `loss` returns.
    pub(crate) fn learn(
        &mut self,
        inputs: [&Tensor; 3],
        share: f64,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Learned> {
        tape::learn(&mut self.params, &Denoising(&self.shape), &inputs, share, |outputs| loss(&outputs[0]))
    }
}

/// Latent, timestep and condition → prediction.
pub(super) struct Denoising<'a>(pub &'a DenoiserShape);

impl Pass for Denoising<'_> {
    fn outputs<B: Learning>(&self, b: &mut B, inputs: &[B::T]) -> Result<Vec<B::T>> {
        Ok(vec![denoise(b, self.0, &inputs[0], &inputs[1], &inputs[2])?])
    }
}

/// The schedule of a configuration.
fn schedule(config: &Config) -> Schedule {
    let d = &config.diffusion;
    Schedule { steps: d.timesteps, beta_start: d.beta_start, beta_end: d.beta_end, prediction: d.prediction }
}

/// 1 / standard deviation of all values of the training latents.
fn unit_scale(latents: &Tensor, vectors: &Vectors) -> Result<f32> {
    let index = vectors.batch(vectors.train.iter().copied()).rows;
    let mut z = latents.index_select(&Tensor::new(index.as_slice(), latents.device())?, 0)?;
    if let Some(presence) = vectors.presence(&vectors.train, latents.device())? {
        z = present(&z, &presence)?;
    }
    inverse_deviation(&z)
}

/// 1 / standard deviation of all values.
pub(super) fn inverse_deviation(z: &Tensor) -> Result<f32> {
    let mean = z.mean_all()?.to_scalar::<f32>()?;
    let variance = z.affine(1.0, -f64::from(mean))?.sqr()?.mean_all()?.to_scalar::<f32>()?;
    Ok(1.0 / variance.sqrt().max(1e-6))
}

/// Latents `[n, latent…]`, each after a number of noising steps of its own: `√ᾱ_t z + √(1 - ᾱ_t) ε` (the forward process of
/// Eq. 3).
pub(super) struct Noised {
    /// As the latents.
    pub noisy: Tensor,
    /// ε, as the latents.
    pub noise: Tensor,
    /// t, `[n]`.
    pub timestep: Tensor,
}

impl Noised {
    pub(super) fn draw(z: &Tensor, alphas: &[f64], rng: &mut ChaCha8Rng) -> Result<Self> {
        let (device, n) = (z.device(), z.dim(0)?);
        let noise = random::normal(z.dims(), device, rng)?;
        let t: Vec<usize> = (0..n).map(|_| rng.random_range(0..alphas.len())).collect();
        let mut shape = vec![1; z.dims().len()];
        shape[0] = n;
        let column = |f: &dyn Fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = t.iter().map(|&t| f(alphas[t]) as f32).collect();
            Ok(Tensor::from_vec(values, shape.as_slice(), device)?)
        };
        let noisy = (z.broadcast_mul(&column(&f64::sqrt)?)? + noise.broadcast_mul(&column(&|a| (1.0 - a).sqrt())?)?)?;
        let timestep = Tensor::from_vec(t.iter().map(|&t| t as f32).collect::<Vec<_>>(), n, device)?;
        Ok(Self { noisy, noise, timestep })
    }
}

/// One batch: noisy latents, timesteps, targets, and the mask that drops conditions.
struct Batch {
    noisy: Tensor,
    timestep: Tensor,
    target: Tensor,
    keep: Tensor,
}

impl Batch {
    fn draw(config: &Config, z: &Tensor, alphas: &[f64], rng: &mut ChaCha8Rng) -> Result<Self> {
        let (device, n) = (z.device(), z.dim(0)?);
        let d = &config.diffusion;
        let z = (z + random::normal(z.dims(), device, rng)?.affine(d.latent_noise, 0.0)?)?;
        let Noised { noisy, noise, timestep } = Noised::draw(&z, alphas, rng)?;
        let keep: Vec<f32> = (0..n).map(|_| if rng.random_bool(d.condition_dropout) { 0.0 } else { 1.0 }).collect();
        Ok(Self {
            noisy,
            timestep,
            target: match d.prediction {
                Prediction::Epsilon => noise,
                Prediction::Sample => z,
            },
            keep: Tensor::from_vec(keep, (n, 1), device)?,
        })
    }
}

/// Trains the denoiser on latents `[rows, latent…]` of all checkpoints; with `encoder.joint` above 0 the encoder learns
/// along. With `qualities`, one a checkpoint, each is the first value of the condition.
///
/// # Errors
/// [`Error::Diverged`] when the loss is not finite; [`Error::Interrupted`].
pub fn train(
    given: &Given<'_>,
    latents: &Tensor,
    encoder: &mut Encoder,
    qualities: Option<&[f64]>,
) -> Result<(Denoiser, Curve)> {
    let Given { config, zoo, vectors, sources, .. } = *given;
    let device: &Device = latents.device();
    let settings = &config.diffusion;
    let scale = unit_scale(latents, vectors)?;
    let schedule = schedule(config);
    let alphas = schedule.alphas_cumulative();
    let latent: Vec<usize> = latents.dims().iter().skip(1).copied().collect();
    let mut denoiser = Denoiser {
        shape: DenoiserShape {
            latent: latent.clone(),
            condition_dim: usize::from(qualities.is_some())
                + encoder.shape.condition_dim()
                + vectors.vectorise.index_dim()
                + vectors.vectorise.most_classes().unwrap_or_default(),
            token_dim: encoder.shape.token_dim,
            any_number: encoder.shape.any_number,
            config: config.denoiser.clone(),
        },
        params: Params::new(config.seed ^ 0xd1f5, device),
        schedule,
        latent: Latent { shape: latent, scale },
    };
    let joint = config.encoder.joint > 0.0;
    let data = Batches {
        config,
        zoo,
        sources,
        vectors,
        latents: latents.affine(f64::from(scale), 0.0)?,
        alphas,
        joint,
        qualities,
    };
    (denoiser, _) = shards::created((denoiser, encoder.clone()), config.seed, |shard| data.learn(shard, 1.0))?;
    let decay = AdamConfig { weight_decay: settings.weight_decay, clip: 1.0, ..Default::default() };
    let mut learners = vec![Learner::new(&denoiser.params, 1.0, decay, settings.ema)?];
    if joint {
        learners.push(Learner::new(&encoder.params, config.encoder.joint, decay, settings.ema)?);
    }
    let learning = || {
        let params = denoiser.params.learning_in(config.arithmetic);
        (Denoiser { params, ..denoiser.clone() }, encoder.learning_in(config.arithmetic))
    };
    let mut shards = shards::shards(config.seed, "diffusion", learning);
    let mut course = Course::begin(given, "denoiser", settings.steps, |snapshot| {
        learners.iter_mut().enumerate().try_for_each(|(i, learner)| learner.restore(i, snapshot))?;
        shards::restore(&mut shards, snapshot)
    })?;
    let smoother = |mean: Option<f32>, loss: f32| Some(mean.map_or(loss, |m| 0.98 * m + 0.02 * loss));
    let mut smooth = course.losses().iter().copied().fold(None, smoother);
    for step in course.steps() {
        let (loss, mut grads) = shards::learn(&mut shards, ("denoiser", step), |s, share| data.learn(s, share))?;
        let lr = optim::cosine(settings.lr, step, settings.steps);
        for learner in &mut learners {
            let rest = grads.split_off(learner.params.vars().len());
            learner.step(grads, lr)?;
            grads = rest;
        }
        smooth = smoother(smooth, loss);
        if let Some(mean) = smooth.filter(|_| step % 20 == 0) {
            course.message(format!("loss {mean:.4}"));
        }
        course.made(step, loss, |snapshot| {
            learners.iter().enumerate().try_for_each(|(i, learner)| learner.save(i, snapshot))?;
            shards::save(&shards, snapshot);
            Ok(())
        })?;
    }
    for learner in &learners {
        learner.ema.apply(&learner.params)?;
    }
    Ok((denoiser, course.finish()))
}

/// A network that learns, with its optimiser and moving average.
pub(crate) struct Learner {
    pub params: Params,
    rate: f64,
    adam: AdamW,
    ema: Ema,
}

impl Learner {
    pub fn new(params: &Params, rate: f64, adam: AdamConfig, ema: f64) -> Result<Self> {
        let adam = AdamW::new(params.vars(), adam);
        Ok(Self { params: params.clone(), rate, adam, ema: Ema::new(params, ema)? })
    }

    /// A step with the shards' gradients of each parameter.
    pub fn step(&mut self, grads: Vec<Vec<Gradient>>, lr: f64) -> Result<()> {
        self.adam.step_sums(grads, lr * self.rate)?;
        self.ema.update(&self.params)
    }

    fn save(&self, index: usize, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.put_all(&format!("params{index}"), &self.params.snapshot()?)?;
        self.adam.save(&format!("adam{index}"), snapshot)?;
        self.ema.save(&format!("ema{index}"), snapshot)
    }

    fn restore(&mut self, index: usize, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.restore(&format!("params{index}"), &self.params)?;
        self.adam.restore(&format!("adam{index}"), snapshot)?;
        self.ema.restore(&format!("ema{index}"), snapshot, self.params.device())
    }
}

/// What the batches are drawn from.
struct Batches<'a> {
    config: &'a Config,
    zoo: &'a Zoo,
    sources: &'a Sources,
    vectors: &'a Vectors,
    /// `[rows, latent…]`, of unit deviation.
    latents: Tensor,
    alphas: Vec<f64>,
    joint: bool,
    qualities: Option<&'a [f64]>,
}

impl Batches<'_> {
    /// `share` of the squared error of the prediction on one shard (Eq. 3), and its gradients with respect to the
    /// denoiser's parameters, and the encoder's where it learns.
    fn learn(&self, shard: &mut Shard<(Denoiser, Encoder)>, share: f64) -> Result<Learned> {
        let Shard { networks: (denoiser, encoder), rng } = shard;
        let picked = shards::pick(&self.vectors.train, self.config.diffusion.batch, rng);
        let tasks = picked.iter().map(|&i| self.zoo.task(i as usize));
        let supports = encoder.support(self.sources, tasks, Part::Train, rng)?;
        let mut with = |condition: &Tensor| -> Result<(Learned, Tensor)> {
            let drawn = self.draw(&picked, &supports, condition, rng)?;
            let inputs = [&drawn.batch.noisy, &drawn.batch.timestep, &drawn.condition];
            let learned = denoiser.learn(inputs, share, |prediction| drawn.error(prediction))?;
            Ok((learned, drawn.condition))
        };
        if !self.joint {
            return Ok(with(&encoder.values(&supports)?.1)?.0);
        }
        // What the encoder's gradients start from is that of the condition.
        let (mut value, mut params) = (0.0, Vec::new());
        let pass = Encoding(&encoder.shape);
        let encoding = tape::learn(&mut encoder.params, &pass, &supports.inputs(), 1.0, |outputs| {
            let (mut learned, condition) = with(&outputs[1])?;
            let grad = learned.inputs.pop().flatten().map_or_else(|| condition.zeros_like(), Ok)?;
            (value, params) = (learned.loss, learned.params);
            Ok((condition * grad)?.sum_all()?)
        })?;
        params.extend(encoding.params);
        Ok(Learned { loss: value, params, inputs: Vec::new() })
    }

    /// A shard's batch of these checkpoints, whose datasets the encoder says `condition` of.
    fn draw(&self, picked: &[u32], supports: &Supports, condition: &Tensor, rng: &mut ChaCha8Rng) -> Result<Drawn> {
        let mut condition = condition.clone();
        let device = self.latents.device();
        if let Some(qualities) = self.qualities {
            let own: Vec<f32> = picked.iter().map(|&i| qualities[i as usize] as f32).collect();
            let own = Tensor::from_vec(own, (picked.len(), 1), device)?;
            condition = Tensor::cat(&[&own, &condition], 1)?;
        }
        let (rows, pieces) = self.vectors.draw(picked, rng);
        let z = self.latents.index_select(&Tensor::new(rows.as_slice(), device)?, 0)?;
        let batch = Batch::draw(self.config, &z, &self.alphas, rng)?;
        let mut condition = condition.broadcast_mul(&batch.keep)?;
        // What kind of row it is stays known where the dataset is not.
        if let Some(index) = one_hot(&pieces, self.vectors.vectorise.index_dim(), device)? {
            condition = Tensor::cat(&[&condition, &index], 1)?;
        }
        // So do the class rows that there are.
        if let Some(presence) = &supports.presence {
            condition = Tensor::cat(&[&condition, presence], 1)?;
        }
        let there = supports.presence.as_ref().map(|presence| presence.unsqueeze(D::Minus1)).transpose()?;
        Ok(Drawn { batch, condition, there })
    }
}

/// What a shard learns from in one step.
struct Drawn {
    batch: Batch,
    condition: Tensor,
    /// Which rows there are, where that differs.
    there: Option<Tensor>,
}

impl Drawn {
    fn error(&self, prediction: &Tensor) -> Result<Tensor> {
        masked_mean(&(prediction - &self.batch.target)?.sqr()?, self.there.as_ref())
    }
}

#[cfg(test)]
mod tests;
