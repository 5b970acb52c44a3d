//! The backend that runs one target network for many models at once: every tensor has a leading model axis.

use candle_core::Tensor;

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

impl Layers for Models {
    type T = Tensor;

    fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&weight.transpose(1, 2)?)?.broadcast_add(&bias.unsqueeze(1)?)?)
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

    fn conv_norm(&mut self, x: &Tensor, params: &[Tensor; 5], stride: usize, pad: usize) -> Result<Tensor> {
        if let Norm::Stored = self.norm {
            let (weight, bias) = super::eager::folded(params)?;
            return self.conv2d(x, &weight, &bias, stride, pad);
        }
        let [weight, scale, shift, ..] = params;
        let y = self.conv2d(x, weight, &shift.zeros_like()?, stride, pad)?;
        self.normalise(&y, scale, shift)
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
