//! A registry on a test's own database, and rows to build on.

use registry::architectures::{Architecture, NewArchitecture};
use registry::checkpoints::NewCheckpoint;
use registry::datasets::{Dataset, NewDataset};
use registry::generators::{GeneratorVersion, NewVersion};
use registry::runs::NewRun;
use registry::zoos::{NewZoo, Zoo};
use registry::{Artifact, ArtifactStore, ListRequest, NewAbout, Registry, Seed, digest_of};
use serde_json::json;
use sqlx::PgPool;
use tempfile::TempDir;

use crate::calls;

/// A registry with an empty artifact directory, which goes away with the second value.
pub fn registry(pool: PgPool) -> (Registry, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let artifacts = ArtifactStore::local(directory.path(), pool.clone()).unwrap();
    (Registry::new(pool, artifacts), directory)
}

pub async fn artifact(registry: &Registry, content: &str) -> Artifact {
    registry.artifacts().put_bytes(content.to_owned().into_bytes(), "application/octet-stream").await.unwrap()
}

/// The digest of bytes that were never stored.
pub fn absent_digest() -> String {
    digest_of(b"never stored")
}

pub fn new_architecture(name: &str) -> NewArchitecture {
    NewArchitecture {
        name: name.into(),
        config: json!({"kind": "mlp", "hidden": [16]}),
        parameters: 1125,
        layout: json!([{"name": "0.weight", "shape": [16, 64]}]),
        forward_artifact: None,
        about: NewAbout::default(),
    }
}

pub async fn architecture(registry: &Registry) -> Architecture {
    calls::architectures::ensure(registry, &new_architecture("mlp")).await.unwrap()
}

pub async fn new_dataset(registry: &Registry, name: &str) -> NewDataset {
    NewDataset {
        name: name.into(),
        modality: "image".into(),
        shape: vec![1, 8, 8],
        class_names: (0..10).map(|class| class.to_string()).collect(),
        examples: 1797,
        digest: digest_of(name.as_bytes()),
        artifact_digest: artifact(registry, name).await.digest,
        about: NewAbout::default(),
    }
}

pub async fn dataset(registry: &Registry, name: &str) -> Dataset {
    calls::datasets::ensure(registry, &new_dataset(registry, name).await).await.unwrap()
}

pub async fn new_zoo(registry: &Registry, name: &str) -> NewZoo {
    NewZoo {
        name: name.into(),
        architecture_id: Some(architecture(registry).await.id),
        config: json!({"epochs": 3}),
        digest: Some(digest_of(name.as_bytes())),
        about: NewAbout::default(),
    }
}

/// `runs` runs of `checkpoints` checkpoints each, all with the same weights.
pub async fn new_runs(registry: &Registry, runs: i32, checkpoints: i32) -> Vec<NewRun> {
    let dataset = dataset(registry, "digits").await;
    let weights = artifact(registry, "weights").await.digest;
    let run = |index: i32| NewRun {
        index,
        dataset_id: dataset.id,
        classes: (0..5).map(|place| (index + place) % 10).collect(),
        seed: Seed(u64::MAX - u64::from(index.unsigned_abs())),
        checkpoints: (0..checkpoints)
            .map(|epoch| NewCheckpoint {
                epoch,
                accuracy: (index + epoch) as f32 / (runs + checkpoints) as f32,
                loss: 0.25,
                artifact_digest: weights.clone(),
            })
            .collect(),
    };
    (0..runs).map(run).collect()
}

pub async fn zoo(registry: &Registry, name: &str, runs: i32, checkpoints: i32) -> Zoo {
    let new = new_zoo(registry, name).await;
    let runs = new_runs(registry, runs, checkpoints).await;
    calls::zoos::create_with_runs(registry, &new, &runs).await.unwrap()
}

pub async fn new_version(registry: &Registry, name: &str, content: &str) -> NewVersion {
    NewVersion {
        name: name.into(),
        about: NewAbout { description: "Weights for digits".into(), ..NewAbout::default() },
        digest: digest_of(content.as_bytes()),
        modality: "image".into(),
        manifest: json!({"format": 1, "content": content}),
        artifact_digest: artifact(registry, content).await.digest,
        zoo_id: None,
    }
}

pub async fn publish(registry: &Registry, name: &str, content: &str) -> GeneratorVersion {
    let new = new_version(registry, name, content).await;
    calls::generators::publish(registry, &new).await.unwrap()
}

pub fn page(limit: u32, cursor: Option<String>) -> ListRequest {
    ListRequest { limit, cursor, ..ListRequest::default() }
}

/// Rows of a table.
pub async fn count(pool: &PgPool, table: &'static str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"))).fetch_one(pool).await.unwrap()
}

/// Files below a directory.
pub fn files(directory: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

/// The URL of a test's own database.
pub fn url(pool: &PgPool) -> String {
    use sqlx::ConnectOptions;
    let options: &sqlx::postgres::PgConnectOptions = &pool.connect_options();
    options.to_url_lossy().to_string()
}
