//! From noise to latents. A sampler is a plan of steps: with the network's prediction p at z_t, each step is
//! z ← a·z + b·p + c·x₀' + σ·n, n ~ N(0, I), with x₀' the clean latent that the step before predicted. [`ddpm`],
//! [`ddim`] and [`dpm_solver`] fill in the coefficients; [`run`] walks a plan for latents that are all at the same step, and
//! the generator walks many, each at its own.

pub mod ddim;
pub mod ddpm;
pub mod dpm_solver;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use weights::manifest::{Prediction, Schedule};

use crate::error::{Result, check_finite};
use crate::options::{SampleOptions, SamplerKind};

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Timestep t in 0 … T−1 at which the network predicts.
    pub t: usize,
    /// Coefficient a of z_t.
    pub latent: f32,
    /// Coefficient b of the prediction.
    pub prediction: f32,
    /// Coefficient c of the clean latent that the step before predicted; 0 where only this step's counts.
    pub previous: f32,
    /// Standard deviation σ of the added noise.
    pub noise: f32,
    /// Coefficients of z_t and of the prediction in this step's clean latent x₀.
    pub clean: [f32; 2],
}

impl Step {
    /// The step with coefficients `x0` and `latent` on the clean latent and on z_t, for what the network predicts:
    /// from ε, x₀ = (z_t − √(1−ᾱ_t)·ε) / √ᾱ_t.
    fn from_clean(t: usize, alpha_bar: f64, prediction: Prediction, x0: f64, latent: f64, noise: f64) -> Self {
        // x₀ = clean[0]·z_t + clean[1]·p
        let clean = match prediction {
            Prediction::Sample => [0.0, 1.0],
            Prediction::Epsilon => [1.0 / alpha_bar.sqrt(), -(1.0 - alpha_bar).sqrt() / alpha_bar.sqrt()],
        };
        Self {
            t,
            latent: (latent + x0 * clean[0]) as f32,
            prediction: (x0 * clean[1]) as f32,
            previous: 0.0,
            noise: noise as f32,
            clean: clean.map(|c| c as f32),
        }
    }

    /// Takes this step with latents `z` of which the network predicts `prediction`. `previous` is what the step before left in
    /// it, of the plans that need it (empty where none does). All have the same length.
    pub(crate) fn advance(&self, z: &mut [f32], prediction: &[f32], previous: &mut [f32], noise: &mut Noise) {
        let own = |value: f32, p: f32| self.latent * value + self.prediction * p;
        if previous.is_empty() {
            z.iter_mut().zip(prediction).for_each(|(value, &p)| *value = own(*value, p));
        }
        for ((value, &p), before) in z.iter_mut().zip(prediction).zip(previous) {
            let clean = self.clean[0] * *value + self.clean[1] * p;
            *value = own(*value, p) + self.previous * *before;
            *before = clean;
        }
        if self.noise > 0.0 {
            noise.add(z, self.noise);
        }
    }
}

/// Whether steps of a plan use the clean latent of the step before.
pub(crate) fn is_multistep(plan: &[Step]) -> bool {
    plan.iter().any(|step| step.previous != 0.0)
}

/// The plan of `options` under `schedule`, from t = T−1 down.
pub fn plan(schedule: &Schedule, options: &SampleOptions) -> Vec<Step> {
    let steps = options.effective_steps(schedule);
    match options.sampler {
        SamplerKind::Ddpm => ddpm::plan(schedule, steps),
        SamplerKind::Ddim => ddim::plan(schedule, steps, options.effective_eta(schedule)),
        SamplerKind::DpmSolverPp => dpm_solver::plan(schedule, steps),
    }
}

/// `steps` timesteps spread evenly over 0 … T−1, the last of them T−1, in falling order; all of them for
/// `steps` ≥ T.
pub fn timesteps(total: usize, steps: usize) -> Vec<usize> {
    let steps = steps.clamp(1, total.max(1));
    (1..=steps).rev().map(|i| ((i * total + steps / 2) / steps).saturating_sub(1)).collect()
}

