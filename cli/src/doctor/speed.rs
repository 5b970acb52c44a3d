//! A short benchmark: samples of a DDIM loop and training steps of a UNet.

use std::time::{Duration, Instant};

use candle_core::Device;
use inference::samplers::{self, Noise};
use inference::{Provider, Runtime, SampleOptions, SamplerKind, SessionPool};
use serde::Serialize;
use training::networks::denoiser::DenoiserShape;
use training::params::Params;
use training::speed::Trial;
use weights::manifest::{Prediction, Schedule};

use super::networks::unet;
use super::steps::of_denoiser_batch;
use crate::error::Result;

/// Steps of the DDIM loop.
const STEPS: usize = 10;
/// How long each measurement goes on, at least.
const LONG: Duration = Duration::from_millis(800);

/// What was measured, and of what.
#[derive(Debug, Serialize)]
pub struct Speed {
    /// Channels of the UNet, on latents `[4, 16, 16]` on a GPU and `[4, 8, 8]` on the CPU.
    sampling_channels: usize,
    sampling_batch: usize,
    sampling_steps: usize,
    samples_per_second: f64,
    training_channels: usize,
    training_batch: usize,
    training_steps_per_second: f64,
}

impl Speed {
    /// For people.
    pub fn lines(&self) -> [String; 2] {
        [
            format!(
                "{:.1} samples a second: UNet of {} channels, {} DDIM steps, batch {}",
                self.samples_per_second, self.sampling_channels, self.sampling_steps, self.sampling_batch
            ),
            format!(
                "{:.2} training steps a second: UNet of {} channels, batch {}",
                self.training_steps_per_second, self.training_channels, self.training_batch
            ),
        ]
    }
}

/// Channels, side of the latent and batch: what a CPU does in a moment, or what a GPU notices.
fn sizes(on_cpu: bool) -> (usize, usize, usize) {
    if on_cpu { (16, 8, 4) } else { (128, 16, 32) }
}

/// Measures both.
///
/// # Errors
/// When the graph does not run, or a step fails.
pub fn measure(runtime: &Runtime, device: &Device) -> Result<Speed> {
    let (sampling_channels, side, sampling_batch) = sizes(runtime.provider() == Provider::Cpu);
    let samples_per_second = sampling(runtime, &unet(sampling_channels, side), sampling_batch)?;
    let (training_channels, side, training_batch) = sizes(device.is_cpu());
    let training_steps_per_second = training(device, unet(training_channels, side), training_batch)?;
    Ok(Speed {
        sampling_channels,
        sampling_batch,
        sampling_steps: STEPS,
        samples_per_second,
        training_channels,
        training_batch,
        training_steps_per_second,
    })
}

/// Repeats `work` for as long as is long enough, after one that does not count; times a second.
fn rate(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let (begun, mut times) = (Instant::now(), 0u32);
    while begun.elapsed() < LONG {
        work()?;
        times += 1;
    }
    Ok(f64::from(times) / begun.elapsed().as_secs_f64())
}

fn sampling(runtime: &Runtime, shape: &DenoiserShape, batch: usize) -> Result<f64> {
    let mut params = Params::new(1, &Device::Cpu);
    of_denoiser_batch(&mut params, shape, 1)?;
    let pool = SessionPool::new(runtime, "denoiser", training::export::denoiser(shape, &params)?)?;
    let schedule = Schedule { steps: 1000, beta_start: 1e-4, beta_end: 2e-2, prediction: Prediction::Epsilon };
    let options =
        SampleOptions { sampler: SamplerKind::Ddim, steps: Some(STEPS), eta: Some(0.0), ..Default::default() };
    let plan = samplers::plan(&schedule, &options);
    let (dim, latent) = (shape.latent.iter().product::<usize>(), [&[batch], shape.latent.as_slice()].concat());
    let condition = vec![0.1f32; batch * shape.condition_dim];
    let once = || -> Result<()> {
        let mut predict = |z: &[f32], t: usize, out: &mut [f32]| {
            let times = vec![t as f32; batch];
            let inputs: [(&str, &[usize], &[f32]); 3] = [
                ("latent", &latent, z),
                ("timestep", &[batch], &times),
                ("condition", &[batch, shape.condition_dim], &condition),
            ];
            let outputs = pool.run(&inputs)?;
            if let Some(prediction) = outputs.get("prediction").filter(|p| p.data.len() == out.len()) {
                out.copy_from_slice(&prediction.data);
            }
            Ok(())
        };
        samplers::run(&plan, dim, &mut Noise::new(0, 0..batch), &mut predict, &mut |_| Ok(()))?;
        Ok(())
    };
    Ok(rate(once)? * batch as f64)
}

/// Steps a second, as they are taken in training.
fn training(device: &Device, shape: DenoiserShape, batch: usize) -> Result<f64> {
    // A GPU takes shards one after the other.
    training::device::choose(device);
    let mut trial = Trial::of(shape, batch, 1, device)?;
    rate(|| {
        trial.step()?;
        device.synchronize().map_err(training::Error::from)?;
        Ok(())
    })
}
