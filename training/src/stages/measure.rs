//! Accuracies on validation images, for whatever learns from how good a network is: test images decide nothing.

use std::collections::BTreeMap;

use super::course::Given;
use super::fit::{Score, score};
use super::zoo::Zoo;
use crate::data::{Part, Sources, TaskData};
use crate::device;
use crate::error::Result;
use crate::progress::Progress;

/// Networks that one thread measures together.
const CHUNK: usize = 64;
/// Checkpoints of a task from which on they are compared with each other, and not with all.
const ENOUGH: usize = 4;
/// Largest quality: beyond, a checkpoint is an outlier.
const LARGEST: f64 = 2.5;

/// Scores of networks `theta` (`[n × d]`), all of the architecture of the first of these checkpoints, on the validation
/// images of the checkpoints' tasks, on all cores.
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
    let Some(&first) = checkpoints.first() else { return Ok(Vec::new()) };
    let kind = zoo.kind(first);
    let Some(architecture) = zoo.architectures().nth(kind) else { return Ok(Vec::new()) };
    let d = zoo.layout(kind).parameters();
    let tasks = checkpoints.iter().map(|&c| sources.task(zoo.task(c), Part::Validation)).collect::<Result<Vec<_>>>()?;
    let per_class = tasks.iter().map(TaskData::per_class).min().unwrap_or(0);
    let parts: Vec<_> = tasks.chunks(CHUNK).zip(theta.chunks(CHUNK * d)).collect();
    let of_part = |(tasks, theta): (&[TaskData<'_>], &[f32])| {
        progress.check()?;
        score(architecture, tasks, theta, per_class)
    };
    Ok(device::each(parts, of_part)?.into_iter().flatten().collect())
}

/// Quality of each checkpoint of the zoo: deviations of its accuracy above the mean of the checkpoints of its task and
/// architecture, or of all of the architecture where the task has fewer than four.
///
/// # Errors
/// As [`validation_scores`].
pub fn qualities(zoo: &Zoo, sources: &Sources, progress: &Progress) -> Result<Vec<f64>> {
    let mut qualities = vec![0.0; zoo.checkpoints.len()];
    for kind in 0..=zoo.further.len() {
        let own: Vec<usize> = (0..zoo.checkpoints.len()).filter(|&c| zoo.kind(c) == kind).collect();
        let theta: Vec<f32> = own.iter().flat_map(|&c| zoo.weights(c).iter().copied()).collect();
        let scores = validation_scores(zoo, sources, &own, &theta, progress)?;
        let mut groups: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
        for (&c, score) in own.iter().zip(&scores) {
            groups.entry(zoo.task(c).to_string()).or_default().push((c, score.accuracy));
        }
        let all: Vec<f64> = scores.iter().map(|s| s.accuracy).collect();
        for group in groups.values() {
            let accuracies: Vec<f64> = group.iter().map(|(_, a)| *a).collect();
            let (mean, std) = moments(if group.len() >= ENOUGH { &accuracies } else { &all });
            for &(c, accuracy) in group {
                qualities[c] = ((accuracy - mean) / std.max(1e-6)).clamp(-LARGEST, LARGEST);
            }
        }
    }
    Ok(qualities)
}

fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// The best share of each task's (and architecture's) checkpoints among these, at least one of each.
#[must_use]
pub fn best(zoo: &Zoo, checkpoints: &[usize], qualities: &[f64], share: f64) -> Vec<usize> {
    let mut groups: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    for &c in checkpoints {
        groups.entry((zoo.kind(c), zoo.task(c).to_string())).or_default().push(c);
    }
    let mut kept: Vec<usize> = Vec::new();
    for mut group in groups.into_values() {
        group.sort_by(|a, b| qualities[*b].total_cmp(&qualities[*a]).then(a.cmp(b)));
        let n = ((group.len() as f64 * share).round() as usize).clamp(1, group.len());
        kept.extend_from_slice(&group[..n]);
    }
    kept.sort_unstable();
    kept
}

/// What is asked for when nothing is said: the quality that a tenth of the training checkpoints reach.
pub(crate) fn high(given: &Given<'_>, qualities: &[f64]) -> f32 {
    let mut own: Vec<f64> = given.vectors.train.iter().map(|&c| qualities[c]).collect();
    own.sort_by(f64::total_cmp);
    own.get(own.len() * 9 / 10).copied().unwrap_or(0.0) as f32
}
