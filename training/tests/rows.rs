//! Heads row by row: another order of the classes is the same order of the rows, in the VAE and in the denoiser.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use candle_core::{Device, Tensor};
use training::backend::Eager;
use training::networks::denoiser::{DenoiserConfig, DenoiserShape, denoise};
use training::networks::vae::{VaeForm, VaeShape, decode, encode};
use training::params::Params;
use training::random;

const ORDER: [u32; 4] = [2, 0, 3, 1];
const FEATURES: usize = 6;

fn normal(shape: &[usize], name: &str) -> Tensor {
    random::normal(shape, &Device::Cpu, &mut random::stream(3, name)).unwrap()
}

fn permuted(x: &Tensor) -> Tensor {
    x.index_select(&Tensor::new(&ORDER, &Device::Cpu).unwrap(), 1).unwrap()
}

/// Heads `[n, 4·6 + 4]` with their rows, weights and bias, in another order.
fn permuted_heads(x: &Tensor) -> Tensor {
    let n = x.dim(0).unwrap();
    let weights = x.narrow(1, 0, 4 * FEATURES).unwrap().reshape((n, 4, FEATURES)).unwrap();
    let bias = x.narrow(1, 4 * FEATURES, 4).unwrap();
    let weights = permuted(&weights).reshape((n, 4 * FEATURES)).unwrap();
    Tensor::cat(&[weights, permuted(&bias.contiguous().unwrap())], 1).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn the_vae_sees_each_row_by_itself() {
    let shape = VaeShape {
        length: 4 * FEATURES + 4,
        hidden: vec![16],
        latent: vec![4, 5],
        form: VaeForm::Linear,
        index: 0,
        rows: Some(4),
    };
    let mut params = Params::new(1, &Device::Cpu);
    let mut b = Eager::new(&mut params);
    let x = normal(&[3, shape.length], "heads");
    let (z, _) = encode(&mut b, &shape, &x, None).unwrap();
    assert_eq!(z.dims(), [3, 4, 5]);
    let (other, _) = encode(&mut b, &shape, &permuted_heads(&x), None).unwrap();
    assert!(difference(&other, &permuted(&z)) < 1e-5);
    assert!(difference(&z, &permuted(&z)) > 0.1, "all rows look alike");
    let y = decode(&mut b, &shape, &z, None).unwrap();
    let other = decode(&mut b, &shape, &permuted(&z), None).unwrap();
    assert!(difference(&other, &permuted_heads(&y)) < 1e-5);
    // A change of one row stays in its row.
    let mut values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[FEATURES] += 1.0;
    let (changed, _) =
        encode(&mut b, &shape, &Tensor::from_vec(values, x.dims(), &Device::Cpu).unwrap(), None).unwrap();
    let moved = (changed - &z).unwrap().abs().unwrap().sum(2).unwrap().to_vec2::<f32>().unwrap();
    assert!(moved[0][1] > 1e-3 && moved.iter().flatten().filter(|m| **m > 1e-6).count() == 1, "{moved:?}");
}

#[test]
fn the_denoiser_gives_the_rows_in_the_order_of_the_tokens() {
    let config = DenoiserConfig::Rows { width: 16, blocks: 2, heads: 2 };
    let shape = DenoiserShape { latent: vec![4, 5], condition_dim: 7 + 4 * 3, token_dim: 3, any_number: false, config };
    let mut params = Params::new(1, &Device::Cpu);
    let mut run = |z: &Tensor, tokens: &Tensor, dataset: &Tensor| {
        let t = Tensor::new(&[10f32, 500.0], &Device::Cpu).unwrap();
        let condition = Tensor::cat(&[dataset, &tokens.reshape((2, 12)).unwrap()], 1).unwrap();
        denoise(&mut Eager::new(&mut params), &shape, z, &t, &condition).unwrap()
    };
    let (z, tokens, dataset) = (normal(&[2, 4, 5], "latents"), normal(&[2, 4, 3], "tokens"), normal(&[2, 7], "z_D"));
    let y = run(&z, &tokens, &dataset);
    // z_D knows the order of the classes, and would break this.
    let other = run(&permuted(&z), &permuted(&tokens), &normal(&[2, 7], "another z_D"));
    assert!(difference(&other, &permuted(&y)) < 1e-5);
    assert!(difference(&y, &run(&z, &permuted(&tokens), &dataset)) > 1e-4, "tokens do not matter");
}

#[test]
fn rows_that_are_not_there_change_nothing() {
    let config = DenoiserConfig::Rows { width: 16, blocks: 2, heads: 2 };
    let condition_dim = 7 + 4 * 3 + 4;
    let shape = DenoiserShape { latent: vec![4, 5], condition_dim, token_dim: 3, any_number: true, config };
    let mut params = Params::new(1, &Device::Cpu);
    let presence = Tensor::new(&[[1f32, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]], &Device::Cpu).unwrap();
    let mut run = |z: &Tensor, tokens: &Tensor| {
        let t = Tensor::new(&[10f32, 500.0], &Device::Cpu).unwrap();
        let tokens = tokens.reshape((2, 12)).unwrap();
        let condition = Tensor::cat(&[&normal(&[2, 7], "z_D"), &tokens, &presence], 1).unwrap();
        denoise(&mut Eager::new(&mut params), &shape, z, &t, &condition).unwrap()
    };
    let (z, tokens) = (normal(&[2, 4, 5], "latents"), normal(&[2, 4, 3], "tokens"));
    let y = run(&z, &tokens);
    // The rows that there are, with others in place of those that there are not.
    let others = |x: &Tensor, name: &str| {
        let there = presence.reshape((2, 4, 1)).unwrap();
        let absent = there.affine(-1.0, 1.0).unwrap();
        let noise = normal(x.dims(), name).affine(100.0, 0.0).unwrap();
        (x.broadcast_mul(&there).unwrap() + noise.broadcast_mul(&absent).unwrap()).unwrap()
    };
    let other = run(&others(&z, "other latents"), &others(&tokens, "other tokens"));
    assert_eq!(difference(&y, &other), 0.0);
    let absent = y.narrow(1, 2, 2).unwrap().narrow(0, 0, 1).unwrap();
    assert_eq!(absent.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    // Another order of the rows that there are is that order of the prediction.
    let swap = |x: &Tensor| x.index_select(&Tensor::new(&[1u32, 0, 2, 3], &Device::Cpu).unwrap(), 1).unwrap();
    assert!(difference(&run(&swap(&z), &swap(&tokens)), &swap(&y)) < 1e-5);
    assert!(difference(&y, &swap(&y)) > 1e-3, "all rows look alike");
}
