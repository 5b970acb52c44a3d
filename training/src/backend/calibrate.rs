//! The backend that measures what batch normalisation stores: mean and variance of each channel on images, layer by
//! layer, each layer after those before it have been normalised by their own.

use candle_core::Tensor;

use super::eager::{self, NORM_EPSILON};
use super::{Layers, Unary};
use crate::error::Result;
use crate::ops;

/// Runs a network of one model in candle, and normalises by the statistics of what it is given.
#[derive(Debug, Default)]
pub struct Calibrate {
    /// Mean and variance of each normalisation, in the order in which they are applied.
    pub statistics: Vec<[Vec<f32>; 2]>,
}

impl Layers for Calibrate {
    type T = Tensor;

    fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&weight.t()?)?.broadcast_add(bias)?)
    }

    fn conv2d(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
        ops::conv2d(x, weight, bias, stride, pad)
    }

    fn max_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::max_pool2(x)
    }

    fn unary(&mut self, x: &Tensor, f: Unary) -> Result<Tensor> {
        eager::unary(x, f)
    }

    fn conv_norm(&mut self, x: &Tensor, params: &[Tensor; 5], stride: usize, pad: usize) -> Result<Tensor> {
        let [weight, scale, shift, ..] = params;
        let y = ops::conv2d(x, weight, &shift.zeros_like()?, stride, pad)?;
        // [c, n·h·w]: reductions over the last dimension are the fast ones.
        let channels = y.transpose(0, 1)?.contiguous()?.flatten_from(1)?;
        let mean = channels.mean_keepdim(1)?;
        let variance = channels.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)?;
        self.statistics.push([mean.flatten_all()?.to_vec1()?, variance.flatten_all()?.to_vec1()?]);
        let column = (y.dim(1)?, 1, 1);
        let std = variance.affine(1.0, NORM_EPSILON)?.sqrt()?.reshape(column)?;
        let y = y.broadcast_sub(&mean.reshape(column)?)?.broadcast_div(&std)?;
        Ok(y.broadcast_mul(&scale.reshape(column)?)?.broadcast_add(&shift.reshape(column)?)?)
    }

    fn standardise(&mut self, x: &Tensor, mean: &[f32], std: &[f32]) -> Result<Tensor> {
        eager::standardise(x, mean, std)
    }

    fn sum(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    fn shrink(&mut self, x: &Tensor, more: usize) -> Result<Tensor> {
        eager::shrink(x, more)
    }

    fn mean_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(2)?.mean(candle_core::D::Minus1)?)
    }

    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(1)?)
    }
}
