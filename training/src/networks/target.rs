//! Forward passes of the target architectures.

use weights::architecture::{Activation, Architecture};
use weights::resnet;

use crate::backend::{Layers, Unary};
use crate::error::{Error, Result};

/// Logits of `architecture` with `params` in the order of its layout: `x [n, …input shape]` → `[n, classes]`.
///
/// # Errors
/// When shapes do not fit.
pub fn forward<L: Layers>(b: &mut L, architecture: &Architecture, params: &[L::T], x: &L::T) -> Result<L::T> {
    match architecture {
        Architecture::Mlp { activation, .. } => {
            let f = match activation {
                Activation::Relu => Unary::Relu,
                Activation::Tanh => Unary::Tanh,
            };
            let layers = params.len() / 2;
            let mut x = x.clone();
            for (i, layer) in params.chunks_exact(2).enumerate() {
                x = b.linear(&x, &layer[0], &layer[1])?;
                if i + 1 < layers {
                    x = b.unary(&x, f)?;
                }
            }
            Ok(x)
        }
        Architecture::TinyCnn { .. } => {
            let mut x = x.clone();
            for (i, layer) in params[..6].chunks_exact(2).enumerate() {
                x = b.conv2d(&x, &layer[0], &layer[1], 1, 0)?;
                if i < 2 {
                    x = b.max_pool2(&x)?;
                }
                x = b.unary(&x, Unary::Tanh)?;
            }
            let x = b.flatten(&x)?;
            let x = b.linear(&x, &params[6], &params[7])?;
            let x = b.unary(&x, Unary::Tanh)?;
            b.linear(&x, &params[8], &params[9])
        }
        Architecture::ResnetCifar { depth, widths, .. } => resnet_cifar(b, (*depth, widths), params, x),
        Architecture::Head { .. } => b.linear(x, &params[0], &params[1]),
    }
}

/// A ResNet for CIFAR with shortcuts of option A: see [`weights::resnet`].
fn resnet_cifar<L: Layers>(
    b: &mut L,
    (depth, widths): (usize, &[usize; 3]),
    params: &[L::T],
    x: &L::T,
) -> Result<L::T> {
    let missing = || Error::Config(format!("a ResNet of depth {depth} has more parameters than were given"));
    let (convolutions, head) = params.as_chunks::<5>();
    let mut layers = resnet::convolutions(depth, widths).into_iter().zip(convolutions);
    let x = b.standardise(x, &resnet::MEAN, &resnet::STD)?;
    let (first, weights) = layers.next().ok_or_else(missing)?;
    let x = b.conv_norm(&x, weights, first.stride, 1)?;
    let mut x = b.unary(&x, Unary::Relu)?;
    while let Some((layer, weights)) = layers.next() {
        let y = b.conv_norm(&x, weights, layer.stride, 1)?;
        let y = b.unary(&y, Unary::Relu)?;
        let (_, weights) = layers.next().ok_or_else(missing)?;
        let y = b.conv_norm(&y, weights, 1, 1)?;
        if layer.stride == 2 {
            x = b.shrink(&x, layer.outputs - layer.inputs)?;
        }
        let sum = b.sum(&x, &y)?;
        x = b.unary(&sum, Unary::Relu)?;
    }
    let [weight, bias] = head else { return Err(missing()) };
    let x = b.mean_pool(&x)?;
    b.linear(&x, weight, bias)
}
