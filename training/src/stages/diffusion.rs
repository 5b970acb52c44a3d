//! Trains the denoiser on latents of unit deviation (Eq. 3), conditioned on the dataset, with a moving average of its
//! parameters and condition dropout for classifier-free guidance.

use candle_core::{Device, Tensor};
use datasets::Task;
use rand::Rng;
use weights::manifest::{Latent, Prediction, Schedule};

use super::encoder::Encoder;
use super::vectors::Vectors;
use super::zoo::Zoo;
use crate::backend::Eager;
use crate::config::Config;
use crate::data::{Part, Sources};
use crate::error::{Error, Result};
use crate::networks::denoiser::{DenoiserShape, denoise};
use crate::optim::{AdamConfig, AdamW, Ema, LrSchedule};
use crate::params::Params;
use crate::progress::Progress;
use crate::random;

/// A trained denoiser.
#[derive(Debug)]
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
    /// Prediction for noisy latents `[n, latent…]`, timesteps `[n]`, conditions `[n, condition_dim]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn denoise(&mut self, latent: &Tensor, timestep: &Tensor, condition: &Tensor) -> Result<Tensor> {
        denoise(&mut Eager::new(&mut self.params), &self.shape, latent, timestep, condition)
    }
}

/// The schedule of a configuration.
fn schedule(config: &Config) -> Schedule {
    let d = &config.diffusion;
    Schedule { steps: d.timesteps, beta_start: d.beta_start, beta_end: d.beta_end, prediction: d.prediction }
}

/// 1 / standard deviation of all values of the training latents.
fn unit_scale(latents: &Tensor, train: &[usize]) -> Result<f32> {
    let index: Vec<u32> = train.iter().map(|&i| i as u32).collect();
    let z = latents.index_select(&Tensor::new(index.as_slice(), latents.device())?, 0)?;
    let mean = z.mean_all()?.to_scalar::<f32>()?;
    let variance = z.affine(1.0, -f64::from(mean))?.sqr()?.mean_all()?.to_scalar::<f32>()?;
    Ok(1.0 / variance.sqrt().max(1e-6))
}

/// One batch: noisy latents, timesteps, targets, and the mask that drops conditions.
struct Batch {
    noisy: Tensor,
    timestep: Tensor,
    target: Tensor,
    keep: Tensor,
}

impl Batch {
    fn draw(config: &Config, z: &Tensor, alphas: &[f64], rng: &mut rand_chacha::ChaCha8Rng) -> Result<Self> {
        let (device, n) = (z.device(), z.dim(0)?);
        let d = &config.diffusion;
        let z = (z + random::normal(z.dims(), device, rng)?.affine(d.latent_noise, 0.0)?)?;
        let noise = random::normal(z.dims(), device, rng)?;
        let t: Vec<usize> = (0..n).map(|_| rng.random_range(0..alphas.len())).collect();
        let mut shape = vec![1; z.dims().len()];
        shape[0] = n;
        let column = |f: &dyn Fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = t.iter().map(|&t| f(alphas[t]) as f32).collect();
            Ok(Tensor::from_vec(values, shape.as_slice(), device)?)
        };
        let noisy = (z.broadcast_mul(&column(&f64::sqrt)?)? + noise.broadcast_mul(&column(&|a| (1.0 - a).sqrt())?)?)?;
        let keep: Vec<f32> = (0..n).map(|_| if rng.random_bool(d.condition_dropout) { 0.0 } else { 1.0 }).collect();
        Ok(Self {
            noisy,
            timestep: Tensor::from_vec(t.iter().map(|&t| t as f32).collect::<Vec<_>>(), n, device)?,
            target: match d.prediction {
                Prediction::Epsilon => noise,
                Prediction::Sample => z,
            },
            keep: Tensor::from_vec(keep, (n, 1), device)?,
        })
    }
}

