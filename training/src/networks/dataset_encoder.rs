//! The dataset encoder (paper 3.3): a Set Transformer inside each class gives one token a class, z_s; a Set
//! Transformer over the tokens gives the dataset embedding z_D. Tokens carry the position of their class, and the
//! condition keeps them in class order beside z_D: a pooled embedding could not tell which class is row 0 of a head.

use serde::{Deserialize, Serialize};

use super::layers::{attention_block, layer_norm, linear, masked_attention_block};
use crate::backend::{Backend, Unary};
use crate::error::Result;
use crate::params::Init;

/// The network that encodes a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderKind {
    /// A Set Transformer inside each class, and one over the classes.
    #[default]
    SetTransformer,
    /// Two layers on all features together, the first as wide as the dataset is large (Table 21): in the order of
    /// classes and images.
    Mlp,
}

/// What the denoiser is told of the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// z_D, and the token of each class in class order.
    #[default]
    Tokens,
    /// z_D alone.
    Pooled,
    /// Nothing: unconditional.
    None,
}

/// Sizes of the encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderShape {
    /// Features of one example.
    pub feature_dim: usize,
    /// Classes of a dataset.
    pub classes: usize,
    /// Examples of each class.
    pub images: usize,
    /// Width inside.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Attention blocks inside a class, and over the classes.
    pub blocks: usize,
    /// Width of a class token in the condition.
    pub token_dim: usize,
    /// Width of z_D.
    pub embedding_dim: usize,
    /// The network.
    pub kind: EncoderKind,
    /// What the condition is made of.
    pub condition: Condition,
    /// Whether a dataset has any number of classes up to `classes`: the encoder is told which there are, the token of one
    /// that there is not is zero, and nothing depends on what stands in its place.
    pub any_number: bool,
}

impl EncoderShape {
    /// Width of the condition: z_D, and the tokens in class order where it has them.
    pub fn condition_dim(&self) -> usize {
        let tokens = if self.condition == Condition::Tokens { self.classes * self.token_dim } else { 0 };
        self.embedding_dim + tokens
    }
}

/// Pools `x [n, l, width]`, of which those count whose presence is 1, to `[n, width]` by attention of one learned seed (PMA).
fn pool<B: Backend>(
    b: &mut B,
    name: &str,
    x: &B::T,
    l: usize,
    shape: &EncoderShape,
    presence: Option<&B::T>,
) -> Result<B::T> {
    let (width, heads) = (shape.width, shape.heads);
    let seed = b.param(&format!("{name}.seed"), &[1, 1, width], Init::Normal(0.1))?;
    let seed = b.expand_first(&seed, 3, x)?;
    let pooled = masked_attention_block(b, name, &seed, x, [1, l, width, heads], presence)?;
    b.reshape(&pooled, &[0, width as i64])
}

/// Two layers on everything; no class or image has a place of its own inside.
fn mlp<B: Backend>(b: &mut B, shape: &EncoderShape, features: &B::T) -> Result<B::T> {
    let inputs = shape.classes * shape.images * shape.feature_dim;
    let x = b.reshape(features, &[0, inputs as i64])?;
    let x = linear(b, "mlp.0", &x, inputs, shape.width, Init::Scaled(2.0))?;
    let x = b.unary(&x, Unary::Silu)?;
    let x = linear(b, "mlp.1", &x, shape.width, shape.embedding_dim, Init::Scaled(1.0))?;
    layer_norm(b, "mlp.norm", &x, shape.embedding_dim)
}

/// `features [n, classes, images, feature_dim]` (and `presence [n, classes]`, 1 for a class that there is and 0 for one that
/// there is not, where the shape says so) → (z_D `[n, embedding_dim]`, condition `[n, condition_dim]`).
///
/// # Errors
/// When shapes do not fit.
pub fn encode<B: Backend>(
    b: &mut B,
    shape: &EncoderShape,
    features: &B::T,
    presence: Option<&B::T>,
) -> Result<(B::T, B::T)> {
    let (dataset, tokens) = match shape.kind {
        EncoderKind::SetTransformer => set_transformer(b, shape, features, presence)?,
        EncoderKind::Mlp => {
            let dataset = mlp(b, shape, features)?;
            (dataset.clone(), dataset)
        }
    };
    let condition = match shape.condition {
        Condition::Tokens => b.concat(&[&dataset, &tokens], 1)?,
        Condition::Pooled => dataset.clone(),
        Condition::None => b.affine(&dataset, 0.0, 0.0)?,
    };
    Ok((dataset, condition))
}

/// (z_D `[n, embedding_dim]`, tokens in class order `[n, classes · token_dim]`).
fn set_transformer<B: Backend>(
    b: &mut B,
    shape: &EncoderShape,
    features: &B::T,
    presence: Option<&B::T>,
) -> Result<(B::T, B::T)> {
    let (classes, images, width, heads) = (shape.classes, shape.images, shape.width, shape.heads);
    let x = b.reshape(features, &[-1, images as i64, shape.feature_dim as i64])?;
    let x = linear(b, "image.0", &x, shape.feature_dim, width, Init::Scaled(2.0))?;
    let x = b.unary(&x, Unary::Silu)?;
    let mut x = linear(b, "image.1", &x, width, width, Init::Scaled(1.0))?;
    for i in 0..shape.blocks {
        x = attention_block(b, &format!("within.{i}"), &x, &x, [images, images, width, heads])?;
    }
    let pooled = pool(b, "within.pool", &x, images, shape, None)?;
    let tokens = layer_norm(b, "token.norm", &pooled, width)?;
    let tokens = linear(b, "token.out", &tokens, width, shape.token_dim, Init::Scaled(1.0))?;
    let tokens = layer_norm(b, "token.out_norm", &tokens, shape.token_dim)?;
    let mut tokens = b.reshape(&tokens, &[-1, classes as i64, shape.token_dim as i64])?;
    if let Some(presence) = presence {
        let there = b.reshape(presence, &[0, classes as i64, 1])?;
        tokens = b.mul(&tokens, &there)?;
    }

    let position = b.param("over.position", &[classes, width], Init::Normal(0.5))?;
    let mut y = linear(b, "over.in", &tokens, shape.token_dim, width, Init::Scaled(1.0))?;
    y = b.add(&y, &position)?;
    for i in 0..shape.blocks {
        let sizes = [classes, classes, width, heads];
        y = masked_attention_block(b, &format!("over.{i}"), &y, &y, sizes, presence)?;
    }
    let pooled = pool(b, "over.pool", &y, classes, shape, presence)?;
    let pooled = layer_norm(b, "over.norm", &pooled, width)?;
    let dataset = linear(b, "over.out", &pooled, width, shape.embedding_dim, Init::Scaled(1.0))?;
    let dataset = layer_norm(b, "over.out_norm", &dataset, shape.embedding_dim)?;
    let flat = b.reshape(&tokens, &[0, (classes * shape.token_dim) as i64])?;
    Ok((dataset, flat))
}

/// Projects a latent `[n, latent_dim]` into the space of z_D for the contrastive alignment (Eq. 2); used in training
/// only.
///
/// # Errors
/// When shapes do not fit.
pub fn project_latent<B: Backend>(b: &mut B, latent: &B::T, latent_dim: usize, shape: &EncoderShape) -> Result<B::T> {
    let x = linear(b, "align.0", latent, latent_dim, shape.width * 2, Init::Scaled(2.0))?;
    let x = b.unary(&x, Unary::Silu)?;
    linear(b, "align.1", &x, shape.width * 2, shape.embedding_dim, Init::Scaled(1.0))
}
