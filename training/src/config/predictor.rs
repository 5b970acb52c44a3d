//! The accuracy predictor's section.

use serde::{Deserialize, Serialize};

/// The predictor of a network's accuracy from its weights (paper B.1, Algorithm 3). Off unless it has steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PredictorConfig {
    /// Optimiser steps; 0: there is no predictor.
    pub steps: usize,
    /// Networks whose accuracy on validation images it learns from: checkpoints, and as many disturbed and decoded ones.
    pub examples: usize,
    /// Whether it also sees the dataset's embedding z_D.
    pub dataset: bool,
    /// Width inside; the last hidden layer is the embedding of Eq. 9.
    pub width: usize,
    /// Deviation of noise on the standardised weights that it learns from.
    pub input_noise: f64,
    /// Batch.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self {
            steps: 0,
            examples: 6000,
            dataset: true,
            width: 256,
            input_noise: 0.05,
            batch: 128,
            lr: 1e-3,
            weight_decay: 0.1,
        }
    }
}