/// Trains the denoiser on latents `[n, latent…]` of all checkpoints; with `encoder.joint` above 0 the encoder learns
/// along.
///
/// # Errors
/// [`Error::Diverged`] when the loss is not finite; [`Error::Interrupted`].
pub fn train(
    config: &Config,
    zoo: &Zoo,
    vectors: &Vectors,
    sources: &Sources,
    latents: &Tensor,
    encoder: &mut Encoder,
    progress: &Progress,
) -> Result<Denoiser> {
    let device: &Device = latents.device();
    let settings = &config.diffusion;
    let scale = unit_scale(latents, &vectors.train)?;
    let schedule = schedule(config);
    let alphas = schedule.alphas_cumulative();
    let mut denoiser = Denoiser {
        shape: DenoiserShape {
            latent: config.vae.latent.clone(),
            condition_dim: encoder.shape.condition_dim(),
            config: config.denoiser.clone(),
        },
        params: Params::new(config.seed ^ 0xd1f5, device),
        schedule,
        latent: Latent { shape: config.vae.latent.clone(), scale },
    };
    let latents = latents.affine(f64::from(scale), 0.0)?;
    let mut rng = random::stream(config.seed, "diffusion");
    let decay = AdamConfig { weight_decay: settings.weight_decay, clip: 1.0, ..Default::default() };
    let mut optimiser: Option<(AdamW, Ema)> = None;
    let mut joint = (config.encoder.joint > 0.0).then(|| -> Result<_> {
        Ok((AdamW::new(encoder.params.vars(), decay), Ema::new(&encoder.params, settings.ema)?))
    });
    let mut joint = joint.take().transpose()?;
    let stage = progress.stage("denoiser", settings.steps, 0);
    let mut smooth = None;
    for step in 0..settings.steps {
        let picked: Vec<u32> =
            (0..settings.batch).map(|_| vectors.train[rng.random_range(0..vectors.train.len())] as u32).collect();
        let tasks: Vec<&Task> = picked.iter().map(|&i| &zoo.runs[zoo.checkpoints[i as usize].run].task).collect();
        let features = encoder.support(sources, tasks, Part::Train, &mut rng)?;
        let (_, condition) = encoder.encode(&features)?;
        let condition = if joint.is_some() { condition } else { condition.detach() };
        let z = latents.index_select(&Tensor::new(picked.as_slice(), device)?, 0)?;
        let batch = Batch::draw(config, &z, &alphas, &mut rng)?;
        let condition = condition.broadcast_mul(&batch.keep)?;
        let prediction = denoiser.denoise(&batch.noisy, &batch.timestep, &condition)?;
        let loss = (prediction - &batch.target)?.sqr()?.mean_all()?;
        let grads = loss.backward()?;
        if optimiser.is_none() {
            let ema = Ema::new(&denoiser.params, settings.ema)?;
            optimiser = Some((AdamW::new(denoiser.params.vars(), decay), ema));
        }
        let lr = LrSchedule::Cosine.at(settings.lr, step, settings.steps);
        if let Some((adam, ema)) = &mut optimiser {
            adam.step(&grads, lr)?;
            ema.update(&denoiser.params)?;
        }
        if let Some((adam, ema)) = &mut joint {
            adam.step(&grads, lr * config.encoder.joint)?;
            ema.update(&encoder.params)?;
        }
        if step % 20 == 0 || step + 1 == settings.steps {
            let value = loss.to_scalar::<f32>()?;
            if !value.is_finite() {
                return Err(Error::Diverged { stage: "denoiser", step });
            }
            let mean = smooth.map_or(value, |s: f32| 0.9 * s + 0.1 * value);
            smooth = Some(mean);
            stage.message(format!("loss {mean:.4}"));
        }
        stage.advance(1)?;
    }
    stage.finish();
    if let Some((_, ema)) = &optimiser {
        ema.apply(&denoiser.params)?;
    }
    if let Some((_, ema)) = &joint {
        ema.apply(&encoder.params)?;
    }
    Ok(denoiser)
}
