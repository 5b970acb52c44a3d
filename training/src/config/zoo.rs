//! How the models of a zoo come about.

use serde::{Deserialize, Serialize};

use super::is_default;

/// How the models of a zoo come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZooFit {
    /// Trained by Adam.
    #[default]
    Adam,
    /// Linear heads by ridge regression on `images` training images of each class, which each run draws for itself;
    /// epochs, batch and learning rate do not matter then.
    Ridge,
}

/// The zoo: many models advance together in one batched tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZooConfig {
    /// Runs of each task.
    pub runs_per_task: usize,
    /// Epochs of each run.
    pub epochs: usize,
    /// Images of a step.
    pub batch: usize,
    /// Adam's learning rate.
    pub lr: f64,
    /// Checkpoints kept of each run: those of its last epochs.
    pub keep: usize,
    /// Models in one batched tensor.
    pub group: usize,
    /// Whether all runs start at the same weights.
    pub common_init: bool,
    /// How the models come about.
    #[serde(skip_serializing_if = "is_default")]
    pub fit: ZooFit,
    /// Images of each class that a ridge head is fitted on; 0 for all.
    #[serde(skip_serializing_if = "is_default")]
    pub images: usize,
    /// Checkpoint file that all runs start from, where they train a part of the network: safetensors, or what
    /// `torch.save` wrote; `${VARIABLE}` is replaced from the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Key path of the tensors inside that file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_key: Option<String>,
    /// What the names of its tensors begin with, to be taken off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_strip_prefix: Option<String>,
    /// Patterns of the names of the parameters that are trained and generated; all others are the start's.
    #[serde(skip_serializing_if = "is_default")]
    pub train: Vec<String>,
    /// Sources whose tasks get a last layer of their own, which is generated too: ridge regression on what the start makes
    /// of their training images. Tasks of other sources keep the start's.
    #[serde(skip_serializing_if = "is_default")]
    pub heads: Vec<String>,
    /// Deviation of the noise that each run's trained weights start with, as a share of the size of their tensor; 0: runs
    /// differ by the order of their batches.
    #[serde(skip_serializing_if = "is_default")]
    pub start_noise: f64,
}

impl Default for ZooConfig {
    fn default() -> Self {
        Self {
            runs_per_task: 1,
            epochs: 25,
            batch: 100,
            lr: 3e-3,
            keep: 1,
            group: 250,
            common_init: true,
            fit: ZooFit::Adam,
            images: 0,
            start: None,
            start_key: None,
            start_strip_prefix: None,
            train: Vec::new(),
            heads: Vec::new(),
            start_noise: 0.0,
        }
    }
}
