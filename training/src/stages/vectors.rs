//! From checkpoints to standardised vectors: canonical form, padding, standardisation, hold-out by lineage.

use rand::seq::SliceRandom;
use weights::vectorise::Vectorise;
use weights::{Standardisation, canonical};

use super::zoo::Zoo;
use crate::config::Config;
use crate::error::Result;
use crate::progress::Progress;
use crate::random;

/// The zoo as vectors.
#[derive(Debug, Clone)]
pub struct Vectors {
    /// How networks became vectors.
    pub vectorise: Vectorise,
    /// Aligned, not standardised, `[n × length]`.
    pub aligned: Vec<f32>,
    /// Aligned and standardised, `[n × length]`.
    pub x: Vec<f32>,
    /// The statistics, over the training checkpoints.
    pub standardisation: Standardisation,
    /// Checkpoints of the training runs.
    pub train: Vec<usize>,
    /// Checkpoints of the runs held out for validation.
    pub held_out: Vec<usize>,
}

/// Aligns, pads and standardises a zoo.
///
/// # Errors
/// When the zoo is empty; [`Error::Interrupted`](crate::Error::Interrupted).
pub fn vectorise(config: &Config, zoo: &Zoo, progress: &Progress) -> Result<Vectors> {
    let vectorise = Vectorise::model_wise(&[zoo.parameters()]);
    let length = vectorise.length;
    let (train, held_out) = hold_out(config, zoo);
    let aligned = align(config, zoo, progress)?;
    let rows: Vec<f32> = train.iter().flat_map(|&i| aligned[i * length..(i + 1) * length].iter().copied()).collect();
    let standardisation = Standardisation::fit(&rows, length, &zoo.architecture.layout(), config.vectors.standardise)?;
    let mut x = aligned.clone();
    standardisation.apply(&mut x)?;
    Ok(Vectors { vectorise, aligned, x, standardisation, train, held_out })
}

/// Holds out whole runs: checkpoints of one run are near copies of each other.
fn hold_out(config: &Config, zoo: &Zoo) -> (Vec<usize>, Vec<usize>) {
    let mut runs: Vec<usize> = (0..zoo.runs.len()).collect();
    runs.shuffle(&mut random::stream(config.seed, "hold out"));
    let n = ((runs.len() as f64 * config.vectors.held_out).round() as usize).min(runs.len().saturating_sub(1));
    let mut held = vec![false; zoo.runs.len()];
    for &run in &runs[..n] {
        held[run] = true;
    }
    (0..zoo.checkpoints.len()).partition(|&i| !held[zoo.checkpoints[i].run])
}

/// Weights of all checkpoints in canonical form, `[n × d]`: first against the first checkpoint (no accuracy decides,
/// for accuracies are measured on test images), then against the mean.
fn align(config: &Config, zoo: &Zoo, progress: &Progress) -> Result<Vec<f32>> {
    let d = zoo.parameters();
    let mut theta = zoo.theta.clone();
    let groups = zoo.architecture.hidden_groups();
    let sweeps = config.vectors.alignment_sweeps;
    if sweeps == 0 || groups.is_empty() {
        return Ok(theta);
    }
    let layout = zoo.architecture.layout();
    let mut reference = zoo.weights(0).to_vec();
    for _ in 0..config.vectors.alignment_rounds.max(1) {
        use rayon::prelude::*;
        theta.par_chunks_exact_mut(d).try_for_each(|row| {
            canonical::align(row, &reference, &layout, &groups, sweeps)?;
            progress.check()
        })?;
        reference = mean(&theta, d);
    }
    Ok(theta)
}

/// Mean of rows `[n × d]`.
pub fn mean(rows: &[f32], d: usize) -> Vec<f32> {
    let mut sum = vec![0f64; d];
    for row in rows.chunks_exact(d) {
        for (s, &v) in sum.iter_mut().zip(row) {
            *s += f64::from(v);
        }
    }
    let n = (rows.len() / d).max(1) as f64;
    sum.into_iter().map(|s| (s / n) as f32).collect()
}
