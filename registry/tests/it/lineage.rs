//! The lineage graph, both ways.

use registry::generations::{NewGeneration, NewSample};
use registry::lineage::{Direction, Graph, NodeKind, NodeRef, graph};
use registry::{Caller, GenerationId, NewAbout, Registry, Seed, digest_of};
use serde_json::json;
use sqlx::PgPool;

use crate::calls::{as_caller, generators, lifecycle, me};
use crate::fixtures::{artifact, dataset, new_version, page, registry, zoo};

/// A zoo of 2 runs × 3 checkpoints on one dataset, a version trained on it, a generation of ann's with 2 samples.
async fn made(registry: &Registry) -> (registry::zoos::Zoo, GenerationId) {
    let zoo = zoo(registry, "digits", 2, 3).await;
    let mut new = new_version(registry, "digits", "one").await;
    new.zoo_id = Some(zoo.id);
    let version = generators::publish(registry, &new).await.unwrap();
    let sample = NewSample {
        seed: Seed(1),
        artifact_digest: artifact(registry, "weights").await.digest,
        accuracy: None,
        metrics: json!({}),
        origin: "generated",
        scores: None,
        checkpoint_id: None,
    };
    let new = NewGeneration {
        id: GenerationId::generate(),
        version_id: version.id,
        dataset_id: Some(dataset(registry, "asked").await.id),
        dataset_digest: digest_of(b"asked"),
        request: json!({}),
        provider: "cpu".into(),
        device: "cpu".into(),
        timings: json!({}),
        seed: Seed(1),
        samples: vec![sample.clone(), sample],
        about: NewAbout { private: true, ..NewAbout::default() },
    };
    let ann = Caller { administrator: false, ..Caller::system("ann") };
    as_caller(registry, &ann, async |write| registry::generations::create(write, &new).await).await.unwrap();
    (zoo, new.id)
}

fn kinds(graph: &Graph) -> Vec<(NodeKind, usize)> {
    let mut counts: Vec<(NodeKind, usize)> = Vec::new();
    for node in &graph.nodes {
        match counts.iter_mut().find(|(kind, _)| *kind == node.kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((node.kind, 1)),
        }
    }
    counts.sort();
    counts
}

#[sqlx::test(migrations = "../migrations")]
async fn from_a_sample_to_its_datasets_and_back(pool: PgPool) {
    use NodeKind::{Checkpoint, Dataset, Generation, Run, Sample, Version, Zoo};
    let (registry, _files) = registry(pool);
    let (zoo, generation) = made(&registry).await;
    let walk = async |text: &str, direction, limit| {
        let node: NodeRef = text.parse().unwrap();
        graph(&registry, &me(), &node, direction, 10, limit).await.unwrap()
    };
    let up = walk(&format!("sample:{generation}/1"), Direction::Sources, 100).await;
    assert_eq!(
        kinds(&up),
        [(Dataset, 2), (Run, 2), (Checkpoint, 6), (Zoo, 1), (Version, 1), (Generation, 1), (Sample, 1)]
    );
    // sample-generation, -version, -dataset asked, version-zoo, zoo-6 checkpoints, each its run, 2 runs one dataset
    assert_eq!((up.edges.len(), up.truncated), (1 + 2 + 1 + 6 + 6 + 2, false));
    assert!(up.edges.iter().any(|e| e.source == format!("zoo:{}", zoo.id) && e.result == "version:digits@1"));

    let digits = crate::calls::datasets::by_name(&registry, "digits").await.unwrap();
    let down = walk(&format!("dataset:{}", digits.id), Direction::Results, 100).await;
    assert_eq!(
        kinds(&down),
        [(Dataset, 1), (Run, 2), (Checkpoint, 6), (Zoo, 1), (Version, 1), (Generation, 1), (Sample, 2)]
    );
    let both = walk(&format!("zoo:{}", zoo.id), Direction::Both, 100).await;
    assert_eq!(
        kinds(&both),
        [(Dataset, 1), (Run, 2), (Checkpoint, 6), (Zoo, 1), (Version, 1), (Generation, 1), (Sample, 2)],
        "not the dataset asked for: it is no source of the zoo"
    );
    let cut = walk(&format!("zoo:{}", zoo.id), Direction::Sources, 4).await;
    assert_eq!((cut.nodes.len(), cut.truncated), (4, true));
    let near = graph(&registry, &me(), &"version:digits@1".parse().unwrap(), Direction::Sources, 1, 10).await.unwrap();
    assert_eq!(kinds(&near), [(Zoo, 1), (Version, 1)]);
}

#[sqlx::test(migrations = "../migrations")]
async fn the_invisible_is_left_out_and_the_deleted_marked(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let (zoo, generation) = made(&registry).await;
    let bob = Caller { administrator: false, ..Caller::system("bob") };
    let root: NodeRef = format!("zoo:{}", zoo.id).parse().unwrap();
    let seen = graph(&registry, &bob, &root, Direction::Results, 10, 100).await.unwrap();
    assert_eq!(kinds(&seen), [(NodeKind::Zoo, 1), (NodeKind::Version, 1)], "ann's generation is private");
    let sample: NodeRef = format!("sample:{generation}/0").parse().unwrap();
    let refused = graph(&registry, &bob, &sample, Direction::Both, 10, 100).await.unwrap_err();
    assert_eq!(refused.code(), "not_found");

    lifecycle::delete(&registry, registry::lifecycle::Resource::Zoo, &zoo.id.to_string()).await.unwrap();
    let deleted = graph(&registry, &bob, &root, Direction::Results, 10, 100).await.unwrap();
    assert!(deleted.nodes[0].deleted && !deleted.nodes[1].deleted);
    assert_eq!(graph(&registry, &bob, &root, Direction::Both, 1, 0).await.unwrap_err().code(), "invalid_value");
    assert!(crate::calls::zoos::list(&registry, &Default::default(), &page(1, None)).await.unwrap().items.is_empty());
}
