//! Forward passes of the target architectures.

use weights::architecture::{Activation, Architecture};
use weights::basic_resnet::Resnet;
use weights::convolution::{Convolution, PARAMS};
use weights::{MobilenetV3, Pool, Vit, resnet};

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
        Architecture::Resnet(net) => resnet(b, net, params, x),
        Architecture::MobilenetV3(net) => mobilenet(b, net, params, x),
        Architecture::Vit(net) => vit(b, net, params, x),
        Architecture::Head { .. } => b.linear(x, &params[0], &params[1]),
        Architecture::Lora(_) => Err(Error::Config(format!(
            "{} changes a text model, and has no forward pass of its own",
            architecture.name()
        ))),
    }
}

/// Parameters in the order of a layout, taken layer by layer.
struct Rest<'a, T> {
    rest: &'a [T],
}

impl<'a, T: Clone> Rest<'a, T> {
    /// The next `N` parameters.
    fn take<const N: usize>(&mut self) -> Result<&'a [T; N]> {
        let (next, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| Error::Config("the network has more parameters than were given".into()))?;
        self.rest = rest;
        Ok(next)
    }

    /// A convolution and its normalisation.
    fn conv_norm<L: Layers<T = T>>(&mut self, b: &mut L, c: &Convolution, x: &T) -> Result<T> {
        b.conv_norm(x, self.take::<PARAMS>()?, c)
    }
}

/// A ResNet for CIFAR with shortcuts of option A: see [`weights::resnet`].
fn resnet_cifar<L: Layers>(
    b: &mut L,
    (depth, widths): (usize, &[usize; 3]),
    params: &[L::T],
    x: &L::T,
) -> Result<L::T> {
    let mut params = Rest { rest: params };
    let x = b.standardise(x, &resnet::MEAN, &resnet::STD)?;
    let all = resnet::convolutions(depth, widths);
    let x = params.conv_norm(b, &all[0], &x)?;
    let mut x = b.unary(&x, Unary::Relu)?;
    for pair in all[1..].chunks_exact(2) {
        let y = params.conv_norm(b, &pair[0], &x)?;
        let y = b.unary(&y, Unary::Relu)?;
        let y = params.conv_norm(b, &pair[1], &y)?;
        if pair[0].stride == 2 {
            x = b.shrink(&x, pair[0].outputs - pair[0].inputs)?;
        }
        let sum = b.sum(&x, &y)?;
        x = b.unary(&sum, Unary::Relu)?;
    }
    let [weight, bias] = params.take()?;
    let x = b.mean_pool(&x)?;
    b.linear(&x, weight, bias)
}

/// A residual network of basic blocks: see [`weights::basic_resnet`].
fn resnet<L: Layers>(b: &mut L, net: &Resnet, params: &[L::T], x: &L::T) -> Result<L::T> {
    let mut params = Rest { rest: params };
    let x = params.conv_norm(b, &net.stem(), x)?;
    let mut x = b.unary(&x, Unary::Relu)?;
    for block in net.stages() {
        let y = params.conv_norm(b, &block.first, &x)?;
        let y = b.unary(&y, Unary::Relu)?;
        let y = params.conv_norm(b, &block.second, &y)?;
        if let Some(shortcut) = &block.shortcut {
            x = params.conv_norm(b, shortcut, &x)?;
        }
        let sum = b.sum(&x, &y)?;
        x = b.unary(&sum, Unary::Relu)?;
    }
    let [weight, bias] = params.take()?;
    let x = b.mean_pool(&x)?;
    b.linear(&x, weight, bias)
}

/// A MobileNetV3: see [`weights::mobilenet`].
fn mobilenet<L: Layers>(b: &mut L, net: &MobilenetV3, params: &[L::T], x: &L::T) -> Result<L::T> {
    let mut params = Rest { rest: params };
    let x = params.conv_norm(b, &net.stem(), x)?;
    let mut x = b.unary(&x, Unary::HardSwish)?;
    for block in net.blocks() {
        let f = if block.hswish { Unary::HardSwish } else { Unary::Relu };
        let mut y = x.clone();
        for convolution in block.expand.iter().chain([&block.depthwise]) {
            let z = params.conv_norm(b, convolution, &y)?;
            y = b.unary(&z, f)?;
        }
        if block.gate.is_some() {
            y = b.squeeze_excite(&y, params.take()?)?;
        }
        y = params.conv_norm(b, &block.project, &y)?;
        x = if block.residual { b.sum(&x, &y)? } else { y };
    }
    let x = params.conv_norm(b, &net.last(), &x)?;
    let x = b.unary(&x, Unary::HardSwish)?;
    let x = b.mean_pool(&x)?;
    let [weight, bias] = params.take()?;
    let x = b.linear(&x, weight, bias)?;
    let x = b.unary(&x, Unary::HardSwish)?;
    let [weight, bias] = params.take()?;
    b.linear(&x, weight, bias)
}

/// A vision transformer: see [`weights::vit`].
fn vit<L: Layers>(b: &mut L, net: &Vit, params: &[L::T], x: &L::T) -> Result<L::T> {
    let mut params = Rest { rest: params };
    let token = if net.pool == Pool::ClassToken { Some(params.take::<1>()?) } else { None };
    let [weight, bias, positions] = params.take()?;
    let x = b.conv2d(x, weight, bias, net.patch, 0)?;
    let mut x = b.tokens(&x)?;
    if let Some([token]) = token {
        x = b.prepend(&x, token)?;
    }
    x = b.sum_each(&x, positions)?;
    for _ in 0..net.depth {
        let [scale, shift, project, project_bias, out, out_bias] = params.take()?;
        let y = b.layer_norm(&x, scale, shift)?;
        let y = b.linear(&y, project, project_bias)?;
        let y = b.attention(&y, net.heads, net.width)?;
        let y = b.linear(&y, out, out_bias)?;
        x = b.sum(&x, &y)?;
        let [scale, shift, first, first_bias, second, second_bias] = params.take()?;
        let y = b.layer_norm(&x, scale, shift)?;
        let y = b.linear(&y, first, first_bias)?;
        let y = b.unary(&y, Unary::Gelu)?;
        let y = b.linear(&y, second, second_bias)?;
        x = b.sum(&x, &y)?;
    }
    let [scale, shift, weight, bias] = params.take()?;
    let x = b.layer_norm(&x, scale, shift)?;
    let x = match net.pool {
        Pool::ClassToken => b.first_token(&x)?,
        Pool::Mean => b.mean_tokens(&x)?,
    };
    b.linear(&x, weight, bias)
}
