//! One training step of each kind of network: the chosen device against the CPU, and on the CPU against itself and against
//! finite differences.

use candle_core::{D, Device, Tensor};
use training::backend::{Eager, Models};
use training::config::Arithmetic;
use training::networks::{denoiser, target, vae};
use training::optim::{AdamConfig, AdamW};
use training::params::{Init, Params};
use weights::Architecture;

use super::checks::Check;
use super::networks::{BATCH, conv_vae, normal, stir, transformer, unet};
use crate::error::Result;
use crate::parity;

/// Learning rate of the step.
const LR: f64 = 1e-3;
/// How far finite differences go along the gradient, and how far they may be from it, relatively.
const MOVE: f64 = 2e-3;
const FINITE: f32 = 2e-2;
/// How far gradients with products in bf16 may be off, relative to the largest: bf16 has 8 bits.
const ROUNDED: f32 = 2e-2;
const ZOO: &str = "step of a zoo";

/// The loss of a network whose parameters are those given, made where they are not there.
type Loss = fn(&mut Params) -> training::Result<Tensor>;

/// Loss, gradients and updated parameters of one step.
struct Step {
    loss: f32,
    gradients: Vec<f32>,
    updated: Vec<f32>,
}

/// Checks a training step of each kind of network.
///
/// # Errors
/// When a step fails.
pub fn training(device: &Device, found: &mut impl FnMut(Check)) -> Result<()> {
    let losses: [(&str, Loss); 4] =
        [("step of unet", of_unet), ("step of transformer", of_transformer), ("step of VAE", of_vae), (ZOO, of_models)];
    for (name, loss) in losses {
        let reference = step(loss, &Device::Cpu)?;
        let size = reference.gradients.iter().fold(1e-6f32, |m, g| m.max(g.abs()));
        let mut compare = |other: &Step, what: &str, tolerance: f32| {
            let of_loss = (other.loss - reference.loss).abs() / reference.loss.abs().max(1.0);
            let of_gradients = parity::largest_difference(&other.gradients, &reference.gradients) / size;
            let of_updated = parity::largest_difference(&other.updated, &reference.updated);
            found(Check::new(name, &format!("loss: {what}"), of_loss, tolerance));
            found(Check::new(name, &format!("gradients: {what}"), of_gradients, tolerance));
            // A gradient near zero may change its sign; its first step then goes the other way, by 2·LR.
            let updated = if tolerance == 0.0 { 0.0 } else { 2.1 * LR as f32 };
            found(Check::new(name, &format!("parameters: {what}"), of_updated, updated));
        };
        match device.is_cpu() {
            true => compare(&step(loss, device)?, "cpu, cpu again", 0.0),
            false => compare(&step(loss, device)?, "candle cuda, candle cpu", parity::tolerance(false)),
        }
        found(Check::new(name, "gradient, finite difference", finite_difference(loss, device)?, FINITE));
        // Zoos are f32 everywhere.
        if name != ZOO {
            let rounded = step_in(Arithmetic::Bf16, loss, device)?;
            let off = parity::largest_difference(&rounded.gradients, &reference.gradients) / size;
            found(Check::new(name, "gradients: bf16, f32 on the CPU", off, ROUNDED));
        }
    }
    Ok(())
}

/// Parameters of a loss, with seeded values.
fn begin(loss: Loss, device: &Device) -> training::Result<Params> {
    let mut params = Params::new(5, device);
    loss(&mut params)?;
    stir(&params.vars())?;
    Ok(params)
}

/// All values of tensors, one after the other.
fn values<'a>(all: impl IntoIterator<Item = &'a Tensor>) -> training::Result<Vec<f32>> {
    let each = all.into_iter().map(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?));
    Ok(each.collect::<training::Result<Vec<_>>>()?.concat())
}

fn step(loss: Loss, device: &Device) -> training::Result<Step> {
    step_in(Arithmetic::F32, loss, device)
}

fn step_in(arithmetic: Arithmetic, loss: Loss, device: &Device) -> training::Result<Step> {
    let mut params = begin(loss, device)?.learning_in(arithmetic);
    let vars = params.vars();
    let loss = loss(&mut params)?;
    let mut store = loss.backward()?;
    let gradients: Vec<Option<Tensor>> = vars.iter().map(|var| store.remove(var)).collect();
    let config = AdamConfig { weight_decay: 1e-2, clip: 1.0, ..Default::default() };
    AdamW::new(vars.clone(), config).step(&gradients, LR)?;
    Ok(Step {
        loss: loss.to_scalar()?,
        gradients: values(gradients.iter().flatten())?,
        updated: values(vars.iter().map(|var| var.as_tensor()))?,
    })
}

