//! Denoisers of the latent diffusion (paper 3.4): residual MLP and transformer for small latents, the transformer over
//! rows for heads whose rows have latents of their own, and the convolutional UNet (in [`super::unet`]) for latents of
//! shape c×h×w.

use serde::{Deserialize, Serialize};

use super::layers::{attention_block, layer_norm, linear, linear_add, masked_attention_block, timestep_embedding};
use super::unet::{self, UnetConfig};
use crate::backend::{Backend, Unary};
use crate::error::Result;
use crate::params::Init;

/// Which denoiser, with its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DenoiserConfig {
    /// Residual MLP.
    Mlp {
        /// Width of the residual stream.
        width: usize,
        /// Residual blocks.
        blocks: usize,
    },
    /// Transformer over pieces of the latent and the condition.
    Transformer {
        /// Width of a token.
        width: usize,
        /// Blocks.
        blocks: usize,
        /// Attention heads.
        heads: usize,
        /// Pieces that the latent is cut into.
        pieces: usize,
    },
    /// Transformer over the rows of a linear head, each conditioned on the token of its class: another order of the
    /// classes is the same order of the rows. The latent must have shape `[classes, …]`.
    Rows {
        /// Width of a row inside.
        width: usize,
        /// Blocks.
        blocks: usize,
        /// Attention heads.
        heads: usize,
    },
    /// Convolutional UNet; the latent must have shape `[c, h, w]`.
    Unet(UnetConfig),
}

/// What a denoiser sees.
#[derive(Debug, Clone, PartialEq)]
pub struct DenoiserShape {
    /// Latent shape.
    pub latent: Vec<usize>,
    /// Width of the condition.
    pub condition_dim: usize,
    /// Width of a class token; the condition ends with the tokens in class order, and where there is any number of classes
    /// with the presence of each after them.
    pub token_dim: usize,
    /// Whether a head has any number of classes up to that of the rows: only those rows are seen whose presence is 1, and
    /// the prediction of others is 0.
    pub any_number: bool,
    /// Which network.
    pub config: DenoiserConfig,
}

/// Width of the sinusoidal embedding of the timestep.
const TIME_DIM: usize = 128;

/// Embedding of timestep and condition together, `[n, width]`.
pub(super) fn context<B: Backend>(
    b: &mut B,
    timestep: &B::T,
    condition: &B::T,
    condition_dim: usize,
    width: usize,
) -> Result<B::T> {
    let t = timestep_embedding(b, timestep, TIME_DIM)?;
    let t = linear(b, "time.0", &t, TIME_DIM, width, Init::Scaled(1.0))?;
    let c = linear(b, "condition.0", condition, condition_dim, width, Init::Scaled(1.0))?;
    let c = b.unary(&c, Unary::Silu)?;
    let c = linear(b, "condition.1", &c, width, width, Init::Scaled(1.0))?;
    let x = b.add(&t, &c)?;
    b.unary(&x, Unary::Silu)
}

/// `latent [n, latent…]`, `timestep [n]`, `condition [n, condition_dim]` → prediction, as the latent.
///
/// # Errors
/// When shapes do not fit.
pub fn denoise<B: Backend>(
    b: &mut B,
    shape: &DenoiserShape,
    latent: &B::T,
    timestep: &B::T,
    condition: &B::T,
) -> Result<B::T> {
    let dim: usize = shape.latent.iter().product();
    match &shape.config {
        DenoiserConfig::Unet(config) => unet::unet(b, config, shape, latent, timestep, condition),
        DenoiserConfig::Mlp { width, blocks } => {
            let z = b.reshape(latent, &[0, dim as i64])?;
            let context = context(b, timestep, condition, shape.condition_dim, *width)?;
            let y = mlp(b, &z, &context, [dim, *width, *blocks])?;
            unflatten(b, &y, &shape.latent)
        }
        DenoiserConfig::Rows { width, blocks, heads } => {
            let classes = shape.latent[0];
            let s = RowsShape { classes, row: dim / classes, width: *width, blocks: *blocks, heads: *heads };
            rows(b, shape, &s, [latent, timestep, condition])
        }
        DenoiserConfig::Transformer { width, blocks, heads, pieces } => {
            let z = b.reshape(latent, &[0, *pieces as i64, (dim / pieces) as i64])?;
            let context = context(b, timestep, condition, shape.condition_dim, *width)?;
            let y = transformer(b, &z, &context, [dim / pieces, *pieces, *width, *blocks, *heads])?;
            unflatten(b, &y, &shape.latent)
        }
    }
}

/// What the transformer over rows sees.
struct RowsShape {
    classes: usize,
    /// Latents of a row.
    row: usize,
    width: usize,
    blocks: usize,
    heads: usize,
}

