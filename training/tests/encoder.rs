//! The dataset encoder: class order survives it, and the order of images inside a class does not matter.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use candle_core::{Device, Tensor};
use training::backend::Eager;
use training::networks::dataset_encoder::{Condition, EncoderKind, EncoderShape, encode};
use training::params::Params;
use training::random;

fn shape() -> EncoderShape {
    EncoderShape {
        feature_dim: 12,
        classes: 4,
        images: 5,
        width: 16,
        heads: 2,
        blocks: 1,
        token_dim: 6,
        embedding_dim: 10,
        kind: EncoderKind::SetTransformer,
        condition: Condition::Tokens,
        any_number: false,
    }
}

fn run(features: &Tensor) -> (Vec<f32>, Vec<f32>) {
    run_as(&shape(), features)
}

fn run_as(shape: &EncoderShape, features: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let mut params = Params::new(1, &Device::Cpu);
    let (dataset, condition) = encode(&mut Eager::new(&mut params), shape, features, None).unwrap();
    assert_eq!(condition.dims(), [features.dim(0).unwrap(), shape.condition_dim()]);
    (dataset.flatten_all().unwrap().to_vec1().unwrap(), condition.flatten_all().unwrap().to_vec1().unwrap())
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

fn features() -> Tensor {
    random::normal(&[1, 4, 5, 12], &Device::Cpu, &mut random::stream(2, "features")).unwrap()
}

#[test]
fn permuting_the_classes_permutes_the_tokens() {
    let (dataset, condition) = run(&features());
    let order = [2u32, 0, 3, 1];
    let index = Tensor::new(&order, &Device::Cpu).unwrap();
    let (other, permuted) = run(&features().index_select(&index, 1).unwrap());
    let tokens = |c: &[f32]| c[10..].chunks(6).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let (before, after) = (tokens(&condition), tokens(&permuted));
    for (row, &source) in order.iter().enumerate() {
        assert!(difference(&after[row], &before[source as usize]) < 1e-5);
    }
    assert!(difference(&before[0], &before[1]) > 0.1, "tokens do not tell classes apart");
    assert!(difference(&dataset, &other) > 1e-3, "z_D forgets the order of the classes");
    assert_eq!(&condition[..10], &dataset[..]);
}

#[test]
fn the_order_of_images_inside_a_class_does_not_matter() {
    let index = Tensor::new(&[4u32, 2, 0, 1, 3], &Device::Cpu).unwrap();
    let (a, b) = (run(&features()).1, run(&features().index_select(&index, 2).unwrap()).1);
    assert!(difference(&a, &b) < 1e-4);
}

#[test]
fn a_condition_says_no_more_than_it_is_to() {
    let (dataset, condition) = run_as(&EncoderShape { condition: Condition::Pooled, ..shape() }, &features());
    assert_eq!((&dataset, condition), (&run(&features()).0, dataset.clone()));
    let (dataset, condition) = run_as(&EncoderShape { condition: Condition::None, ..shape() }, &features());
    assert!(condition.iter().all(|v| *v == 0.0), "{condition:?}");
    assert!(dataset.iter().any(|v| v.abs() > 0.1), "z_D is still there for the search");
}

#[test]
fn the_mlp_sees_order_everywhere() {
    let mlp = EncoderShape { kind: EncoderKind::Mlp, condition: Condition::Pooled, ..shape() };
    let before = run_as(&mlp, &features()).1;
    for axis in [1, 2] {
        let index = Tensor::new(&[1u32, 0, 2, 3], &Device::Cpu).unwrap();
        let index = if axis == 1 { index } else { Tensor::new(&[1u32, 0, 2, 3, 4], &Device::Cpu).unwrap() };
        assert!(difference(&before, &run_as(&mlp, &features().index_select(&index, axis).unwrap()).1) > 1e-3);
    }
}

#[test]
fn classes_that_are_not_there_change_nothing() {
    let shape = EncoderShape { any_number: true, ..shape() };
    let presence = Tensor::new(&[[1f32, 1.0, 1.0, 0.0]], &Device::Cpu).unwrap();
    let mut params = Params::new(1, &Device::Cpu);
    let mut run = |features: &Tensor, presence: &Tensor| {
        let (dataset, condition) = encode(&mut Eager::new(&mut params), &shape, features, Some(presence)).unwrap();
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (values(dataset), values(condition))
    };
    let (own, other) = (features(), random::normal(&[1, 1, 5, 12], &Device::Cpu, &mut random::stream(9, "x")).unwrap());
    let changed = Tensor::cat(&[&own.narrow(1, 0, 3).unwrap(), &other.affine(100.0, 0.0).unwrap()], 1).unwrap();
    let (dataset, condition) = run(&own, &presence);
    assert_eq!((dataset.clone(), condition.clone()), run(&changed, &presence));
    assert!(condition[10 + 3 * 6..].iter().all(|v| *v == 0.0), "the token of an absent class is zero: {condition:?}");
    let all = Tensor::ones((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(difference(&dataset, &run(&own, &all).0) > 1e-3, "a class more is another dataset");
    // Another order of the classes that are there is that order of their tokens.
    let index = Tensor::new(&[2u32, 0, 1, 3], &Device::Cpu).unwrap();
    let (_, permuted) = run(&own.index_select(&index, 1).unwrap(), &presence);
    for (row, source) in [2, 0, 1].into_iter().enumerate() {
        assert!(difference(&permuted[10 + row * 6..][..6], &condition[10 + source * 6..][..6]) < 1e-5);
    }
}
