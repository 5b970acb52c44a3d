//! Layers of one network learned as chunks, and generated for networks of other depths (paper 4.1.4): a chunk is
//! conditioned on the type of its layer, on where in the network that layer is, and on which part of the layer it is.
//!
//! The vectors of one network are few. What is learned is how the layers of a type differ along the depth, not a
//! distribution over trained networks.

use candle_core::{Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use weights::Layout;
use weights::manifest::{Prediction, Schedule};

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

/// A part of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Type of its layer: chunks of equal types are comparable.
    pub kind: String,
    /// Where its layer is among those of its stage, from 0 to 1.
    pub position: f64,
    /// Which part of its layer.
    pub part: usize,
    /// First value in the network's flat vector.
    pub offset: usize,
    /// Values.
    pub len: usize,
}

/// How chunks are learned.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayersConfig {
    /// Values of a chunk.
    pub chunk: usize,
    /// Width inside the VAE; 0: encoder and decoder are one linear layer each.
    pub hidden: usize,
    /// Values of a latent.
    pub latent: usize,
    /// Weight of the KL divergence; 0: an autoencoder without noise.
    pub beta: f64,
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
            hidden: 512,
            latent: 64,
            beta: 1e-5,
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

/// The chunks of a network: each parameter that is no buffer is cut for itself. The type of a parameter is its name
/// with the block's number taken out (`layer2.0.conv1.weight` is a type of its own where its shape is), and its shape.
pub fn chunks(layout: &Layout, chunk: usize) -> Vec<Chunk> {
    let mut all = Vec::new();
    for param in layout.params.iter().filter(|p| !p.is_buffer()) {
        let (kind, block) = kind(&param.name);
        let blocks =
            layout.params.iter().filter_map(|p| self::kind(&p.name).1.filter(|_| self::kind(&p.name).0 == kind));
        let last = blocks.max().unwrap_or(0).max(1);
        let kind = format!("{kind} {:?}", param.shape);
        for (part, offset) in param.range().step_by(chunk.max(1)).enumerate() {
            let len = chunk.min(param.range().end - offset);
            let position = block.unwrap_or(0) as f64 / last as f64;
            all.push(Chunk { kind: kind.clone(), position, part, offset, len });
        }
    }
    all
}

/// A parameter's name with `*` for the number of its block, and that number.
pub fn kind(name: &str) -> (String, Option<usize>) {
    let mut block = None;
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse() {
            Ok(number) => {
                block = Some(number);
                "*"
            }
            Err(_) => part,
        })
        .collect();
    (parts.join("."), block)
}

/// What was learned from one network.
#[derive(Debug)]
pub struct Layers {
    config: LayersConfig,
    kinds: Vec<String>,
    parts: usize,
    /// Mean and deviation of each type.
    statistics: Vec<(f32, f32)>,
    vae: VaeShape,
    vae_params: Params,
    shape: DenoiserShape,
    denoiser: Params,
    schedule: Schedule,
    scale: f64,
}

/// Values of the condition that say where a layer is.
const POSITIONS: usize = 9;

/// A position from 0 to 1 as sines and cosines.
fn position_features(position: f64) -> Vec<f32> {
    let waves = (0..POSITIONS / 2).flat_map(|i| {
        let angle = std::f64::consts::PI * position * f64::from(1u32 << i);
        [angle.sin() as f32, angle.cos() as f32]
    });
    std::iter::once(position as f32).chain(waves).collect()
}

