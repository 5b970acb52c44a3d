//! What a caller may choose about sampling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use weights::manifest::{Prediction, Schedule};

use crate::error::{Error, Result};
use crate::refine::Refine;

/// The sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Ancestral sampling with the posterior variance (Eq. 6).
    Ddpm,
    /// Denoising diffusion implicit models: few steps, deterministic at η = 0.
    #[default]
    Ddim,
    /// DPM-Solver++(2M): of second order, so that still fewer steps do; deterministic.
    DpmSolverPp,
}

impl SamplerKind {
    /// Steps taken when the caller names none, never more than the schedule has: 5 of DDIM and DPM-Solver++ where the
    /// denoiser predicts the clean latent, as it does unless configured otherwise; 20 of DDPM, and where it predicts the
    /// noise. The fewest that lost no accuracy where that was measured (docs/PERFORMANCE.md, Steps).
    pub fn default_steps(self, schedule: &Schedule) -> usize {
        let few = match (self, schedule.prediction) {
            (Self::Ddim | Self::DpmSolverPp, Prediction::Sample) => 5,
            (Self::Ddpm, _) | (_, Prediction::Epsilon) => 20,
        };
        schedule.steps.min(few)
    }

    /// DDIM's η when the caller names none: 1 where the denoiser predicts the noise, of which a deterministic walk lost 5
    /// points of accuracy; else 0.
    pub fn default_eta(self, schedule: &Schedule) -> f64 {
        match (self, schedule.prediction) {
            (Self::Ddim, Prediction::Epsilon) => 1.0,
            _ => 0.0,
        }
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "ddpm" => Ok(Self::Ddpm),
            "ddim" => Ok(Self::Ddim),
            "dpm_solver_pp" => Ok(Self::DpmSolverPp),
            _ => Err(Error::UnknownSampler(text.to_owned())),
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::DpmSolverPp => "dpm_solver_pp",
        })
    }
}

/// Options of one sampling request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleOptions {
    /// Number of samples.
    pub count: usize,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Seed; sample `i` draws its noise from (seed, i), so it is the same alone and among others.
    pub seed: u64,
    /// Sampling steps, 1 to T; none means [`SamplerKind::default_steps`].
    pub steps: Option<usize>,
    /// DDIM's η in [0, 1]: 0 is deterministic, 1 has the variance of DDPM; none means [`SamplerKind::default_eta`]. The
    /// others take none.
    pub eta: Option<f64>,
    /// Classifier-free guidance: null + guidance · (conditional − null); 1 is off.
    pub guidance: f32,
    /// Deviation of noise added to what was sampled, in deviations of the latents: samples differ more, and are worse.
    pub latent_noise: f32,
    /// Quality that is asked for, of a generator that is conditioned on it: deviations of accuracy above the mean of a
    /// task's checkpoints; none means the manifest's default.
    pub quality: Option<f32>,
    /// How each latent is refined on the request's labelled examples; none: it stays as it was sampled.
    pub refine: Option<Refine>,
    /// Whether the statistics that networks store are measured on the request's examples in place of the generated ones.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recalibrate: bool,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self {
            count: 1,
            sampler: SamplerKind::Ddim,
            seed: 0,
            steps: None,
            eta: None,
            guidance: 1.0,
            latent_noise: 0.0,
            quality: None,
            refine: None,
            recalibrate: false,
        }
    }
}

/// Upper bounds on what one request may ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleLimits {
    /// Most samples.
    pub max_count: usize,
    /// Most steps.
    pub max_steps: usize,
    /// Largest guidance.
    pub max_guidance: f32,
}

impl Default for SampleLimits {
    fn default() -> Self {
        Self { max_count: 256, max_steps: 10_000, max_guidance: 20.0 }
    }
}

impl SampleOptions {
    /// Steps that are taken under `schedule`.
    pub fn effective_steps(&self, schedule: &Schedule) -> usize {
        self.steps.unwrap_or_else(|| self.sampler.default_steps(schedule))
    }

    /// η under `schedule`.
    pub fn effective_eta(&self, schedule: &Schedule) -> f64 {
        self.eta.unwrap_or_else(|| self.sampler.default_eta(schedule))
    }

    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`Error::Option`] names the first option outside its range.
    pub fn validate(&self, limits: &SampleLimits) -> Result<()> {
        check("count", self.count, 1, limits.max_count)?;
        if let Some(steps) = self.steps {
            check("steps", steps, 1, limits.max_steps)?;
        }
        let eta = self.eta.unwrap_or_default();
        if !(0.0..=1.0).contains(&eta) {
            return option("eta", eta, "a number from 0 to 1");
        }
        if self.sampler != SamplerKind::Ddim && eta != 0.0 {
            let rule = format!("left out (or 0) with sampler {}; only ddim has it", self.sampler);
            return option("eta", eta, &rule);
        }
        if !(0.0..=limits.max_guidance).contains(&self.guidance) {
            return option("guidance", self.guidance, &format!("a number from 0 to {}", limits.max_guidance));
        }
        if !(0.0..=3.0).contains(&self.latent_noise) {
            return option("latent_noise", self.latent_noise, "a number from 0 to 3");
        }
        if self.quality.is_some_and(|q| !(-3.0..=3.0).contains(&q)) {
            return option("quality", self.quality.unwrap_or_default(), "a number from -3 to 3");
        }
        self.refine.as_ref().map_or(Ok(()), Refine::validate)?;
        Ok(())
    }

    /// Checks what depends on the generator: no more steps than its schedule has, and guidance only where it was
    /// trained for it.
    pub(crate) fn validate_for(&self, schedule: &Schedule, guidance: bool, quality: bool) -> Result<()> {
        if let Some(asked) = self.quality.filter(|_| !quality) {
            return option("quality", asked, "left out for this generator, which was trained without it");
        }
        check("steps", self.effective_steps(schedule), 1, schedule.steps)?;
        if self.guidance != 1.0 && !guidance {
            return option(
                "guidance",
                self.guidance,
                "1 for this generator, which was trained without dropping the condition",
            );
        }
        Ok(())
    }
}