/// Each timestep of the plan with ᾱ there and ᾱ at the next, cleaner one (1 after the last).
fn noise_levels(schedule: &Schedule, steps: usize) -> Vec<(usize, f64, f64)> {
    let alphas = schedule.alphas_cumulative();
    let times = timesteps(schedule.steps, steps);
    let next = times.iter().skip(1).map(|&t| alphas[t]).chain([1.0]);
    times.iter().zip(next).map(|(&t, next)| (t, alphas[t], next)).collect()
}

/// Noise of each sample from a stream of its own, so that a sample does not depend on the others.
#[derive(Debug)]
pub struct Noise(Vec<ChaCha8Rng>);

impl Noise {
    /// Streams of the samples `indices` under `seed`.
    pub fn new(seed: u64, indices: std::ops::Range<usize>) -> Self {
        Self(
            indices
                .map(|index| {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    rng.set_stream(index as u64);
                    rng
                })
                .collect(),
        )
    }

    /// The latents that walks begin with, `[samples × dim]`: z_T ~ N(0, I).
    pub fn first(&mut self, dim: usize) -> Vec<f32> {
        let mut z = vec![0.0; self.samples() * dim];
        self.each(&mut z, |value, draw| *value = draw);
        z
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.0.len()
    }

    /// Adds noise of this deviation to `z` (`[samples × dim]`).
    pub(crate) fn add(&mut self, z: &mut [f32], deviation: f32) {
        self.each(z, |value, draw| *value += deviation * draw);
    }

    /// Gives each value of `z` (`[samples × dim]`) with a normal draw to `f`, sample by sample.
    fn each(&mut self, z: &mut [f32], f: impl Fn(&mut f32, f32)) {
        let dim = z.len() / self.0.len().max(1);
        if dim == 0 {
            return;
        }
        for (row, rng) in z.chunks_exact_mut(dim).zip(&mut self.0) {
            row.iter_mut().for_each(|value| f(value, rng.sample(StandardNormal)));
        }
    }
}

/// Writes the network's prediction at z (`[samples × dim]`) and timestep t into the third argument.
pub type Predict<'a> = dyn FnMut(&[f32], usize, &mut [f32]) -> Result<()> + 'a;