impl Layers {
    /// Learns the chunks of `theta` (`[d]` of `layout`).
    ///
    /// # Errors
    /// [`Error::Config`] when there is no chunk, [`Error::Diverged`], [`Error::Interrupted`].
    pub fn learn(config: &LayersConfig, layout: &Layout, theta: &[f32], progress: &Progress) -> Result<Self> {
        let all = chunks(layout, config.chunk);
        let wrong = config.chunk == 0 || config.batch == 0 || config.latent == 0 || config.sampling_steps == 0;
        if all.is_empty() || wrong {
            return Err(Error::Config("layers: chunk, batch, latent and sampling_steps must be at least 1".into()));
        }
        let mut kinds: Vec<String> = all.iter().map(|c| c.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        let parts = all.iter().map(|c| c.part + 1).max().unwrap_or(1);
        let statistics = kinds.iter().map(|kind| moments(&all, kind, theta)).collect();
        let index = kinds.len();
        let hidden = if config.hidden > 0 { vec![config.hidden] } else { Vec::new() };
        let (latent, form) = (vec![config.latent], VaeForm::Linear);
        let vae = VaeShape { length: config.chunk, hidden, latent, form, index, rows: None };
        let shape = DenoiserShape {
            latent: vec![config.latent],
            condition_dim: index + parts + POSITIONS,
            token_dim: 0,
            any_number: false,
            config: DenoiserConfig::Mlp { width: config.width, blocks: config.blocks },
        };
        let schedule = Schedule { steps: 1000, beta_start: 0.0015, beta_end: 0.0155, prediction: Prediction::Sample };
        let device = &Device::Cpu;
        let mut layers = Self {
            config: config.clone(),
            kinds,
            parts,
            statistics,
            vae,
            vae_params: Params::new(config.seed, device),
            shape,
            denoiser: Params::new(config.seed ^ 0xd1f5, device),
            schedule,
            scale: 1.0,
        };
        let rows = layers.rows(&all, theta)?;
        let (index, condition) = layers.conditions(&all)?;
        layers.fit_vae(&rows, &index, progress)?;
        layers.fit_denoiser(&rows, &index, &condition, progress)?;
        Ok(layers)
    }

    /// Standardised rows `[n, chunk]` of a network.
    fn rows(&self, all: &[Chunk], theta: &[f32]) -> Result<Tensor> {
        let mut rows = vec![0f32; all.len() * self.config.chunk];
        for (row, chunk) in rows.chunks_exact_mut(self.config.chunk).zip(all) {
            let (mean, std) = self.statistics[self.kind(chunk)?];
            let values = theta[chunk.offset..chunk.offset + chunk.len].iter().map(|v| (v - mean) / std);
            row.iter_mut().zip(values).for_each(|(r, v)| *r = v);
        }
        Ok(Tensor::from_vec(rows, (all.len(), self.config.chunk), &Device::Cpu)?)
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
            let mut part = vec![0f32; self.parts];
            let place = part.get_mut(chunk.part);
            *place.ok_or_else(|| Error::Config(format!("a layer of the type {} has too many parts", chunk.kind)))? =
                1.0;
            condition.extend_from_slice(row);
            condition.extend(part);
            condition.extend(position_features(chunk.position));
        }
        let condition = Tensor::from_vec(condition, (n, self.shape.condition_dim), &Device::Cpu)?;
        Ok((Tensor::from_vec(index, (n, kinds), &Device::Cpu)?, condition))
    }

    fn pick(&self, n: usize, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let picked: Vec<u32> =
            (0..self.config.batch.div_ceil(shards::SHARDS)).map(|_| rng.random_range(0..n as u32)).collect();
        Ok(Tensor::new(picked.as_slice(), &Device::Cpu)?)
    }

