//! Layers that the models here share, each differentiable.

use candle_core::{D, Tensor};

type Result<T> = candle_core::Result<T>;

/// Rows of `x` (`[b, t, inputs]`) times the transpose of `w` (`[outputs, inputs]`).
pub(crate) fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    product(x, &w.t()?)
}

/// Rows of `x` (`[b, t, inputs]`) times `w` (`[inputs, outputs]`), as one product.
pub(crate) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (b, t, inputs) = x.dims3()?;
    x.reshape((b * t, inputs))?.matmul(w)?.reshape((b, t, w.dim(1)?))
}

/// Layer norm over the last dimension.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&variance.affine(1.0, epsilon)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// RMS norm over the last dimension.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&square.affine(1.0, epsilon)?.sqrt()?)?.broadcast_mul(weight)
}

/// `[b, t, heads × d]` as `[b, heads, t, d]`.
pub(crate) fn heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    x.reshape((b, t, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// Attention of `[b, heads, t, d]` queries to keys and values of as many heads; `mask` is added to the scores. Gives
/// `[b, t, heads × d]`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (b, heads, t, d) = q.dims4()?;
    let scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?.affine(1.0 / (d as f64).sqrt(), 0.0)?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
    weights.matmul(v)?.transpose(1, 2)?.reshape((b, t, heads * d))
}
