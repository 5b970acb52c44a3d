//! The convolutional VAE of latent diffusion (paper C.4): a linear layer makes an image of the weights, encoder and
//! decoder are residual blocks with halved and doubled resolution, a linear layer makes weights of the image. Without a
//! discriminator.

use serde::{Deserialize, Serialize};

use super::layers::{conv, group_norm, linear};
use crate::backend::{Backend, Unary};
use crate::error::{Error, Result};
use crate::params::Init;

/// Sizes of the convolutional VAE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConvVaeConfig {
    /// Shape `[c, h, w]` of the image that the weights become; h and w are the latent's, doubled some times.
    pub image: [usize; 3],
    /// Channels at the image's resolution; each halving has twice as many, up to four times.
    pub channels: usize,
    /// Groups of the group normalisation; divides the channels.
    pub groups: usize,
}

impl Default for ConvVaeConfig {
    fn default() -> Self {
        Self { image: [1, 32, 32], channels: 16, groups: 4 }
    }
}

impl ConvVaeConfig {
    /// How often the image is halved to be of the size of a latent `[c, h, w]`.
    ///
    /// # Errors
    /// [`Error::Config`] with what would be right.
    pub fn halvings(&self, latent: &[usize]) -> Result<usize> {
        let refuse = |text: String| Err(Error::Config(text));
        let &[c, h, w] = latent else {
            return refuse(format!("the convolutional VAE needs a vae.latent of shape [c, h, w], not {latent:?}"));
        };
        let [channels, height, width] = self.image;
        if c == 0
            || channels == 0
            || self.groups == 0
            || !self.channels.is_multiple_of(self.groups)
            || self.channels == 0
        {
            return refuse("vae.conv needs channels that are a multiple of its groups, and none may be 0".into());
        }
        let fits = |n: usize| h > 0 && w > 0 && h << n == height && w << n == width;
        match (0..=6).find(|&n| fits(n)) {
            Some(n) => Ok(n),
            None => refuse(format!(
                "vae.conv.image is {height}×{width}, which is no {h}×{w} (of vae.latent) doubled up to six times"
            )),
        }
    }

    fn width(&self, level: usize) -> usize {
        self.channels * (1 << level.min(2))
    }
}

/// Residual block `[n, i, h, w]` → `[n, o, h, w]`.
fn residual<B: Backend>(
    b: &mut B,
    name: &str,
    x: &B::T,
    [input, output, h, w]: [usize; 4],
    config: &ConvVaeConfig,
) -> Result<B::T> {
    let y = group_norm(b, &format!("{name}.norm0"), x, config.groups, [input, h, w], Unary::Silu)?;
    let y = conv(b, &format!("{name}.conv0"), &y, [input, output, 3, 1], Init::Scaled(1.0))?;
    let y = group_norm(b, &format!("{name}.norm1"), &y, config.groups, [output, h, w], Unary::Silu)?;
    let y = conv(b, &format!("{name}.conv1"), &y, [output, output, 3, 1], Init::Scaled(0.1))?;
    let skip = format!("{name}.skip");
    let x = if input == output { x.clone() } else { conv(b, &skip, x, [input, output, 1, 1], Init::Scaled(1.0))? };
    b.add(&x, &y)
}

/// `weights [n, length]` → mean and log-variance of the latent, `[n, c, h, w]` each.
///
/// # Errors
/// When shapes do not fit.
pub fn encode<B: Backend>(
    b: &mut B,
    config: &ConvVaeConfig,
    length: usize,
    latent: &[usize],
    weights: &B::T,
) -> Result<(B::T, B::T)> {
    let halvings = config.halvings(latent)?;
    let [c, mut h, mut w] = config.image;
    let x = linear(b, "encoder.in", weights, length, c * h * w, Init::Scaled(1.0))?;
    let x = b.reshape(&x, &[0, c as i64, h as i64, w as i64])?;
    let mut width = config.width(0);
    let mut x = conv(b, "encoder.conv", &x, [c, width, 3, 1], Init::Scaled(1.0))?;
    for level in 0..=halvings {
        if level > 0 {
            x = conv(b, &format!("encoder.{level}.down"), &x, [width, width, 3, 2], Init::Scaled(1.0))?;
            (h, w) = (h / 2, w / 2);
        }
        let next = config.width(level);
        x = residual(b, &format!("encoder.{level}.block"), &x, [width, next, h, w], config)?;
        width = next;
    }
    let x = group_norm(b, "encoder.norm", &x, config.groups, [width, h, w], Unary::Silu)?;
    let mean = conv(b, "encoder.mean", &x, [width, latent[0], 3, 1], Init::Scaled(1.0))?;
    let log_variance = conv(b, "encoder.log_variance", &x, [width, latent[0], 3, 1], Init::Scaled(0.01))?;
    Ok((mean, log_variance))
}

/// `latent [n, c, h, w]` → standardised `weights [n, length]`.
///
/// # Errors
/// When shapes do not fit.
pub fn decode<B: Backend>(
    b: &mut B,
    config: &ConvVaeConfig,
    length: usize,
    shape: &[usize],
    latent: &B::T,
) -> Result<B::T> {
    let halvings = config.halvings(shape)?;
    let (mut h, mut w) = (shape[1], shape[2]);
    let mut width = config.width(halvings);
    let mut x = conv(b, "decoder.conv", latent, [shape[0], width, 3, 1], Init::Scaled(1.0))?;
    for level in (0..=halvings).rev() {
        let next = config.width(level);
        x = residual(b, &format!("decoder.{level}.block"), &x, [width, next, h, w], config)?;
        width = next;
        if level > 0 {
            x = b.upsample2(&x)?;
            (h, w) = (h * 2, w * 2);
            x = conv(b, &format!("decoder.{level}.up"), &x, [width, width, 3, 1], Init::Scaled(1.0))?;
        }
    }
    let c = config.image[0];
    let x = group_norm(b, "decoder.norm", &x, config.groups, [width, h, w], Unary::Silu)?;
    let x = conv(b, "decoder.image", &x, [width, c, 3, 1], Init::Scaled(1.0))?;
    let x = b.reshape(&x, &[0, (c * h * w) as i64])?;
    linear(b, "decoder.out", &x, c * h * w, length, Init::Scaled(1.0))
}
