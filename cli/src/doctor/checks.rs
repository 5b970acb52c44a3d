//! A check, and those of graphs: ONNX Runtime and candle on the chosen device against both on the CPU.

use candle_core::Device;
use inference::{Provider, Runtime};
use serde::Serialize;

use super::networks::{self, Case};
use crate::error::Result;
use crate::parity;

/// How far a denoiser in half precision may be off: f16 has 11 bits.
const HALF: f32 = 5e-3;

/// A measured number and what it may be at most.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What of: a kind of graph, a training step.
    subject: String,
    /// What was compared.
    compared: String,
    /// The measured difference.
    difference: f32,
    /// The largest that passes.
    tolerance: f32,
    /// Whether it does.
    pub pass: bool,
}

impl Check {
    /// A check of a difference, which passes up to `tolerance`.
    pub fn new(subject: &str, compared: &str, difference: f32, tolerance: f32) -> Self {
        let (subject, compared) = (subject.to_owned(), compared.to_owned());
        Self { subject, compared, difference, tolerance, pass: difference <= tolerance }
    }

    /// For people.
    pub fn line(&self) -> String {
        let Self { subject, compared, difference, tolerance, pass } = self;
        let word = if *pass { "pass" } else { "FAIL" };
        format!("{word}  {subject:<26} {compared:<38} {difference:>9.1e}  (at most {tolerance:.0e})")
    }
}

/// Checks every kind of graph.
///
/// # Errors
/// When a graph does not run at all.
pub fn graphs(runtime: &Runtime, reference: &Runtime, device: &Device, found: &mut impl FnMut(Check)) -> Result<()> {
    let on_gpu = (!device.is_cpu()).then(|| networks::all(device)).transpose()?;
    for (i, case) in networks::all(&Device::Cpu)?.iter().enumerate() {
        let (_, difference) = parity::of_graph(reference, &case.graph, &case.probe)?;
        found(Check::new(case.name, "ONNX Runtime cpu, candle cpu", difference, parity::tolerance(true)));
        if runtime.provider() == Provider::Cuda {
            let (_, difference) = parity::of_graph(runtime, &case.graph, &case.probe)?;
            found(Check::new(case.name, "ONNX Runtime cuda, candle cpu", difference, parity::tolerance(false)));
            let (ours, theirs) = [runtime, reference].map(|r| parity::outputs(r, &case.graph, &case.probe)).into();
            let pairs = ours?.into_iter().zip(theirs?);
            let difference = pairs.map(|(a, b)| parity::scaled_difference(&a.data, &b.data)).fold(0.0, f32::max);
            found(Check::new(case.name, "ONNX Runtime cuda, ONNX Runtime cpu", difference, parity::tolerance(false)));
        }
        if case.name.starts_with("denoiser") {
            denoiser(runtime, case, found)?;
        }
        if let Some(other) = on_gpu.as_ref().and_then(|all| all.get(i)) {
            let pairs = other.probe.outputs.iter().zip(&case.probe.outputs);
            let difference = pairs.map(|(a, b)| parity::scaled_difference(&a.data, &b.data)).fold(0.0, f32::max);
            found(Check::new(case.name, "candle cuda, candle cpu", difference, parity::tolerance(false)));
        }
    }
    Ok(())
}

/// What a server may do with denoisers: in half precision, and with tensors that stay in their place.
fn denoiser(runtime: &Runtime, case: &Case, found: &mut impl FnMut(Check)) -> Result<()> {
    let provider = runtime.provider();
    let half = training::backend::half::half(&case.graph, "timestep")?;
    let (_, difference) = parity::of_graph(runtime, &half, &case.probe)?;
    found(Check::new(case.name, &format!("f16 on {provider}, candle cpu"), difference, HALF));
    let [latent, timestep, condition] = &case.probe.inputs[..] else { return Ok(()) };
    let inputs = [latent, timestep, condition].map(|named| &named.data[..]);
    let replayed = inference::replayed(runtime, &case.graph, &latent.shape[1..], inputs)?;
    let difference = parity::scaled_difference(&replayed, &case.probe.outputs[0].data);
    let tolerance = parity::tolerance(provider == Provider::Cpu);
    found(Check::new(case.name, &format!("bound or replayed on {provider}, candle"), difference, tolerance));
    Ok(())
}