/// How far the loss's slope along its own gradient is from that gradient's length, relatively.
fn finite_difference(loss: Loss, device: &Device) -> training::Result<f32> {
    let mut params = begin(loss, device)?;
    let vars = params.vars();
    let store = loss(&mut params)?.backward()?;
    let gradients: Vec<Option<Tensor>> = vars.iter().map(|var| store.get(var).cloned()).collect();
    let length = values(gradients.iter().flatten())?.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let starts: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().copy()).collect::<candle_core::Result<_>>()?;
    let mut moved = |by: f64| -> training::Result<f64> {
        for ((var, start), gradient) in vars.iter().zip(&starts).zip(&gradients) {
            if let Some(gradient) = gradient {
                var.set(&(start + gradient.affine(by / length, 0.0)?)?)?;
            }
        }
        Ok(f64::from(loss(&mut params)?.to_scalar::<f32>()?))
    };
    let slope = (moved(MOVE)? - moved(-MOVE)?) / (2.0 * MOVE);
    Ok(((slope - length) / length.max(1e-9)).abs() as f32)
}

fn squared_error(a: &Tensor, b: &Tensor) -> training::Result<Tensor> {
    Ok((a - b)?.sqr()?.mean_all()?)
}

fn of_unet(params: &mut Params) -> training::Result<Tensor> {
    of_denoiser(params, &unet(16, 8))
}

fn of_transformer(params: &mut Params) -> training::Result<Tensor> {
    of_denoiser(params, &transformer())
}

/// Eq. 3's loss of a denoiser on a seeded batch of [`BATCH`].
pub fn of_denoiser(params: &mut Params, shape: &denoiser::DenoiserShape) -> training::Result<Tensor> {
    of_denoiser_batch(params, shape, BATCH)
}

/// As [`of_denoiser`], on a batch of `n`.
pub fn of_denoiser_batch(params: &mut Params, shape: &denoiser::DenoiserShape, n: usize) -> training::Result<Tensor> {
    let device = params.device().clone();
    let latent: Vec<usize> = std::iter::once(n).chain(shape.latent.iter().copied()).collect();
    let (z, noise) = (normal(&latent, "latent", &device)?, normal(&latent, "noise", &device)?);
    let condition = normal(&[n, shape.condition_dim], "condition", &device)?;
    let t = Tensor::from_vec((0..n).map(|i| (i * 379 % 1000) as f32).collect::<Vec<_>>(), n, &device)?;
    squared_error(&denoiser::denoise(&mut Eager::new(params), shape, &z, &t, &condition)?, &noise)
}

/// Eq. 1's loss of the convolutional VAE, without noise.
fn of_vae(params: &mut Params) -> training::Result<Tensor> {
    let (device, shape) = (params.device().clone(), conv_vae());
    let x = normal(&[BATCH, shape.length], "weights", &device)?;
    let b = &mut Eager::new(params);
    let (mean, log_variance) = vae::encode(b, &shape, &x, None)?;
    let decoded = vae::decode(b, &shape, &mean, None)?;
    let kl = ((mean.sqr()? + log_variance.exp()?)? - log_variance)?.mean_all()?;
    Ok((squared_error(&decoded, &x)? + kl.affine(1e-2, 0.0)?)?)
}

/// Cross-entropy of two models at once whose layers are of every kind but attention.
fn of_models(params: &mut Params) -> training::Result<Tensor> {
    let (device, models, classes) = (params.device().clone(), 2, 3);
    let blocks = [(3, 4, 4, false, 1), (5, 6, 6, true, 2)]
        .map(|(kernel, expand, out, se, stride)| weights::InvertedResidual {
            kernel,
            expand,
            out,
            se,
            hswish: se,
            stride,
        })
        .to_vec();
    let (channels, side, stem, stem_stride, last, hidden) = (2, 9, 4, 1, 7, 5);
    let network = weights::MobilenetV3 { channels, side, stem, stem_stride, blocks, last, hidden, classes };
    let architecture = Architecture::MobilenetV3(network);
    let layout = architecture.layout();
    let own = layout.params.iter().map(|p| {
        let shape: Vec<usize> = std::iter::once(models).chain(p.shape.iter().copied()).collect();
        let ones = p.name.ends_with(".running_var") || p.shape.len() == 1 && p.name.ends_with(".weight");
        params.get_or_init(&p.name, &shape, if ones { Init::Ones } else { Init::Scaled(2.0) })
    });
    let own = own.collect::<training::Result<Vec<_>>>()?;
    let shape: Vec<usize> = [models, BATCH].into_iter().chain(architecture.input_shape()).collect();
    let y = target::forward(&mut Models::training(), &architecture, &own, &normal(&shape, "images", &device)?)?;
    let target: Vec<f32> =
        (0..BATCH * classes).map(|i| f32::from(u8::from(i / classes % classes == i % classes))).collect();
    let target = Tensor::from_vec(target, (1, BATCH, classes), &device)?;
    let log_p = log_softmax(&y)?;
    Ok(log_p.broadcast_mul(&target)?.sum_all()?.affine(-1.0 / BATCH as f64, 0.0)?)
}

/// log softmax over the last dimension.
fn log_softmax(x: &Tensor) -> training::Result<Tensor> {
    let centred = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(centred.broadcast_sub(&centred.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}
