//! The VAE over weight vectors (Eq. 1), linear variant.

use serde::{Deserialize, Serialize};

use super::layers::{layer_norm, linear};
use crate::backend::{Backend, Unary};
use crate::error::Result;
use crate::params::Init;

/// Sizes of the VAE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VaeShape {
    /// Length of the weight vectors.
    pub length: usize,
    /// Hidden widths of the encoder; the decoder has them in reverse.
    pub hidden: Vec<usize>,
    /// Latent shape.
    pub latent: Vec<usize>,
}

impl VaeShape {
    fn latent_dim(&self) -> usize {
        self.latent.iter().product()
    }
}

/// A latent shape behind a kept batch.
fn with_batch(latent: &[usize]) -> Vec<i64> {
    std::iter::once(0).chain(latent.iter().map(|&d| d as i64)).collect()
}

/// `weights [n, length]` → mean and log-variance of the latent, `[n, latent…]` each.
///
/// # Errors
/// When shapes do not fit.
pub fn encode<B: Backend>(b: &mut B, shape: &VaeShape, weights: &B::T) -> Result<(B::T, B::T)> {
    let mut x = weights.clone();
    let mut width = shape.length;
    for (i, &hidden) in shape.hidden.iter().enumerate() {
        x = linear(b, &format!("encoder.{i}"), &x, width, hidden, Init::Scaled(1.0))?;
        x = layer_norm(b, &format!("encoder.norm{i}"), &x, hidden)?;
        x = b.unary(&x, Unary::Silu)?;
        width = hidden;
    }
    let d = shape.latent_dim();
    let mean = linear(b, "encoder.mean", &x, width, d, Init::Scaled(1.0))?;
    let log_variance = linear(b, "encoder.log_variance", &x, width, d, Init::Scaled(0.01))?;
    let shape = with_batch(&shape.latent);
    Ok((b.reshape(&mean, &shape)?, b.reshape(&log_variance, &shape)?))
}

/// `latent [n, latent…]` → standardised `weights [n, length]`.
///
/// # Errors
/// When shapes do not fit.
pub fn decode<B: Backend>(b: &mut B, shape: &VaeShape, latent: &B::T) -> Result<B::T> {
    let mut width = shape.latent_dim();
    let mut x = b.reshape(latent, &[0, width as i64])?;
    for (i, &hidden) in shape.hidden.iter().rev().enumerate() {
        x = linear(b, &format!("decoder.{i}"), &x, width, hidden, Init::Scaled(1.0))?;
        x = layer_norm(b, &format!("decoder.norm{i}"), &x, hidden)?;
        x = b.unary(&x, Unary::Silu)?;
        width = hidden;
    }
    linear(b, "decoder.out", &x, width, shape.length, Init::Scaled(1.0))
}
