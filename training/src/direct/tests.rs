//! Losses and gradients beside candle's and beside finite differences.

use candle_core::{D, Device, Tensor, Var};
use weights::Activation;

use super::*;
use crate::backend::Models;
use crate::networks::target;
use crate::random;
use crate::stages::fit::{init_theta, split};

fn architectures() -> Vec<Architecture> {
    let mlp = |activation| Architecture::Mlp { inputs: 9, hidden: vec![7, 5], classes: 3, activation };
    let cnn = |channels, classes| Architecture::TinyCnn { channels, classes };
    vec![mlp(Activation::Relu), mlp(Activation::Tanh), cnn(1, 10), cnn(3, 4)]
}

struct Case {
    architecture: Architecture,
    theta: Vec<f32>,
    labels: Vec<u32>,
    x: Vec<f32>,
}

fn case(architecture: Architecture, n: usize) -> Case {
    let mut rng = random::stream(5, "direct");
    let mut theta = init_theta(&architecture, &mut rng);
    theta.iter_mut().zip(random::normal_vec(100_000, &mut rng)).for_each(|(v, noise)| *v += 0.05 * noise);
    let x = random::normal_vec(n * architecture.input_dim(), &mut rng);
    let labels = (0..n).map(|i| (i % architecture.classes()) as u32).collect();
    Case { architecture, theta, labels, x }
}

/// Loss and gradient by candle.
fn by_graph(case: &Case) -> (f32, Vec<f32>) {
    let (n, classes) = (case.labels.len(), case.architecture.classes());
    let theta = Var::from_slice(&case.theta, (1, case.theta.len()), &Device::Cpu).unwrap();
    let shape: Vec<usize> = [1, n].into_iter().chain(case.architecture.input_shape()).collect();
    let x = Tensor::from_slice(&case.x, shape, &Device::Cpu).unwrap();
    let params = split(theta.as_tensor(), &case.architecture.layout()).unwrap();
    let y = target::forward(&mut Models::training(), &case.architecture, &params, &x).unwrap();
    let mut target = vec![0f32; n * classes];
    case.labels.iter().enumerate().for_each(|(i, &l)| target[i * classes + l as usize] = 1.0);
    let target = Tensor::from_vec(target, (1, n, classes), &Device::Cpu).unwrap();
    let log_p = candle_nn::ops::log_softmax(&y, D::Minus1).unwrap();
    let loss = ((log_p * target).unwrap().sum_all().unwrap() * (-1.0 / n as f64)).unwrap();
    let grads = loss.backward().unwrap();
    let grad = grads.get(&theta).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (loss.to_scalar().unwrap(), grad)
}

