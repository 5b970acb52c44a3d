//! What a client asks for, and what is recorded of it.

use inference::{Refine, SampleOptions, SamplerKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::candidates::{Origin, RankBy};
use crate::about::NewAbout;
use crate::error::{Error, Result};
use crate::inline::{DatasetInput, DatasetInputSchema};
use crate::jobs::JobOptions;

/// A request for weights.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewGeneration {
    /// The generator: `name`, `name@3`, `name@alias` or `name@latest`.
    #[schema(example = "digits@latest")]
    pub(crate) generator: String,
    /// The labelled data to make weights for.
    #[schema(value_type = DatasetInputSchema)]
    pub(crate) dataset: DatasetInput,
    /// The architecture of the networks, by its name in the generator's manifest; by default the generator's first, or of a
    /// generator for any number of classes the head of the dataset's number.
    #[schema(example = "mlp-64-32-5")]
    pub(crate) architecture: Option<String>,
    /// Number of samples; 1 by default. The server's limit is in the error of a greater one.
    #[schema(minimum = 1, default = 1, example = 5)]
    pub(crate) count: Option<usize>,
    /// The sampler; `ddim` by default.
    pub(crate) sampler: Option<Sampler>,
    /// The seed of the noise; random by default. The same request and seed give the same weights, up to rounding (1e-5).
    #[schema(example = 7, format = "uint64")]
    pub(crate) seed: Option<u64>,
    /// Sampling steps. By default 20 with `ddpm`, and with `ddim` and `dpm_solver_pp` 5 where the generator's denoiser predicts
    /// the clean latent, 20 where it predicts the noise (`schedule.prediction` of its manifest).
    #[schema(minimum = 1, example = 20)]
    pub(crate) steps: Option<usize>,
    /// η of `ddim`: 0 is deterministic given the first noise, 1 has the variance of `ddpm`. By default 0 where the generator's
    /// denoiser predicts the clean latent, 1 where it predicts the noise. A sample follows from the seed either way.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub(crate) eta: Option<f64>,
    /// Classifier-free guidance; 1 (the default) is off.
    #[schema(minimum = 0.0, maximum = 20.0, default = 1.0)]
    pub(crate) guidance: Option<f32>,
    /// Deviation of noise added to what was sampled; 0 (the default) is none. More makes samples differ more, and worse.
    #[schema(minimum = 0.0, maximum = 3.0, default = 0.0)]
    pub(crate) latent_noise: Option<f32>,
    /// Quality that is asked for, of a generator that is conditioned on it: deviations of accuracy above the mean of its
    /// zoo; high by default.
    #[schema(minimum = -3.0, maximum = 3.0, example = 1.5)]
    pub(crate) quality: Option<f32>,
    /// Refines what was sampled on the dataset's examples that the encoder sees; by default it is left as it is.
    pub(crate) refine: Option<NewRefine>,
    /// Whether to measure the statistics of the networks' normalisations on the dataset's examples that the encoder sees,
    /// in place of the generated ones; only of networks with batch normalisation.
    #[schema(default = false)]
    pub(crate) recalibrate: Option<bool>,
    /// Whether to measure the accuracy of each sample; by default exactly when `evaluation` is given.
    pub(crate) evaluate: Option<bool>,
    /// Labelled data to measure the accuracy on; by default the examples of the dataset that the encoder has not
    /// seen. Its classes are those of the dataset, in the same order.
    #[schema(value_type = Option<DatasetInputSchema>)]
    pub(crate) evaluation: Option<DatasetInput>,
    /// Where samples may come from; the best of all are the answer. By default all three for linear heads (retrieved
    /// ones where the generator's zoo is registered), and for other networks `generated` alone, in the order of the
    /// noise.
    #[schema(example = json!(["generated", "retrieved", "closed_form"]), min_items = 1, max_items = 3)]
    pub(crate) candidates: Option<Vec<Origin>>,
    /// What decides which candidates are best; `leave_one_out` by default where there is more to choose from than
    /// generated samples.
    pub(crate) rank_by: Option<RankBy>,
    /// Labelled data that decides, with `rank_by: validation`. Its classes are those of the dataset, in the same order.
    #[schema(value_type = Option<DatasetInputSchema>)]
    pub(crate) validation: Option<DatasetInput>,
    /// How the job is to be done; given, the generation is a job.
    pub(crate) job: Option<JobOptions>,
    /// Description, tags, and who sees the generation.
    pub(crate) about: Option<NewAbout>,
}

/// How samples are refined.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRefine {
    /// Steps.
    #[schema(minimum = 0, maximum = 20, example = 3)]
    steps: usize,
    /// Weight of staying where it was sampled; 1 by default.
    #[schema(exclusive_minimum = 0.0, maximum = 1000000.0, default = 1.0)]
    prior: Option<f64>,
}

/// The sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sampler {
    /// Denoising diffusion implicit models: few steps.
    #[default]
    Ddim,
    /// Ancestral sampling.
    Ddpm,
    /// DPM-Solver++(2M): of second order, deterministic, still fewer steps.
    DpmSolverPp,
}