/// No position: nothing but its own token tells a row which class it is, and z_D, which knows the order, is not looked
/// at. Permuted tokens with permuted latents give the permuted prediction.
fn rows<B: Backend>(b: &mut B, shape: &DenoiserShape, s: &RowsShape, [z, t, condition]: [&B::T; 3]) -> Result<B::T> {
    let mut z = b.reshape(z, &[0, s.classes as i64, s.row as i64])?;
    let tokens = shape.token_dim * s.classes;
    let after = if shape.any_number { s.classes } else { 0 };
    let presence = match shape.any_number {
        true => Some(b.slice_last(condition, shape.condition_dim - s.classes, s.classes)?),
        false => None,
    };
    let there = presence.as_ref().map(|p| b.reshape(p, &[0, s.classes as i64, 1])).transpose()?;
    if let Some(there) = &there {
        z = b.mul(&z, there)?;
    }
    let tokens = b.slice_last(condition, shape.condition_dim - tokens - after, tokens)?;
    let tokens = b.reshape(&tokens, &[0, s.classes as i64, shape.token_dim as i64])?;
    let c = linear(b, "condition.0", &tokens, shape.token_dim, s.width, Init::Scaled(1.0))?;
    let c = b.unary(&c, Unary::Silu)?;
    let c = linear(b, "condition.1", &c, s.width, s.width, Init::Scaled(1.0))?;
    let t = timestep_embedding(b, t, TIME_DIM)?;
    let t = linear(b, "time.0", &t, TIME_DIM, s.width, Init::Scaled(1.0))?;
    let t = b.reshape(&t, &[0, 1, s.width as i64])?;
    let c = b.add(&c, &t)?;
    let context = b.unary(&c, Unary::Silu)?;
    let mut x = linear(b, "in", &z, s.row, s.width, Init::Scaled(1.0))?;
    for i in 0..s.blocks {
        let c = linear(b, &format!("block.{i}.context"), &context, s.width, s.width, Init::Scaled(1.0))?;
        x = b.add(&x, &c)?;
        let sizes = [s.classes, s.classes, s.width, s.heads];
        x = masked_attention_block(b, &format!("block.{i}"), &x, &x, sizes, presence.as_ref())?;
    }
    let x = layer_norm(b, "out.norm", &x, s.width)?;
    let mut x = linear(b, "out", &x, s.width, s.row, Init::Scaled(0.01))?;
    if let Some(there) = &there {
        x = b.mul(&x, there)?;
    }
    unflatten(b, &x, &shape.latent)
}

fn unflatten<B: Backend>(b: &mut B, x: &B::T, latent: &[usize]) -> Result<B::T> {
    let shape: Vec<i64> = std::iter::once(0).chain(latent.iter().map(|&d| d as i64)).collect();
    b.reshape(x, &shape)
}

fn mlp<B: Backend>(b: &mut B, z: &B::T, context: &B::T, [dim, width, blocks]: [usize; 3]) -> Result<B::T> {
    let mut x = linear(b, "in", z, dim, width, Init::Scaled(1.0))?;
    for i in 0..blocks {
        let h = layer_norm(b, &format!("block.{i}.norm"), &x, width)?;
        let h = linear(b, &format!("block.{i}.0"), &h, width, width, Init::Scaled(1.0))?;
        let c = linear(b, &format!("block.{i}.context"), context, width, width, Init::Scaled(1.0))?;
        let h = b.add(&h, &c)?;
        let h = b.unary(&h, Unary::Silu)?;
        x = linear_add(b, &format!("block.{i}.1"), &h, [width, width], Init::Scaled(0.1), &x)?;
    }
    let x = layer_norm(b, "out.norm", &x, width)?;
    linear(b, "out", &x, width, dim, Init::Scaled(0.01))
}

fn transformer<B: Backend>(
    b: &mut B,
    z: &B::T,
    context: &B::T,
    [piece, pieces, width, blocks, heads]: [usize; 5],
) -> Result<B::T> {
    let mut x = linear(b, "in", z, piece, width, Init::Scaled(1.0))?;
    let position = b.param("position", &[pieces, width], Init::Normal(0.1))?;
    x = b.add(&x, &position)?;
    let tokens = pieces + 1;
    let context = b.reshape(context, &[0, 1, width as i64])?;
    for i in 0..blocks {
        // The context is added to each piece and also stands as a token of its own.
        let c = linear(b, &format!("block.{i}.context"), &context, width, width, Init::Scaled(1.0))?;
        x = b.add(&x, &c)?;
        let all = b.concat(&[&x, &c], 1)?;
        x = attention_block(b, &format!("block.{i}"), &x, &all, [pieces, tokens, width, heads])?;
    }
    let x = layer_norm(b, "out.norm", &x, width)?;
    linear(b, "out", &x, width, piece, Init::Scaled(0.01))
}
