//! What a generator is measured for: each architecture of its zoo, or each number of classes.

use datasets::Task;
use training::config::Role;
use training::stages::vectors::Vectors;
use training::stages::zoo::Zoo;
use training::{Sources, config::TasksConfig};
use weights::Architecture;

use crate::compare::spread;
use crate::error::Result;
use crate::report::config::Experiment;

/// One architecture that is measured.
pub(super) struct Target {
    pub(super) architecture: Architecture,
    /// Its place among the zoo's; none where the zoo has no network of it.
    pub(super) index: Option<usize>,
    /// What the names of its sets begin with.
    pub(super) label: String,
    /// Whether the generator makes heads of any number of classes, of which this is one.
    pub(super) any_number: bool,
}

/// The targets of an experiment.
pub(super) fn of(experiment: &Experiment, zoo: &Zoo) -> Vec<Target> {
    let any_number = experiment.generator.most_classes().is_some();
    let of_zoo = |(index, architecture): (usize, &Architecture)| Target {
        architecture: architecture.clone(),
        index: Some(index),
        label: match (any_number, zoo.further.is_empty()) {
            (true, _) => label(architecture.classes()),
            (false, true) => String::new(),
            (false, false) => format!("{}, ", architecture.name()),
        },
        any_number,
    };
    let all = zoo.architectures().enumerate().map(of_zoo);
    if experiment.target_classes.is_empty() {
        return all.collect();
    }
    let known: Vec<Target> = all.collect();
    let features = zoo.architecture.input_dim();
    let asked = experiment.target_classes.iter().map(|&classes| {
        let index = known.iter().position(|target| target.architecture.classes() == classes);
        Target { architecture: Architecture::Head { features, classes }, index, label: label(classes), any_number }
    });
    asked.collect()
}

fn label(classes: usize) -> String {
    format!("{classes} classes, ")
}

impl Target {
    /// The models of a zoo that are of it, and which checkpoints they are; none where the zoo once had some and lost them.
    pub(super) fn only(&self, zoo: &Zoo) -> Result<Option<(Zoo, Vec<usize>)>> {
        let Some(index) = self.index else {
            let (name, digest) = (zoo.name.clone(), zoo.digest.clone());
            let none = Zoo::new(name, digest, vec![self.architecture.clone()], Vec::new(), Vec::new(), Vec::new())?;
            return Ok(Some((none, Vec::new())));
        };
        Ok(zoo.of_architecture(index))
    }

    /// A zoo's vectors of those of its models.
    pub(super) fn vectors(&self, vectors: &Vectors, zoo: &Zoo, checkpoints: &[usize]) -> Vectors {
        match self.index {
            Some(index) => vectors.only(zoo, index, checkpoints),
            None => vectors.none_of(self.architecture.classes(), self.architecture.layout().parameters()),
        }
    }

    /// The tasks that are measured, by the name of each set.
    pub(super) fn tasks(&self, experiment: &Experiment, sources: &Sources) -> Result<[(&'static str, Vec<Task>); 3]> {
        let config = &experiment.generator;
        let (mut seen, mut unseen) = sources.tasks(config)?;
        let mut left_out = sources.left_out(config);
        if self.any_number {
            let classes = self.architecture.classes();
            for tasks in [&mut seen, &mut unseen, &mut left_out] {
                tasks.retain(|task| task.classes.len() == classes);
            }
            let known = match &config.tasks {
                TasksConfig::ClassSets { classes: numbers, .. } => numbers.numbers().contains(&classes),
                TasksConfig::Sources => false,
            };
            if !known {
                unseen = sources.further_tasks(config, Role::Zoo, classes, experiment.unseen_tasks);
                left_out = sources.further_tasks(config, Role::LeftOut, classes, experiment.left_out_tasks);
            }
        }
        Ok([
            ("seen", spread(&seen, experiment.seen_tasks)),
            ("unseen", spread(&unseen, experiment.unseen_tasks)),
            ("left out", spread(&left_out, experiment.left_out_tasks)),
        ])
    }
}
