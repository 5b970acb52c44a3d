//! Rows of values learned by a VAE and a denoiser from what each row is conditioned on, given outright: what the chunks of
//! layers ([`super::layers`]) and adapters of described tasks have in common.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use weights::manifest::{Prediction, Schedule, files};
use weights::tensors;

use super::diffusion::{Denoising, Noised, inverse_deviation};
use super::shards::{self, Shard};
use super::vae::{Coding, bounded, kl_divergence};
use crate::backend::Eager;
use crate::error::{Error, Result};
use crate::export::{self, PROBE_BATCHES, Probe, named};
use crate::networks::denoiser::{DenoiserConfig, DenoiserShape, denoise};
use crate::networks::vae::{VaeForm, VaeShape, decode, encode};
use crate::optim::{self, AdamConfig, AdamW, Ema};
use crate::params::Params;
use crate::progress::Progress;
use crate::random;
use crate::tape::{self, Learned};

/// How rows are learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RowsConfig {
    /// Width inside the VAE; 0: encoder and decoder are one linear layer each.
    pub hidden: usize,
    /// Values of a latent.
    pub latent: usize,
    /// Weight of the KL divergence; 0: an autoencoder without noise.
    pub beta: f64,
    /// Share of the VAE's steps that are an autoencoder's, without noise: the KL divergence counts from there on.
    pub kl_from: f64,
    /// Steps of the VAE.
    pub vae_steps: usize,
    /// Width of the denoiser.
    pub width: usize,
    /// Blocks of the denoiser.
    pub blocks: usize,
    /// Steps of the denoiser.
    pub diffusion_steps: usize,
    /// Rows of a batch.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Steps of sampling.
    pub sampling_steps: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for RowsConfig {
    fn default() -> Self {
        Self {
            hidden: 512,
            latent: 64,
            beta: 1e-5,
            kl_from: 0.0,
            vae_steps: 1500,
            width: 256,
            blocks: 4,
            diffusion_steps: 3000,
            batch: 64,
            lr: 1e-3,
            sampling_steps: 50,
            seed: 0,
        }
    }
}

impl RowsConfig {
    /// # Errors
    /// [`Error::Config`] names what makes no sense.
    pub fn check(&self) -> Result<()> {
        if [self.batch, self.latent, self.sampling_steps, self.width].contains(&0) {
            return Err(Error::Config("batch, latent, width and sampling_steps must be at least 1".into()));
        }
        let bounded = [
            ("hidden", self.hidden, 1 << 16),
            ("latent", self.latent, 1 << 16),
            ("width", self.width, 1 << 14),
            ("blocks", self.blocks, 256),
            ("batch", self.batch, 1 << 14),
            ("sampling_steps", self.sampling_steps, 10_000),
        ];
        if let Some((name, value, most)) = bounded.into_iter().find(|(_, value, most)| value > most) {
            return Err(Error::Config(format!("{name} is {value}; it is at most {most}")));
        }
        let share = self.kl_from.is_finite() && (0.0..=1.0).contains(&self.kl_from);
        if !(share && self.beta >= 0.0 && self.lr > 0.0 && self.lr.is_finite()) {
            return Err(Error::Config("kl_from is a share of 0 to 1, beta at least 0, lr above 0".into()));
        }
        Ok(())
    }
}

/// Where rows come from.
pub trait Source: Sync {
    /// The standardised rows `[k, length]` of these numbers.
    ///
    /// # Errors
    /// When they cannot be read.
    fn rows(&self, picked: &[u32]) -> Result<Tensor>;
}

/// What rows are conditioned on.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// One-hot types, which the VAE sees, `[n, kinds]`; none: of one type.
    pub kinds: Option<Tensor>,
    /// What the denoiser sees, `[n, c]`.
    pub values: Tensor,
}

/// A parameter: name, shape, values.
pub type Parameter = (String, Vec<usize>, Vec<f32>);

/// Rows that are worked on at a time, where they are worked on in order.
const ROWS: usize = 256;
/// Rows that are decoded at a time.
const DECODED: usize = 32;

/// A VAE and a denoiser.
#[derive(Debug)]
pub struct Rows {
    config: RowsConfig,
    vae: VaeShape,
    vae_params: Params,
    shape: DenoiserShape,
    denoiser: Params,
    schedule: Schedule,
    scale: f64,
}

