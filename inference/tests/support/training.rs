//! What `training` makes of a configuration, and its graphs on ONNX Runtime beside candle.

#![allow(dead_code)]

use std::path::Path;

use inference::{SessionPool, Tensor};
use training::export::{Named, Probe};
use training::precision::to_half;
use training::progress::Progress;
use training::stages::generator::{self, Trained};
use training::stages::zoo::{self, Zoo};
use training::{Config, Keep, Sources};
use weights::manifest::files;

use crate::support::runtime;

/// A zoo and a generator.
pub fn train_as(config: &str) -> (Trained, Zoo, Sources) {
    let folder = tempfile::tempdir().unwrap();
    train_in(&Config::parse(config).unwrap(), folder.path())
}

/// The same, with the zoo in `folder`.
pub fn train_in(config: &Config, folder: &Path) -> (Trained, Zoo, Sources) {
    let sources = Sources::load(config).unwrap();
    let silent = Progress::silent();
    let zoo = zoo::build(config, &sources, folder, &silent, Keep::nothing()).unwrap();
    let device = candle_core::Device::Cpu;
    let trained = generator::train(config, &zoo, &sources, &device, &silent, Keep::nothing()).unwrap();
    (trained, zoo, sources)
}

/// Compares all graphs of a generator with candle, and its denoiser in half precision.
pub fn check_probes(trained: &Trained) {
    assert!(trained.probes.len() >= 15);
    for probe in &trained.probes {
        check_probe(probe, trained.bundle.file(&probe.graph).unwrap());
    }
    check_half(trained);
}

/// The denoiser in half precision beside candle: as far apart as f16 is from f32, and no nearer.
fn check_half(trained: &Trained) {
    let half = to_half(&trained.bundle).unwrap();
    assert_ne!(half.digest(), trained.bundle.digest());
    assert_eq!(half.manifest().training["converted_from"], trained.bundle.digest());
    assert!(to_half(&half).unwrap_err().to_string().contains("already"));
    let graph = half.file(files::DENOISER).unwrap();
    assert!(graph.len() < trained.bundle.file(files::DENOISER).unwrap().len());
    for probe in trained.probes.iter().filter(|probe| probe.graph == files::DENOISER) {
        let difference = difference(probe, graph);
        assert!((1e-6..5e-3).contains(&difference), "{difference} in half precision");
    }
}

/// Compares a graph on ONNX Runtime with candle: at most 1e-4 apart at unit scale, and in truth less.
pub fn check_probe(probe: &Probe, graph: &[u8]) {
    let difference = difference(probe, graph);
    assert!(difference < 2e-5, "{}: {difference} between ONNX Runtime and candle", probe.graph);
}

/// Largest difference of a graph's outputs from candle's, at unit scale or that of the largest value above it.
fn difference(probe: &Probe, graph: &[u8]) -> f32 {
    let pool = SessionPool::new(&runtime(2), &probe.graph, graph).unwrap();
    let inputs: Vec<_> =
        probe.inputs.iter().map(|n| (n.name.as_str(), n.shape.as_slice(), n.data.as_slice())).collect();
    let outputs = pool.run(&inputs).unwrap();
    let mut worst = 0f32;
    for Named { name, shape, data } in &probe.outputs {
        let Tensor { shape: found, data: values } = &outputs[name];
        assert_eq!(found, shape, "{} {name}", probe.graph);
        assert!(values.iter().chain(data).all(|v| v.is_finite()), "{} {name}", probe.graph);
        let scale = data.iter().fold(1.0f32, |most, v| most.max(v.abs()));
        worst = values.iter().zip(data).map(|(a, b)| (a - b).abs() / scale).fold(worst, f32::max);
    }
    worst
}