impl NewGeneration {
    /// The sampling options, with a seed drawn where none is given.
    pub(crate) fn options(&self) -> SampleOptions {
        let defaults = SampleOptions::default();
        SampleOptions {
            count: self.count.unwrap_or(defaults.count),
            sampler: match self.sampler.unwrap_or_default() {
                Sampler::Ddim => SamplerKind::Ddim,
                Sampler::Ddpm => SamplerKind::Ddpm,
                Sampler::DpmSolverPp => SamplerKind::DpmSolverPp,
            },
            // 53 bits, which every JSON reader keeps.
            seed: self.seed.unwrap_or_else(|| rand::random::<u64>() >> 11),
            steps: self.steps,
            eta: self.eta,
            guidance: self.guidance.unwrap_or(defaults.guidance),
            latent_noise: self.latent_noise.unwrap_or(defaults.latent_noise),
            quality: self.quality,
            refine: self
                .refine
                .map(|refine| Refine { steps: refine.steps, prior: refine.prior.unwrap_or(Refine::default().prior) }),
            recalibrate: self.recalibrate.unwrap_or_default(),
        }
    }

    /// Whether samples are to be evaluated.
    pub(crate) fn evaluates(&self) -> Result<bool> {
        match (self.evaluate, &self.evaluation) {
            (Some(false), Some(_)) => {
                let rule = "evaluation is given and evaluate is false: leave out one of them, or set evaluate to true";
                Err(Error::ValueInvalid(rule.into()).in_field("evaluation"))
            }
            (explicit, evaluation) => Ok(explicit.unwrap_or(evaluation.is_some())),
        }
    }
}

/// What is recorded of a request, in the column `request` of a generation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Recorded {
    /// Digest of the generator.
    pub generator_digest: String,
    /// Name of the networks' architecture; none in records of before there was a choice.
    pub architecture: Option<String>,
    /// Names of the classes, in the order of the head's rows.
    pub classes: Vec<String>,
    /// Seed of the choice of examples that the encoder took.
    pub dataset_seed: u64,
    /// `ddim`, `ddpm` or `dpm_solver_pp`.
    pub sampler: String,
    /// Sampling steps taken.
    pub steps: usize,
    /// η.
    pub eta: f64,
    /// Classifier-free guidance.
    pub guidance: f32,
    /// Deviation of noise added to what was sampled.
    pub latent_noise: f32,
    /// Quality that was asked for.
    pub quality: Option<f32>,
    /// How samples were refined.
    pub refine: Option<Refine>,
    /// Whether statistics were measured on the examples that the encoder took.
    pub recalibrate: bool,
    /// Digest of the data that the samples were evaluated on.
    pub evaluation_digest: Option<String>,
    /// Where samples could come from.
    pub(crate) candidates: Vec<Origin>,
    /// What decided which were best; nothing where they are in the order of the noise.
    pub(crate) rank_by: Option<RankBy>,
    /// Digest of the data that decided.
    pub(crate) validation_digest: Option<String>,
    /// How far the dataset is from the zoo, in units of the zoo's own spread.
    pub(crate) distance: Option<f64>,
    /// How far each class is from the zoo's classes, in units of what other images of those have.
    pub(crate) class_distances: Option<Vec<f64>>,
    /// What the client should know about the answer.
    pub(crate) warnings: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::parse;

    fn body(rest: &str) -> Result<NewGeneration> {
        let id = uuid::Uuid::now_v7();
        parse(format!(r#"{{"generator": "g", "dataset": {{"id": "{id}"}}{rest}}}"#).as_bytes())
    }

    #[test]
    fn defaults() {
        let new = body("").unwrap();
        let options = new.options();
        assert_eq!((options.count, options.steps, options.eta, options.guidance), (1, None, None, 1.0));
        assert!(options.seed < 1 << 53);
        assert_ne!(options.seed, new.options().seed, "drawn anew");
        assert!(!new.evaluates().unwrap());
        assert_eq!(body(r#", "seed": 18446744073709551615"#).unwrap().options().seed, u64::MAX);
    }

    #[test]
    fn evaluation_and_evaluate_agree() {
        let id = uuid::Uuid::now_v7();
        let given = format!(r#", "evaluation": {{"id": "{id}"}}"#);
        assert!(body(&given).unwrap().evaluates().unwrap());
        assert!(body(r#", "evaluate": true"#).unwrap().evaluates().unwrap());
        let error = body(&format!(r#"{given}, "evaluate": false"#)).unwrap().evaluates().unwrap_err();
        assert_eq!(error.field(), Some("evaluation"));
    }

    #[test]
    fn wrong_fields_are_named() {
        for (rest, field) in [
            (r#", "sampler": "euler""#, "sampler"),
            (r#", "count": -1"#, "count"),
            (r#", "evaluation": {"npz": 3}"#, "evaluation.npz"),
            (r#", "gidance": 2"#, "gidance"),
        ] {
            let error = body(rest).unwrap_err();
            assert_eq!((error.status().as_u16(), error.field()), (422, Some(field)), "{error}");
        }
    }
}
