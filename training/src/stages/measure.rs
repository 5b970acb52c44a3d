//! Accuracies on validation images, for whatever learns from how good a network is: test images decide nothing.

use rayon::prelude::*;

use super::fit::{Score, score};
use super::zoo::Zoo;
use crate::data::{Part, Sources, TaskData};
use crate::error::Result;
use crate::progress::Progress;

/// Networks that one thread measures together.
const CHUNK: usize = 64;

/// Scores of networks `theta` (`[n × d]`) on the validation images of the tasks of these checkpoints, on all cores.
///
/// # Errors
/// When a task does not exist; [`crate::Error::Interrupted`].
pub fn validation_scores(
    zoo: &Zoo,
    sources: &Sources,
    checkpoints: &[usize],
    theta: &[f32],
    progress: &Progress,
) -> Result<Vec<Score>> {
    let tasks = checkpoints.iter().map(|&c| sources.task(zoo.task(c), Part::Validation)).collect::<Result<Vec<_>>>()?;
    let per_class = tasks.iter().map(TaskData::per_class).min().unwrap_or(0);
    let d = zoo.parameters();
    let parts: Vec<_> = tasks.chunks(CHUNK).zip(theta.chunks(CHUNK * d)).collect();
    let scores = parts
        .into_par_iter()
        .map(|(tasks, theta)| {
            progress.check()?;
            score(&zoo.architecture, tasks, theta, per_class)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(scores.into_iter().flatten().collect())
}
