//! Checkpoints of the zoo that are near a dataset, and how far the dataset is from all of them.

use std::collections::HashMap;

use inference::{Generator, RETRIEVED};
use registry::embeddings::SubjectKind;
use registry::generators::GeneratorVersion;
use registry::nearest::{self, Search};
use registry::{Caller, CheckpointId, MAX_LIMIT, checkpoints};
use tokio::runtime::Handle;
use weights::Layout;

use crate::error::{Error, Result};
use crate::limits::Cancel;
use crate::state::AppState;

/// Fetches checkpoints from blocking work, each once.
pub(super) struct Retriever {
    state: AppState,
    caller: Caller,
    version: GeneratorVersion,
    layout: Layout,
    /// Where heads differ in the number of classes: runs of this many are looked at.
    classes: Option<usize>,
    runtime: Handle,
    /// Most checkpoints of such runs.
    few: usize,
    limit: u32,
    /// None: not a network of this layout.
    known: HashMap<CheckpointId, Option<Vec<f32>>>,
}

impl Retriever {
    /// For a request of `count` samples, on an async runtime.
    pub(super) fn new(
        state: &AppState,
        caller: &Caller,
        version: &GeneratorVersion,
        generator: &Generator,
        count: usize,
    ) -> Self {
        let architectures = generator.manifest().architectures.len();
        Self {
            state: state.clone(),
            caller: caller.clone(),
            version: version.clone(),
            layout: generator.architecture().layout.clone(),
            classes: None,
            few: count.clamp(RETRIEVED.0, RETRIEVED.1),
            runtime: Handle::current(),
            // Of a mixed zoo only some are of the architecture.
            limit: u32::try_from(count.clamp(RETRIEVED.0, RETRIEVED.1) * architectures.max(1))
                .map_or(MAX_LIMIT, |limit| limit.min(MAX_LIMIT)),
            known: HashMap::new(),
        }
    }

    /// Only heads of as many classes as the generator's are retrieved.
    pub(super) fn of_heads(&mut self, generator: &Generator) {
        self.layout = generator.architecture().layout.clone();
        self.classes = Some(generator.classes());
        self.known.clear();
    }

    /// The generator version, as `name@version`.
    pub(super) fn version(&self) -> String {
        format!("{}@{}", self.version.generator, self.version.version)
    }

    /// The last checkpoints of the runs nearest to an embedding that the caller may see, nearest first. Blocks.
    pub(super) fn nearest(&mut self, embedding: &[f32]) -> Result<Vec<(CheckpointId, Vec<f32>)>> {
        let runtime = self.runtime.clone();
        runtime.block_on(self.search(embedding))
    }

    /// As [`distance`]; blocks.
    pub(super) fn distance(&self, embedding: &[f32]) -> Result<Option<f64>> {
        self.runtime.block_on(distance(&self.state, &self.version, embedding))
    }

    async fn search(&mut self, embedding: &[f32]) -> Result<Vec<(CheckpointId, Vec<f32>)>> {
        let (version, kind) = (self.version.id, SubjectKind::Run);
        let search = Search { version, kind, query: embedding, except: None, limit: self.limit };
        let found = nearest::search(self.state.registry(), &self.caller, &search).await?;
        let mut near = Vec::new();
        let fits = |run: &nearest::Near| self.classes.is_none_or(|classes| classes == run.classes.len());
        let fitting: Vec<_> = found.neighbours.into_iter().filter(fits).filter_map(|run| run.checkpoint_id).collect();
        for id in fitting {
            let id = CheckpointId::from(id);
            if let Some(theta) = self.read(id).await? {
                near.push((id, theta));
            }
            if self.classes.is_some() && near.len() == self.few {
                break;
            }
        }
        Ok(near)
    }

    async fn read(&mut self, id: CheckpointId) -> Result<Option<Vec<f32>>> {
        if let Some(known) = self.known.get(&id) {
            return Ok(known.clone());
        }
        let registry = self.state.registry();
        let theta = match checkpoints::get(registry, &self.caller, id).await {
            Ok(row) => {
                let bytes = registry.artifacts().read(&row.artifact_digest).await?;
                weights::tensors::from_safetensors(&bytes, &self.layout).ok()
            }
            // Deleted a moment ago.
            Err(error) if error.code() == "not_found" => None,
            Err(error) => return Err(error.into()),
        };
        self.known.insert(id, theta.clone());
        Ok(theta)
    }
}

/// A request's place among candidates.
pub(super) struct Asked<'a> {
    pub(super) retriever: &'a mut Retriever,
    pub(super) cancel: &'a Cancel,
    /// Learns of the steps of the request's own samples.
    pub(super) report: &'a dyn Fn(usize, usize),
}

impl inference::Place for Asked<'_> {
    type Key = CheckpointId;
    type Error = Error;

    fn nearest(&mut self, embedding: &[f32]) -> Result<Vec<(CheckpointId, Vec<f32>)>> {
        self.retriever.nearest(embedding)
    }

    fn check(&self) -> Result<()> {
        self.cancel.check()
    }

    fn step(&self, step: usize, steps: usize) -> bool {
        (self.report)(step, steps);
        !self.cancel.is_set()
    }
}

/// How far an embedding is from those of the runs of a version's zoo: the cosine distance to the nearest, in units of
/// the zoo's own spread (see [`registry::embeddings::spread`]). None where they are not registered, or all are the same.
async fn distance(state: &AppState, version: &GeneratorVersion, embedding: &[f32]) -> Result<Option<f64>> {
    let (all, kind) = (Caller::system("distance"), SubjectKind::Run);
    let search = Search { version: version.id, kind, query: embedding, except: None, limit: 1 };
    let found = nearest::search(state.registry(), &all, &search).await?;
    let Some(nearest) = found.neighbours.first() else { return Ok(None) };
    let spread = state.spread(version.id).await?;
    Ok(spread.map(|spread| nearest.distance.max(0.0) / spread))
}
