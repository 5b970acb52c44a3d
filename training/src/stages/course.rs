//! The course of a stage: its steps from where an earlier process stopped, with progress, loss curve and snapshots.

use std::ops::Range;

use crate::config::Config;
use crate::curve::Curve;
use crate::data::Sources;
use crate::error::Result;
use crate::progress::{Progress, Stage};
use crate::snapshots::{Keep, Keeper, Snapshot};

use super::vectors::Vectors;
use super::zoo::Zoo;

/// What the stages after the zoo are given.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The zoo.
    pub zoo: &'a Zoo,
    /// Its vectors.
    pub vectors: &'a Vectors,
    /// The labelled data.
    pub sources: &'a Sources,
    /// Shows progress.
    pub progress: &'a Progress,
    /// Keeps snapshots.
    pub keep: Keep<'a>,
    /// What is trained: only snapshots of the same are continued.
    pub identity: &'a str,
}

/// A stage under way.
pub(crate) struct Course<'a> {
    keeper: Keeper<'a>,
    stage: Stage,
    curve: Curve,
    first: usize,
}

impl<'a> Course<'a> {
    /// Begins a stage of `steps` steps, after `restore` where there is a snapshot of it.
    pub fn begin(
        given: &Given<'a>,
        name: &'static str,
        steps: usize,
        restore: impl FnOnce(&mut Snapshot) -> Result<()>,
    ) -> Result<Self> {
        let mut keeper = given.keep.stage(name, given.identity, given.progress);
        let mut curve = Curve::new(name, steps);
        let mut first = 0;
        if let Some(mut snapshot) = keeper.load()? {
            first = snapshot.step.min(steps);
            curve.restore(&mut snapshot)?;
            restore(&mut snapshot)?;
        }
        Ok(Self { keeper, stage: given.progress.stage(name, steps, first), curve, first })
    }

    /// The steps that are to be made.
    pub fn steps(&self) -> Range<usize> {
        self.first..self.curve.steps
    }

    /// Losses so far.
    pub fn losses(&self) -> &[f32] {
        &self.curve.loss
    }

    /// Shows a short text.
    pub fn message(&self, text: String) {
        self.stage.message(text);
    }

    /// Step `step` (from 0) was made with this loss; `state` puts what the next step depends on into a snapshot.
    pub fn made(&mut self, step: usize, loss: f32, state: impl FnOnce(&mut Snapshot) -> Result<()>) -> Result<()> {
        let done = step + 1;
        self.curve.push(done, loss);
        let result = self.stage.advance_with(1, loss);
        let curve = &self.curve;
        self.keeper.after(result, done == curve.steps, || {
            let mut snapshot = Snapshot::new(done);
            curve.save(&mut snapshot);
            state(&mut snapshot)?;
            Ok(snapshot)
        })
    }

    /// Ends the stage.
    pub fn finish(self) -> Curve {
        self.stage.finish();
        self.curve
    }
}