fn check(name: &'static str, found: usize, low: usize, high: usize) -> Result<()> {
    match (low..=high).contains(&found) {
        true => Ok(()),
        false => option(name, found, &format!("a whole number from {low} to {high}")),
    }
}

fn option<T>(option: &'static str, found: impl fmt::Display, right: &str) -> Result<T> {
    Err(Error::Option { option, found: found.to_string(), right: right.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule =
        Schedule { steps: 1000, beta_start: 1e-4, beta_end: 0.02, prediction: Prediction::Sample };

    fn refused(options: SampleOptions) -> &'static str {
        match options.validate(&SampleLimits::default()).unwrap_err() {
            Error::Option { option, .. } => option,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn each_option_has_its_range() {
        let good = SampleOptions::default();
        good.validate(&SampleLimits::default()).unwrap();
        assert_eq!(refused(SampleOptions { count: 0, ..good.clone() }), "count");
        assert_eq!(refused(SampleOptions { count: 257, ..good.clone() }), "count");
        assert_eq!(refused(SampleOptions { steps: Some(0), ..good.clone() }), "steps");
        assert_eq!(refused(SampleOptions { eta: Some(1.1), ..good.clone() }), "eta");
        assert_eq!(refused(SampleOptions { eta: Some(f64::NAN), ..good.clone() }), "eta");
        for sampler in [SamplerKind::Ddpm, SamplerKind::DpmSolverPp] {
            assert_eq!(refused(SampleOptions { eta: Some(0.5), sampler, ..good.clone() }), "eta");
            assert_eq!(sampler.to_string().parse::<SamplerKind>().unwrap(), sampler);
        }
        assert_eq!(refused(SampleOptions { guidance: f32::INFINITY, ..good.clone() }), "guidance");
        assert_eq!(refused(SampleOptions { guidance: -1.0, ..good.clone() }), "guidance");
        assert_eq!(refused(SampleOptions { latent_noise: f32::NAN, ..good.clone() }), "latent_noise");
        assert_eq!(refused(SampleOptions { quality: Some(9.0), ..good.clone() }), "quality");
    }

    #[test]
    fn steps_follow_sampler_and_schedule() {
        let ddim = SampleOptions::default();
        let ddpm = SampleOptions { sampler: SamplerKind::Ddpm, ..ddim.clone() };
        assert_eq!((ddim.effective_steps(&SCHEDULE), ddpm.effective_steps(&SCHEDULE)), (5, 20));
        let noise = Schedule { prediction: Prediction::Epsilon, ..SCHEDULE };
        assert_eq!((ddim.effective_steps(&noise), ddpm.effective_steps(&noise)), (20, 20));
        let etas = [&SCHEDULE, &noise].map(|schedule| (ddim.effective_eta(schedule), ddpm.effective_eta(schedule)));
        assert_eq!(etas, [(0.0, 0.0), (1.0, 0.0)]);
        assert_eq!(SampleOptions { eta: Some(0.0), ..ddim.clone() }.effective_eta(&noise), 0.0);
        let short = Schedule { steps: 4, ..SCHEDULE };
        assert_eq!(ddim.effective_steps(&short), 4);
        let many = SampleOptions { steps: Some(9), ..ddim.clone() };
        assert!(many.validate_for(&short, true, false).unwrap_err().to_string().contains("from 1 to 4"));
        let asked = SampleOptions { quality: Some(1.0), ..ddim.clone() };
        assert!(asked.validate_for(&SCHEDULE, false, true).is_ok());
        assert_eq!(asked.validate_for(&SCHEDULE, false, false).unwrap_err().code(), "option_invalid");
        let guided = SampleOptions { guidance: 2.0, ..ddim };
        assert!(guided.validate_for(&SCHEDULE, true, false).is_ok());
        assert_eq!(guided.validate_for(&SCHEDULE, false, false).unwrap_err().code(), "option_invalid");
    }

    #[test]
    fn json_fills_in_defaults_and_refuses_unknown_options() {
        let options: SampleOptions = serde_json::from_str(r#"{"count": 3, "sampler": "ddpm"}"#).unwrap();
        assert_eq!(options, SampleOptions { count: 3, sampler: SamplerKind::Ddpm, ..SampleOptions::default() });
        assert!(serde_json::from_str::<SampleOptions>(r#"{"eta_": 1}"#).is_err());
        assert_eq!("DDIM".parse::<SamplerKind>().unwrap(), SamplerKind::Ddim);
        assert_eq!("euler".parse::<SamplerKind>().unwrap_err().code(), "unknown_sampler");
    }
}
