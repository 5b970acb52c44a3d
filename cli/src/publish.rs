//! Puts zoos and generators into the registry.
//!
//! Files go to the artifact store at once; rows go into the caller's unit of work, which decides when they are true.

use std::collections::BTreeMap;

use bytes::Bytes;
use inference::Generator;
use registry::embeddings::{self, NewEmbedding, SubjectKind};
use registry::generators::{GeneratorVersion, NewVersion};
use registry::runs::{self, NewRun};
use registry::{NewAbout, Registry, Write, architectures, checkpoints, datasets as stored, generators, zoos};
use training::stages::vectors::mean;
use training::stages::zoo::Zoo;
use training::{Part, Sources, export, random};
use weights::{Bundle, tensors};

use crate::error::{Error, Result};

const SAFETENSORS: &str = "application/vnd.safetensors";

/// A dataset as an npz artifact and a row; the same content again gives the row it has.
pub async fn dataset(registry: &Registry, write: &mut Write, data: &datasets::Dataset) -> Result<stored::Dataset> {
    let artifact = registry.artifacts().put_bytes(datasets::npz::to_npz(data)?, "application/zip").await?;
    let new = stored::NewDataset {
        name: data.name.clone(),
        modality: data.modality().to_string(),
        shape: data.shape.iter().map(|&d| d as i32).collect(),
        class_names: data.class_names.clone(),
        examples: data.len() as i64,
        digest: data.digest(),
        artifact_digest: artifact.digest,
        about: NewAbout::default(),
    };
    Ok(stored::ensure(write, &new).await?)
}

/// The zoo with its architecture, datasets, runs and checkpoints: all or nothing. A zoo of the same digest is there
/// already and stays.
pub async fn zoo(registry: &Registry, write: &mut Write, sources: &Sources, zoo: &Zoo) -> Result<zoos::Zoo> {
    let short: String = zoo.digest.trim_start_matches("sha256:").chars().take(8).collect();
    let name = format!("{}-{short}", zoo.name);
    match zoos::get(registry, &write.caller().clone(), &name).await {
        Ok(existing) => return Ok(existing),
        Err(error) if error.code() == "not_found" => {}
        Err(error) => return Err(error.into()),
    }
    let first = architecture(registry, write, &zoo.architecture).await?;
    for further in &zoo.further {
        architecture(registry, write, further).await?;
    }
    let mut ids = BTreeMap::new();
    for source in sources.list() {
        ids.insert(source.name.as_str(), dataset(registry, write, &source.dataset(Part::Train)).await?.id);
    }
    let runs = new_runs(registry, zoo, &ids).await?;
    let mut config = serde_json::json!({ "runs": zoo.runs.len(), "checkpoints": zoo.checkpoints.len() });
    if !zoo.further.is_empty() {
        config[ARCHITECTURES] = mixed(zoo)?;
    }
    let new = zoos::NewZoo {
        name,
        architecture_id: Some(first.id),
        config,
        digest: Some(zoo.digest.clone()),
        about: NewAbout::default(),
    };
    Ok(zoos::create_with_runs(write, &new, &runs).await?)
}

/// The key of a mixed zoo's `config` that says of which architecture its runs are: a list of [`KindOfRuns`].
pub const ARCHITECTURES: &str = "architectures";

/// One architecture of a mixed zoo; its runs follow on those of the architecture before it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct KindOfRuns {
    /// Kind and sizes.
    pub config: weights::Architecture,
    /// How many runs are of it.
    pub runs: usize,
}

fn mixed(zoo: &Zoo) -> Result<serde_json::Value> {
    if !zoo.runs.is_sorted_by_key(|run| run.architecture) {
        return Err(Error::Internal("the runs of a mixed zoo are not in the order of its architectures".into()));
    }
    let runs = |index: usize| zoo.runs.iter().filter(|run| run.architecture == index).count();
    let kinds = zoo.architectures().enumerate();
    let kinds: Vec<KindOfRuns> =
        kinds.map(|(index, config)| KindOfRuns { config: config.clone(), runs: runs(index) }).collect();
    serde_json::to_value(kinds).map_err(|e| Error::Internal(e.to_string()))
}

async fn architecture(
    registry: &Registry,
    write: &mut Write,
    architecture: &weights::Architecture,
) -> Result<architectures::Architecture> {
    let json = |e: serde_json::Error| Error::Internal(e.to_string());
    let forward = match architecture {
        // It is run in a text model.
        weights::Architecture::Lora(_) => None,
        _ => Some(registry.artifacts().put_bytes(export::forward(architecture)?, "application/onnx").await?.digest),
    };
    let layout = architecture.layout();
    let new = architectures::NewArchitecture {
        name: architecture.name(),
        config: serde_json::to_value(architecture).map_err(json)?,
        parameters: layout.parameters() as i64,
        layout: serde_json::to_value(&layout).map_err(json)?,
        forward_artifact: forward,
        about: NewAbout::default(),
    };
    Ok(architectures::ensure(write, &new).await?)
}

