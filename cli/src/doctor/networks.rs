//! A small network of each kind that has a graph, with seeded weights that are nowhere zero, and its inputs.

use candle_core::{Device, Tensor, Var};
use training::backend::Eager;
use training::export::{self, Named, Probe, named};
use training::networks::conv_vae::ConvVaeConfig;
use training::networks::dataset_encoder::{self, Condition, EncoderKind, EncoderShape};
use training::networks::denoiser::{self, DenoiserConfig, DenoiserShape};
use training::networks::predictor::{self, PredictorShape};
use training::networks::unet::UnetConfig;
use training::networks::vae::{self, VaeForm, VaeShape};
use training::params::Params;
use training::stages::encoder::Encoder;
use training::stages::predictor::Predictor;
use training::{Result, random};
use weights::{Activation, Architecture};

/// Rows of a batch.
pub const BATCH: usize = 3;
const SEED: u64 = 20;

/// A network with its graph, and what candle gives on some device.
pub struct Case {
    /// Which.
    pub name: &'static str,
    /// Its graph.
    pub graph: Vec<u8>,
    /// Inputs, and candle's outputs.
    pub probe: Probe,
}

/// The network of a case.
#[derive(Clone)]
enum Network {
    Denoiser(DenoiserShape),
    VaeEncoder(VaeShape),
    VaeDecoder(VaeShape),
    DatasetEncoder(EncoderShape),
    Predictor(PredictorShape),
}

/// All cases, computed in candle on `device`; on the CPU, where they are used, also those of target networks, at the end.
///
/// # Errors
/// When the device fails.
pub fn all(device: &Device) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, network) in networks() {
        cases.push(case(name, &network, device)?);
    }
    for architecture in forwards().into_iter().filter(|_| device.is_cpu()) {
        let mut probe = export::forward_probe(&architecture, BATCH)?;
        probe.graph = "forward".into();
        let name =
            if matches!(architecture, Architecture::TinyCnn { .. }) { "forward tiny_cnn" } else { "forward mlp" };
        cases.push(Case { name, graph: export::forward(&architecture)?, probe });
    }
    Ok(cases)
}

fn forwards() -> [Architecture; 2] {
    let mlp = Architecture::Mlp { inputs: 64, hidden: vec![16], classes: 5, activation: Activation::Relu };
    [Architecture::TinyCnn { channels: 1, classes: 10 }, mlp]
}

fn networks() -> Vec<(&'static str, Network)> {
    let conv = VaeForm::Conv(ConvVaeConfig { image: [1, 16, 16], channels: 8, groups: 4 });
    let (mlp, conv) = (vae_of(VaeForm::Linear), vae_of(conv));
    vec![
        ("dataset encoder", Network::DatasetEncoder(encoder())),
        ("denoiser unet", Network::Denoiser(unet(16, 8))),
        ("denoiser mlp", Network::Denoiser(denoiser_of(DenoiserConfig::Mlp { width: 64, blocks: 2 }, 8))),
        ("denoiser transformer", Network::Denoiser(transformer())),
        ("VAE encoder mlp", Network::VaeEncoder(mlp.clone())),
        ("VAE decoder mlp", Network::VaeDecoder(mlp)),
        ("VAE encoder conv", Network::VaeEncoder(conv.clone())),
        ("VAE decoder conv", Network::VaeDecoder(conv)),
        (
            "predictor",
            Network::Predictor(PredictorShape { length: 200, width: 32, dataset: Some(12), accuracy: (0.5, 0.2) }),
        ),
    ]
}

/// The UNet on latents `[4, side, side]`.
pub fn unet(channels: usize, side: usize) -> DenoiserShape {
    let config = UnetConfig { channels, multipliers: vec![1, 2], groups: 4, attention: 2 };
    denoiser_of(DenoiserConfig::Unet(config), side)
}

/// The transformer denoiser.
pub fn transformer() -> DenoiserShape {
    denoiser_of(DenoiserConfig::Transformer { width: 32, blocks: 2, heads: 2, pieces: 4 }, 8)
}

/// The convolutional VAE.
pub fn conv_vae() -> VaeShape {
    vae_of(VaeForm::Conv(ConvVaeConfig { image: [1, 16, 16], channels: 8, groups: 4 }))
}

fn denoiser_of(config: DenoiserConfig, side: usize) -> DenoiserShape {
    DenoiserShape { latent: vec![4, side, side], condition_dim: 24, token_dim: 4, any_number: false, config }
}

fn vae_of(form: VaeForm) -> VaeShape {
    VaeShape { length: 200, hidden: vec![64, 32], latent: vec![4, 4, 4], form, index: 0, rows: None }
}