impl Rows {
    /// Not learned yet: rows of `length` values of `kinds` types (0: of one), conditioned on `condition` values.
    pub fn new(config: &RowsConfig, length: usize, kinds: usize, condition: usize) -> Self {
        let hidden = if config.hidden > 0 { vec![config.hidden] } else { Vec::new() };
        let (latent, form) = (vec![config.latent], VaeForm::Linear);
        let shape = DenoiserShape {
            latent: vec![config.latent],
            condition_dim: condition,
            token_dim: 0,
            any_number: false,
            config: DenoiserConfig::Mlp { width: config.width, blocks: config.blocks },
        };
        Self {
            config: config.clone(),
            vae: VaeShape { length, hidden, latent, form, index: kinds, rows: None },
            vae_params: Params::new(config.seed, &Device::Cpu),
            shape,
            denoiser: Params::new(config.seed ^ 0xd1f5, &Device::Cpu),
            schedule: Schedule { steps: 1000, beta_start: 0.0015, beta_end: 0.0155, prediction: Prediction::Sample },
            scale: 1.0,
        }
    }

    /// Learns `n` rows.
    ///
    /// # Errors
    /// [`Error::Diverged`], [`Error::Interrupted`], those of reading.
    pub fn learn(
        &mut self,
        source: &dyn Source,
        known: &Conditions,
        (vae, denoiser): (&'static str, &'static str),
        progress: &Progress,
    ) -> Result<()> {
        self.config.check()?;
        self.fit_vae(source, known, vae, progress)?;
        self.fit_denoiser(source, known, denoiser, progress)
    }

    fn pick(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
        (0..self.config.batch.div_ceil(shards::SHARDS)).map(|_| rng.random_range(0..n as u32)).collect()
    }

