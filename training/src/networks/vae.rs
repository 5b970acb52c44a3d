//! The VAE over weight vectors (Eq. 1), linear variant: over the whole vector, or over each row of a linear head, that
//! is one class, by itself (paper 4.1.2).

use serde::{Deserialize, Serialize};

use super::conv_vae::{self, ConvVaeConfig};
use super::layers::{layer_norm, linear};
use crate::backend::{Backend, Unary};
use crate::error::Result;
use crate::params::Init;

/// What the VAE is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaeForm {
    /// Linear layers.
    #[default]
    Linear,
    /// Linear in and out, convolutions between.
    Conv(ConvVaeConfig),
    /// Nothing: the latent is the standardised weights, and diffusion works on them.
    Identity,
}

/// Sizes of the VAE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VaeShape {
    /// Length of the weight vectors.
    pub length: usize,
    /// Hidden widths of the encoder; the decoder has them in reverse.
    pub hidden: Vec<usize>,
    /// Latent shape.
    pub latent: Vec<usize>,
    /// What it is made of.
    pub form: VaeForm,
    /// Kinds of rows, where there are several: encoder and decoder are told which one a row is.
    pub index: usize,
    /// Classes of the linear head whose rows are encoded each by itself, with the same parameters; the latent has
    /// shape `[classes, …]` then. None: the vector as a whole.
    pub rows: Option<usize>,
}

impl VaeShape {
    fn latent_dim(&self) -> usize {
        self.latent.iter().product()
    }

    /// Values and latents of what the layers see: a row or a vector.
    fn widths(&self) -> (usize, usize) {
        let parts = self.rows.unwrap_or(1).max(1);
        (self.length / parts, self.latent_dim() / parts)
    }
}

/// `[n, length]` of heads → `[n, classes, features + 1]`: each row with its bias.
fn to_rows<B: Backend>(b: &mut B, x: &B::T, classes: usize, row: usize) -> Result<B::T> {
    let weights = b.slice_last(x, 0, classes * (row - 1))?;
    let weights = b.reshape(&weights, &[0, classes as i64, row as i64 - 1])?;
    let bias = b.slice_last(x, classes * (row - 1), classes)?;
    let bias = b.reshape(&bias, &[0, classes as i64, 1])?;
    b.concat(&[&weights, &bias], 2)
}

/// The way back.
fn from_rows<B: Backend>(b: &mut B, x: &B::T, classes: usize, row: usize) -> Result<B::T> {
    let weights = b.slice_last(x, 0, row - 1)?;
    let weights = b.reshape(&weights, &[0, (classes * (row - 1)) as i64])?;
    let bias = b.slice_last(x, row - 1, 1)?;
    let bias = b.reshape(&bias, &[0, classes as i64])?;
    b.concat(&[&weights, &bias], 1)
}

/// A latent shape behind a kept batch.
fn with_batch(latent: &[usize]) -> Vec<i64> {
    std::iter::once(0).chain(latent.iter().map(|&d| d as i64)).collect()
}

/// Scales and shifts the units of `x [n, width]` by what kind of row it is (`index [n, kinds]`, one-hot): each kind has
/// units of its own as far as it needs them, and what is decoded of two kinds does not mix.
fn gate<B: Backend>(b: &mut B, name: &str, x: &B::T, index: Option<&B::T>, sizes: [usize; 2]) -> Result<B::T> {
    let Some(index) = index else { return Ok(x.clone()) };
    let [width, kinds] = sizes;
    let scale = b.param(&format!("{name}.scale"), &[width, kinds], Init::Normal(0.5))?;
    let shift = b.param(&format!("{name}.shift"), &[width, kinds], Init::Zeros)?;
    let scale = b.project(index, &scale)?;
    let scale = b.affine(&scale, 1.0, 1.0)?;
    let shift = b.project(index, &shift)?;
    let x = b.mul(x, &scale)?;
    b.add(&x, &shift)
}

/// `weights [n, length]` (and `index [n, kinds]`, where there are several) → mean and log-variance of the latent, `[n, latent…]` each.
///
/// # Errors
/// When shapes do not fit.
pub fn encode<B: Backend>(b: &mut B, shape: &VaeShape, weights: &B::T, index: Option<&B::T>) -> Result<(B::T, B::T)> {
    match &shape.form {
        VaeForm::Linear => {}
        VaeForm::Conv(config) => return conv_vae::encode(b, config, shape.length, &shape.latent, weights),
        VaeForm::Identity => {
            let mean = b.reshape(weights, &with_batch(&shape.latent))?;
            // All but no variance.
            let log_variance = b.affine(&mean, 0.0, -12.0)?;
            return Ok((mean, log_variance));
        }
    }
    let (mut width, d) = shape.widths();
    let mut x = match shape.rows {
        Some(classes) => to_rows(b, weights, classes, width)?,
        None => weights.clone(),
    };
    for (i, &hidden) in shape.hidden.iter().enumerate() {
        x = linear(b, &format!("encoder.{i}"), &x, width, hidden, Init::Scaled(1.0))?;
        x = layer_norm(b, &format!("encoder.norm{i}"), &x, hidden)?;
        x = b.unary(&x, Unary::Silu)?;
        x = gate(b, &format!("encoder.gate{i}"), &x, index, [hidden, shape.index])?;
        width = hidden;
    }
    let mean = linear(b, "encoder.mean", &x, width, d, Init::Scaled(1.0))?;
    let mean = gate(b, "encoder.gate", &mean, index, [d, shape.index])?;
    let log_variance = linear(b, "encoder.log_variance", &x, width, d, Init::Scaled(0.01))?;
    let shape = with_batch(&shape.latent);
    Ok((b.reshape(&mean, &shape)?, b.reshape(&log_variance, &shape)?))
}

/// `latent [n, latent…]` (and `index`, as in [`encode`]) → standardised `weights [n, length]`.
///
/// # Errors
/// When shapes do not fit.
pub fn decode<B: Backend>(b: &mut B, shape: &VaeShape, latent: &B::T, index: Option<&B::T>) -> Result<B::T> {
    match &shape.form {
        VaeForm::Linear => {}
        VaeForm::Conv(config) => return conv_vae::decode(b, config, shape.length, &shape.latent, latent),
        VaeForm::Identity => return b.reshape(latent, &[0, shape.length as i64]),
    }
    let (length, mut width) = shape.widths();
    let mut x = match shape.rows {
        Some(classes) => b.reshape(latent, &[0, classes as i64, width as i64])?,
        None => b.reshape(latent, &[0, width as i64])?,
    };
    x = gate(b, "decoder.gate", &x, index, [width, shape.index])?;
    for (i, &hidden) in shape.hidden.iter().rev().enumerate() {
        x = linear(b, &format!("decoder.{i}"), &x, width, hidden, Init::Scaled(1.0))?;
        x = layer_norm(b, &format!("decoder.norm{i}"), &x, hidden)?;
        x = b.unary(&x, Unary::Silu)?;
        x = gate(b, &format!("decoder.gate{i}"), &x, index, [hidden, shape.index])?;
        width = hidden;
    }
    let x = linear(b, "decoder.out", &x, width, length, Init::Scaled(1.0))?;
    match shape.rows {
        Some(classes) => from_rows(b, &x, classes, length),
        None => Ok(x),
    }
}
