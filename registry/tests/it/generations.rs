use registry::generations::{GenerationFilter, NewGeneration, NewSample};
use registry::generators::GeneratorVersion;
use registry::{DatasetId, GenerationId, NewAbout, Registry, Seed, VersionId, digest_of};
use serde_json::json;
use sqlx::PgPool;

use crate::calls::generations::{create, get, list, sample, samples};
use crate::fixtures::{absent_digest, artifact, count, dataset, page, publish, registry};

async fn new_generation(registry: &Registry, version: &GeneratorVersion) -> NewGeneration {
    let mut made = Vec::new();
    for (index, accuracy) in [Some(0.96), None, Some(1.0)].into_iter().enumerate() {
        let content = format!("{} weights {index}", version.generator);
        made.push(NewSample {
            seed: Seed(u64::MAX - index as u64),
            artifact_digest: artifact(registry, &content).await.digest,
            accuracy,
            metrics: json!({"rank": index}),
            origin: "generated",
            scores: None,
            checkpoint_id: None,
        });
    }
    NewGeneration {
        id: GenerationId::generate(),
        version_id: version.id,
        dataset_id: Some(dataset(registry, "digits").await.id),
        dataset_digest: digest_of(b"digits"),
        request: json!({"sampler": "ddim", "steps": 20}),
        provider: "cpu".into(),
        device: "2 cores".into(),
        timings: json!({"decode": 1.5}),
        seed: Seed(7),
        samples: made,
        about: NewAbout::default(),
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn create_get_samples(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let version = publish(&registry, "digits", "one").await;
    let new = new_generation(&registry, &version).await;
    let made = create(&registry, &new).await.unwrap();
    assert_eq!((made.generator.as_str(), made.version, made.samples, made.seed), ("digits", 1, 3, Seed(7)));
    assert_eq!((&made.request, &made.timings), (&new.request, &new.timings));
    assert_eq!(get(&registry, new.id).await.unwrap(), made);

    let all = samples(&registry, made.id).await.unwrap();
    assert_eq!(all.iter().map(|s| s.index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(all.iter().map(|s| s.accuracy).collect::<Vec<_>>(), [Some(0.96), None, Some(1.0)]);
    assert_eq!((all[1].seed, all[1].size), (Seed(u64::MAX - 1), "digits weights 1".len() as i64));
    assert_eq!(all[2].metrics, json!({"rank": 2}));
    assert_eq!(sample(&registry, made.id, 1).await.unwrap(), all[1]);
    assert_eq!(sample(&registry, made.id, 3).await.unwrap_err().code(), "not_found");
    assert_eq!(samples(&registry, GenerationId::generate()).await.unwrap_err().code(), "not_found");
}

#[sqlx::test(migrations = "../migrations")]
async fn newest_first_by_generator_version_and_dataset(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let (digits, other) = (publish(&registry, "digits", "one").await, publish(&registry, "other", "one").await);
    let mut ids = Vec::new();
    for version in [&digits, &other, &digits] {
        ids.push(create(&registry, &new_generation(&registry, version).await).await.unwrap().id);
    }
    let mut unregistered = new_generation(&registry, &other).await;
    unregistered.dataset_id = None;
    ids.push(create(&registry, &unregistered).await.unwrap().id);

    let found = async |filter| {
        let page = list(&registry, &filter, &page(200, None)).await.unwrap();
        page.items.into_iter().map(|generation| generation.id).collect::<Vec<_>>()
    };
    let all = GenerationFilter::default();
    assert_eq!(found(all.clone()).await, [ids[3], ids[2], ids[1], ids[0]]);
    let filter = GenerationFilter { generator: Some("digits".into()), ..all.clone() };
    assert_eq!(found(filter).await, [ids[2], ids[0]]);
    assert_eq!(found(GenerationFilter { version: Some(other.id), ..all.clone() }).await, [ids[3], ids[1]]);
    let dataset = dataset(&registry, "digits").await.id;
    assert_eq!(found(GenerationFilter { dataset: Some(dataset), ..all.clone() }).await.len(), 3);

    let first = list(&registry, &all, &page(3, None)).await.unwrap();
    let second = list(&registry, &all, &page(3, first.next_cursor)).await.unwrap();
    assert_eq!(second.items[0].id, ids[0]);
}

#[sqlx::test(migrations = "../migrations")]
async fn all_or_nothing(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let version = publish(&registry, "digits", "one").await;
    let good = new_generation(&registry, &version).await;
    let code = async |change: fn(&mut NewGeneration)| {
        let mut new = good.clone();
        change(&mut new);
        create(&registry, &new).await.unwrap_err().code()
    };
    assert_eq!(code(|new| new.samples.clear()).await, "invalid_value");
    assert_eq!(code(|new| new.samples[1].artifact_digest = absent_digest()).await, "artifact_missing");
    assert_eq!(code(|new| new.samples[1].accuracy = Some(-0.1)).await, "invalid_value");
    assert_eq!(code(|new| new.version_id = VersionId::generate()).await, "not_found");
    assert_eq!(code(|new| new.dataset_id = Some(DatasetId::generate())).await, "not_found");
    assert_eq!(count(&pool, "generations").await + count(&pool, "samples").await, 0);
    create(&registry, &good).await.unwrap();
    assert_eq!(code(|_| ()).await, "already_exists");
}
