//! One training step of a denoiser, on made-up data, to be timed beside another program's step of the same network.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use weights::manifest::{Latent, Schedule};

use crate::config::DiffusionConfig;
use crate::error::Result;
use crate::networks::denoiser::{DenoiserConfig, DenoiserShape};
use crate::networks::unet::UnetConfig;
use crate::optim::AdamConfig;
use crate::params::Params;
use crate::random;
use crate::stages::diffusion::{Denoiser, Learner};
use crate::stages::shards::{self, SHARDS, Shard};

/// Latents of every trial.
const LATENT: [usize; 3] = [8, 16, 16];
/// Latents of the residual MLP.
const FLAT: usize = 512;
/// Width of every trial's condition.
const CONDITION: usize = 512;
/// Examples of a step.
pub const BATCH: usize = 64;
/// Learning rate of every step.
pub const RATE: f64 = 1e-4;

/// The networks there are trials of.
pub const NETWORKS: [&str; 3] = ["unet", "mlp", "transformer"];

/// A denoiser with fixed random inputs, learning.
pub struct Trial {
    shards: Vec<Shard<(Denoiser, Inputs)>>,
    learner: Learner,
    steps: usize,
}

/// A shard's inputs and what is to be predicted from them.
struct Inputs {
    latent: Tensor,
    timestep: Tensor,
    condition: Tensor,
    target: Tensor,
}

impl Inputs {
    /// Those of `n` examples.
    fn random(of: &DenoiserShape, n: usize, (shard, seed): (usize, u64), device: &Device) -> Result<Self> {
        let mut rng = random::stream(seed, &format!("trial {shard}"));
        let shape: Vec<usize> = std::iter::once(n).chain(of.latent.iter().copied()).collect();
        let times: Vec<f32> = (0..n).map(|i| ((i * 37 + shard * 11) % 1000) as f32).collect();
        Ok(Self {
            latent: random::normal(&shape, device, &mut rng)?,
            timestep: Tensor::from_vec(times, n, device)?,
            condition: random::normal(&[n, of.condition_dim], device, &mut rng)?,
            target: random::normal(&shape, device, &mut rng)?,
        })
    }
}

/// The denoiser of this name; none where there is no such trial.
fn denoiser(name: &str) -> Option<(DenoiserConfig, Vec<usize>)> {
    Some(match name {
        "unet" => {
            let unet = UnetConfig { channels: 80, multipliers: vec![1, 2, 4], groups: 8, attention: 0 };
            (DenoiserConfig::Unet(unet), LATENT.to_vec())
        }
        "mlp" => (DenoiserConfig::Mlp { width: 1024, blocks: 5 }, vec![FLAT]),
        "transformer" => {
            (DenoiserConfig::Transformer { width: 256, blocks: 12, heads: 4, pieces: 64 }, LATENT.to_vec())
        }
        _ => return None,
    })
}

impl Trial {
    /// A trial of one of [`NETWORKS`]; none of another name.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(name: &str, seed: u64) -> Result<Option<Self>> {
        let Some((config, latent)) = denoiser(name) else { return Ok(None) };
        let shape = DenoiserShape { latent, condition_dim: CONDITION, token_dim: 0, any_number: false, config };
        Self::of(shape, BATCH, seed, &Device::Cpu).map(Some)
    }

    /// A trial of this denoiser on batches of `batch`, rounded up to whole shards.
    ///
    /// # Errors
    /// When there is no memory for it, or shapes do not fit.
    pub fn of(shape: DenoiserShape, batch: usize, seed: u64, device: &Device) -> Result<Self> {
        let DiffusionConfig { timesteps, beta_start, beta_end, prediction, weight_decay, ema, .. } =
            DiffusionConfig::default();
        let latent = Latent { shape: shape.latent.clone(), scale: 1.0 };
        let schedule = Schedule { steps: timesteps, beta_start, beta_end, prediction };
        let mut denoiser = Denoiser { shape, params: Params::new(seed, device), schedule, latent };
        let inputs = |i| Inputs::random(&denoiser.shape, batch.div_ceil(SHARDS), (i, seed), device);
        let inputs = (0..SHARDS).map(inputs).collect::<Result<Vec<_>>>()?;
        // Parameters are made by first use.
        if let Some(first) = inputs.first() {
            denoiser.denoise(&first.latent, &first.timestep, &first.condition)?;
        }
        let adam = AdamConfig { weight_decay, clip: 1.0, ..Default::default() };
        let learner = Learner::new(&denoiser.params, 1.0, adam, ema)?;
        let shard = |inputs| Shard { networks: (denoiser.clone(), inputs), rng: random::stream(seed, "trial") };
        Ok(Self { shards: inputs.into_iter().map(shard).collect(), learner, steps: 0 })
    }

    /// Parameters of the network.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.learner.params.vars().iter().map(|var| var.elem_count()).sum()
    }

    /// Writes `model.safetensors`, the parameters as they are now by name, and `data.safetensors`, the inputs of a whole
    /// batch: `latent`, `timestep`, `condition` and `target`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let model: HashMap<String, Tensor> = self.learner.params.snapshot()?.into_iter().collect();
        candle_core::safetensors::save(&model, folder.join("model.safetensors"))?;
        let part = |part: fn(&Inputs) -> &Tensor| {
            let all: Vec<&Tensor> = self.shards.iter().map(|shard| part(&shard.networks.1)).collect();
            Tensor::cat(&all, 0)
        };
        let data = HashMap::from([
            ("latent", part(|inputs| &inputs.latent)?),
            ("timestep", part(|inputs| &inputs.timestep)?),
            ("condition", part(|inputs| &inputs.condition)?),
            ("target", part(|inputs| &inputs.target)?),
        ]);
        candle_core::safetensors::save(&data, folder.join("data.safetensors"))?;
        Ok(())
    }

    /// One step as [`crate::stages::diffusion`] takes it: loss and gradients of each shard, AdamW with clipping, moving
    /// average. Gives the loss before it.
    ///
    /// # Errors
    /// When the loss is not finite.
    pub fn step(&mut self) -> Result<f32> {
        let (loss, grads) = shards::learn(&mut self.shards, ("trial", self.steps), |shard, share| {
            let (denoiser, inputs) = &mut shard.networks;
            let Inputs { latent, timestep, condition, target } = inputs;
            let error = |prediction: &Tensor| Ok((prediction - &*target)?.sqr()?.mean_all()?);
            denoiser.learn([latent, timestep, condition], share, error)
        })?;
        self.learner.step(grads, RATE)?;
        self.steps += 1;
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_of_any_denoiser_learns() {
        let unet = UnetConfig { channels: 8, multipliers: vec![1, 2], groups: 4, attention: 2 };
        let shape = |latent: &[usize], config| DenoiserShape {
            latent: latent.to_vec(),
            condition_dim: 6,
            token_dim: 2,
            any_number: false,
            config,
        };
        for shape in
            [shape(&[2, 8, 8], DenoiserConfig::Unet(unet)), shape(&[8], DenoiserConfig::Mlp { width: 16, blocks: 1 })]
        {
            let mut trial = Trial::of(shape, 3, 1, &Device::Cpu).unwrap();
            let losses: Vec<f32> = (0..40).map(|_| trial.step().unwrap()).collect();
            assert!(losses[39] < losses[0], "{losses:?}");
        }
        assert!(Trial::new("no such network", 1).unwrap().is_none());
    }
}
