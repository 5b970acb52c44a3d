//! Requests that come at the same time share the denoiser's runs, and nobody can tell.

use serde_json::{Value, json};

use super::counted::metric;
use super::{GENERATOR, registry};
use crate::support::data::{npz, some_digits};
use crate::support::http::{Api, Server};

/// The values of a safetensors file, of all its tensors.
fn values(bytes: &[u8]) -> Vec<f32> {
    let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + head..].chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn samples(api: &Api, body: &Value) -> Vec<Vec<f32>> {
    let generation = api.generate(body);
    let urls = generation["samples"].as_array().unwrap().iter().map(|sample| sample["url"].as_str().unwrap());
    urls.map(|url| values(&api.get(url).bytes)).collect()
}

#[test]
fn weights_are_the_same_alone_and_in_a_crowd() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let all: Vec<u32> = (0..10).collect();
    let dataset = json!({"name": "digits", "npz": npz(&some_digits(&all, 0, 20))});
    let id: Value = server.api.post("/v1/datasets", &dataset).json()["id"].clone();
    let bodies: Vec<Value> = (0..12)
        .map(|seed| {
            let (sampler, steps) = [("ddim", 20), ("dpm_solver_pp", 9), ("ddpm", 40)][seed % 3];
            json!({
                "generator": GENERATOR, "dataset": {"id": id, "classes": ["5", "0", "9"]}, "seed": seed,
                "count": 1 + seed % 4, "sampler": sampler, "steps": steps,
            })
        })
        .collect();
    let alone: Vec<_> = bodies.iter().map(|body| samples(&server.api, body)).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let base = server.api.base.clone();
        let each = bodies.iter().map(|body| {
            let base = base.clone();
            scope.spawn(move || samples(&Api::new(base), body))
        });
        let each: Vec<_> = each.collect();
        each.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.len(), together.len());
        for (a, b) in alone.iter().flatten().zip(together.iter().flatten()) {
            assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{a} alone, {b} together");
        }
    }
    // They did share runs: fewer than the steps of all of them.
    let rows = metric(&server, "weightsmith_generation_batch_samples_sum");
    let runs = metric(&server, "weightsmith_generation_batch_samples_count");
    assert!(runs > 0.0 && runs < rows, "{rows}");
}