    fn fit_vae(&mut self, rows: &Tensor, index: &Tensor, progress: &Progress) -> Result<()> {
        let (c, n) = (self.config.clone(), rows.dim(0)?);
        let loss = |this: &Self, shard: &mut Shard<Params>| -> Result<Tensor> {
            let picked = this.pick(n, &mut shard.rng)?;
            let (x, index) = (rows.index_select(&picked, 0)?, index.index_select(&picked, 0)?);
            let mut b = Eager::new(&mut shard.networks);
            let (mean, log_variance) = encode(&mut b, &this.vae, &x, Some(&index))?;
            if c.beta == 0.0 {
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

    fn latents(&mut self, rows: &Tensor, index: &Tensor) -> Result<Tensor> {
        let shape = self.vae.clone();
        Ok(encode(&mut Eager::new(&mut self.vae_params), &shape, rows, Some(index))?.0.detach())
    }

    fn fit_denoiser(&mut self, rows: &Tensor, index: &Tensor, condition: &Tensor, progress: &Progress) -> Result<()> {
        let latents = self.latents(rows, index)?;
        self.scale = f64::from(inverse_deviation(&latents)?);
        let latents = latents.affine(self.scale, 0.0)?;
        let alphas = self.schedule.alphas_cumulative();
        let n = rows.dim(0)?;
        let loss = |this: &Self, shard: &mut Shard<Params>| -> Result<Tensor> {
            let picked = this.pick(n, &mut shard.rng)?;
            let (z, c) = (latents.index_select(&picked, 0)?, condition.index_select(&picked, 0)?);
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
        loss: impl Fn(&Self, &mut Shard<Params>) -> Result<Tensor> + Sync,
        progress: &Progress,
    ) -> Result<Params> {
        let config = &self.config;
        let params = shards::created(params.clone(), config.seed, |shard| loss(self, shard))?;
        let vars = params.vars();
        let mut adam = AdamW::new(vars.clone(), AdamConfig { clip: 1.0, ..Default::default() });
        let mut ema = Ema::new(&params, 0.99)?;
        let mut shards = shards::shards(config.seed, stage, || params.clone());
        let shown = progress.stage(stage, steps, 0);
        for step in 0..steps {
            let (value, grads) = shards::gradients(&mut shards, &vars, (stage, step), |shard| loss(self, shard))?;
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
        let all = chunks(layout, self.config.chunk);
        let rows = self.rows(&all, theta)?;
        let (index, _) = self.conditions(&all)?;
        let z = self.latents(&rows, &index)?;
        self.weights(&all, &z, &index, theta.to_vec())
    }

    /// A network of another layout whose layers are of the types that were learned; its buffers are those of
    /// `start`, to be measured anew.
    ///
    /// # Errors
    /// When it has a layer of a type that was not learned.
    pub fn generate(&mut self, layout: &Layout, start: &[f32], seed: u64) -> Result<Vec<f32>> {
        let all = chunks(layout, self.config.chunk);
        let (index, condition) = self.conditions(&all)?;
        let mut rng = random::stream(seed, "layers");
        let mut z = random::normal(&[all.len(), self.config.latent], &Device::Cpu, &mut rng)?;
        let alphas = self.schedule.alphas_cumulative();
        let steps = self.config.sampling_steps.min(alphas.len());
        let times: Vec<usize> = (0..steps).map(|i| (alphas.len() - 1) * (steps - i) / steps).collect();
        let shape = self.shape.clone();
        for (i, &t) in times.iter().enumerate() {
            // DDIM with a prediction of the clean latent.
            let time = Tensor::full(t as f32, all.len(), &Device::Cpu)?;
            let clean = denoise(&mut Eager::new(&mut self.denoiser), &shape, &z, &time, &condition)?.detach();
            let noise = ((&z - clean.affine(alphas[t].sqrt(), 0.0)?)?).affine(1.0 / (1.0 - alphas[t]).sqrt(), 0.0)?;
            z = match times.get(i + 1) {
                Some(&next) => {
                    (clean.affine(alphas[next].sqrt(), 0.0)? + noise.affine((1.0 - alphas[next]).sqrt(), 0.0)?)?
                }
                None => clean,
            };
        }
        let z = z.affine(1.0 / self.scale, 0.0)?;
        self.weights(&all, &z, &index, start.to_vec())
    }

    fn weights(&mut self, all: &[Chunk], z: &Tensor, index: &Tensor, mut theta: Vec<f32>) -> Result<Vec<f32>> {
        let shape = self.vae.clone();
        let rows = decode(&mut Eager::new(&mut self.vae_params), &shape, z, Some(index))?.to_vec2::<f32>()?;
        for (row, chunk) in rows.iter().zip(all) {
            let (mean, std) = self.statistics[self.kind(chunk)?];
            let target = theta[chunk.offset..chunk.offset + chunk.len].iter_mut();
            target.zip(row).for_each(|(value, v)| *value = v * std + mean);
        }
        weights::error::check_finite("the generated weights", &theta)?;
        Ok(theta)
    }
}

/// Mean and deviation of all values of one type.
fn moments(all: &[Chunk], kind: &str, theta: &[f32]) -> (f32, f32) {
    let own = all.iter().filter(|c| c.kind == kind);
    let values: Vec<f64> = own.flat_map(|c| &theta[c.offset..c.offset + c.len]).map(|&v| f64::from(v)).collect();
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    (mean as f32, (variance.sqrt() as f32).max(1e-4))
}

/// The network of `to` whose layers are those of `from` (`theta`) of the same type and the nearest position; buffers
/// too. Of two equally near the earlier.
///
/// # Errors
/// [`Error::Config`] when a layer has none of its type.
pub fn nearest_copy(from: &Layout, theta: &[f32], to: &Layout) -> Result<Vec<f32>> {
    let mut copy = vec![0f32; to.parameters()];
    let last = |layout: &Layout, kind: &str| {
        let blocks = layout.params.iter().map(|p| self::kind(&p.name)).filter(|(k, _)| k == kind);
        blocks.filter_map(|(_, block)| block).max().unwrap_or(0).max(1) as f64
    };
    for param in &to.params {
        let (kind, block) = kind(&param.name);
        let position = block.unwrap_or(0) as f64 / last(to, &kind);
        let end = last(from, &kind);
        let same = from.params.iter().filter(|p| p.shape == param.shape && self::kind(&p.name).0 == kind);
        let apart = |p: &&weights::ParamSpec| (self::kind(&p.name).1.unwrap_or(0) as f64 / end - position).abs();
        let nearest = same.min_by(|a, b| apart(a).total_cmp(&apart(b)));
        let nearest = nearest.ok_or_else(|| Error::Config(format!("there is no layer like {}", param.name)))?;
        copy[param.range()].copy_from_slice(&theta[nearest.range()]);
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weights::{ParamSpec, resnet};

    #[test]
    fn layers_have_types_and_positions() {
        let layout = resnet::layout(14, &[4, 6, 8], 3);
        let all = chunks(&layout, 100);
        let of = |name: &str| {
            let range = layout.get(name).unwrap().range();
            all.iter().filter(|c| range.contains(&c.offset)).cloned().collect::<Vec<_>>()
        };
        let (first, second) = (of("layer2.1.conv1.weight"), of("layer2.0.conv2.weight"));
        assert_eq!(
            first.iter().map(|c| (c.part, c.len, c.position)).collect::<Vec<_>>(),
            [(0, 100, 1.0), (1, 100, 1.0), (2, 100, 1.0), (3, 24, 1.0)]
        );
        assert_ne!(first[0].kind, of("layer2.0.conv1.weight")[0].kind, "the first of a stage has other inputs");
        assert_eq!(second[0].position, 0.0);
        assert!(of("bn1.running_mean").is_empty());
        let values: usize = all.iter().map(|c| c.len).sum();
        assert_eq!(values + layout.buffers().map(weights::ParamSpec::len).sum::<usize>(), layout.parameters());
    }

    #[test]
    fn a_network_comes_back_and_its_own_layers_are_generated() {
        let layout = resnet::layout(14, &[4, 4, 8], 3);
        let mut rng = random::stream(3, "test");
        let theta = random::normal_vec(layout.parameters(), &mut rng);
        let config = LayersConfig {
            chunk: 144,
            hidden: 0,
            latent: 48,
            beta: 0.0,
            vae_steps: 600,
            width: 128,
            blocks: 2,
            diffusion_steps: 800,
            batch: 32,
            lr: 3e-3,
            sampling_steps: 10,
            ..LayersConfig::default()
        };
        let mut layers = Layers::learn(&config, &layout, &theta, &Progress::silent()).unwrap();
        // Over all values that are learned, of their length.
        let apart = |other: &[f32]| {
            let own = layout.params.iter().filter(|p| !p.is_buffer()).flat_map(ParamSpec::range);
            let (missed, all) = own.fold((0.0, 0.0), |(m, a), i| {
                (m + f64::from(other[i] - theta[i]).powi(2), a + f64::from(theta[i]).powi(2))
            });
            (missed / all).sqrt()
        };
        let back = layers.reconstruct(&layout, &theta).unwrap();
        assert!(apart(&back) < 0.2, "{}", apart(&back));
        let made = layers.generate(&layout, &theta, 1).unwrap();
        assert!(apart(&made) < 0.5, "{}", apart(&made));
    }

    #[test]
    fn what_was_learned_of_one_depth_is_generated_for_another() {
        let (from, to) = (resnet::layout(14, &[2, 2, 4], 3), resnet::layout(20, &[2, 2, 4], 3));
        // Weights that are a constant for each type: a generator must know the type, and nothing else.
        let mut theta = vec![0f32; from.parameters()];
        let value = |name: &str| kind(name).0.bytes().map(u32::from).sum::<u32>() as f32 % 17.0;
        from.params.iter().for_each(|p| theta[p.range()].fill(value(&p.name)));
        let config = LayersConfig {
            chunk: 36,
            hidden: 16,
            latent: 4,
            vae_steps: 30,
            width: 16,
            blocks: 1,
            diffusion_steps: 30,
            batch: 16,
            sampling_steps: 5,
            ..LayersConfig::default()
        };
        let mut layers = Layers::learn(&config, &from, &theta, &Progress::silent()).unwrap();
        let start = vec![7.5; to.parameters()];
        let made = layers.generate(&to, &start, 1).unwrap();
        for param in &to.params {
            for &v in &made[param.range()] {
                let wanted = if param.is_buffer() { 7.5 } else { value(&param.name) };
                assert!((v - wanted).abs() < 1e-2, "{} is {v}, not {wanted}", param.name);
            }
        }
        assert_eq!(layers.generate(&to, &start, 1).unwrap(), made);
        let copy = nearest_copy(&from, &theta, &to).unwrap();
        assert!(to.params.iter().all(|p| copy[p.range()].iter().all(|v| *v == value(&p.name))));
        // Another width is of types that nobody has seen.
        let wide = resnet::layout(20, &[2, 4, 4], 3);
        let error = layers.generate(&wide, &vec![0.0; wide.parameters()], 1).unwrap_err().to_string();
        assert!(error.contains("was learned"), "{error}");
        assert!(nearest_copy(&from, &theta, &wide).is_err());
    }
}
