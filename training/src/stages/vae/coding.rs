//! From rows to latents and back, as it is learned.

use candle_core::Tensor;

use crate::error::Result;
use crate::networks::vae::{VaeShape, decode, encode};
use crate::stages::vectors::masked_mean;
use crate::tape::{Learning, Pass};

/// Noisy rows (and their index, where there are several kinds) → mean and log-variance of the latents, and decoded rows.
pub(crate) struct Coding<'a> {
    pub shape: &'a VaeShape,
    /// What latents are moved by, in their deviations.
    pub noise: Option<&'a Tensor>,
}

impl Pass for Coding<'_> {
    fn outputs<B: Learning>(&self, b: &mut B, inputs: &[B::T]) -> Result<Vec<B::T>> {
        let index = inputs.get(1);
        let (mean, log_variance) = encode(b, self.shape, &inputs[0], index)?;
        let z = match self.noise.cloned() {
            None => mean.clone(),
            Some(noise) => b.between(&[&mean, &log_variance], move |t| {
                Ok((&t[0] + (bounded(&t[1])?.affine(0.5, 0.0)?.exp()? * &noise)?)?)
            })?,
        };
        let decoded = decode(b, self.shape, &z, index)?;
        Ok(vec![mean, log_variance, decoded])
    }
}

/// Log-variances of latents, not beyond what makes sense of them.
pub(crate) fn bounded(log_variance: &Tensor) -> Result<Tensor> {
    Ok(log_variance.clamp(-12.0, 4.0)?)
}

/// KL(q ‖ N(0, 1)) in nats, mean over batch and latent dimensions, of those that are there.
pub(crate) fn kl_divergence(mean: &Tensor, log_variance: &Tensor, there: Option<&Tensor>) -> Result<Tensor> {
    let sum = ((mean.sqr()? + log_variance.exp()?)? - log_variance)?;
    Ok(masked_mean(&sum, there)?.affine(0.5, -0.5)?)
}
