//! What VAE, dataset encoder and predictor learn from on a tape, beside candle's loss and gradients.

use candle_core::{Device, Tensor};

use super::{Learned, Pass, by_candle, on_tape, values};
use crate::error::Result;
use crate::networks::conv_vae::ConvVaeConfig;
use crate::networks::dataset_encoder::{Condition, EncoderKind, EncoderShape};
use crate::networks::predictor::PredictorShape;
use crate::networks::vae::{VaeForm, VaeShape};
use crate::optim::Gradient;
use crate::params::Params;
use crate::random;
use crate::stages::encoder::{Alignment, contrast};
use crate::stages::predictor::Prediction;
use crate::stages::vae::{Coding, bounded, kl_divergence};

fn normal(shape: &[usize], purpose: &str) -> Tensor {
    random::normal(shape, &Device::Cpu, &mut random::stream(5, purpose)).unwrap()
}

/// Rows of an identity, the last of them twice.
fn one_hot(rows: usize, kinds: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * kinds).map(|i| f32::from(u8::from(i / kinds % kinds == i % kinds))).collect();
    Tensor::from_vec(values, (rows, kinds), &Device::Cpu).unwrap()
}

/// Asserts equal losses and gradients; those of all parameters but `without`.
fn same(params: &Params, ours: &Learned, theirs: &Learned, without: &[&str]) {
    assert!((ours.loss - theirs.loss).abs() < 1e-5 * theirs.loss.abs(), "{} {}", ours.loss, theirs.loss);
    for ((name, ours), theirs) in params.names().zip(&ours.params).zip(&theirs.params) {
        let [ours, theirs] = [ours, theirs].map(|gradient| gradient.as_ref().map(Gradient::values));
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            assert!(without.contains(&name), "{name} has no gradient");
            continue;
        };
        // Some are zero but for rounding: a softmax does not see what is added to all.
        let largest = theirs.iter().fold(1e-3f32, |m, g| m.max(g.abs()));
        let off = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(ours.len() == theirs.len() && off < 1e-4 * largest, "{name}: {off} of {largest}");
    }
}

fn check(pass: &impl Pass, inputs: &[&Tensor], without: &[&str], loss: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let mut params = Params::new(7, &Device::Cpu);
    let theirs = by_candle(&mut params, pass, inputs, 0.5, &loss).unwrap();
    let ours = on_tape(&mut params, pass, inputs, 0.5, &loss).unwrap();
    assert!(ours.params.len() > 4);
    same(&params, &ours, &theirs, without);
    let alone = loss(&values(&mut params, pass, inputs).unwrap()).unwrap().to_scalar::<f32>().unwrap();
    assert!((0.5 * alone - ours.loss).abs() < 1e-6 * alone.abs(), "values without gradients");
}

#[test]
fn vaes_have_candles_gradients() {
    let shape = |form, latent: &[usize]| VaeShape {
        length: 30,
        hidden: vec![16, 12],
        latent: latent.to_vec(),
        form,
        index: 0,
        rows: None,
    };
    let conv = ConvVaeConfig { image: [2, 8, 8], channels: 4, groups: 2 };
    let mlp = shape(VaeForm::Linear, &[6]);
    let rows = VaeShape { rows: Some(3), ..shape(VaeForm::Linear, &[3, 4]) };
    for shape in [VaeShape { index: 2, ..mlp.clone() }, mlp, rows, shape(VaeForm::Conv(conv), &[3, 4, 4])] {
        let (x, index) = (normal(&[5, 30], "x"), one_hot(5, 2));
        let latents: Vec<usize> = std::iter::once(5).chain(shape.latent.iter().copied()).collect();
        let noise = normal(&latents, "noise");
        let inputs = if shape.index > 0 { vec![&x, &index] } else { vec![&x] };
        let loss = |outputs: &[Tensor]| {
            let kl = kl_divergence(&outputs[0], &bounded(&outputs[1])?, None)?;
            Ok(((&outputs[2] - &x)?.sqr()?.mean_all()? + kl.affine(0.1, 0.0)?)?)
        };
        check(&Coding { shape: &shape, noise: Some(&noise) }, &inputs, &[], loss);
        // An autoencoder, whose loss does not see the variance.
        let error = |outputs: &[Tensor]| Ok((&outputs[2] - &x)?.sqr()?.mean_all()?);
        let without = ["encoder.log_variance.weight", "encoder.log_variance.bias"];
        check(&Coding { shape: &shape, noise: None }, &inputs, &without, error);
    }
}

#[test]
fn encoders_have_candles_gradients() {
    let shape = |kind, condition, any_number| EncoderShape {
        feature_dim: 7,
        classes: 3,
        images: 2,
        width: 8,
        heads: 2,
        blocks: 1,
        token_dim: 4,
        embedding_dim: 6,
        kind,
        condition,
        any_number,
    };
    let (features, z) = (normal(&[4, 3, 2, 7], "features"), normal(&[4, 5], "z"));
    let presence: Vec<f32> = (0..12).map(|i| f32::from(u8::from(i % 3 < 2))).collect();
    let presence = Tensor::from_vec(presence, (4, 3), &Device::Cpu).unwrap();
    let target = one_hot(4, 4);
    for (shape, all) in [
        (shape(EncoderKind::SetTransformer, Condition::Tokens, false), vec![&features, &z]),
        (shape(EncoderKind::SetTransformer, Condition::Tokens, true), vec![&features, &z, &presence]),
        (shape(EncoderKind::Mlp, Condition::Pooled, false), vec![&features, &z]),
    ] {
        let pass = Alignment { shape: &shape, latent_dim: 5 };
        check(&pass, &all, &[], |outputs| contrast(outputs, 0.2, &target));
    }
}

#[test]
fn predictors_have_candles_gradients() {
    let (x, dataset) = (normal(&[6, 20], "x"), normal(&[6, 5], "dataset"));
    for inputs in [vec![&x], vec![&x, &dataset]] {
        let dim = (inputs.len() > 1).then_some(5);
        let shape = PredictorShape { length: 20, width: 12, dataset: dim, accuracy: (0.5, 0.2) };
        let target = normal(&[6, 1], "target");
        check(&Prediction(&shape), &inputs, &[], |outputs| Ok((&outputs[0] - &target)?.sqr()?.mean_all()?));
    }
}
