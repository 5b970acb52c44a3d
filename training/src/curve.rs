//! Loss curves: what each step of a stage had for a loss.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::snapshots::Snapshot;

/// Most points of a curve; of a longer stage every second, third, … step is kept.
pub const MAX_POINTS: usize = 10_000;
/// Version of the file's format.
const FORMAT: u32 = 1;

/// The losses of one stage, by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The stage: `vae`, `encoder`, `denoiser`.
    pub stage: String,
    /// Steps of the stage.
    pub steps: usize,
    /// Steps that have a point, from 1, rising.
    pub step: Vec<usize>,
    /// The loss of each of them.
    pub loss: Vec<f32>,
}

#[derive(Serialize)]
struct File<'a> {
    format: u32,
    stages: &'a [Curve],
}

impl Curve {
    /// No points yet of a stage of `steps` steps.
    pub fn new(stage: &str, steps: usize) -> Self {
        Self { stage: stage.into(), steps, step: Vec::new(), loss: Vec::new() }
    }

    /// Steps from one point to the next.
    fn stride(&self) -> usize {
        self.steps.div_ceil(MAX_POINTS).max(1)
    }

    /// Adds the loss of step `step` (from 1) where that is one of the curve's.
    pub fn push(&mut self, step: usize, loss: f32) {
        if step.is_multiple_of(self.stride()) || step == self.steps {
            self.step.push(step);
            self.loss.push(loss);
        }
    }

    /// Puts the curve so far into a snapshot.
    pub(crate) fn save(&self, snapshot: &mut Snapshot) {
        snapshot.put("curve.loss", self.loss.clone());
    }

    /// Takes the curve so far out of a snapshot.
    pub(crate) fn restore(&mut self, snapshot: &mut Snapshot) -> Result<()> {
        let (stride, steps, done) = (self.stride(), self.steps, snapshot.step.min(self.steps));
        self.step = (1..=done).filter(|step| step.is_multiple_of(stride) || *step == steps).collect();
        self.loss = snapshot.take_len("curve.loss", self.step.len())?;
        Ok(())
    }
}

/// The curves as the file of a bundle: equal curves give equal bytes.
///
/// # Errors
/// When they make no JSON.
pub fn to_json(stages: &[Curve]) -> Result<Vec<u8>> {
    serde_json::to_vec(&File { format: FORMAT, stages }).map_err(|e| Error::Config(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_thinned_evenly_and_survives_a_snapshot() {
        let steps = 3 * MAX_POINTS - 1;
        let mut curve = Curve::new("vae", steps);
        for step in 1..=20_001 {
            curve.push(step, step as f32);
        }
        let mut snapshot = Snapshot::new(20_001);
        curve.save(&mut snapshot);
        let mut other = Curve::new("vae", steps);
        other.restore(&mut snapshot).unwrap();
        assert_eq!(other, curve);
        for step in 20_002..=steps {
            other.push(step, step as f32);
        }
        assert_eq!(other.step.len(), MAX_POINTS);
        assert_eq!((other.step[0], other.step[1], other.step[MAX_POINTS - 1]), (3, 6, steps));
        assert!(other.step.iter().zip(&other.loss).all(|(step, loss)| *step as f32 == *loss));
    }
}
