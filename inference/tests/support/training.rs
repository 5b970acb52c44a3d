//! What `training` makes of a configuration, and its graphs on ONNX Runtime beside candle.

#![allow(dead_code)]

use std::path::Path;

use inference::{SessionPool, Tensor};
use training::export::{Named, Probe};
use training::progress::Progress;
use training::stages::generator::{self, Trained};
use training::stages::zoo::{self, Zoo};
use training::{Config, Keep, Sources};

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

/// Compares all graphs of a generator with candle.
pub fn check_probes(trained: &Trained) {
    assert!(trained.probes.len() >= 15);
    for probe in &trained.probes {
        check_probe(probe, trained.bundle.file(&probe.graph).unwrap());
    }
}

/// Compares a graph on ONNX Runtime with candle: at most 1e-4 apart at unit scale, and in truth less.
pub fn check_probe(probe: &Probe, graph: &[u8]) {
    let pool = SessionPool::new(&runtime(2), &probe.graph, graph).unwrap();
    let inputs: Vec<_> =
        probe.inputs.iter().map(|n| (n.name.as_str(), n.shape.as_slice(), n.data.as_slice())).collect();
    let outputs = pool.run(&inputs).unwrap();
    for Named { name, shape, data } in &probe.outputs {
        let Tensor { shape: found, data: values } = &outputs[name];
        assert_eq!(found, shape, "{} {name}", probe.graph);
        let scale = data.iter().fold(1.0f32, |most, v| most.max(v.abs()));
        for (a, b) in values.iter().zip(data) {
            assert!((a - b).abs() < 2e-5 * scale, "{} {name}: {a} on ONNX Runtime, {b} in candle", probe.graph);
        }
    }
}