#[test]
fn loss_and_gradient_equal_those_of_the_graph() {
    let mut workspace = Workspace::default();
    for case in architectures().into_iter().map(|a| case(a, 13)) {
        let network = Network::of(&case.architecture).unwrap();
        let (loss, grad) = by_graph(&case);
        // Twice: what a step leaves behind must not reach the next.
        for _ in 0..2 {
            workspace.x.clone_from(&case.x);
            let own = network.gradient(&case.theta, &case.labels, &mut workspace);
            assert!((own - loss).abs() < 1e-5, "{}: {own} {loss}", case.architecture.name());
            let logits = network.logits(&case.theta, &mut workspace).to_vec();
            assert_eq!(logits.len(), case.labels.len() * case.architecture.classes());
            let largest = grad.iter().fold(0f32, |m, g| m.max(g.abs()));
            let off = grad.iter().zip(&workspace.grad).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 1e-5 * largest.max(1.0), "{}: {off} of {largest}", case.architecture.name());
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let mut workspace = Workspace::default();
    for case in architectures().into_iter().map(|a| case(a, 4)) {
        let network = Network::of(&case.architecture).unwrap();
        workspace.x.clone_from(&case.x);
        network.gradient(&case.theta, &case.labels, &mut workspace);
        let grad = workspace.grad.clone();
        for at in (0..grad.len()).step_by(37) {
            let mut moved = |by: f32| {
                let mut theta = case.theta.clone();
                theta[at] += by;
                network.gradient(&theta, &case.labels, &mut workspace)
            };
            // Small, for another maximum of a window may be the larger one behind it.
            let numeric = (moved(5e-4) - moved(-5e-4)) / 1e-3;
            let off = (numeric - grad[at]).abs();
            assert!(off < 2e-3 + 0.03 * numeric.abs(), "{} {at}: {numeric} {}", case.architecture.name(), grad[at]);
        }
    }
}

#[test]
fn what_has_other_layers_is_left_to_the_graph() {
    assert_eq!(Network::of(&Architecture::ResnetCifar { depth: 8, widths: [4, 4, 4], classes: 3 }), None);
}

/// The divergence of two networks, and its gradient, by candle.
fn divergence_by_graph(case: &Case, of: &[f32]) -> (f32, Vec<f32>) {
    let n = case.labels.len();
    let shape: Vec<usize> = [1, n].into_iter().chain(case.architecture.input_shape()).collect();
    let x = Tensor::from_slice(&case.x, shape, &Device::Cpu).unwrap();
    let outputs = |theta: &Tensor| {
        let params = split(theta, &case.architecture.layout()).unwrap();
        let y = target::forward(&mut Models::default(), &case.architecture, &params, &x).unwrap();
        candle_nn::ops::log_softmax(&y, D::Minus1).unwrap()
    };
    let theta = Var::from_slice(&case.theta, (1, case.theta.len()), &Device::Cpu).unwrap();
    let p = outputs(&Tensor::from_slice(of, (1, of.len()), &Device::Cpu).unwrap());
    let kl = (p.exp().unwrap() * (&p - outputs(&theta)).unwrap()).unwrap();
    let kl = kl.sum(D::Minus1).unwrap().mean_all().unwrap();
    let grads = kl.backward().unwrap();
    (kl.to_scalar().unwrap(), grads.get(&theta).unwrap().flatten_all().unwrap().to_vec1().unwrap())
}

/// Networks that differ a little.
fn beside(theta: &[f32]) -> Vec<f32> {
    let noise = random::normal_vec(theta.len(), &mut random::stream(6, "beside"));
    theta.iter().zip(noise).map(|(v, noise)| v + 0.1 * noise).collect()
}

#[test]
fn divergences_equal_those_of_the_graph() {
    let mut workspace = Workspace::default();
    for case in architectures().into_iter().map(|a| case(a, 13)) {
        let (network, of) = (Network::of(&case.architecture).unwrap(), beside(&case.theta));
        let (loss, grad) = divergence_by_graph(&case, &of);
        for _ in 0..2 {
            workspace.x.clone_from(&case.x);
            let own = network.divergence(&of, &case.theta, &mut workspace);
            assert!(loss > 1e-3 && (own - loss).abs() < 1e-4 * loss, "{}: {own} {loss}", case.architecture.name());
            let largest = grad.iter().fold(0f32, |m, g| m.max(g.abs()));
            let off = grad.iter().zip(&workspace.grad).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 1e-4 * largest, "{}: {off} of {largest}", case.architecture.name());
        }
        let none = network.divergence(&case.theta, &case.theta, &mut workspace);
        assert!(none.abs() < 1e-6, "a network beside itself: {none}");
    }
}

#[test]
fn gradients_of_divergences_equal_finite_differences() {
    let mut workspace = Workspace::default();
    for case in architectures().into_iter().map(|a| case(a, 4)) {
        let (network, of) = (Network::of(&case.architecture).unwrap(), beside(&case.theta));
        workspace.x.clone_from(&case.x);
        network.divergence(&of, &case.theta, &mut workspace);
        let grad = workspace.grad.clone();
        for at in (0..grad.len()).step_by(37) {
            let mut moved = |by: f32| {
                let mut theta = case.theta.clone();
                theta[at] += by;
                network.divergence(&of, &theta, &mut workspace)
            };
            let numeric = (moved(5e-4) - moved(-5e-4)) / 1e-3;
            let off = (numeric - grad[at]).abs();
            assert!(off < 1e-3 + 0.03 * numeric.abs(), "{} {at}: {numeric} {}", case.architecture.name(), grad[at]);
        }
    }
}
