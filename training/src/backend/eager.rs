//! The backend that runs networks in candle.

use candle_core::{D, DType, Tensor};
use weights::convolution::{Convolution, PARAMS};
use weights::layout::NORM_EPSILON;

use super::{Backend, Layers, Models, Unary};
use crate::config::Arithmetic;
use crate::error::{Error, Result};
use crate::ops;
use crate::params::{Init, Params};

/// Runs operations at once on candle tensors; parameters come from, and are created in, a [`Params`].
#[derive(Debug)]
pub struct Eager<'a> {
    params: &'a mut Params,
}

impl<'a> Eager<'a> {
    /// A backend over these parameters.
    pub fn new(params: &'a mut Params) -> Self {
        Self { params }
    }

    /// A tensor as products take it: in bf16, where they are to be computed in it and the device has such products; else
    /// rounded to it.
    fn taken(&self, x: &Tensor) -> Result<Tensor> {
        if self.params.arithmetic() == Arithmetic::F32 {
            return Ok(x.clone());
        }
        let rounded = x.to_dtype(DType::BF16)?;
        Ok(if x.device().is_cpu() { rounded.to_dtype(DType::F32)? } else { rounded })
    }

    /// The product of two matrices, or of two for each leading index.
    fn product(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(self.taken(a)?.matmul(&self.taken(b)?)?.to_dtype(DType::F32)?)
    }
}

/// Applies an element-wise function.
pub(super) fn unary(x: &Tensor, f: Unary) -> Result<Tensor> {
    Ok(match f {
        Unary::Silu => x.silu()?,
        Unary::Tanh => x.tanh()?,
        Unary::Relu => x.relu()?,
        Unary::HardSwish => ops::hard_swish(x)?,
        Unary::Gelu => x.gelu_erf()?,
        Unary::Sin => x.sin()?,
        Unary::Cos => x.cos()?,
        Unary::Sqrt => x.sqrt()?,
        Unary::Square => x.sqr()?,
    })
}

/// A convolution's weight and bias that do what it and its normalisation do: `[.., o, c, k, k]` and `[.., o]`.
pub(super) fn folded([weight, scale, shift, mean, variance]: &[Tensor; PARAMS]) -> Result<(Tensor, Tensor)> {
    let scale = (scale / variance.affine(1.0, NORM_EPSILON)?.sqrt()?)?;
    let shape: Vec<usize> = scale.dims().iter().copied().chain([1, 1, 1]).collect();
    Ok((weight.broadcast_mul(&scale.reshape(shape)?)?, (shift - (mean * scale)?)?))
}

/// (x − mean) / std of each channel, the third dimension from the end.
pub(super) fn standardise(x: &Tensor, mean: &[f32], std: &[f32]) -> Result<Tensor> {
    let channel = |values: &[f32]| Tensor::from_slice(values, (values.len(), 1, 1), x.device());
    Ok(x.broadcast_sub(&channel(mean)?)?.broadcast_div(&channel(std)?)?)
}

/// Every second position of an image, and zero channels around.
pub(super) fn shrink(x: &Tensor, more: usize) -> Result<Tensor> {
    let rank = x.rank();
    let (h, w) = (x.dim(rank - 2)?, x.dim(rank - 1)?);
    if h % 2 != 0 || w % 2 != 0 {
        return Err(Error::Config(format!("an image of {h}×{w} cannot be halved")));
    }
    let (before, c) = (x.dims()[..rank - 3].to_vec(), x.dim(rank - 3)?);
    let y = x.reshape((before.iter().product::<usize>() * c * h / 2, 2 * w))?.narrow(1, 0, w)?;
    let y = y.contiguous()?.reshape(((), 2))?.narrow(1, 0, 1)?.contiguous()?;
    let shape: Vec<usize> = before.into_iter().chain([c, h / 2, w / 2]).collect();
    Ok(y.reshape(shape)?.pad_with_zeros(rank - 3, more / 2, more - more / 2)?)
}

/// Shape with ONNX semantics: 0 keeps the dimension, −1 infers it.
pub(crate) fn resolve(old: &[usize], shape: &[i64]) -> Result<Vec<usize>> {
    let bad = || Error::Config(format!("cannot reshape {old:?} to {shape:?}"));
    let mut new = Vec::with_capacity(shape.len());
    for (i, &s) in shape.iter().enumerate() {
        new.push(match s {
            0 => *old.get(i).ok_or_else(bad)?,
            -1 => 1,
            s => usize::try_from(s).map_err(|_| bad())?,
        });
    }
    let (have, fixed): (usize, usize) = (old.iter().product(), new.iter().product());
    if let Some(infer) = shape.iter().position(|&s| s == -1) {
        if fixed == 0 || have % fixed != 0 {
            return Err(bad());
        }
        new[infer] = have / fixed;
    } else if fixed != have {
        return Err(bad());
    }
    Ok(new)
}

/// What an operation over many models gives for one.
fn alone(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    Ok(f(&x.unsqueeze(0)?)?.squeeze(0)?)
}

