//! The labelled data of a configuration: sources, what each is for, and what their images are seen through.

use serde::{Deserialize, Serialize};

/// Labelled data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The sources.
    pub sources: Vec<SourceConfig>,
    /// Share of validation examples of each class: support images of requests come from here.
    #[serde(default = "d::validation")]
    pub validation: f64,
    /// Share of test examples of each class: accuracies are measured here only.
    #[serde(default = "d::test")]
    pub test: f64,
    /// Largest number of examples of a class that is used; 0 for all.
    #[serde(default)]
    pub limit_per_class: usize,
    /// Feature extractor whose features are what networks and dataset encoder see; none: pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<String>,
    /// Feature extractor that is made from the sources' own training images, in place of a registered one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone: Option<BackboneConfig>,
}

/// What a source is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Its tasks are the zoo's, and some of them unseen.
    #[default]
    Zoo,
    /// The backbone learns from it, and nothing else does: no tasks.
    Backbone,
    /// Neither backbone nor zoo nor generator sees it; its tasks are measured.
    LeftOut,
}

impl Role {
    fn is_zoo(&self) -> bool {
        *self == Self::Zoo
    }
}

/// A feature extractor made from the sources with the role `backbone`, or where none has it from those of the zoo:
/// from their training images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BackboneConfig {
    /// Principal components of the pixels, scaled so that the features have unit variance on the average.
    Pca {
        /// Components.
        dim: usize,
    },
    /// Features of a convolutional network that learned to tell the classes of its sources apart.
    Conv {
        /// Channels of each 3×3 convolution, which halves the sides.
        channels: Vec<usize>,
        /// Features.
        dim: usize,
        /// Optimiser steps.
        steps: usize,
        /// Images of a step.
        #[serde(default = "d::backbone_batch")]
        batch: usize,
        /// Learning rate.
        #[serde(default = "d::backbone_lr")]
        lr: f64,
        /// Pixels that images are moved by at most, each way, while it learns.
        #[serde(default = "d::backbone_shift")]
        shift: usize,
    },
}

/// One source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name.
    pub name: String,
    /// `digits`, `idx:DIR`, `folder:DIR`, `npz:FILE`, `zip:FILE`, `tar:FILE` or `omniglot:DIR#ALPHABET,…`; `${VARIABLE}` is
    /// replaced from the environment. In jobs: `digits`, or `registered:` and the name or id of a dataset.
    pub from: String,
    /// Height and width that images are resized to.
    #[serde(default)]
    pub resize: Option<[usize; 2]>,
    /// Largest number of its examples of a class that is used, in place of that of all sources; 0 for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_per_class: Option<usize>,
    /// Channels that images are given: 1 (grey by luminance) or 3 (grey repeated); none: as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Role::is_zoo")]
    pub role: Role,
}

/// Name of the extractor that a configuration's backbone is.
pub const BACKBONE: &str = "backbone";

/// What begins the `from` of a source that is a dataset of the registry.
pub const REGISTERED: &str = "registered:";

impl SourceConfig {
    /// The id or name of the registered dataset, when the source is one.
    pub fn registered(&self) -> Option<&str> {
        self.from.strip_prefix(REGISTERED)
    }
}

mod d {
    pub fn validation() -> f64 {
        0.1
    }
    pub fn test() -> f64 {
        0.2
    }
    pub fn backbone_batch() -> usize {
        64
    }
    pub fn backbone_lr() -> f64 {
        2e-3
    }
    pub fn backbone_shift() -> usize {
        2
    }
}
