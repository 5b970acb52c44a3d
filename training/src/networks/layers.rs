//! Layers of the generator's networks.

use crate::backend::{Backend, Unary, Weights};
use crate::error::Result;
use crate::params::Init;

/// `x [.., i]` → `[.., o]`, with bias, initialised with `gain / i` variance.
///
/// # Errors
/// When shapes do not fit.
pub fn linear<B: Backend>(b: &mut B, name: &str, x: &B::T, i: usize, o: usize, init: Init) -> Result<B::T> {
    let weight = b.param(&format!("{name}.weight"), &[o, i], init)?;
    let bias = b.param(&format!("{name}.bias"), &[o], Init::Zeros)?;
    b.linear(x, &weight, &bias)
}

/// [`linear`] plus a residual of the output's shape.
///
/// # Errors
/// When shapes do not fit.
pub fn linear_add<B: Backend>(
    b: &mut B,
    name: &str,
    x: &B::T,
    [i, o]: [usize; 2],
    init: Init,
    residual: &B::T,
) -> Result<B::T> {
    let weight = b.param(&format!("{name}.weight"), &[o, i], init)?;
    let bias = b.param(&format!("{name}.bias"), &[o], Init::Zeros)?;
    b.linear_add(x, [&weight, &bias], residual)
}

/// Layer normalisation over the last dimension of width `d`.
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm<B: Backend>(b: &mut B, name: &str, x: &B::T, d: usize) -> Result<B::T> {
    let scale = b.param(&format!("{name}.weight"), &[d], Init::Ones)?;
    let shift = b.param(&format!("{name}.bias"), &[d], Init::Zeros)?;
    b.layer_norm_last(x, Weights { scale: &scale, shift: &shift })
}

/// `f` of the group normalisation of `x [n, c, h, w]`.
///
/// # Errors
/// When shapes do not fit.
pub fn group_norm<B: Backend>(
    b: &mut B,
    name: &str,
    x: &B::T,
    groups: usize,
    chw: [usize; 3],
    f: Unary,
) -> Result<B::T> {
    let c = chw[0];
    let scale = b.param(&format!("{name}.weight"), &[c, 1, 1], Init::Ones)?;
    let shift = b.param(&format!("{name}.bias"), &[c, 1, 1], Init::Zeros)?;
    b.group_norm(x, groups, chw, Weights { scale: &scale, shift: &shift }, f)
}

/// 3×3 or 1×1 convolution that keeps the size (divided by `stride`).
///
/// # Errors
/// When shapes do not fit.
pub fn conv<B: Backend>(b: &mut B, name: &str, x: &B::T, [i, o, k, stride]: [usize; 4], init: Init) -> Result<B::T> {
    let weight = b.param(&format!("{name}.weight"), &[o, i, k, k], init)?;
    let bias = b.param(&format!("{name}.bias"), &[o], Init::Zeros)?;
    b.conv2d(x, &weight, &bias, stride, k / 2)
}

/// 3×3 or 1×1 convolution that keeps the size, plus a residual of the output's shape.
///
/// # Errors
/// When shapes do not fit.
pub fn conv_add<B: Backend>(
    b: &mut B,
    name: &str,
    x: &B::T,
    [i, o, k]: [usize; 3],
    init: Init,
    residual: &B::T,
) -> Result<B::T> {
    let weight = b.param(&format!("{name}.weight"), &[o, i, k, k], init)?;
    let bias = b.param(&format!("{name}.bias"), &[o], Init::Zeros)?;
    b.conv2d_add(x, [&weight, &bias], k / 2, residual)
}

/// Multihead attention of queries `q [n, lq, d]` on `kv [n, lk, d]`, residual, then a residual feed-forward layer:
/// the block MAB of the Set Transformer, pre-normalised.
///
/// # Errors
/// When shapes do not fit.
pub fn attention_block<B: Backend>(b: &mut B, name: &str, q: &B::T, kv: &B::T, sizes: [usize; 4]) -> Result<B::T> {
    masked_attention_block(b, name, q, kv, sizes, None)
}

/// As [`attention_block`]; of `kv` only those are seen whose `presence [n, lk]` is 1, and not those where it is 0.
///
/// # Errors
/// When shapes do not fit.
pub fn masked_attention_block<B: Backend>(
    b: &mut B,
    name: &str,
    q: &B::T,
    kv: &B::T,
    [lq, lk, d, heads]: [usize; 4],
    presence: Option<&B::T>,
) -> Result<B::T> {
    let qn = layer_norm(b, &format!("{name}.norm_q"), q, d)?;
    let kvn = layer_norm(b, &format!("{name}.norm_kv"), kv, d)?;
    let map = |b: &mut B, part: &str, x: &B::T| linear(b, &format!("{name}.{part}"), x, d, d, Init::Scaled(1.0));
    let queries = map(b, "query", &qn)?;
    let keys = map(b, "key", &kvn)?;
    let values = map(b, "value", &kvn)?;
    let mixed = b.attend([&queries, &keys, &values], [lq, lk, d, heads], presence)?;
    let x = linear_add(b, &format!("{name}.out"), &mixed, [d, d], Init::Scaled(1.0), q)?;
    let h = layer_norm(b, &format!("{name}.norm_ff"), &x, d)?;
    let h = linear(b, &format!("{name}.ff1"), &h, d, 2 * d, Init::Scaled(2.0))?;
    let h = b.unary(&h, Unary::Silu)?;
    linear_add(b, &format!("{name}.ff2"), &h, [2 * d, d], Init::Scaled(1.0), &x)
}

/// Sinusoidal embedding of timesteps `t [n]` → `[n, d]`.
///
/// # Errors
/// When shapes do not fit.
pub fn timestep_embedding<B: Backend>(b: &mut B, t: &B::T, d: usize) -> Result<B::T> {
    let half = d / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| (-(10_000f64.ln()) * i as f64 / half as f64).exp() as f32).collect();
    let frequencies = b.constant(&frequencies, &[1, half])?;
    let t = b.reshape(t, &[-1, 1])?;
    let angle = b.mul(&t, &frequencies)?;
    let (sin, cos) = (b.unary(&angle, Unary::Sin)?, b.unary(&angle, Unary::Cos)?);
    b.concat(&[&sin, &cos], 1)
}