fn encoder() -> EncoderShape {
    EncoderShape {
        feature_dim: 64,
        classes: 4,
        images: 3,
        width: 32,
        heads: 2,
        blocks: 1,
        token_dim: 4,
        embedding_dim: 8,
        kind: EncoderKind::SetTransformer,
        condition: Condition::Tokens,
        any_number: false,
    }
}

/// Standard normal values, drawn on the CPU: the same on every device.
pub fn normal(shape: &[usize], purpose: &str, device: &Device) -> Result<Tensor> {
    random::normal(shape, device, &mut random::stream(SEED, purpose))
}

/// Moves every parameter by seeded noise: branches that begin as nothing would hide what they compute.
///
/// # Errors
/// When the device fails.
pub fn stir(vars: &[Var]) -> Result<()> {
    for (i, var) in vars.iter().enumerate() {
        let noise = normal(var.dims(), &format!("parameter {i}"), var.device())?;
        var.set(&(var.as_tensor() + noise.affine(0.1, 0.0)?)?)?;
    }
    Ok(())
}

fn case(name: &'static str, network: &Network, device: &Device) -> Result<Case> {
    let mut params = Params::new(SEED, device);
    let inputs = inputs(network, device)?;
    forward(network, &mut params, &inputs)?;
    stir(&params.vars())?;
    let outputs = forward(network, &mut params, &inputs)?;
    let name_all = |all: &[(&str, Tensor)]| all.iter().map(|(n, t)| named(n, t)).collect::<Result<Vec<Named>>>();
    let probe = Probe { graph: name.replace(' ', "_"), inputs: name_all(&inputs)?, outputs: name_all(&outputs)? };
    Ok(Case { name, graph: graph(network, params)?, probe })
}

type Tensors = Vec<(&'static str, Tensor)>;

fn inputs(network: &Network, device: &Device) -> Result<Tensors> {
    let draw = |name: &'static str, shape: &[usize]| -> Result<(&'static str, Tensor)> {
        let shape: Vec<usize> = std::iter::once(BATCH).chain(shape.iter().copied()).collect();
        Ok((name, normal(&shape, name, device)?))
    };
    Ok(match network {
        Network::Denoiser(s) => {
            let t = Tensor::from_vec(vec![3f32, 250.0, 999.0], BATCH, device)?;
            vec![draw("latent", &s.latent)?, ("timestep", t), draw("condition", &[s.condition_dim])?]
        }
        Network::VaeEncoder(s) => vec![draw("weights", &[s.length])?],
        Network::VaeDecoder(s) => vec![draw("latent", &s.latent)?],
        Network::DatasetEncoder(s) => vec![draw("features", &[s.classes, s.images, s.feature_dim])?],
        Network::Predictor(s) => vec![draw("weights", &[s.length])?, draw("dataset", &[s.dataset.unwrap_or(1)])?],
    })
}

fn forward(network: &Network, params: &mut Params, inputs: &[(&str, Tensor)]) -> Result<Tensors> {
    let x: Vec<&Tensor> = inputs.iter().map(|(_, tensor)| tensor).collect();
    let b = &mut Eager::new(params);
    Ok(match network {
        Network::Denoiser(s) => vec![("prediction", denoiser::denoise(b, s, x[0], x[1], x[2])?)],
        Network::VaeEncoder(s) => {
            let (mean, log_variance) = vae::encode(b, s, x[0], None)?;
            vec![("mean", mean), ("log_variance", log_variance)]
        }
        Network::VaeDecoder(s) => vec![("weights", vae::decode(b, s, x[0], None)?)],
        Network::DatasetEncoder(s) => {
            let (dataset, condition) = dataset_encoder::encode(b, s, x[0], None)?;
            vec![("dataset", dataset), ("condition", condition)]
        }
        Network::Predictor(s) => vec![("accuracy", predictor::predict(b, s, x[0], Some(x[1]))?.1)],
    })
}

fn graph(network: &Network, params: Params) -> Result<Vec<u8>> {
    match network.clone() {
        Network::Denoiser(shape) => export::denoiser(&shape, &params),
        Network::VaeEncoder(shape) => half(&shape, params, true),
        Network::VaeDecoder(shape) => half(&shape, params, false),
        Network::DatasetEncoder(shape) => export::dataset_encoder(&Encoder { shape, params }),
        Network::Predictor(shape) => export::predictor(&Predictor { shape, params }),
    }
}

/// One of the VAE's graphs; the other half's parameters are made, as they are exported together.
fn half(shape: &VaeShape, mut params: Params, encoder: bool) -> Result<Vec<u8>> {
    for other in [Network::VaeEncoder(shape.clone()), Network::VaeDecoder(shape.clone())] {
        let inputs = inputs(&other, &params.device().clone())?;
        forward(&other, &mut params, &inputs)?;
    }
    let [first, second] = export::vae(shape, &params)?;
    Ok(if encoder { first.1 } else { second.1 })
}
