//! Gradients of whole networks beside candle's, and of each fused operation beside finite differences.

use candle_core::{Device, Tensor, Var};

use super::{Tape, Traced};
use crate::backend::{Backend, Eager, Layers, Unary, Weights};
use crate::error::Result;
use crate::networks::denoiser::{DenoiserConfig, DenoiserShape, denoise};
use crate::networks::unet::UnetConfig;
use crate::params::Params;
use crate::random;

fn normal(shape: &[usize], purpose: &str) -> Tensor {
    random::normal(shape, &Device::Cpu, &mut random::stream(5, purpose)).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Values and gradients of a weighted sum of what `f` gives for inputs of these shapes, beside central differences.
fn check(shapes: &[&[usize]], f: impl Fn(&mut Tape<'_>, &[Traced]) -> Result<Traced>) {
    let inputs: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| normal(s, &format!("v{i}"))).collect();
    let value = |inputs: &[Tensor]| {
        let mut params = Params::new(1, &Device::Cpu);
        let mut tape = Tape::new(&mut params);
        let traced: Vec<Traced> = inputs.iter().map(|x| tape.constant_input(x).unwrap()).collect();
        let y = f(&mut tape, &traced).unwrap().tensor().unwrap();
        let weighted = (&y * normal(y.dims(), "g")).unwrap().sum_all().unwrap();
        f64::from(weighted.to_scalar::<f32>().unwrap())
    };
    for (i, input) in inputs.iter().enumerate() {
        let mut params = Params::new(1, &Device::Cpu);
        let mut tape = Tape::new(&mut params);
        let traced: Vec<Traced> = inputs.iter().map(|x| tape.input(x).unwrap()).collect();
        let y = f(&mut tape, &traced).unwrap();
        let weights = normal(y.tensor().unwrap().dims(), "g");
        let grad = tape.backward(&[(&y, &weights)], &traced).unwrap().inputs.remove(i).unwrap();
        assert_eq!(grad.dims(), shapes[i]);
        let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
        let flat: Vec<f32> = input.flatten_all().unwrap().to_vec1().unwrap();
        for at in (0..flat.len()).step_by(1 + flat.len() / 40) {
            let moved = |by: f32| {
                let (mut flat, mut all) = (flat.clone(), inputs.clone());
                flat[at] += by;
                all[i] = Tensor::from_vec(flat, shapes[i], &Device::Cpu).unwrap();
                value(&all)
            };
            let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let off = (numeric - f64::from(grad[at])).abs();
            assert!(off < 2e-2 * (1.0 + numeric.abs()), "input {i} at {at}: {numeric} {}", grad[at]);
        }
    }
}

#[test]
fn gradients_of_operations_equal_finite_differences() {
    check(&[&[2, 3, 4], &[5, 4], &[5]], |b, v| b.linear(&v[0], &v[1], &v[2]));
    check(&[&[3, 4], &[5, 4], &[5], &[3, 5]], |b, v| b.linear_add(&v[0], [&v[1], &v[2]], &v[3]));
    check(&[&[3, 4], &[5, 4]], |b, v| b.project(&v[0], &v[1]));
    check(&[&[3, 7]], |b, v| b.unary(&v[0], Unary::Silu));
    check(&[&[3, 7]], |b, v| b.unary(&v[0], Unary::Tanh));
    check(&[&[2, 3, 9], &[9], &[9]], |b, v| b.layer_norm_last(&v[0], Weights { scale: &v[1], shift: &v[2] }));
    for f in [Unary::Silu, Unary::Relu] {
        check(&[&[2, 4, 2, 3], &[4, 1, 1], &[4, 1, 1]], |b, v| {
            b.group_norm(&v[0], 2, [4, 2, 3], Weights { scale: &v[1], shift: &v[2] }, f)
        });
    }
    check(&[&[2, 3, 4], &[2, 5, 4], &[2, 5, 4]], |b, v| b.attend([&v[0], &v[1], &v[2]], [3, 5, 4, 2], None));
    check(&[&[2, 3, 4], &[2, 1, 4]], |b, v| b.add(&v[0], &v[1]));
    check(&[&[2, 3, 2, 2], &[2, 3, 1, 1]], |b, v| b.add(&v[1], &v[0]));
    check(&[&[2, 3], &[2, 3]], |b, v| b.add(&v[0], &v[1]));
    check(&[&[2, 3, 4], &[1, 3, 1]], |b, v| b.add(&v[0], &v[1]));
    check(&[&[2, 3], &[2, 3]], |b, v| b.mul(&v[0], &v[1]));
    check(&[&[2, 3, 2], &[2, 1, 2]], |b, v| b.concat(&[&v[0], &v[1], &v[0]], 1));
    check(&[&[2, 3, 2, 4]], |b, v| b.upsample2(&v[0]));
    check(&[&[2, 3, 4]], |b, v| {
        let x = b.permute(&v[0], &[0, 2, 1])?;
        b.reshape(&x, &[0, -1])
    });
}

#[test]
fn gradients_of_convolutions_equal_finite_differences() {
    for (k, stride, pad, h, w) in
        [(3, 1, 1, 4, 4), (3, 2, 1, 5, 6), (1, 1, 0, 3, 4), (5, 1, 2, 8, 8), (2, 1, 0, 4, 3), (3, 1, 1, 3, 5)]
    {
        let shapes: [&[usize]; 3] = [&[3, 2, h, w], &[3, 2, k, k], &[3]];
        check(&shapes, |b, v| b.conv2d(&v[0], &v[1], &v[2], stride, pad));
    }
    check(&[&[2, 2, 4, 4], &[3, 2, 3, 3], &[3], &[2, 3, 4, 4]], |b, v| b.conv2d_add(&v[0], [&v[1], &v[2]], 1, &v[3]));
}

#[test]
fn convolutions_equal_candles() {
    let mut params = Params::new(1, &Device::Cpu);
    for (k, stride, h, w, n) in
        [(3, 1, 16, 16, 2), (3, 1, 4, 4, 70), (1, 1, 8, 8, 3), (3, 2, 16, 16, 3), (3, 1, 6, 6, 2)]
    {
        let (x, weight, bias) = (normal(&[n, 7, h, w], "x"), normal(&[5, 7, k, k], "w"), normal(&[5], "b"));
        let mut tape = Tape::new(&mut params);
        let traced = [&x, &weight, &bias].map(|t| tape.constant_input(t).unwrap());
        let ours = tape.conv2d(&traced[0], &traced[1], &traced[2], stride, k / 2).unwrap().tensor().unwrap();
        let theirs = x.conv2d(&weight, k / 2, stride, 1, 1).unwrap();
        let theirs = theirs.broadcast_add(&bias.reshape((1, 5, 1, 1)).unwrap()).unwrap();
        assert!(difference(&ours, &theirs) < 1e-4, "k {k} stride {stride} {h}×{w}");
    }
}

#[test]
fn absent_keys_have_no_share() {
    let (q, kv) = (normal(&[2, 3, 4], "q"), normal(&[2, 5, 4], "kv"));
    let presence = Tensor::new(&[[1f32, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
    let mut params = Params::new(1, &Device::Cpu);
    let theirs = Eager::new(&mut params.clone()).attend([&q, &kv, &kv], [3, 5, 4, 2], Some(&presence)).unwrap();
    let mut tape = Tape::new(&mut params);
    let [q, kv, there] = [&q, &kv, &presence].map(|t| tape.constant_input(t).unwrap());
    let ours = tape.attend([&q, &kv, &kv], [3, 5, 4, 2], Some(&there)).unwrap();
    assert!(difference(&ours.tensor().unwrap(), &theirs) < 1e-5);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut params = Params::new(1, &Device::Cpu);
    let mut tape = Tape::new(&mut params);
    let [x, w, b] = [&[2, 3][..], &[4, 2], &[4]].map(|s| tape.input(&normal(s, "x")).unwrap());
    assert!(tape.linear(&x, &w, &b).is_err());
    assert!(tape.conv2d(&x, &w, &b, 1, 0).is_err());
    assert!(tape.concat(&[&x, &w], 1).is_err());
    assert!(tape.attend([&x, &w, &w], [2, 2, 2, 1], None).is_err());
    assert!(tape.backward(&[(&x, &normal(&[5], "g"))], &[]).is_err());
}

/// A network's output and gradients, of parameters and of the condition, on a tape and by candle.
fn compare(shape: &DenoiserShape) {
    let n = 3;
    let dims: Vec<usize> = std::iter::once(n).chain(shape.latent.iter().copied()).collect();
    let (latent, timestep) = (normal(&dims, "z"), Tensor::new(&[3f32, 500.0, 999.0], &Device::Cpu).unwrap());
    let mut condition = normal(&[n, shape.condition_dim], "c");
    if shape.any_number {
        let classes = shape.latent[0];
        let known = condition.narrow(1, 0, shape.condition_dim - classes).unwrap();
        let presence: Vec<f32> = (0..n * classes).map(|i| f32::from(u8::from(i % classes < 2))).collect();
        let presence = Tensor::from_vec(presence, (n, classes), &Device::Cpu).unwrap();
        condition = Tensor::cat(&[&known, &presence], 1).unwrap();
    }
    let weights = normal(&dims, "g");
    let mut params = Params::new(7, &Device::Cpu);
    let var = Var::from_tensor(&condition).unwrap();
    let theirs = denoise(&mut Eager::new(&mut params), shape, &latent, &timestep, &var).unwrap();
    let grads = (&theirs * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let names: Vec<String> = params.names().map(str::to_owned).collect();
    let mut tape = Tape::new(&mut params);
    let [z, t] = [&latent, &timestep].map(|x| tape.constant_input(x).unwrap());
    let c = tape.input(&condition).unwrap();
    let ours = denoise(&mut tape, shape, &z, &t, &c).unwrap();
    assert!(difference(&ours.tensor().unwrap(), &theirs) < 1e-5, "{:?}", shape.config);
    let mut own = tape.backward(&[(&ours, &weights)], &[c]).unwrap();
    let close = |ours: &Tensor, theirs: &Tensor, what: &str| {
        let scale: f32 = theirs.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(difference(ours, theirs) < 1e-4 * (scale + 1e-2), "{what} of {:?}", shape.config);
    };
    for name in &names {
        let theirs = grads.get(params.get(name).unwrap()).unwrap();
        let own = Tensor::from_slice(&own.params[name], theirs.shape(), &Device::Cpu).unwrap();
        close(&own, theirs, name);
    }
    // Presence is data: candle gives it a gradient, and nothing asks for it.
    let told = shape.condition_dim - if shape.any_number { shape.latent[0] } else { 0 };
    let of_known = |grad: &Tensor| grad.narrow(1, 0, told).unwrap();
    close(&of_known(&own.inputs.remove(0).unwrap()), &of_known(grads.get(&var).unwrap()), "condition");
}

#[test]
fn networks_have_candles_gradients() {
    let shape = |latent: &[usize], config| DenoiserShape {
        latent: latent.to_vec(),
        condition_dim: 12,
        token_dim: 2,
        any_number: false,
        config,
    };
    compare(&shape(&[3, 8], DenoiserConfig::Mlp { width: 16, blocks: 2 }));
    compare(&shape(&[2, 12], DenoiserConfig::Transformer { width: 16, blocks: 2, heads: 2, pieces: 4 }));
    for attention in [0, 2] {
        let unet = UnetConfig { channels: 8, multipliers: vec![1, 2], groups: 4, attention };
        compare(&shape(&[2, 8, 8], DenoiserConfig::Unet(unet)));
    }
    let rows = shape(&[4, 3], DenoiserConfig::Rows { width: 8, blocks: 2, heads: 2 });
    compare(&rows);
    compare(&DenoiserShape { any_number: true, ..rows });
}

#[test]
fn a_second_tape_uses_the_buffers_of_the_first() {
    let mut params = Params::new(1, &Device::Cpu);
    let x = normal(&[3, 4], "x");
    let run = |params: &mut Params| {
        let mut tape = Tape::new(params);
        let input = tape.input(&x).unwrap();
        let y = tape.unary(&input, Unary::Silu).unwrap();
        let values = y.tensor().unwrap();
        let grad = tape.backward(&[(&y, &x)], &[input]).unwrap().inputs.remove(0).unwrap();
        (values.to_vec2::<f32>().unwrap(), grad.to_vec2::<f32>().unwrap())
    };
    let first = run(&mut params);
    assert_eq!(first, run(&mut params));
}
