//! Whether ONNX Runtime computes in an exported graph what candle computes in the network.

use inference::{Runtime, SessionPool, Tensor};
use training::export::{Named, Probe};

use crate::error::{Error, Result};

/// Largest difference that is allowed, relative to the output's scale where that is above 1: 1e-4 where all is on the CPU,
/// 1e-3 where something is on a GPU (f32 without TensorFloat-32, whose sums are in another order).
pub fn tolerance(on_cpu: bool) -> f32 {
    if on_cpu { 1e-4 } else { 1e-3 }
}

/// Runs a probe's inputs through a graph: the output that differs most from the probe's, and by how much.
///
/// # Errors
/// [`Error::Parity`] when an output is missing or of another shape.
pub fn of_graph(runtime: &Runtime, graph: &[u8], probe: &Probe) -> Result<(String, f32)> {
    let found = outputs(runtime, graph, probe)?;
    let mut worst = (String::new(), 0f32);
    for (expected, found) in probe.outputs.iter().zip(&found) {
        let difference = scaled_difference(&found.data, &expected.data);
        if difference >= worst.1 {
            worst = (expected.name.clone(), difference);
        }
    }
    Ok(worst)
}

/// What a graph gives for a probe's inputs, in the order of the probe's outputs.
///
/// # Errors
/// As [`of_graph`].
pub fn outputs(runtime: &Runtime, graph: &[u8], probe: &Probe) -> Result<Vec<Tensor>> {
    let pool = SessionPool::new(runtime, probe.graph.clone(), graph.to_vec())?;
    let inputs: Vec<_> =
        probe.inputs.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.data.as_slice())).collect();
    let mut outputs = pool.run(&inputs)?;
    let mut taken = |expected: &Named| {
        let found = outputs.remove(&expected.name).filter(|t| t.shape == expected.shape);
        found.ok_or_else(|| {
            Error::Parity(format!("{} gives no {} of shape {:?}", probe.graph, expected.name, expected.shape))
        })
    };
    probe.outputs.iter().map(&mut taken).collect()
}

/// Largest difference, relative to the largest of `expected` where that is above 1; infinite when one is not a number.
pub fn scaled_difference(found: &[f32], expected: &[f32]) -> f32 {
    largest_difference(found, expected) / expected.iter().fold(1f32, |m, v| m.max(v.abs()))
}

/// Largest absolute difference; infinite when one is not a number.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_large_outputs_and_not_a_number_is_infinite() {
        assert_eq!(scaled_difference(&[1.0, 8.5], &[1.0, 8.0]), 0.0625);
        assert_eq!(scaled_difference(&[0.25, 0.0], &[0.0, 0.0]), 0.25);
        assert_eq!(largest_difference(&[f32::NAN, 0.0], &[0.0, 1.0]), f32::INFINITY);
        assert!(tolerance(true) < tolerance(false));
    }
}
