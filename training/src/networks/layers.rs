//! Layers of the generator's networks.

use crate::backend::{Backend, Unary};
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

/// Normalises the last dimension to zero mean and unit variance: (x − E x)/√(Var x + ε).
fn normalise<B: Backend>(b: &mut B, x: &B::T) -> Result<B::T> {
    let mean = b.mean_last(x)?;
    let centred = b.sub(x, &mean)?;
    let square = b.unary(&centred, Unary::Square)?;
    let variance = b.mean_last(&square)?;
    let variance = b.affine(&variance, 1.0, 1e-5)?;
    let std = b.unary(&variance, Unary::Sqrt)?;
    b.div(&centred, &std)
}

/// Layer normalisation over the last dimension of width `d`.
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm<B: Backend>(b: &mut B, name: &str, x: &B::T, d: usize) -> Result<B::T> {
    let scale = b.param(&format!("{name}.weight"), &[d], Init::Ones)?;
    let shift = b.param(&format!("{name}.bias"), &[d], Init::Zeros)?;
    let x = normalise(b, x)?;
    let x = b.mul(&x, &scale)?;
    b.add(&x, &shift)
}

/// Group normalisation of `x [n, c, h, w]`, as a reshape and a normalisation of the last dimension (reductions over
/// the last dimension are the fast ones).
///
/// # Errors
/// When shapes do not fit.
pub fn group_norm<B: Backend>(b: &mut B, name: &str, x: &B::T, groups: usize, chw: [usize; 3]) -> Result<B::T> {
    let [c, h, w] = chw;
    let scale = b.param(&format!("{name}.weight"), &[c, 1, 1], Init::Ones)?;
    let shift = b.param(&format!("{name}.bias"), &[c, 1, 1], Init::Zeros)?;
    let x = b.reshape(x, &[0, groups as i64, (c / groups * h * w) as i64])?;
    let x = normalise(b, &x)?;
    let x = b.reshape(&x, &[0, c as i64, h as i64, w as i64])?;
    let x = b.mul(&x, &scale)?;
    b.add(&x, &shift)
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

/// Multihead attention of queries `q [n, lq, d]` on `kv [n, lk, d]`, residual, then a residual feed-forward layer:
/// the block MAB of the Set Transformer, pre-normalised.
///
/// # Errors
/// When shapes do not fit.
pub fn attention_block<B: Backend>(b: &mut B, name: &str, q: &B::T, kv: &B::T, sizes: [usize; 4]) -> Result<B::T> {
    masked_attention_block(b, name, q, kv, sizes, None)
}

/// What is added to the scores of keys that are not there: their share of the attention is exactly 0.
const ABSENT: f64 = 1e9;

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
    let head = d / heads;
    let split = |b: &mut B, part: &str, x: &B::T, l: usize, order: &[usize]| -> Result<B::T> {
        let x = linear(b, &format!("{name}.{part}"), x, d, d, Init::Scaled(1.0))?;
        let x = b.reshape(&x, &[0, l as i64, heads as i64, head as i64])?;
        let x = b.permute(&x, order)?;
        let (rows, columns) = if order[2] == 1 { (l, head) } else { (head, l) };
        b.reshape(&x, &[-1, rows as i64, columns as i64])
    };
    let queries = split(b, "query", &qn, lq, &[0, 2, 1, 3])?;
    let keys = split(b, "key", &kvn, lk, &[0, 2, 3, 1])?;
    let values = split(b, "value", &kvn, lk, &[0, 2, 1, 3])?;
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
    let mixed = b.reshape(&mixed, &[0, lq as i64, d as i64])?;
    let mixed = linear(b, &format!("{name}.out"), &mixed, d, d, Init::Scaled(1.0))?;
    let x = b.add(q, &mixed)?;
    let h = layer_norm(b, &format!("{name}.norm_ff"), &x, d)?;
    let h = linear(b, &format!("{name}.ff1"), &h, d, 2 * d, Init::Scaled(2.0))?;
    let h = b.unary(&h, Unary::Silu)?;
    let h = linear(b, &format!("{name}.ff2"), &h, 2 * d, d, Init::Scaled(1.0))?;
    b.add(&x, &h)
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
