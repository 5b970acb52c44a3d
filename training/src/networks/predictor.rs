//! The accuracy predictor (paper B.1): standardised weights, and where it is dataset-conditioned z_D, to an accuracy. Its
//! last hidden layer is the embedding that Eq. 9 compares.

use serde::{Deserialize, Serialize};

use super::layers::{layer_norm, linear};
use crate::backend::{Backend, Unary};
use crate::error::Result;
use crate::params::Init;

/// Sizes of the predictor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictorShape {
    /// Length of the weight vectors.
    pub length: usize,
    /// Width inside.
    pub width: usize,
    /// Width of z_D, where it sees it.
    pub dataset: Option<usize>,
    /// Mean and deviation of the accuracies that it learned from.
    pub accuracy: (f64, f64),
}

/// `weights [n, length]`, standardised, and z_D `[n, embedding_dim]` where it sees it → embedding `[n, width]` and
/// accuracy `[n, 1]`, which is not held inside 0 to 1.
///
/// # Errors
/// When shapes do not fit.
pub fn predict<B: Backend>(
    b: &mut B,
    shape: &PredictorShape,
    weights: &B::T,
    dataset: Option<&B::T>,
) -> Result<(B::T, B::T)> {
    let width = shape.width;
    let mut x = linear(b, "in", weights, shape.length, width, Init::Scaled(1.0))?;
    // How far weights are from the zoo's mean is said outright: a layer normalisation would take it away.
    let square = b.unary(weights, Unary::Square)?;
    let square = b.mean_last(&square)?;
    let square = b.affine(&square, 1.0, 1e-6)?;
    let size = b.unary(&square, Unary::Sqrt)?;
    let size = linear(b, "size", &size, 1, width, Init::Scaled(1.0))?;
    x = b.add(&x, &size)?;
    if let (Some(dataset), Some(dim)) = (dataset, shape.dataset) {
        // Scale and shift: what a weight is worth depends on the dataset.
        let scale = linear(b, "dataset.scale", dataset, dim, width, Init::Scaled(0.1))?;
        let scale = b.affine(&scale, 1.0, 1.0)?;
        let shift = linear(b, "dataset.shift", dataset, dim, width, Init::Scaled(1.0))?;
        x = b.mul(&x, &scale)?;
        x = b.add(&x, &shift)?;
    }
    let x = b.unary(&x, Unary::Silu)?;
    let x = linear(b, "hidden", &x, width, width, Init::Scaled(2.0))?;
    let x = layer_norm(b, "norm1", &x, width)?;
    let embedding = b.unary(&x, Unary::Silu)?;
    let y = linear(b, "out", &embedding, width, 1, Init::Scaled(0.1))?;
    let (mean, std) = shape.accuracy;
    Ok((embedding, b.affine(&y, std, mean)?))
}
