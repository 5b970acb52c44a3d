//! The convolutional UNet of latent diffusion on latents c×h×w; the condition enters as extra channels (paper 3.4)
//! and with the timestep in every residual block.

use serde::{Deserialize, Serialize};

use super::denoiser::{DenoiserShape, context};
use super::layers::{attention_block, conv, conv_add, group_norm, linear};
use crate::backend::{Backend, Unary};
use crate::error::{Error, Result};
use crate::params::Init;

/// Sizes of the UNet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetConfig {
    /// Channels at full resolution.
    pub channels: usize,
    /// Multiple of `channels` at each resolution; each further one halves height and width.
    pub multipliers: Vec<usize>,
    /// Groups of the group normalisation; divides every number of channels.
    #[serde(default = "default_groups")]
    pub groups: usize,
    /// Heads of the cross-attention to the condition at the lowest resolution; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attention: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Pieces that the condition is cut into for cross-attention.
const PIECES: usize = 8;

fn default_groups() -> usize {
    8
}

impl UnetConfig {
    /// Checks sizes against a latent shape.
    ///
    /// # Errors
    /// [`Error::Config`] with what would be right.
    pub fn validate(&self, latent: &[usize]) -> Result<()> {
        let &[_, h, w] = latent else {
            return Err(Error::Config(format!("the UNet needs a latent of shape [c, h, w], not {latent:?}")));
        };
        if self.multipliers.is_empty() || self.multipliers.contains(&0) {
            return Err(Error::Config("the UNet needs at least one multiplier, each at least 1".into()));
        }
        if self.multipliers.len() > 8 {
            return Err(Error::Config("the UNet takes at most 8 multipliers".into()));
        }
        let factor = 1 << (self.multipliers.len() - 1);
        if h % factor != 0 || w % factor != 0 {
            return Err(Error::Config(format!(
                "{h}×{w} latents cannot be halved {} times",
                self.multipliers.len() - 1
            )));
        }
        if self.groups == 0 || self.channels == 0 || !self.channels.is_multiple_of(self.groups) {
            return Err(Error::Config("the UNet's channels must be a multiple of its groups".into()));
        }
        let lowest = self.channels * self.multipliers.last().copied().unwrap_or(1);
        if self.attention > 0 && !lowest.is_multiple_of(self.attention) {
            return Err(Error::Config(format!(
                "the UNet's attention needs heads that divide its {lowest} channels at the lowest resolution"
            )));
        }
        Ok(())
    }
}

struct Level {
    channels: usize,
    h: usize,
    w: usize,
}

/// Residual block `[n, i, h, w]` → `[n, o, h, w]` with the context added between the convolutions.
fn residual<B: Backend>(
    b: &mut B,
    name: &str,
    x: &B::T,
    context: &B::T,
    input: usize,
    level: &Level,
    config: &UnetConfig,
) -> Result<B::T> {
    let (o, h, w) = (level.channels, level.h, level.w);
    let y = group_norm(b, &format!("{name}.norm0"), x, config.groups, [input, h, w], Unary::Silu)?;
    let y = conv(b, &format!("{name}.conv0"), &y, [input, o, 3, 1], Init::Scaled(1.0))?;
    let c = linear(b, &format!("{name}.context"), context, 4 * config.channels, o, Init::Scaled(1.0))?;
    let c = b.reshape(&c, &[0, o as i64, 1, 1])?;
    let y = b.add(&y, &c)?;
    let y = group_norm(b, &format!("{name}.norm1"), &y, config.groups, [o, h, w], Unary::Silu)?;
    let x =
        if input == o { x.clone() } else { conv(b, &format!("{name}.skip"), x, [input, o, 1, 1], Init::Scaled(1.0))? };
    conv_add(b, &format!("{name}.conv1"), &y, [o, o, 3], Init::Scaled(0.1), &x)
}

/// Cross-attention: each place of `x [n, c, h, w]` asks pieces of the condition.
fn attend<B: Backend>(
    b: &mut B,
    x: &B::T,
    condition: &B::T,
    condition_dim: usize,
    level: &Level,
    config: &UnetConfig,
) -> Result<B::T> {
    let (c, places) = (level.channels, level.h * level.w);
    let pieces = linear(b, "attention.condition", condition, condition_dim, PIECES * c, Init::Scaled(1.0))?;
    let pieces = b.reshape(&pieces, &[0, PIECES as i64, c as i64])?;
    let x = b.reshape(x, &[0, c as i64, places as i64])?;
    let x = b.permute(&x, &[0, 2, 1])?;
    let x = attention_block(b, "attention", &x, &pieces, [places, PIECES, c, config.attention])?;
    let x = b.permute(&x, &[0, 2, 1])?;
    b.reshape(&x, &[0, c as i64, level.h as i64, level.w as i64])
}

/// The UNet: `latent [n, c, h, w]`, `timestep [n]`, `condition [n, condition_dim]` → `[n, c, h, w]`.
///
/// # Errors
/// When shapes do not fit.
pub fn unet<B: Backend>(
    b: &mut B,
    config: &UnetConfig,
    shape: &DenoiserShape,
    latent: &B::T,
    timestep: &B::T,
    condition: &B::T,
) -> Result<B::T> {
    config.validate(&shape.latent)?;
    let (c, h, w) = (shape.latent[0], shape.latent[1], shape.latent[2]);
    let context = context(b, timestep, condition, shape.condition_dim, 4 * config.channels)?;
    let image = linear(b, "condition.image", condition, shape.condition_dim, h * w, Init::Scaled(1.0))?;
    let image = b.reshape(&image, &[0, 1, h as i64, w as i64])?;
    let x = b.concat(&[latent, &image], 1)?;
    let mut x = conv(b, "in", &x, [c + 1, config.channels, 3, 1], Init::Scaled(1.0))?;

    let mut width = config.channels;
    let mut level = Level { channels: width, h, w };
    let mut skips = Vec::new();
    for (i, &multiplier) in config.multipliers.iter().enumerate() {
        if i > 0 {
            x = conv(b, &format!("down.{i}"), &x, [width, width, 3, 2], Init::Scaled(1.0))?;
            level = Level { channels: width, h: level.h / 2, w: level.w / 2 };
        }
        level.channels = config.channels * multiplier;
        x = residual(b, &format!("down.{i}.block"), &x, &context, width, &level, config)?;
        width = level.channels;
        skips.push((x.clone(), width));
    }
    x = residual(b, "middle", &x, &context, width, &level, config)?;
    if config.attention > 0 {
        x = attend(b, &x, condition, shape.condition_dim, &level, config)?;
    }
    for (i, (skip, skip_width)) in skips.into_iter().enumerate().rev() {
        x = b.concat(&[&x, &skip], 1)?;
        level.channels = skip_width;
        x = residual(b, &format!("up.{i}.block"), &x, &context, width + skip_width, &level, config)?;
        width = skip_width;
        if i > 0 {
            x = b.upsample2(&x)?;
            level = Level { channels: width, h: level.h * 2, w: level.w * 2 };
        }
    }
    let x = group_norm(b, "out.norm", &x, config.groups, [width, h, w], Unary::Silu)?;
    conv(b, "out", &x, [width, c, 3, 1], Init::Scaled(0.01))
}
