//! `zoo.json`.

use std::collections::BTreeSet;
use std::ops::Range;

use datasets::Task;
use rand::Rng;
use serde::{Deserialize, Serialize};
use weights::Architecture;

use super::Run;
use super::start::PartHeader;
use crate::config::{Config, ZooConfig};
use crate::data::Sources;
use crate::error::{Error, Result};
use crate::random;
use crate::snapshots::Snapshots;

/// `zoo.json`: what the zoo's weights depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) seed: u64,
    pub(super) data: Vec<(String, String)>,
    pub(super) settings: serde_json::Value,
    pub(super) architecture: Architecture,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) further: Vec<Architecture>,
    pub(super) runs: Vec<Run>,
    pub(super) group: usize,
    pub(super) epochs: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<PartHeader>,
}

pub(super) const HEADER: &str = "zoo.json";

/// That of the zoo of `config`.
pub(super) fn header(config: &Config, sources: &Sources) -> Result<Header> {
    let (seen, _) = sources.tasks(config)?;
    let kinds = kinds(config, sources, &seen)?;
    let mut rng = random::stream(config.seed, "runs");
    // Architecture by architecture, so that each one's runs lie in rounds of one a task.
    let runs = (0..kinds.len())
        .flat_map(|architecture| (0..config.zoo.runs_per_task).map(move |_| architecture))
        .flat_map(|architecture| {
            let classes = kinds[architecture].classes();
            let of_it = seen.iter().filter(move |task| task.classes.len() == classes);
            of_it.cloned().map(move |task| (architecture, task))
        })
        .map(|(architecture, task)| Run { task, seed: rng.random_range(0..1 << 53), architecture })
        .collect();
    let mut architectures = kinds.iter().cloned();
    let architecture = architectures.next().ok_or_else(|| Error::Config("there is no architecture".into()))?;
    let further: Vec<Architecture> = architectures.collect();
    // The start is known by what is in it, wherever it lies.
    let zoo = ZooConfig { start: None, start_key: None, start_strip_prefix: None, ..config.zoo.clone() };
    let settings = serde_json::to_value((&config.data, &config.tasks, zoo));
    let part = sources.frozen().map(PartHeader::of);
    Ok(Header {
        format: 1,
        name: config.name.clone(),
        seed: config.seed,
        data: sources.list().iter().map(|s| (s.name.clone(), s.data.digest())).collect(),
        settings: settings.map_err(|e| Error::Config(e.to_string()))?,
        architecture,
        further,
        runs,
        group: config.zoo.group,
        epochs: (config.zoo.epochs + 1 - config.zoo.keep..=config.zoo.epochs).collect(),
        part,
    })
}

/// The architectures of these tasks' networks; where tasks differ in the number of classes, the head of each number, the
/// smallest first.
fn kinds(config: &Config, sources: &Sources, seen: &[Task]) -> Result<Vec<Architecture>> {
    let numbers: BTreeSet<usize> = seen.iter().map(|task| task.classes.len()).collect();
    if numbers.len() > 1 && config.most_classes().is_none() {
        let classes = seen[0].classes.len();
        let other = seen.iter().find(|t| t.classes.len() != classes).unwrap_or(&seen[0]);
        let text = format!("task {other} has {} classes, the first {classes}; all must be equal", other.classes.len());
        return Err(Error::Config(text));
    }
    let each = numbers.into_iter().map(|classes| config.build_architectures(sources.input_shape(), classes));
    Ok(each.collect::<Result<Vec<_>>>()?.concat())
}

/// That of the zoo in `store`.
pub(super) fn read_header(store: &dyn Snapshots) -> Result<Header> {
    let Some(text) = store.load(HEADER)? else {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Error::io(store.place().join(HEADER))(missing));
    };
    let damaged = |e: String| Error::Zoo { path: store.place(), reason: format!("{HEADER} cannot be read: {e}") };
    let header: Header = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    header.architectures().try_for_each(Architecture::validate)?;
    let kinds = header.further.len() + 1;
    if header.runs.iter().any(|run| run.architecture >= kinds) {
        return Err(damaged(format!("a run is of an architecture beyond the {kinds} there are")));
    }
    if header.group == 0 || header.epochs.is_empty() || header.runs.is_empty() {
        return Err(damaged("it has no runs, no epochs or groups of no runs".into()));
    }
    Ok(header)
}

impl Header {
    pub(super) fn architectures(&self) -> impl Iterator<Item = &Architecture> {
        std::iter::once(&self.architecture).chain(&self.further)
    }

    /// The architecture of a group's runs.
    pub(super) fn architecture_of(&self, runs: &Range<usize>) -> &Architecture {
        let index = self.runs[runs.start].architecture;
        self.architectures().nth(index).unwrap_or(&self.architecture)
    }

    /// The runs of each group: they are of one architecture, for they are trained as one tensor.
    pub(super) fn groups(&self) -> Vec<Range<usize>> {
        let mut groups = Vec::new();
        let mut start = 0;
        for same in self.runs.chunk_by(|a, b| a.architecture == b.architecture) {
            let end = start + same.len();
            groups.extend((start..end).step_by(self.group).map(|first| first..end.min(first + self.group)));
            start = end;
        }
        groups
    }
}
