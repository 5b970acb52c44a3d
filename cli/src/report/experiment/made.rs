//! A generator under measurement, and what is done with its weights.

use datasets::{Dataset, Task};
use inference::Generator;
use training::Config;
use training::frozen::Frozen;
use training::stages::fit::Net;
use training::stages::vectors::Vectors;
use training::stages::zoo::Zoo;
use weights::canonical;

use super::Member;
use crate::compare::spread;
use crate::error::Result;
use crate::report::near::AnsweringZoo;
use crate::report::weights_figure::{MODELS, Model, WeightsFigure};

/// A generator with what it learned from.
pub(super) struct Made<'a> {
    pub(super) part: &'a Member<'a>,
    pub(super) config: &'a Config,
    /// As the zoo's, with the generator's seed.
    pub(super) base: &'a Config,
    /// What the names of its sets begin with: the architecture or the number of classes, where there are several.
    pub(super) label: String,
    /// Of a mixed zoo the models of one architecture; so is all that follows.
    pub(super) zoo: Zoo,
    /// The experiment's zoo, of which `zoo` may be a part.
    pub(super) whole: Zoo,
    /// Bytes of its tar.
    pub(super) bundle_bytes: usize,
    pub(super) generator: Generator,
    /// Embeddings of the zoo's runs.
    pub(super) embedded: Vec<Vec<f32>>,
    /// Of a generator for any number of classes: embeddings of the runs of all numbers.
    pub(super) everything: Option<&'a [Vec<f32>]>,
    pub(super) own: Vectors,
    /// Mean of the aligned zoo, `[d]`.
    pub(super) reference: Vec<f32>,
    pub(super) canonical: Vectors,
}

impl Made<'_> {
    /// The zoo as the service has it.
    pub(super) fn zoo(&self) -> AnsweringZoo<'_> {
        AnsweringZoo::new(&self.zoo, &self.embedded, self.everything.unwrap_or(&self.embedded))
    }

    /// Weights in the form that the VAE learned.
    pub(super) fn aligned(&self, theta: &[f32]) -> Result<Vec<f32>> {
        let mut theta = theta.to_vec();
        let sweeps = self.config.vectors.alignment_sweeps;
        let (layout, groups) = (self.zoo.layout(0), self.zoo.hidden_groups(0));
        canonical::align(&mut theta, &self.reference, &layout, &groups, sweeps)?;
        Ok(theta)
    }

    /// The zoo's models of the targets and what was generated for them.
    pub(super) fn figure(
        &self,
        tasks: &[Task],
        targets: &[usize],
        generated: &[Vec<Vec<f32>>],
    ) -> Result<Option<WeightsFigure>> {
        let d = self.zoo.parameters();
        let last = self.zoo.last_checkpoints();
        let mut models = Vec::new();
        for &t in targets {
            let own: Vec<usize> = last.iter().copied().filter(|&c| *self.zoo.task(c) == tasks[t]).collect();
            for c in spread(&own, MODELS) {
                let weights = self.own.aligned[c * d..][..d].to_vec();
                models.push(Model { task: t, generated: false, weights });
            }
            for theta in &generated[t] {
                models.push(Model { task: t, generated: true, weights: self.aligned(theta)? });
            }
        }
        let names: Vec<String> = tasks.iter().map(|task| task.source.clone()).collect();
        Ok(WeightsFigure::new(&models, &names, self.part.seed))
    }

    /// Through the VAE and back.
    pub(super) fn through(
        &self,
        tasks: impl Iterator<Item = Task>,
        rows: Vec<Vec<f32>>,
    ) -> Result<Vec<(Task, Vec<f32>)>> {
        let rows = rows.iter().map(|row| self.zoo.whole(row)).collect::<training::Result<Vec<_>>>()?;
        let latents = self.generator.encode_weights(&rows)?;
        Ok(tasks.zip(self.own(self.generator.decode(&latents)?)?).collect())
    }

    /// Networks with the statistics of their generated normalisations measured on the support images.
    pub(super) fn recalibrated(
        &self,
        networks: &[Vec<f32>],
        support: &Dataset,
        frozen: Option<&Frozen>,
    ) -> Result<Vec<Vec<f32>>> {
        let rows: Vec<usize> = (0..support.len()).collect();
        let images = match frozen {
            Some(frozen) => frozen.begun(support)?.gather(&rows),
            None => support.gather(&rows),
        };
        let net = Net::new(&self.zoo.architecture, frozen);
        let one =
            |network: &Vec<f32>| self.zoo.whole(&net.recalibrate(&self.zoo.own(network.clone())?, images.clone())?);
        Ok(networks.iter().map(one).collect::<training::Result<_>>()?)
    }

    /// Networks as the zoo has them.
    pub(super) fn own(&self, networks: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        Ok(networks.into_iter().map(|network| self.zoo.own(network)).collect::<training::Result<_>>()?)
    }
}
