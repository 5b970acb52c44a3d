//! One definition of each network, several backends: [`Eager`] runs it in candle, [`Models`] runs it for many models
//! at once (a leading model axis, like vmap), [`Onnx`] records it as an ONNX graph.

mod cut;
mod eager;
pub mod half;
mod models;
pub mod onnx;

pub use cut::{Cut, Value};
pub use eager::Eager;
pub(crate) use eager::resolve;
pub use models::Models;
pub use onnx::Onnx;

use weights::convolution::{Convolution, PARAMS};

use crate::error::Result;
use crate::params::Init;

/// Element-wise functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    /// x · sigmoid(x).
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// max(0, x).
    Relu,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// x · min(max(x + 3, 0), 6) / 6.
    HardSwish,
    /// x · Φ(x), with the error function.
    Gelu,
    /// Square root.
    Sqrt,
    /// x².
    Square,
}

/// Scale and shift of a normalisation.
#[derive(Debug)]
pub struct Weights<'a, T> {
    /// Scale.
    pub scale: &'a T,
    /// Shift.
    pub shift: &'a T,
}

/// The operations of the target networks, written as for one model: `input [n, …]`, parameters in natural shape.
pub trait Layers {
    /// A tensor, or the name of a value in a graph.
    type T: Clone;

    /// `x [n, i]` or `[n, t, i]`, `weight [o, i]`, `bias [o]` → `[n, o]` or `[n, t, o]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn linear(&mut self, x: &Self::T, weight: &Self::T, bias: &Self::T) -> Result<Self::T>;
    /// `x [n, c, h, w]`, `weight [o, c, k, k]`, `bias [o]` → `[n, o, h', w']`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn conv2d(&mut self, x: &Self::T, weight: &Self::T, bias: &Self::T, stride: usize, pad: usize) -> Result<Self::T>;
    /// 2×2 maximum pooling with stride 2: `[n, c, h, w]` → `[n, c, h/2, w/2]`.
    ///
    /// # Errors
    /// When a side is odd.
    fn max_pool2(&mut self, x: &Self::T) -> Result<Self::T>;
    /// Element-wise function.
    ///
    /// # Errors
    /// When the device fails.
    fn unary(&mut self, x: &Self::T, f: Unary) -> Result<Self::T>;
    /// Convolution `c`, without bias and with batch normalisation: `x [n, i, h, w]`, `params`: weight
    /// `[o, i, k, k]` (`[o, 1, k, k]` where it is depthwise), scale, shift, running mean and running variance `[o]` each →
    /// `[n, o, h', w']`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn conv_norm(&mut self, x: &Self::T, params: &[Self::T; PARAMS], c: &Convolution) -> Result<Self::T>;
    /// Squeeze-and-excitation: `x [n, c, h, w]` times a gate for each channel, made of the channels' means by two linear
    /// maps with ReLU between and a hard sigmoid behind. `params`: `[s, c, 1, 1]`, `[s]`, `[c, s, 1, 1]`, `[c]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn squeeze_excite(&mut self, x: &Self::T, params: &[Self::T; 4]) -> Result<Self::T>;
    /// Positions of an image as tokens: `[n, c, h, w]` → `[n, h · w, c]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn tokens(&mut self, x: &Self::T) -> Result<Self::T>;
    /// A token before those of each example: `x [n, t, d]`, `token [1, 1, d]` → `[n, t + 1, d]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn prepend(&mut self, x: &Self::T, token: &Self::T) -> Result<Self::T>;
    /// The same added to each example: `x [n, t, d]`, `y [1, t, d]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn sum_each(&mut self, x: &Self::T, y: &Self::T) -> Result<Self::T>;
    /// Layer normalisation of `x [n, t, d]` over the last dimension, with scale and shift `[d]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn layer_norm(&mut self, x: &Self::T, scale: &Self::T, shift: &Self::T) -> Result<Self::T>;
    /// Self-attention of `heads` heads between the tokens of an example: queries, keys and values `x [n, t, 3 · width]` →
    /// `[n, t, width]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn attention(&mut self, x: &Self::T, heads: usize, width: usize) -> Result<Self::T>;
    /// The first token: `[n, t, d]` → `[n, d]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn first_token(&mut self, x: &Self::T) -> Result<Self::T>;
    /// Mean of the tokens: `[n, t, d]` → `[n, d]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn mean_tokens(&mut self, x: &Self::T) -> Result<Self::T>;
    /// (x − mean) / std of each channel of `x [n, c, h, w]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn standardise(&mut self, x: &Self::T, mean: &[f32], std: &[f32]) -> Result<Self::T>;
    /// a + b of equal shapes.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn sum(&mut self, a: &Self::T, b: &Self::T) -> Result<Self::T>;
    /// Every second row and column, and `more` zero channels, half of them before and half behind:
    /// `[n, c, h, w]` → `[n, c + more, h/2, w/2]`.
    ///
    /// # Errors
    /// When a side is odd.
    fn shrink(&mut self, x: &Self::T, more: usize) -> Result<Self::T>;
    /// Mean over the image: `[n, c, h, w]` → `[n, c]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn mean_pool(&mut self, x: &Self::T) -> Result<Self::T>;
    /// `[n, …]` → `[n, product]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn flatten(&mut self, x: &Self::T) -> Result<Self::T>;
}