/// Stores all checkpoints' files and lists the runs with them.
async fn new_runs(registry: &Registry, zoo: &Zoo, ids: &BTreeMap<&str, registry::DatasetId>) -> Result<Vec<NewRun>> {
    let mut kinds = Vec::new();
    for architecture in zoo.architectures() {
        let config = serde_json::to_string(architecture).map_err(|e| Error::Internal(e.to_string()))?;
        kinds.push((architecture.name(), architecture.layout(), config));
    }
    let mut files = Vec::with_capacity(zoo.checkpoints.len());
    for (i, checkpoint) in zoo.checkpoints.iter().enumerate() {
        let run = &zoo.runs[checkpoint.run];
        let (name, layout, config) = &kinds[run.architecture];
        let metadata = [
            ("format", "weightsmith".to_owned()),
            ("architecture", name.clone()),
            ("architecture_config", config.clone()),
            ("run", checkpoint.run.to_string()),
            ("epoch", checkpoint.epoch.to_string()),
            ("seed", run.seed.to_string()),
            ("task", run.task.to_string()),
        ];
        let metadata = metadata.map(|(k, v)| (k.to_owned(), v)).into_iter().collect();
        files.push(Bytes::from(tensors::to_safetensors(layout, &zoo.whole(zoo.weights(i))?, &metadata)?));
    }
    let artifacts = registry.artifacts().put_many(files, SAFETENSORS).await?;
    let mut runs: Vec<NewRun> = Vec::with_capacity(zoo.runs.len());
    for (index, run) in zoo.runs.iter().enumerate() {
        let dataset_id = ids.get(run.task.source.as_str()).copied();
        runs.push(NewRun {
            index: index as i32,
            dataset_id: dataset_id.ok_or_else(|| Error::Internal(format!("no dataset for task {}", run.task)))?,
            classes: run.task.classes.iter().map(|&c| c as i32).collect(),
            seed: registry::Seed::from(run.seed),
            checkpoints: Vec::new(),
        });
    }
    for (checkpoint, artifact) in zoo.checkpoints.iter().zip(artifacts) {
        runs[checkpoint.run].checkpoints.push(checkpoints::NewCheckpoint {
            epoch: checkpoint.epoch as i32,
            accuracy: checkpoint.accuracy as f32,
            loss: checkpoint.loss as f32,
            artifact_digest: artifact.digest,
        });
    }
    Ok(runs)
}

/// A generator bundle as the next version of `name`.
pub async fn generator(
    registry: &Registry,
    write: &mut Write,
    bundle: &Bundle,
    name: &str,
    zoo: Option<registry::ZooId>,
) -> Result<GeneratorVersion> {
    let manifest = bundle.manifest();
    for entry in &manifest.architectures {
        architecture(registry, write, &entry.config).await?;
    }
    let mut tar = Vec::new();
    bundle.write_tar(&mut tar)?;
    let artifact = registry.artifacts().put_bytes(tar, "application/x-tar").await?;
    let new = NewVersion {
        name: name.to_owned(),
        about: NewAbout { description: manifest.description.clone(), ..NewAbout::default() },
        digest: bundle.digest(),
        modality: manifest.modality.to_string(),
        manifest: serde_json::to_value(manifest).map_err(|e| Error::Internal(e.to_string()))?,
        artifact_digest: artifact.digest,
        zoo_id: zoo,
    };
    Ok(generators::publish(write, &new).await?)
}

/// Support sets that a run's embedding is the mean of.
const DRAWS: usize = 4;

/// Embeds the task of each run: images of the training part, mean of some support sets.
pub fn embed_runs(generator: &Generator, zoo: &Zoo, sources: &Sources) -> Result<Vec<Vec<f32>>> {
    let images = generator.manifest().encoder.images_per_class;
    let mut rng = random::stream(0, "run embeddings");
    let mut embeddings = Vec::with_capacity(zoo.runs.len());
    for run in &zoo.runs {
        let task = sources.task(&run.task, Part::Train)?.for_encoder();
        let mut features = vec![Vec::new(); DRAWS];
        features.iter_mut().for_each(|row| task.draw(images, &mut rng, row));
        let rows: Vec<f32> = generator.embed_many(&features)?.into_iter().flat_map(|e| e.dataset).collect();
        embeddings.push(mean(&rows, generator.manifest().encoder.embedding_dim));
    }
    Ok(embeddings)
}

/// Stores the embeddings of the runs' tasks for the nearest search.
pub async fn run_embeddings(
    write: &mut Write,
    version: &GeneratorVersion,
    zoo_id: registry::ZooId,
    generator: &Generator,
    zoo: &Zoo,
    sources: &Sources,
) -> Result<()> {
    let ids = runs::ids_of_zoo(write, zoo_id).await?;
    let run_ids: BTreeMap<usize, _> = ids.into_iter().map(|(index, id)| (index as usize, id)).collect();
    let mut new = Vec::with_capacity(zoo.runs.len());
    for (index, embedding) in embed_runs(generator, zoo, sources)?.into_iter().enumerate() {
        if let Some(id) = run_ids.get(&index) {
            let classes = zoo.runs[index].task.classes.iter().map(|&c| c as i32).collect();
            new.push(NewEmbedding { subject_id: id.as_uuid(), classes, embedding });
        }
    }
    Ok(embeddings::insert_bulk(write, version.id, SubjectKind::Run, &new).await?)
}
