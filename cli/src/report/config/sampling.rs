//! How the weights of a variant are sampled.

use inference::{Refine, SamplerKind};
use serde::{Deserialize, Serialize};
use weights::manifest::Precision;

/// How weights are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// The sampler.
    #[serde(skip_serializing_if = "is_ddim")]
    pub sampler: SamplerKind,
    /// Its steps.
    pub steps: usize,
    /// Classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// η of DDIM: 0 is deterministic, 1 has the variance of DDPM.
    pub eta: f64,
    /// Deviation of noise added to what was sampled, in deviations of the latents.
    pub latent_noise: f64,
    /// Quality that is asked for, of a generator that is conditioned on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<f64>,
    /// Steps of refinement of each latent on the support images; 0 for none.
    pub refine: usize,
    /// Weight of staying where it was sampled, while it is refined.
    pub prior: f64,
    /// Steps of plain fine-tuning of the generated weights on the support images; 0 for none.
    pub tune: usize,
    /// Whether the statistics that normalisations store are measured on the support images, in place of the generated
    /// ones.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recalibrate: bool,
    /// What the denoiser computes in.
    #[serde(skip_serializing_if = "Precision::is_single")]
    pub precision: Precision,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            sampler: SamplerKind::Ddim,
            steps: 20,
            guidance: 1.0,
            eta: 0.0,
            latent_noise: 0.0,
            quality: None,
            refine: 0,
            prior: Refine::default().prior,
            tune: 0,
            recalibrate: false,
            precision: Precision::Single,
        }
    }
}

/// Left out of what is written, so that what was measured before stays what it was.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
fn is_ddim(sampler: &SamplerKind) -> bool {
    *sampler == SamplerKind::Ddim
}

impl Sampling {
    /// How latents are refined.
    pub fn refinement(&self) -> Refine {
        Refine { steps: self.refine, prior: self.prior }
    }
}
