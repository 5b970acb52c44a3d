//! The demo's comparison: generated weights as the server gave them, nearest runs as the registry knows them.

use std::collections::BTreeMap;

use datasets::Task;
use inference::Generator;
use registry::embeddings::{self, SubjectKind};
use registry::{Registry, VersionId, runs};
use training::Part;
use training::progress::Progress;

use super::Made;
use super::client::Answer;
use crate::compare::{AVERAGED, Arm, Comparison, Reconstructions, SetReport, Settings};
use crate::context::caller;
use crate::error::{Error, Result};

/// The arms of the demo's table.
const ARMS: [Arm; 7] =
    [Arm::Generated, Arm::Zoo, Arm::Retrieval, Arm::Scratch, Arm::Noise, Arm::Average, Arm::Shuffled];

/// Runs of the zoo nearest to each task by dataset embedding, nearest first, from the registry.
/// The support images are those of the task's request.
pub async fn neighbours(
    made: &Made,
    tasks: &[Task],
    registry: &Registry,
    version: VersionId,
    generator: &Generator,
) -> Result<Vec<Vec<usize>>> {
    let validation: BTreeMap<&str, datasets::Dataset> =
        made.sources.list().iter().map(|s| (s.name.as_str(), s.dataset(Part::Validation))).collect();
    let mut near = Vec::with_capacity(tasks.len());
    for (seed, task) in tasks.iter().enumerate() {
        let data = validation.get(task.source.as_str());
        let data = data.ok_or_else(|| Error::Internal(format!("no data for task {task}")))?;
        let features = generator.features(data, &task.classes, seed as u64)?;
        let query = generator.embed(&features)?.dataset;
        let found = embeddings::nearest(registry, version, SubjectKind::Run, &query, AVERAGED as u32).await?;
        let mut indices = Vec::with_capacity(found.len());
        for neighbour in found {
            indices.push(runs::get(registry, &caller(), neighbour.subject_id.into()).await?.index as usize);
        }
        near.push(indices);
    }
    Ok(near)
}

/// What the demo says about one set of tasks.
pub struct Measured {
    /// The comparison; none without tasks.
    pub set: Option<SetReport>,
    /// Number of tasks.
    pub tasks: usize,
    /// Largest difference between the server's accuracies and those measured from the downloaded files.
    pub server_difference: f64,
}

/// Measures all arms.
pub fn measure(
    made: &Made,
    tasks: &[Task],
    answers: &[Answer],
    near: &[Vec<usize>],
    progress: &Progress,
) -> Result<Measured> {
    if tasks.is_empty() {
        return Ok(Measured { set: None, tasks: 0, server_difference: 0.0 });
    }
    let e = &made.config.evaluation;
    let settings = Settings {
        arms: ARMS.to_vec(),
        samples: e.samples,
        epochs: e.epochs.clone(),
        batch: e.batch,
        lr: e.lr,
        seed: 0,
        details: false,
    };
    let own = |answer: &Answer| answer.theta.iter().map(|network| made.zoo.own(network.clone())).collect();
    let generated = answers.iter().map(own).collect::<training::Result<Vec<Vec<Vec<f32>>>>>()?;
    let targets: Vec<usize> = (0..tasks.len()).collect();
    let comparison = Comparison {
        config: &made.config,
        sources: &made.sources,
        zoo: &made.zoo,
        vectors: &made.trained.vectors,
        whole: &made.zoo,
        tasks,
        targets: &targets,
        generated: &generated,
        predicted: &[],
        near,
        reconstructions: Reconstructions::default(),
        made: std::collections::BTreeMap::new(),
        settings: &settings,
        progress,
    };
    let set = comparison.run(None)?;
    let server_difference = server_difference(&set, answers);
    Ok(Measured { set: Some(set), tasks: tasks.len(), server_difference })
}

/// The server evaluates on all test images of the classes, the comparison on as many of each class.
fn server_difference(set: &SetReport, answers: &[Answer]) -> f64 {
    let Some(i) = set.epochs.iter().position(|&epoch| epoch == 0) else { return 0.0 };
    let ours = set.arms.iter().filter(|arm| arm.arm == Arm::Generated).flat_map(|arm| arm.at(i));
    let server = answers.iter().flat_map(|a| a.accuracy.iter());
    ours.zip(server).fold(0.0, |m, ((_, a), b)| f64::max(m, (a - b).abs()))
}
