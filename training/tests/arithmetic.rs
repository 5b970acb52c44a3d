//! Learning with products in bf16: as far from f32 as rounding is, and no worse a generator.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use candle_core::{Device, Tensor, Var};
use training::backend::Eager;
use training::config::Arithmetic;
use training::networks::denoiser::{DenoiserConfig, DenoiserShape, denoise};
use training::networks::unet::UnetConfig;
use training::params::Params;
use training::progress::Progress;
use training::stages::{generator, zoo};
use training::{Config, Keep, Sources, random};

fn normal(shape: &[usize], purpose: &str) -> Tensor {
    random::normal(shape, &Device::Cpu, &mut random::stream(5, purpose)).unwrap()
}

/// Loss and all gradients of a denoiser on a fixed batch.
fn gradients(config: &DenoiserConfig, params: &mut Params) -> (f32, Vec<f32>) {
    let latent = vec![4, 8, 8];
    let shape = DenoiserShape { latent, condition_dim: 12, token_dim: 4, any_number: false, config: config.clone() };
    let t = Tensor::from_vec(vec![3f32, 250.0, 999.0], 3, &Device::Cpu).unwrap();
    let (z, condition) = (normal(&[3, 4, 8, 8], "z"), normal(&[3, 12], "condition"));
    let y = denoise(&mut Eager::new(params), &shape, &z, &t, &condition).unwrap();
    let loss = (y - normal(&[3, 4, 8, 8], "target")).unwrap().sqr().unwrap().mean_all().unwrap();
    let grads = loss.backward().unwrap();
    let flat = |var: &Var| grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (loss.to_scalar().unwrap(), params.vars().iter().flat_map(flat).collect())
}

/// Distance over length.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|v| f64::from(v).powi(2)).sum::<f64>();
    (squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut b.iter().copied())).sqrt()
}

#[test]
fn gradients_are_those_of_f32_but_for_rounding() {
    let unet = UnetConfig { channels: 16, multipliers: vec![1, 2], groups: 4, attention: 2 };
    for config in [
        DenoiserConfig::Unet(unet),
        DenoiserConfig::Mlp { width: 64, blocks: 2 },
        DenoiserConfig::Transformer { width: 32, blocks: 2, heads: 2, pieces: 4 },
    ] {
        let mut params = Params::new(5, &Device::Cpu);
        gradients(&config, &mut params);
        // Branches that begin as nothing would hide what they compute.
        for (i, var) in params.vars().iter().enumerate() {
            let noise = normal(var.dims(), &format!("parameter {i}")).affine(0.1, 0.0).unwrap();
            var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
        }
        let (exact, all) = gradients(&config, &mut params);
        let (rounded, other) = gradients(&config, &mut params.learning_in(Arithmetic::Bf16));
        let of_loss = ((rounded - exact) / exact).abs();
        assert!(rounded != exact && of_loss < 5e-3, "{config:?}: the loss is {rounded}, in f32 {exact}");
        // bf16 has 8 bits: each product is off by up to 2⁻⁸.
        let off = relative(&other, &all);
        assert!((1e-4..3e-2).contains(&off), "{config:?}: gradients are {off} off");
        assert_eq!(gradients(&config, &mut params), (exact, all), "what is not said to learn in bf16 does not");
    }
}

#[test]
fn a_generator_that_learned_in_bf16_is_as_good() {
    let config = |arithmetic: &str| {
        let text = format!(
            "name = \"tiny\"\n{arithmetic}\n[data]\nsources = [{{ name = \"digits\", from = \"digits\" }}]\n\
             [tasks]\nkind = \"class_sets\"\nclasses = 3\nseen = 6\norders = 2\n[architecture]\nkind = \"mlp\"\n\
             hidden = [6]\n[zoo]\nepochs = 20\n[vae]\nhidden = [16]\nlatent = [8]\nsteps = 60\nbatch = 8\n\
             [encoder]\nimages = 2\nwidth = 8\nheads = 2\ntoken_dim = 4\nembedding_dim = 6\nsteps = 20\nbatch = 8\n\
             [denoiser]\nkind = \"mlp\"\nwidth = 32\nblocks = 2\n[diffusion]\nsteps = 200\nbatch = 32\ntimesteps = 50\n"
        );
        Config::parse(&text).unwrap()
    };
    let learned = [config(""), config("arithmetic = \"bf16\"")].map(|config| {
        let (folder, silent) = (tempfile::tempdir().unwrap(), Progress::silent());
        let sources = Sources::load(&config).unwrap();
        let zoo = zoo::build(&config, &sources, folder.path(), &silent, Keep::nothing()).unwrap();
        generator::train(&config, &zoo, &sources, &Device::Cpu, &silent, Keep::nothing()).unwrap()
    });
    assert_ne!(learned[0].bundle.digest(), learned[1].bundle.digest());
    for stage in ["vae", "encoder", "denoiser"] {
        let end = |trained: &generator::Trained| {
            let curve = trained.curve.iter().find(|curve| curve.stage == stage).unwrap();
            let last = &curve.loss[curve.loss.len() * 3 / 4..];
            last.iter().sum::<f32>() / last.len() as f32
        };
        let (exact, rounded) = (end(&learned[0]), end(&learned[1]));
        assert!(((rounded - exact) / exact).abs() < 0.05, "{stage}: the loss is {rounded}, in f32 {exact}");
    }
    let refused = Config::parse("name = \"a\"\narithmetic = \"f16\"\n").unwrap_err().to_string();
    assert!(refused.contains("bf16"), "{refused}");
}