impl Layers for Eager<'_> {
    type T = Tensor;

    fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let y = self.project(x, weight)?;
        Ok(y.broadcast_add(bias)?)
    }

    fn conv2d(&mut self, x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
        ops::conv2d(&self.taken(x)?, &self.taken(weight)?, bias, stride, pad)
    }

    fn max_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::max_pool2(x)
    }

    fn unary(&mut self, x: &Tensor, f: Unary) -> Result<Tensor> {
        unary(x, f)
    }

    fn conv_norm(&mut self, x: &Tensor, params: &[Tensor; PARAMS], c: &Convolution) -> Result<Tensor> {
        if c.groups > 1 {
            let params = params.each_ref().map(|p| p.unsqueeze(0));
            let [a, b, c_, d, e] = params;
            return alone(x, |x| Models::default().conv_norm(x, &[a?, b?, c_?, d?, e?], c));
        }
        let (weight, bias) = folded(params)?;
        self.conv2d(x, &weight, &bias, c.stride, c.kernel / 2)
    }

    fn squeeze_excite(&mut self, x: &Tensor, params: &[Tensor; 4]) -> Result<Tensor> {
        let [a, b, c, d] = params.each_ref().map(|p| p.unsqueeze(0));
        alone(x, |x| Models::default().squeeze_excite(x, &[a?, b?, c?, d?]))
    }

    fn tokens(&mut self, x: &Tensor) -> Result<Tensor> {
        alone(x, |x| Models::default().tokens(x))
    }

    fn prepend(&mut self, x: &Tensor, token: &Tensor) -> Result<Tensor> {
        alone(x, |x| Models::default().prepend(x, &token.unsqueeze(0)?))
    }

    fn sum_each(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_add(y)?)
    }

    fn layer_norm(&mut self, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        alone(x, |x| Models::default().layer_norm(x, &scale.unsqueeze(0)?, &shift.unsqueeze(0)?))
    }

    fn attention(&mut self, x: &Tensor, heads: usize, width: usize) -> Result<Tensor> {
        alone(x, |x| Models::default().attention(x, heads, width))
    }

    fn first_token(&mut self, x: &Tensor) -> Result<Tensor> {
        alone(x, |x| Models::default().first_token(x))
    }

    fn mean_tokens(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.mean(1)?)
    }

    fn standardise(&mut self, x: &Tensor, mean: &[f32], std: &[f32]) -> Result<Tensor> {
        standardise(x, mean, std)
    }

    fn sum(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    fn shrink(&mut self, x: &Tensor, more: usize) -> Result<Tensor> {
        shrink(x, more)
    }

    fn mean_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(x.rank() - 2)?.mean(D::Minus1)?)
    }

    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(1)?)
    }
}

impl Backend for Eager<'_> {
    fn param(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.params.get_or_init(name, shape, init)
    }

    fn constant(&mut self, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_slice(data, shape, self.params.device())?)
    }

    fn project(&mut self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        // One large product instead of one a leading index.
        let dims = x.dims();
        let (last, lead) = dims.split_last().ok_or_else(|| Error::Config("cannot project a scalar".into()))?;
        let rows: usize = lead.iter().product();
        let y = self.product(&x.reshape((rows, *last))?, &weight.t()?)?;
        let mut shape = lead.to_vec();
        shape.push(weight.dim(0)?);
        Ok(y.reshape(shape)?)
    }

    fn matmul(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.product(&a.contiguous()?, &b.contiguous()?)
    }

    fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.broadcast_add(b)?)
    }

    fn sub(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.broadcast_sub(b)?)
    }

    fn mul(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.broadcast_mul(b)?)
    }

    fn div(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.broadcast_div(b)?)
    }

    fn affine(&mut self, x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
        Ok(x.affine(scale, shift)?)
    }

    fn softmax(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::softmax(x, D::Minus1)?)
    }

    fn mean_last(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.mean_keepdim(D::Minus1)?)
    }

    fn reshape(&mut self, x: &Tensor, shape: &[i64]) -> Result<Tensor> {
        Ok(x.reshape(resolve(x.dims(), shape)?)?)
    }

    fn permute(&mut self, x: &Tensor, order: &[usize]) -> Result<Tensor> {
        Ok(x.permute(order)?.contiguous()?)
    }

    fn slice_last(&mut self, x: &Tensor, start: usize, length: usize) -> Result<Tensor> {
        Ok(x.narrow(D::Minus1, start, length)?.contiguous()?)
    }

    fn concat(&mut self, parts: &[&Tensor], axis: usize) -> Result<Tensor> {
        Ok(Tensor::cat(parts, axis)?)
    }

    fn upsample2(&mut self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let x = x.reshape((n, c, h, 1, w, 1))?.broadcast_as((n, c, h, 2, w, 2))?;
        Ok(x.contiguous()?.reshape((n, c, 2 * h, 2 * w))?)
    }

    fn expand_first(&mut self, x: &Tensor, _rank: usize, like: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        shape[0] = like.dim(0)?;
        Ok(x.broadcast_as(shape)?.contiguous()?)
    }
}
