//! Layers of one network learned as chunks, and generated: for networks of other depths (paper 4.1.4), or for the network
//! itself (3.5, A.4). A chunk is conditioned on the type of its layer, on where in the network that layer is, and on which
//! part of the layer it is.
//!
//! The vectors of one network are few. What is learned is how the layers of a type differ along the depth, not a
//! distribution over trained networks.

mod chunks;
mod saved;

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use weights::Layout;
use weights::manifest::{Prediction, Schedule};

pub use chunks::{Chunk, Moments, Values, chunks, kind, nearest_copy, uniform};

use super::diffusion::{Noised, inverse_deviation};
use super::shards::{self, Shard};
use crate::backend::Eager;
use crate::error::{Error, Result};
use crate::networks::denoiser::{DenoiserConfig, DenoiserShape, denoise};
use crate::networks::vae::{VaeForm, VaeShape, decode, encode};
use crate::optim::{self, AdamConfig, AdamW, Ema};
use crate::params::Params;
use crate::progress::Progress;
use crate::random;

/// How chunks are learned.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayersConfig {
    /// Values of a chunk.
    pub chunk: usize,
    /// Whether chunks are cut from all layers as one vector; else each layer is cut for itself.
    pub uniform: bool,
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
    /// Chunks of a batch.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Steps of sampling.
    pub sampling_steps: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for LayersConfig {
    fn default() -> Self {
        Self {
            chunk: 2304,
            uniform: false,
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

impl LayersConfig {
    /// The chunks of a network.
    pub fn chunks(&self, layout: &Layout) -> Vec<Chunk> {
        if self.uniform { uniform(layout, self.chunk) } else { chunks(layout, self.chunk) }
    }

    fn check(&self) -> Result<()> {
        let sizes = [self.chunk, self.batch, self.latent, self.sampling_steps, self.width];
        if sizes.contains(&0) {
            let text = "layers: chunk, batch, latent, width and sampling_steps must be at least 1";
            return Err(Error::Config(text.into()));
        }
        let shares = self.kl_from.is_finite() && (0.0..=1.0).contains(&self.kl_from);
        if !(shares && self.beta >= 0.0 && self.lr > 0.0 && self.lr.is_finite()) {
            return Err(Error::Config("layers: kl_from is a share of 0 to 1, beta at least 0, lr above 0".into()));
        }
        Ok(())
    }
}

/// Values of the condition that say where a layer is.
const OCTAVES: usize = 4;
/// The most parts of a layer that have a value of the condition each.
const PARTS: usize = 64;
/// Chunks that are worked on at a time, where they are worked on in order.
const ROWS: usize = 256;

/// A place from 0 to 1 as itself and `octaves` sines and cosines.
fn waves(place: f64, octaves: usize) -> Vec<f32> {
    let waves = (0..octaves).flat_map(|i| {
        let angle = std::f64::consts::PI * place * 2f64.powi(i as i32);
        [angle.sin() as f32, angle.cos() as f32]
    });
    std::iter::once(place as f32).chain(waves).collect()
}

/// Which part of how many: one value each, or waves where they are many.
fn part_features(part: usize, parts: usize) -> Vec<f32> {
    if parts <= PARTS {
        return (0..parts).map(|i| f32::from(u8::from(i == part))).collect();
    }
    waves(part as f64 / (parts - 1) as f64, (parts as f64).log2().ceil() as usize)
}

/// What was learned from one network.
#[derive(Debug)]
pub struct Layers {
    config: LayersConfig,
    kinds: Vec<String>,
    parts: usize,
    moments: Vec<Moments>,
    vae: VaeShape,
    vae_params: Params,
    shape: DenoiserShape,
    denoiser: Params,
    schedule: Schedule,
    scale: f64,
}

/// All chunks with what they are conditioned on: one-hot types `[n, kinds]`, conditions `[n, condition_dim]`.
struct Table<'a> {
    all: &'a [Chunk],
    kinds: Tensor,
    conditions: Tensor,
}

impl Layers {
    fn new(config: &LayersConfig, kinds: Vec<String>, parts: usize, moments: Vec<Moments>) -> Self {
        let index = kinds.len();
        let hidden = if config.hidden > 0 { vec![config.hidden] } else { Vec::new() };
        let (latent, form) = (vec![config.latent], VaeForm::Linear);
        let vae = VaeShape { length: config.chunk, hidden, latent, form, index, rows: None };
        let shape = DenoiserShape {
            latent: vec![config.latent],
            condition_dim: index + part_features(0, parts).len() + waves(0.0, OCTAVES).len(),
            token_dim: 0,
            any_number: false,
            config: DenoiserConfig::Mlp { width: config.width, blocks: config.blocks },
        };
        let schedule = Schedule { steps: 1000, beta_start: 0.0015, beta_end: 0.0155, prediction: Prediction::Sample };
        let params = |seed: u64| Params::new(seed, &Device::Cpu);
        let (vae_params, denoiser) = (params(config.seed), params(config.seed ^ 0xd1f5));
        let config = config.clone();
        Self { config, kinds, parts, moments, vae, vae_params, shape, denoiser, schedule, scale: 1.0 }
    }

    /// Learns the chunks of a network of `layout` (`[d]` values).
    ///
    /// # Errors
    /// [`Error::Config`] when there is no chunk, [`Error::Diverged`], [`Error::Interrupted`], those of reading.
    pub fn learn(config: &LayersConfig, layout: &Layout, values: &dyn Values, progress: &Progress) -> Result<Self> {
        config.check()?;
        let all = config.chunks(layout);
        if all.is_empty() {
            return Err(Error::Config("layers: the network has no parameters to learn from".into()));
        }
        let mut kinds: Vec<String> = all.iter().map(|c| c.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        let parts = all.iter().map(|c| c.part + 1).max().unwrap_or(1);
        let moments = kinds.iter().map(|kind| Moments::of(&all, kind, values)).collect::<Result<_>>()?;
        let mut layers = Self::new(config, kinds, parts, moments);
        let (index, conditions) = layers.conditions(&all)?;
        let table = Table { all: &all, kinds: index, conditions };
        layers.fit_vae(&table, values, progress)?;
        layers.fit_denoiser(&table, values, progress)?;
        Ok(layers)
    }

    /// How it was learned.
    pub fn config(&self) -> &LayersConfig {
        &self.config
    }

    /// Types of layers, each with the moments of its values.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &Moments)> {
        self.kinds.iter().map(String::as_str).zip(&self.moments)
    }

    /// Standardised rows `[n, chunk]` of some chunks.
    fn rows<'a>(&self, some: impl ExactSizeIterator<Item = &'a Chunk>, values: &dyn Values) -> Result<Tensor> {
        let (n, length) = (some.len(), self.config.chunk);
        let mut rows = vec![0f32; n * length];
        for (row, chunk) in rows.chunks_exact_mut(length).zip(some) {
            let Moments { mean, std, .. } = self.moments[self.kind(chunk)?];
            let own = &mut row[..chunk.len];
            values.read(chunk.offset..chunk.offset + chunk.len, own)?;
            own.iter_mut().for_each(|v| *v = (*v - mean) / std);
        }
        Ok(Tensor::from_vec(rows, (n, length), &Device::Cpu)?)
    }

    fn kind(&self, chunk: &Chunk) -> Result<usize> {
        let unknown = || {
            let known = self.kinds.join(", ");
            Error::Config(format!("no layer of the type {} was learned; there are {known}", chunk.kind))
        };
        self.kinds.iter().position(|kind| *kind == chunk.kind).ok_or_else(unknown)
    }

    /// One-hot types `[n, kinds]`, and the denoiser's conditions `[n, condition_dim]`.
    fn conditions(&self, all: &[Chunk]) -> Result<(Tensor, Tensor)> {
        let (n, kinds) = (all.len(), self.kinds.len());
        let mut index = vec![0f32; n * kinds];
        let mut condition = Vec::with_capacity(n * self.shape.condition_dim);
        for (row, chunk) in index.chunks_exact_mut(kinds).zip(all) {
            row[self.kind(chunk)?] = 1.0;
            if chunk.part >= self.parts {
                return Err(Error::Config(format!("a layer of the type {} has too many parts", chunk.kind)));
            }
            condition.extend_from_slice(row);
            condition.extend(part_features(chunk.part, self.parts));
            condition.extend(waves(chunk.position, OCTAVES));
        }
        let condition = Tensor::from_vec(condition, (n, self.shape.condition_dim), &Device::Cpu)?;
        Ok((Tensor::from_vec(index, (n, kinds), &Device::Cpu)?, condition))
    }

    fn pick(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
        (0..self.config.batch.div_ceil(shards::SHARDS)).map(|_| rng.random_range(0..n as u32)).collect()
    }

    fn fit_vae(&mut self, table: &Table<'_>, values: &dyn Values, progress: &Progress) -> Result<()> {
        let c = self.config.clone();
        let kl_from = (c.kl_from * c.vae_steps as f64) as usize;
        let loss = |this: &Self, shard: &mut Shard<Params>, step: usize| -> Result<Tensor> {
            let picked = this.pick(table.all.len(), &mut shard.rng);
            let x = this.rows(picked.iter().map(|&i| &table.all[i as usize]), values)?;
            let index = table.kinds.index_select(&Tensor::new(picked.as_slice(), &Device::Cpu)?, 0)?;
            let mut b = Eager::new(&mut shard.networks);
            let (mean, log_variance) = encode(&mut b, &this.vae, &x, Some(&index))?;
            if c.beta == 0.0 || step < kl_from {
                return Ok((decode(&mut b, &this.vae, &mean, Some(&index))? - x)?.sqr()?.mean_all()?);
            }
            let log_variance = log_variance.clamp(-12.0, 4.0)?;
            let noise = random::normal(mean.dims(), &Device::Cpu, &mut shard.rng)?;
            let z = (&mean + (log_variance.affine(0.5, 0.0)?.exp()? * noise)?)?;
            let y = decode(&mut b, &this.vae, &z, Some(&index))?;
            let kl = ((mean.sqr()? + log_variance.exp()?)? - log_variance)?.mean_all()?.affine(0.5, -0.5)?;
            Ok(((y - x)?.sqr()?.mean_all()? + kl.affine(c.beta, 0.0)?)?)
        };
        self.vae_params = self.fit(("layers: vae", c.vae_steps), &self.vae_params, loss, progress)?;
        Ok(())
    }

    /// Latents `[n, latent]` of all chunks.
    fn latents(&mut self, table: &Table<'_>, values: &dyn Values) -> Result<Tensor> {
        let shape = self.vae.clone();
        let mut parts = Vec::new();
        for (i, some) in table.all.chunks(ROWS).enumerate() {
            let (rows, index) = (self.rows(some.iter(), values)?, table.kinds.narrow(0, i * ROWS, some.len())?);
            parts.push(encode(&mut Eager::new(&mut self.vae_params), &shape, &rows, Some(&index))?.0.detach());
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn fit_denoiser(&mut self, table: &Table<'_>, values: &dyn Values, progress: &Progress) -> Result<()> {
        let latents = self.latents(table, values)?;
        self.scale = f64::from(inverse_deviation(&latents)?);
        let latents = latents.affine(self.scale, 0.0)?;
        let alphas = self.schedule.alphas_cumulative();
        let loss = |this: &Self, shard: &mut Shard<Params>, _: usize| -> Result<Tensor> {
            let picked = Tensor::new(this.pick(table.all.len(), &mut shard.rng).as_slice(), &Device::Cpu)?;
            let (z, c) = (latents.index_select(&picked, 0)?, table.conditions.index_select(&picked, 0)?);
            let Noised { noisy, timestep, .. } = Noised::draw(&z, &alphas, &mut shard.rng)?;
            let y = denoise(&mut Eager::new(&mut shard.networks), &this.shape, &noisy, &timestep, &c)?;
            Ok((y - z)?.sqr()?.mean_all()?)
        };
        let steps = self.config.diffusion_steps;
        self.denoiser = self.fit(("layers: denoiser", steps), &self.denoiser, loss, progress)?;
        Ok(())
    }

    /// Trains a network that begins with `params`, and gives the moving average of its parameters.
    fn fit(
        &self,
        (stage, steps): (&'static str, usize),
        params: &Params,
        loss: impl Fn(&Self, &mut Shard<Params>, usize) -> Result<Tensor> + Sync,
        progress: &Progress,
    ) -> Result<Params> {
        let config = &self.config;
        let params = shards::created(params.clone(), config.seed, |shard| loss(self, shard, 0))?;
        let vars = params.vars();
        let mut adam = AdamW::new(vars.clone(), AdamConfig { clip: 1.0, ..Default::default() });
        let mut ema = Ema::new(&params, 0.99)?;
        let mut shards = shards::shards(config.seed, stage, || params.clone());
        let shown = progress.stage(stage, steps, 0);
        for step in 0..steps {
            let loss = |shard: &mut Shard<Params>| loss(self, shard, step);
            let (value, grads) = shards::gradients(&mut shards, &vars, (stage, step), loss)?;
            adam.step(&grads, optim::cosine(config.lr, step, steps))?;
            ema.update(&params)?;
            shown.advance_with(1, value)?;
        }
        shown.finish();
        ema.apply(&params)?;
        Ok(params)
    }

    /// The network itself through the VAE and back; buffers stay.
    ///
    /// # Errors
    /// When it has a layer of a type that was not learned.
    pub fn reconstruct(&mut self, layout: &Layout, theta: &[f32]) -> Result<Vec<f32>> {
        let all = self.config.chunks(layout);
        let z = self.encode(&all, &theta)?;
        self.in_place(&all, &z, theta.to_vec())
    }

    /// A network of another layout whose layers are of the types that were learned; its buffers are those of
    /// `start`, to be measured anew.
    ///
    /// # Errors
    /// When it has a layer of a type that was not learned.
    pub fn generate(&mut self, layout: &Layout, start: &[f32], seed: u64) -> Result<Vec<f32>> {
        let all = self.config.chunks(layout);
        let z = self.sample(&all, 0..all.len(), seed)?;
        self.in_place(&all, &z, start.to_vec())
    }

    fn in_place(&mut self, all: &[Chunk], z: &Tensor, mut theta: Vec<f32>) -> Result<Vec<f32>> {
        for (i, some) in all.chunks(ROWS).enumerate() {
            let rows = self.decode(some, &z.narrow(0, i * ROWS, some.len())?)?;
            for (row, chunk) in rows.chunks_exact(self.config.chunk).zip(some) {
                theta[chunk.offset..chunk.offset + chunk.len].copy_from_slice(&row[..chunk.len]);
            }
        }
        weights::error::check_finite("the generated weights", &theta)?;
        Ok(theta)
    }

    /// Latents `[n, latent]` of chunks with these values.
    ///
    /// # Errors
    /// When a chunk is of a type that was not learned, or values cannot be read.
    pub fn encode(&mut self, all: &[Chunk], values: &dyn Values) -> Result<Tensor> {
        let (kinds, conditions) = self.conditions(all)?;
        self.latents(&Table { all, kinds, conditions }, values)
    }

    /// Latents `[n, latent]` of the chunks `range` of `all`, sampled by DDIM: from one seed a chunk has the same, whichever
    /// range it is sampled in.
    ///
    /// # Errors
    /// When a chunk is of a type that was not learned.
    pub fn sample(&mut self, all: &[Chunk], range: Range<usize>, seed: u64) -> Result<Tensor> {
        let (_, conditions) = self.conditions(&all[range.clone()])?;
        let mut rng = random::stream(seed, "layers");
        let noise = random::normal(&[all.len(), self.config.latent], &Device::Cpu, &mut rng)?;
        let mut parts = Vec::new();
        for start in range.clone().step_by(ROWS) {
            let n = ROWS.min(range.end - start);
            parts.push(self.denoised(noise.narrow(0, start, n)?, &conditions.narrow(0, start - range.start, n)?)?);
        }
        Ok(Tensor::cat(&parts, 0)?.affine(1.0 / self.scale, 0.0)?)
    }

    fn denoised(&mut self, mut z: Tensor, condition: &Tensor) -> Result<Tensor> {
        let alphas = self.schedule.alphas_cumulative();
        let steps = self.config.sampling_steps.min(alphas.len());
        let times: Vec<usize> = (0..steps).map(|i| (alphas.len() - 1) * (steps - i) / steps).collect();
        let shape = self.shape.clone();
        for (i, &t) in times.iter().enumerate() {
            // DDIM with a prediction of the clean latent.
            let time = Tensor::full(t as f32, z.dim(0)?, &Device::Cpu)?;
            let clean = denoise(&mut Eager::new(&mut self.denoiser), &shape, &z, &time, condition)?.detach();
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

    /// Values of some chunks from their latents `[n, latent]`: `n` rows of the chunk's length, of which a shorter chunk
    /// has the first.
    ///
    /// # Errors
    /// When a chunk is of a type that was not learned.
    pub fn decode(&mut self, some: &[Chunk], z: &Tensor) -> Result<Vec<f32>> {
        let (index, _) = self.conditions(some)?;
        let shape = self.vae.clone();
        let rows = decode(&mut Eager::new(&mut self.vae_params), &shape, z, Some(&index))?;
        let mut rows = rows.flatten_all()?.to_vec1::<f32>()?;
        for (row, chunk) in rows.chunks_exact_mut(self.config.chunk).zip(some) {
            let Moments { mean, std, .. } = self.moments[self.kind(chunk)?];
            row.iter_mut().for_each(|v| *v = *v * std + mean);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
