//! The backend that runs one target network for many models at once: every tensor has a leading model axis.

use candle_core::Tensor;

use super::{Layers, Unary};
use crate::error::Result;
use crate::ops;

/// Like vmap over models: `input [m, n, …]`, parameters `[m, …natural shape]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Models;

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
        let (weight, bias) = super::eager::folded(params)?;
        self.conv2d(x, &weight, &bias, stride, pad)
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