    fn fit_vae(
        &mut self,
        source: &dyn Source,
        known: &Conditions,
        stage: &'static str,
        progress: &Progress,
    ) -> Result<()> {
        let c = self.config.clone();
        let kl_from = (c.kl_from * c.vae_steps as f64) as usize;
        let n = known.values.dim(0)?;
        let learn = |this: &Self, shard: &mut Shard<Params>, step: usize, share: f64| -> Result<Learned> {
            let picked = this.pick(n, &mut shard.rng);
            let x = source.rows(&picked)?;
            let picked = Tensor::new(picked.as_slice(), &Device::Cpu)?;
            let kinds = known.kinds.as_ref().map(|kinds| kinds.index_select(&picked, 0)).transpose()?;
            let latents = [x.dim(0)?, c.latent];
            let with_noise = c.beta > 0.0 && step >= kl_from;
            let noise = with_noise.then(|| random::normal(&latents, &Device::Cpu, &mut shard.rng)).transpose()?;
            let pass = Coding { shape: &this.vae, noise: noise.as_ref() };
            let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&kinds).collect();
            tape::learn(&mut shard.networks, &pass, &inputs, share, |outputs| {
                let mse = (&outputs[2] - &x)?.sqr()?.mean_all()?;
                if noise.is_none() {
                    return Ok(mse);
                }
                let kl = kl_divergence(&outputs[0], &bounded(&outputs[1])?, None)?;
                Ok((mse + kl.affine(c.beta, 0.0)?)?)
            })
        };
        self.vae_params = self.fit((stage, c.vae_steps), &self.vae_params, learn, progress)?;
        Ok(())
    }

    fn fit_denoiser(
        &mut self,
        source: &dyn Source,
        known: &Conditions,
        stage: &'static str,
        progress: &Progress,
    ) -> Result<()> {
        let latents = self.encode(source, known)?;
        self.scale = f64::from(inverse_deviation(&latents)?);
        let latents = latents.affine(self.scale, 0.0)?;
        let alphas = self.schedule.alphas_cumulative();
        let n = known.values.dim(0)?;
        let learn = |this: &Self, shard: &mut Shard<Params>, _: usize, share: f64| -> Result<Learned> {
            let picked = Tensor::new(this.pick(n, &mut shard.rng).as_slice(), &Device::Cpu)?;
            let (z, c) = (latents.index_select(&picked, 0)?, known.values.index_select(&picked, 0)?);
            let Noised { noisy, timestep, .. } = Noised::draw(&z, &alphas, &mut shard.rng)?;
            tape::learn(&mut shard.networks, &Denoising(&this.shape), &[&noisy, &timestep, &c], share, |outputs| {
                Ok((&outputs[0] - &z)?.sqr()?.mean_all()?)
            })
        };
        self.denoiser = self.fit((stage, self.config.diffusion_steps), &self.denoiser, learn, progress)?;
        Ok(())
    }

    /// Trains a network that begins with `params`, and gives the moving average of its parameters.
    fn fit(
        &self,
        (stage, steps): (&'static str, usize),
        params: &Params,
        learn: impl Fn(&Self, &mut Shard<Params>, usize, f64) -> Result<Learned> + Sync,
        progress: &Progress,
    ) -> Result<Params> {
        let config = &self.config;
        let params = shards::created(params.clone(), config.seed, |shard| learn(self, shard, 0, 1.0))?;
        let mut adam = AdamW::new(params.vars(), AdamConfig { clip: 1.0, ..Default::default() });
        let mut ema = Ema::new(&params, 0.99)?;
        let mut shards = shards::shards(config.seed, stage, || params.clone());
        let shown = progress.stage(stage, steps, 0);
        for step in 0..steps {
            let learn = |shard: &mut Shard<Params>, share| learn(self, shard, step, share);
            let (value, grads) = shards::learn(&mut shards, (stage, step), learn)?;
            adam.step_sums(grads, optim::cosine(config.lr, step, steps))?;
            ema.update(&params)?;
            shown.advance_with(1, value)?;
        }
        shown.finish();
        ema.apply(&params)?;
        Ok(params)
    }

    /// Latents `[n, latent]` of all rows.
    ///
    /// # Errors
    /// Those of reading and of tensors.
    pub fn encode(&self, source: &dyn Source, known: &Conditions) -> Result<Tensor> {
        in_parts(known.values.dim(0)?, ROWS, |start, some| {
            let picked: Vec<u32> = (start..start + some).map(|i| i as u32).collect();
            let kinds = known.kinds.as_ref().map(|kinds| kinds.narrow(0, start, some)).transpose()?;
            let mut params = self.vae_params.clone();
            let mut b = Eager::new(&mut params);
            Ok(encode(&mut b, &self.vae, &source.rows(&picked)?, kinds.as_ref())?.0.detach())
        })
    }

    /// Latents `[n, latent]` from noise as large, by DDIM; on all cores.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn sample(&self, noise: &Tensor, conditions: &Tensor) -> Result<Tensor> {
        let of = |start: usize, some: usize| -> Result<Tensor> {
            let (z, condition) = (noise.narrow(0, start, some)?, conditions.narrow(0, start, some)?);
            self.denoised(&mut self.denoiser.clone(), z, &condition)
        };
        Ok(in_parts(noise.dim(0)?, ROWS, of)?.affine(1.0 / self.scale, 0.0)?)
    }

    fn denoised(&self, params: &mut Params, mut z: Tensor, condition: &Tensor) -> Result<Tensor> {
        let alphas = self.schedule.alphas_cumulative();
        let steps = self.config.sampling_steps.min(alphas.len());
        let times: Vec<usize> = (0..steps).map(|i| (alphas.len() - 1) * (steps - i) / steps).collect();
        for (i, &t) in times.iter().enumerate() {
            // DDIM with a prediction of the clean latent.
            let time = Tensor::full(t as f32, z.dim(0)?, &Device::Cpu)?;
            let clean = denoise(&mut Eager::new(params), &self.shape, &z, &time, condition)?.detach();
            let noise = ((&z - clean.affine(alphas[t].sqrt(), 0.0)?)?).affine(1.0 / (1.0 - alphas[t]).sqrt(), 0.0)?;
            z = match times.get(i + 1) {
                Some(&next) => {
                    (clean.affine(alphas[next].sqrt(), 0.0)? + noise.affine((1.0 - alphas[next]).sqrt(), 0.0)?)?
                }
                None => clean,
            };
        }
        Ok(z)
    }

    /// Standardised rows `[n, length]` of latents; on all cores.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn decode(&self, z: &Tensor, kinds: Option<&Tensor>) -> Result<Tensor> {
        in_parts(z.dim(0)?, DECODED, |start, some| {
            let kinds = kinds.map(|kinds| kinds.narrow(0, start, some)).transpose()?;
            let mut params = self.vae_params.clone();
            Ok(decode(&mut Eager::new(&mut params), &self.vae, &z.narrow(0, start, some)?, kinds.as_ref())?.detach())
        })
    }

    /// Graphs of the VAE and the denoiser, and one that takes the condition as it is, under their names in a bundle.
    ///
    /// # Errors
    /// When nothing was learned yet.
    pub fn graphs(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut all = BTreeMap::from(export::vae(&self.vae, &self.vae_params)?);
        all.insert(files::DENOISER.into(), export::denoiser(&self.shape, &self.denoiser)?);
        all.insert(files::DATASET_ENCODER.into(), export::given_condition(self.shape.condition_dim)?);
        Ok(all)
    }

    /// Inputs of the graphs, with the outputs that candle gives for them.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn probes(&self) -> Result<Vec<Probe>> {
        let mut rng = random::stream(0, "probes");
        let mut probes = Vec::new();
        for n in PROBE_BATCHES {
            let mut random = |width: usize| random::normal(&[n, width], &Device::Cpu, &mut rng);
            let (x, z, condition) =
                (random(self.vae.length)?, random(self.config.latent)?, random(self.shape.condition_dim)?);
            let (mut vae, mut denoiser) = (self.vae_params.clone(), self.denoiser.clone());
            let (mean, log_variance) = encode(&mut Eager::new(&mut vae), &self.vae, &x, None)?;
            let y = decode(&mut Eager::new(&mut vae), &self.vae, &z, None)?;
            let time: Vec<f32> = (0..n).map(|i| ((i * 379) % self.schedule.steps) as f32).collect();
            let time = Tensor::from_vec(time, n, &Device::Cpu)?;
            let clean = denoise(&mut Eager::new(&mut denoiser), &self.shape, &z, &time, &condition)?;
            let mut add = |graph: &str, inputs: &[(&str, &Tensor)], outputs: &[(&str, &Tensor)]| -> Result<()> {
                let all = |list: &[(&str, &Tensor)]| list.iter().map(|(name, t)| named(name, t)).collect::<Result<_>>();
                probes.push(Probe { graph: graph.into(), inputs: all(inputs)?, outputs: all(outputs)? });
                Ok(())
            };
            add(files::VAE_ENCODER, &[("weights", &x)], &[("mean", &mean), ("log_variance", &log_variance)])?;
            add(files::VAE_DECODER, &[("latent", &z)], &[("weights", &y)])?;
            let noisy = [("latent", &z), ("timestep", &time), ("condition", &condition)];
            add(files::DENOISER, &noisy, &[("prediction", &clean)])?;
            let given = condition.reshape((n, 1, 1, self.shape.condition_dim))?;
            let outputs = [("dataset", &condition), ("condition", &condition)];
            add(files::DATASET_ENCODER, &[("features", &given)], &outputs)?;
        }
        Ok(probes)
    }

    /// The noise schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// One over the deviation of the latents.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// All parameters by name, with their shapes.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn parameters(&self) -> Result<Vec<Parameter>> {
        let mut all = Vec::new();
        for (prefix, params) in [("vae", &self.vae_params), ("denoiser", &self.denoiser)] {
            for (name, value) in params.snapshot()? {
                all.push((format!("{prefix}/{name}"), value.dims().to_vec(), value.flatten_all()?.to_vec1()?));
            }
        }
        Ok(all)
    }

    /// Takes the parameters of a safetensors file that has those of [`Rows::parameters`].
    ///
    /// # Errors
    /// [`Error::Weights`] when one is missing, [`Error::Config`] when one is of another shape.
    pub fn restore(&mut self, bytes: &[u8], scale: f64) -> Result<()> {
        self.scale = scale;
        self.create()?;
        for (prefix, params) in [("vae", &self.vae_params), ("denoiser", &self.denoiser)] {
            let mut values = BTreeMap::new();
            for (name, own) in params.snapshot()? {
                let (shape, data) = tensors::named_from_safetensors(bytes, &format!("{prefix}/{name}"))?;
                if shape != own.dims() {
                    return Err(Error::Config(format!("{prefix}/{name} is {shape:?}; {:?} fits", own.dims())));
                }
                weights::error::check_finite(&name, &data)?;
                values.insert(name, Tensor::from_vec(data, shape, params.device())?);
            }
            params.restore(&values)?;
        }
        Ok(())
    }

    /// Makes all parameters, which exist from their first use on.
    fn create(&mut self) -> Result<()> {
        let zeros = |n: usize| Tensor::zeros((1, n), candle_core::DType::F32, &Device::Cpu);
        let kinds = if self.vae.index > 0 { Some(zeros(self.vae.index)?) } else { None };
        let shape = self.vae.clone();
        let mut b = Eager::new(&mut self.vae_params);
        let (z, _) = encode(&mut b, &shape, &zeros(shape.length)?, kinds.as_ref())?;
        decode(&mut b, &shape, &z, kinds.as_ref())?;
        let (shape, time) = (self.shape.clone(), Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?);
        let condition = zeros(shape.condition_dim)?;
        denoise(&mut Eager::new(&mut self.denoiser), &shape, &zeros(self.config.latent)?, &time, &condition)?;
        Ok(())
    }
}

/// `n` rows in parts of `size`, which do not depend on the number of cores, so that results do not.
fn in_parts(n: usize, size: usize, of: impl Fn(usize, usize) -> Result<Tensor> + Sync) -> Result<Tensor> {
    let starts: Vec<usize> = (0..n).step_by(size).collect();
    let parts = starts.par_iter().map(|&start| of(start, size.min(n - start))).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}
