//! Whole steps of the VAE beside candle's, and runs that repeat.

use candle_core::{Device, Tensor, Var};
use weights::Architecture;

use super::batches::{Batches, by_candle, direct};
use super::*;
use crate::direct::Network;
use crate::random;
use crate::stages::case::{Case, case};
use crate::stages::fit::{Net, init_theta};
use crate::tape::{self, Learned};

const CONV: (&str, &str) =
    ("latent = [8]", "kind = \"conv\"\nconv = { image = [1, 8, 8], channels = 4, groups = 2 }\nlatent = [2, 4, 4]");

/// One shard's step as it is taken, and with nothing but candle's own gradients.
fn both(case: &Case, autoencoder: bool) -> (Vec<String>, [Learned; 2]) {
    case.with(|given| {
        let mut vae = Vae::new(given.config, given.zoo, given.vectors, &Device::Cpu).unwrap();
        vae.create().unwrap();
        let names = vae.params.names().map(str::to_owned).collect();
        let mut batches = Batches::new(given, None, &Device::Cpu).unwrap();
        assert!(batches.architectures.iter().all(|(_, network)| network.is_some()));
        let shard = |vae: &Vae| Shard { networks: vae.clone(), rng: random::stream(1, "step") };
        let ours = batches.learn(&mut shard(&vae), 0.5, autoencoder).unwrap();
        batches.architectures.iter_mut().for_each(|(_, network)| *network = None);
        let mut shard = shard(&vae);
        let drawn = batches.draw(&mut shard, autoencoder).unwrap();
        let Shard { networks: Vae { shape, params, undo }, rng } = &mut shard;
        let pass = Coding { shape, noise: Some(&drawn.noise) };
        let loss = |outputs: &[Tensor]| batches.loss(&drawn, outputs, undo, rng);
        let theirs = tape::by_candle(params, &pass, &[&drawn.noisy], 0.5, loss).unwrap();
        (names, [ours, theirs])
    })
}

#[test]
fn a_step_has_candles_loss_and_gradients() {
    let cnn = ("kind = \"mlp\"\nhidden = [8]", "kind = \"tiny_cnn\"");
    let large = ("from = \"digits\"", "from = \"digits\", resize = [28, 28]");
    for (changes, autoencoder) in [(vec![], false), (vec![], true), (vec![CONV], false), (vec![cnn, large], false)] {
        let (names, [ours, theirs]) = both(&case(&changes), autoencoder);
        assert!((ours.loss - theirs.loss).abs() < 1e-5 * theirs.loss.abs(), "{} {}", ours.loss, theirs.loss);
        assert_eq!((ours.params.len(), theirs.params.len()), (names.len(), names.len()));
        for ((name, ours), theirs) in names.iter().zip(&ours.params).zip(&theirs.params) {
            let [ours, theirs] = [ours, theirs].map(|gradient| gradient.as_ref().unwrap().values());
            let largest = theirs.iter().fold(1e-3f32, |m, g| m.max(g.abs()));
            let off = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(ours.len() == theirs.len() && off < 1e-4 * largest, "{name}: {off} of {largest}");
        }
    }
}

#[test]
fn behaviour_has_candles_gradient() {
    let mlp = Architecture::Mlp { inputs: 9, hidden: vec![7], classes: 3, activation: weights::Activation::Relu };
    for architecture in [mlp, Architecture::TinyCnn { channels: 1, classes: 4 }] {
        let (models, mut rng) = (3, random::stream(2, "behaviour"));
        let mut theta = || {
            let all: Vec<f32> = (0..models).flat_map(|_| init_theta(&architecture, &mut rng)).collect();
            Var::from_vec(all, (models, architecture.layout().parameters()), &Device::Cpu).unwrap()
        };
        let (original, decoded) = (theta(), theta());
        let image = |_| random::normal_vec(5 * architecture.input_dim(), &mut rng);
        let images: Vec<Vec<f32>> = (0..models).map(image).collect();
        let ours = direct(&Network::of(&architecture).unwrap(), images.clone(), &original.detach(), &decoded).unwrap();
        let theirs = by_candle(&Net::new(&architecture, None), images, &original.detach(), &decoded).unwrap();
        let [a, b] = [&ours, &theirs].map(|loss| loss.to_scalar::<f32>().unwrap());
        assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
        let [a, b] = [ours, theirs].map(|loss| {
            let grads = loss.affine(3.0, 0.0).unwrap().backward().unwrap();
            grads.get(&decoded).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        let largest = b.iter().fold(0f32, |m, g| m.max(g.abs()));
        let off = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off < 1e-4 * largest, "{}: {off} of {largest}", architecture.name());
    }
}

#[test]
fn equal_seeds_give_equal_networks_on_any_number_of_cores() {
    let case = case(&[]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (vae, curve) = pool.install(|| case.with(|given| train(given, None, &Device::Cpu))).unwrap();
        let values = vae.params.snapshot().unwrap();
        let values: Vec<Vec<f32>> =
            values.values().map(|v| v.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
        (curve.loss, values)
    };
    let first = run(2);
    assert!(first == run(2) && first == run(1) && first == run(3));
}
