//! The backend that runs one target network for many models at once: every tensor has a leading model axis.

use candle_core::Tensor;
use weights::convolution::{Convolution, PARAMS};

use super::{Layers, Unary};
use crate::error::Result;
use crate::ops;

/// Like vmap over models: `input [m, n, …]`, parameters `[m, …natural shape]`.
#[derive(Debug, Default)]
pub struct Models {
    norm: Norm,
}

/// What batch normalisation divides by.
#[derive(Debug, Default)]
enum Norm {
    /// What the networks store.
    #[default]
    Stored,
    /// Mean and variance of the examples that they are given, as in training.
    Batch,
    /// The same, and they are kept: each layer's after those before it have been normalised by their own.
    Measured(Vec<[Tensor; 2]>),
}

impl Models {
    /// Normalises by the examples' own statistics, as networks are trained.
    #[must_use]
    pub fn training() -> Self {
        Self { norm: Norm::Batch }
    }

    /// Normalises by the examples' own statistics and keeps them.
    #[must_use]
    pub fn measuring() -> Self {
        Self { norm: Norm::Measured(Vec::new()) }
    }

    /// Mean and variance `[m, c]` of each normalisation that was measured, in the order in which they were applied.
    #[must_use]
    pub fn statistics(self) -> Vec<[Tensor; 2]> {
        match self.norm {
            Norm::Measured(all) => all,
            Norm::Stored | Norm::Batch => Vec::new(),
        }
    }

    /// Normalises `y [m, n, c, h, w]` by its own statistics.
    fn normalise(&mut self, y: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        if let Norm::Measured(all) = &mut self.norm {
            // [m, c, n·h·w]: reductions over the last dimension are the fast ones.
            let channels = y.transpose(1, 2)?.contiguous()?.flatten_from(2)?;
            let mean = channels.mean_keepdim(2)?;
            let variance = channels.broadcast_sub(&mean)?.sqr()?.mean(2)?;
            all.push([mean.squeeze(2)?, variance]);
        }
        ops::batch_norm(y, scale, shift)
    }
}

/// A convolution over all channels, or over each for itself.
fn convolve(x: &Tensor, weight: &Tensor, bias: &Tensor, c: &Convolution) -> Result<Tensor> {
    match c.groups {
        1 => ops::conv2d_models(x, weight, bias, c.stride, c.kernel / 2),
        _ => ops::depthwise_models(x, weight, bias, c.stride, c.kernel / 2),
    }
}

impl Layers for Models {
    type T = Tensor;

    fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        // Tokens are rows like examples.
        let rows = if x.rank() > 3 { x.flatten(1, x.rank() - 2)? } else { x.clone() };
        let y = rows.matmul(&weight.transpose(1, 2)?)?.broadcast_add(&bias.unsqueeze(1)?)?;
        if x.rank() == 3 {
            return Ok(y);
        }
        let shape: Vec<usize> = x.dims()[..x.rank() - 1].iter().copied().chain([weight.dim(1)?]).collect();
        Ok(y.reshape(shape)?)
    }

    fn conv2d(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
        ops::conv2d_models(x, weight, bias, stride, pad)
    }

    fn max_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        let (m, n, c, h, w) = x.dims5()?;
        Ok(ops::max_pool2(&x.reshape((m * n, c, h, w))?)?.reshape((m, n, c, h / 2, w / 2))?)
    }

    fn unary(&mut self, x: &Tensor, f: Unary) -> Result<Tensor> {
        super::eager::unary(x, f)
    }

    fn conv_norm(&mut self, x: &Tensor, params: &[Tensor; PARAMS], c: &Convolution) -> Result<Tensor> {
        if let Norm::Stored = self.norm {
            let (weight, bias) = super::eager::folded(params)?;
            return convolve(x, &weight, &bias, c);
        }
        let [weight, scale, shift, ..] = params;
        let y = convolve(x, weight, &shift.zeros_like()?, c)?;
        self.normalise(&y, scale, shift)
    }

    fn squeeze_excite(&mut self, x: &Tensor, [squeeze, bias, excite, shift]: &[Tensor; 4]) -> Result<Tensor> {
        let (m, n, c, ..) = x.dims5()?;
        let gate = self.mean_pool(x)?;
        let gate = self.linear(&gate, &squeeze.flatten_from(2)?, bias)?.relu()?;
        let gate = ops::hard_sigmoid(&self.linear(&gate, &excite.flatten_from(2)?, shift)?)?;
        Ok(x.broadcast_mul(&gate.reshape((m, n, c, 1, 1))?)?)
    }

    fn tokens(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(3)?.transpose(2, 3)?.contiguous()?)
    }

    fn prepend(&mut self, x: &Tensor, token: &Tensor) -> Result<Tensor> {
        let (m, n, _, d) = x.dims4()?;
        Ok(Tensor::cat(&[&token.broadcast_as((m, n, 1, d))?.contiguous()?, x], 2)?)
    }

    fn sum_each(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_add(y)?)
    }

    fn layer_norm(&mut self, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        ops::layer_norm_models(x, scale, shift)
    }

    fn attention(&mut self, x: &Tensor, heads: usize, width: usize) -> Result<Tensor> {
        let (m, n, t, _) = x.dims4()?;
        let parts = x.reshape((m * n, t, 3, heads, width / heads.max(1)))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (q, k, v) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
        let scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?;
        let scale = (heads as f64 / width as f64).sqrt();
        let y = candle_nn::ops::softmax(&scores.affine(scale, 0.0)?, candle_core::D::Minus1)?.matmul(&v)?;
        Ok(y.transpose(1, 2)?.contiguous()?.reshape((m, n, t, width))?)
    }

    fn first_token(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.narrow(2, 0, 1)?.squeeze(2)?.contiguous()?)
    }

    fn mean_tokens(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.mean(2)?)
    }

    fn standardise(&mut self, x: &Tensor, mean: &[f32], std: &[f32]) -> Result<Tensor> {
        super::eager::standardise(x, mean, std)
    }

    fn sum(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    fn shrink(&mut self, x: &Tensor, more: usize) -> Result<Tensor> {
        super::eager::shrink(x, more)
    }

    fn mean_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(3)?.mean(candle_core::D::Minus1)?)
    }

    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(2)?)
    }
}