/// The operations of the generator's own networks. Shapes follow numpy's broadcasting; in [`Backend::reshape`] 0 keeps
/// a dimension and −1 infers one, so the batch stays symbolic in a recorded graph.
#[allow(clippy::missing_errors_doc)] // each fails only when shapes do not fit or the device does
pub trait Backend: Layers {
    /// Parameter `name` of the network.
    fn param(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Self::T>;
    /// A constant.
    fn constant(&mut self, data: &[f32], shape: &[usize]) -> Result<Self::T>;
    /// `x [.., i]`, `weight [o, i]` → `[.., o]`.
    fn project(&mut self, x: &Self::T, weight: &Self::T) -> Result<Self::T>;
    /// As [`Layers::linear`], plus a residual of the output's shape.
    fn linear_add(&mut self, x: &Self::T, [weight, bias]: [&Self::T; 2], residual: &Self::T) -> Result<Self::T> {
        let y = self.linear(x, weight, bias)?;
        self.add(residual, &y)
    }
    /// As [`Layers::conv2d`] with stride 1, plus a residual of the output's shape.
    fn conv2d_add(&mut self, x: &Self::T, w: [&Self::T; 2], pad: usize, residual: &Self::T) -> Result<Self::T> {
        let y = self.conv2d(x, w[0], w[1], 1, pad)?;
        self.add(residual, &y)
    }
    /// Layer normalisation of `x [.., d]` over the last dimension, with scale and shift `[d]`.
    fn layer_norm_last(&mut self, x: &Self::T, w: Weights<'_, Self::T>) -> Result<Self::T> {
        let x = normalise(self, x)?;
        let x = self.mul(&x, w.scale)?;
        self.add(&x, w.shift)
    }
    /// `f` of the group normalisation of `x [n, c, h, w]`, with scale and shift `[c, 1, 1]`, as a reshape and a
    /// normalisation of the last dimension (reductions over the last dimension are the fast ones).
    fn group_norm(
        &mut self,
        x: &Self::T,
        groups: usize,
        [c, h, w]: [usize; 3],
        p: Weights<'_, Self::T>,
        f: Unary,
    ) -> Result<Self::T> {
        let x = self.reshape(x, &[0, groups as i64, (c / groups * h * w) as i64])?;
        let x = normalise(self, &x)?;
        let x = self.reshape(&x, &[0, c as i64, h as i64, w as i64])?;
        let x = self.mul(&x, p.scale)?;
        let x = self.add(&x, p.shift)?;
        self.unary(&x, f)
    }
    /// softmax(Q Kᵀ / √d) V for each of `heads` heads: `q [n, lq, width]`, `k` and `v [n, lk, width]` →
    /// `[n, lq, width]`; of the keys only those are seen whose `presence [n, lk]` is 1, and not those where it is 0.
    /// `sizes` are lq, lk, width and heads.
    fn attend(&mut self, qkv: [&Self::T; 3], sizes: [usize; 4], presence: Option<&Self::T>) -> Result<Self::T> {
        attend(self, qkv, sizes, presence)
    }
    /// Batched matrix product; equal leading dimensions.
    fn matmul(&mut self, a: &Self::T, b: &Self::T) -> Result<Self::T>;
    /// a + b.
    fn add(&mut self, a: &Self::T, b: &Self::T) -> Result<Self::T>;
    /// a − b.
    fn sub(&mut self, a: &Self::T, b: &Self::T) -> Result<Self::T>;
    /// a · b.
    fn mul(&mut self, a: &Self::T, b: &Self::T) -> Result<Self::T>;
    /// a / b.
    fn div(&mut self, a: &Self::T, b: &Self::T) -> Result<Self::T>;
    /// x · scale + shift.
    fn affine(&mut self, x: &Self::T, scale: f64, shift: f64) -> Result<Self::T>;
    /// Softmax over the last dimension.
    fn softmax(&mut self, x: &Self::T) -> Result<Self::T>;
    /// Mean over the last dimension, kept.
    fn mean_last(&mut self, x: &Self::T) -> Result<Self::T>;
    /// New shape.
    fn reshape(&mut self, x: &Self::T, shape: &[i64]) -> Result<Self::T>;
    /// New order of dimensions.
    fn permute(&mut self, x: &Self::T, order: &[usize]) -> Result<Self::T>;
    /// `length` values of the last dimension, from `start`.
    fn slice_last(&mut self, x: &Self::T, start: usize, length: usize) -> Result<Self::T>;
    /// Joins along `axis`.
    fn concat(&mut self, parts: &[&Self::T], axis: usize) -> Result<Self::T>;
    /// Nearest-neighbour upsampling by 2: `[n, c, h, w]` → `[n, c, 2h, 2w]`.
    fn upsample2(&mut self, x: &Self::T) -> Result<Self::T>;
    /// Repeats a tensor of `rank` dimensions, the first being 1, along the leading dimension of `like`.
    fn expand_first(&mut self, x: &Self::T, rank: usize, like: &Self::T) -> Result<Self::T>;
}

/// What is added to the scores of keys that are not there: their share of the attention is exactly 0.
pub const ABSENT: f64 = 1e9;

/// ε of the generator's own normalisations.
pub(crate) const EPSILON: f64 = 1e-5;

/// (x − mean) / √(variance + ε) over the last dimension.
fn normalise<B: Backend + ?Sized>(b: &mut B, x: &B::T) -> Result<B::T> {
    let mean = b.mean_last(x)?;
    let centred = b.sub(x, &mean)?;
    let square = b.unary(&centred, Unary::Square)?;
    let variance = b.mean_last(&square)?;
    let variance = b.affine(&variance, 1.0, EPSILON)?;
    let std = b.unary(&variance, Unary::Sqrt)?;
    b.div(&centred, &std)
}

fn attend<B: Backend + ?Sized>(
    b: &mut B,
    [q, k, v]: [&B::T; 3],
    [lq, lk, width, heads]: [usize; 4],
    presence: Option<&B::T>,
) -> Result<B::T> {
    let head = width / heads;
    let split = |b: &mut B, x: &B::T, l: usize, order: &[usize]| -> Result<B::T> {
        let x = b.reshape(x, &[0, l as i64, heads as i64, head as i64])?;
        let x = b.permute(&x, order)?;
        let (rows, columns) = if order[2] == 1 { (l, head) } else { (head, l) };
        b.reshape(&x, &[-1, rows as i64, columns as i64])
    };
    let queries = split(b, q, lq, &[0, 2, 1, 3])?;
    let keys = split(b, k, lk, &[0, 2, 3, 1])?;
    let values = split(b, v, lk, &[0, 2, 1, 3])?;
    let scores = b.matmul(&queries, &keys)?;
    let mut scores = b.affine(&scores, 1.0 / (head as f64).sqrt(), 0.0)?;
    if let Some(presence) = presence {
        let absent = b.affine(presence, ABSENT, -ABSENT)?;
        let absent = b.reshape(&absent, &[0, 1, 1, lk as i64])?;
        scores = b.reshape(&scores, &[-1, heads as i64, lq as i64, lk as i64])?;
        scores = b.add(&scores, &absent)?;
        scores = b.reshape(&scores, &[-1, lq as i64, lk as i64])?;
    }
    let attention = b.softmax(&scores)?;
    let mixed = b.matmul(&attention, &values)?;
    let mixed = b.reshape(&mixed, &[-1, heads as i64, lq as i64, head as i64])?;
    let mixed = b.permute(&mixed, &[0, 2, 1, 3])?;
    b.reshape(&mixed, &[0, lq as i64, width as i64])
}
