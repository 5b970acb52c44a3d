//! What runs start from, and what of them is trained where that is a part.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weights::Architecture;
use weights::closed_form::Examples;

use super::header::HEADER;
use crate::config::Config;
use crate::data::TaskData;
use crate::error::{Error, Result};
use crate::frozen::Frozen;
use crate::random;
use crate::snapshots::Snapshots;
use crate::stages::fit::init_theta;

/// The parameters that are the same in all models, where only a part is trained.
pub(super) const CONSTANTS: &str = "constants.safetensors";

/// What the weights of a zoo depend on where only a part of its models is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PartHeader {
    /// Digest of the network that all runs start from.
    start: String,
    /// Names of the parameters that differ between models.
    generated: Vec<String>,
    /// Digest of the file of all others.
    constants: String,
}

impl PartHeader {
    pub(super) fn of(frozen: &Frozen) -> Self {
        Self {
            start: frozen.digest(),
            generated: frozen.part().names(),
            constants: weights::digest::sha256(&frozen.part().to_safetensors()),
        }
    }

    /// The part, with the constants that the store has.
    pub(super) fn read(&self, store: &dyn Snapshots, architecture: &Architecture) -> Result<weights::Part> {
        let file = store.load(CONSTANTS)?.filter(|file| weights::digest::sha256(file) == self.constants);
        let file = file.ok_or_else(|| Error::Zoo {
            path: store.place(),
            reason: format!("{CONSTANTS} is missing or not the one of {HEADER}; remove the zoo and build it again"),
        })?;
        Ok(weights::Part::from_safetensors(&architecture.layout(), &self.generated, &file)?)
    }
}

/// Starting weights (`[m·d]`) of runs on these tasks with these seeds.
///
/// # Errors
/// When a head cannot be fitted.
pub fn initial(
    config: &Config,
    architecture: &Architecture,
    tasks: &[TaskData<'_>],
    seeds: &[u64],
) -> Result<Vec<f32>> {
    if let Some(frozen) = tasks.first().and_then(TaskData::frozen) {
        return from_start(config, frozen, tasks, seeds);
    }
    let theta = seeds
        .iter()
        .flat_map(|&seed| {
            let seed = if config.zoo.common_init { config.seed } else { seed };
            init_theta(architecture, &mut random::stream(seed, "initial weights"))
        })
        .collect();
    Ok(theta)
}

/// Starting values of the part that runs train.
fn from_start(config: &Config, frozen: &Frozen, tasks: &[TaskData<'_>], seeds: &[u64]) -> Result<Vec<f32>> {
    let mut known: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut theta = Vec::new();
    for (task, &seed) in tasks.iter().zip(seeds) {
        let mut values = match known.get(&task.name()) {
            Some(values) => values.clone(),
            None => {
                let values = frozen.start(task)?;
                known.insert(task.name(), values.clone());
                values
            }
        };
        frozen.disturb(&mut values, config.zoo.start_noise, &mut random::stream(seed, "start"));
        theta.extend(values);
    }
    Ok(theta)
}

/// Least squares gives outputs that are shares of classes; times this they are logits with which a softmax is as sure as
/// the head is right. Which class is the largest stays as it is.
const RIDGE_SCALE: f32 = 8.0;

/// A linear head by ridge regression on `images` training images of each class (0: all), drawn with `seed`.
///
/// # Errors
/// When a value is not finite.
pub fn ridge(task: &TaskData<'_>, images: usize, seed: u64) -> Result<Vec<f32>> {
    let per_class = if images == 0 { task.per_class() } else { images };
    let mut features = Vec::new();
    task.draw(per_class, &mut random::stream(seed, "ridge"), &mut features);
    let classes = task.classes();
    let labels: Vec<u32> = (0..classes * per_class).map(|i| (i / per_class) as u32).collect();
    ridge_head(&features, &labels, task.dim(), classes)
}

/// A linear head by ridge regression on features (`[n · dim]`).
pub(crate) fn ridge_head(features: &[f32], labels: &[u32], dim: usize, classes: usize) -> Result<Vec<f32>> {
    let head = Examples::new(features, labels, dim, classes)?.ridge()?;
    Ok(head.theta.into_iter().map(|v| v * RIDGE_SCALE).collect())
}