/// Walks `plan` from z_T ~ N(0, I) and gives the latents, `[samples × dim]`, as the denoiser sees them.
///
/// `after` is called after each step with the number of steps done and may end the walk with an error.
///
/// # Errors
/// Those of `predict` and `after`; [`crate::Error::NonFinite`] when the latents are not finite at the end.
pub fn run(
    plan: &[Step],
    dim: usize,
    noise: &mut Noise,
    predict: &mut Predict<'_>,
    after: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<f32>> {
    let mut z = noise.first(dim);
    let mut prediction = vec![0.0; z.len()];
    let mut previous = vec![0.0; if is_multistep(plan) { z.len() } else { 0 }];
    for (done, step) in (1..).zip(plan) {
        predict(&z, step.t, &mut prediction)?;
        step.advance(&mut z, &prediction, &mut previous, noise);
        after(done)?;
    }
    check_finite("the sampled latents", &z)?;
    Ok(z)
}

/// Classifier-free guidance: `out` becomes null + `guidance` · (conditional − null), all of equal length.
pub fn guide(conditional: &[f32], null: &[f32], guidance: f32, out: &mut [f32]) {
    for ((out, &c), &n) in out.iter_mut().zip(conditional).zip(null) {
        *out = n + guidance * (c - n);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn schedule(prediction: Prediction) -> Schedule {
        Schedule { steps: 1000, beta_start: 1e-4, beta_end: 0.02, prediction }
    }

    /// The exact posterior prediction for x₀ ~ N(mean, var): E[x₀|z_t], or the ε that goes with it.
    pub(crate) fn gaussian(
        schedule: &Schedule,
        mean: f64,
        var: f64,
    ) -> impl FnMut(&[f32], usize, &mut [f32]) -> Result<()> {
        let alphas = schedule.alphas_cumulative();
        let kind = schedule.prediction;
        move |z, t, out| {
            let a = alphas[t];
            for (out, &z) in out.iter_mut().zip(z) {
                let z = f64::from(z);
                let x0 = mean + a.sqrt() * var / (a * var + 1.0 - a) * (z - a.sqrt() * mean);
                *out = match kind {
                    Prediction::Sample => x0 as f32,
                    Prediction::Epsilon => ((z - a.sqrt() * x0) / (1.0 - a).sqrt()) as f32,
                };
            }
            Ok(())
        }
    }

    pub(crate) fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (mean, values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n)
    }

    /// Samples `count` latents of `dim` values with the exact predictor of a Gaussian.
    pub(crate) fn sample(
        plan: &[Step],
        schedule: &Schedule,
        (mean, var): (f64, f64),
        seed: u64,
        indices: std::ops::Range<usize>,
        dim: usize,
    ) -> Vec<f32> {
        run(plan, dim, &mut Noise::new(seed, indices), &mut gaussian(schedule, mean, var), &mut |_| Ok(())).unwrap()
    }

    #[test]
    fn timesteps_are_even_and_end_at_the_noisiest() {
        assert_eq!(timesteps(10, 10), (0..10).rev().collect::<Vec<_>>());
        assert_eq!(timesteps(1000, 4), [999, 749, 499, 249]);
        assert_eq!(timesteps(1000, 1), [999]);
        assert_eq!(timesteps(10, 99).len(), 10);
        for steps in 1..=60 {
            let times = timesteps(60, steps);
            assert_eq!((times.len(), times[0]), (steps, 59));
            assert!(times.windows(2).all(|w| w[0] > w[1]), "{times:?}");
        }
    }

    #[test]
    fn a_sample_is_the_same_alone_and_among_others() {
        let schedule = schedule(Prediction::Sample);
        for plan in [ddpm::plan(&schedule, 50), ddim::plan(&schedule, 20, 0.5), dpm_solver::plan(&schedule, 9)] {
            let three = sample(&plan, &schedule, (1.0, 2.0), 7, 0..3, 5);
            let alone: Vec<f32> = (0..3).flat_map(|i| sample(&plan, &schedule, (1.0, 2.0), 7, i..i + 1, 5)).collect();
            assert_eq!(three, alone);
            assert_ne!(three[..5], three[5..10]);
            assert_ne!(three, sample(&plan, &schedule, (1.0, 2.0), 8, 0..3, 5));
        }
    }

    #[test]
    fn guidance_goes_from_null_through_conditional() {
        let (conditional, null) = ([3.0, 4.0], [1.0, 2.0]);
        for (guidance, expected) in [(0.0, [1.0, 2.0]), (1.0, [3.0, 4.0]), (2.0, [5.0, 6.0])] {
            let mut out = [0.0; 2];
            guide(&conditional, &null, guidance, &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn latents_that_are_not_finite_and_cancelling_are_errors() {
        let schedule = schedule(Prediction::Sample);
        let plan = ddim::plan(&schedule, 5, 0.0);
        let mut nan = |_: &[f32], _: usize, out: &mut [f32]| {
            out.fill(f32::NAN);
            Ok(())
        };
        let error = run(&plan, 2, &mut Noise::new(0, 0..1), &mut nan, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.code(), "non_finite");
        let mut calls = 0;
        let mut stop = |done: usize| match done {
            3 => Err(crate::Error::Cancelled { step: 3, total: 5 }),
            _ => Ok(()),
        };
        let mut predict = |_: &[f32], _: usize, out: &mut [f32]| {
            calls += 1;
            out.fill(0.0);
            Ok(())
        };
        let error = run(&plan, 2, &mut Noise::new(0, 0..1), &mut predict, &mut stop).unwrap_err();
        assert_eq!((error.code(), calls), ("cancelled", 3));
    }
}
