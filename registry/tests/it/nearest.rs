//! Searches on thousands of embeddings: which plan answers, what is missed, what is not shown.

use std::collections::HashSet;

use registry::embeddings::{self, SubjectKind};
use registry::nearest::{self, Scan, Search};
use registry::{Caller, Registry, VersionId};
use sqlx::PgPool;
use uuid::Uuid;

use crate::fixtures::{artifact, publish, registry, zoo};

const DIMENSION: usize = 256;

/// Deterministic values with a standard normal distribution, roughly.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        let uniform = |state: &mut u64| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            (*state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..4).map(|_| uniform(&mut self.0) - 0.5).sum::<f32>()
    }

    fn vector(&mut self) -> Vec<f32> {
        (0..DIMENSION).map(|_| self.next()).collect()
    }
}

/// `n` datasets with embeddings; the bulk statements stand in for ten thousand uploads.
async fn fill(registry: &Registry, pool: &PgPool, version: VersionId, n: usize) -> Vec<Uuid> {
    let file = artifact(registry, "data").await.digest;
    let ids: Vec<Uuid> = (0..n).map(|_| Uuid::now_v7()).collect();
    sqlx::query(
        "INSERT INTO datasets (id, name, modality, shape, class_names, examples, digest, artifact_digest)
         SELECT i, 'set-' || o, 'image', '{1,8,8}', '{a,b}', 2, 'sha256:' || encode(sha256(o::text::bytea), 'hex'), $2
         FROM UNNEST($1::uuid[]) WITH ORDINALITY u (i, o)",
    )
    .bind(&ids)
    .bind(file)
    .execute(pool)
    .await
    .unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for ids in ids.chunks(500) {
        let vectors: Vec<_> = ids.iter().map(|_| pgvector::Vector::from(random.vector())).collect();
        sqlx::query(
            "INSERT INTO embeddings (version_id, subject_kind, subject_id, classes, embedding)
             SELECT $1, 'dataset', i, '{0,1}', v FROM UNNEST($2::uuid[], $3::vector[]) u (i, v)",
        )
        .bind(version)
        .bind(ids)
        .bind(vectors)
        .execute(pool)
        .await
        .unwrap();
    }
    sqlx::query("ANALYZE").execute(pool).await.unwrap();
    ids
}

fn of(version: VersionId, query: &[f32], limit: u32) -> Search<'_> {
    Search { version, kind: SubjectKind::Dataset, query, except: None, limit }
}

#[sqlx::test(migrations = "../migrations")]
async fn many_are_searched_by_the_index_and_few_exactly(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let (version, small) = (publish(&registry, "a", "one").await.id, publish(&registry, "a", "two").await.id);
    let caller = Caller::system("t");
    let ids = fill(&registry, &pool, version, 5000).await;
    assert!(!nearest::maintain(&registry, version, SubjectKind::Dataset, 5001).await.unwrap(), "too few");
    let mut random = Random(77);
    let queries: Vec<Vec<f32>> = (0..40).map(|_| random.vector()).collect();
    let ask = async |caller: &Caller, query: &[f32]| {
        nearest::search(&registry, caller, &of(version, query, 10)).await.unwrap()
    };
    let mut exact = Vec::new();
    for query in &queries {
        let found = ask(&caller, query).await;
        assert_eq!((found.scan, found.embedded, found.neighbours.len()), (Scan::Exact, Some(5000), 10));
        exact.push(found.neighbours);
    }

    assert!(nearest::maintain(&registry, version, SubjectKind::Dataset, 5000).await.unwrap());
    assert!(nearest::maintain(&registry, version, SubjectKind::Dataset, 5000).await.unwrap(), "again is nothing");
    let mut hits = 0;
    for (query, exact) in queries.iter().zip(&exact) {
        let found = ask(&caller, query).await;
        assert_eq!(found.scan, Scan::Hnsw);
        assert!(found.neighbours.windows(2).all(|pair| pair[0].distance <= pair[1].distance));
        let ids: HashSet<Uuid> = exact.iter().map(|near| near.subject_id).collect();
        hits += found.neighbours.iter().filter(|near| ids.contains(&near.subject_id)).count();
    }
    let recall = hits as f64 / (10 * queries.len()) as f64;
    println!("recall of 10 among 5000 random vectors of 256 dimensions: {recall:.3}");
    assert!(recall >= 0.95, "{recall}");

    // What is in the graph itself is searched with fewer candidates.
    let mut hits = 0;
    for member in ids.iter().step_by(125) {
        let kind = SubjectKind::Dataset;
        let query = nearest::stored(&registry, version, kind, *member, None).await.unwrap().unwrap();
        let exact = embeddings::nearest(&registry, version, kind, &query, 11).await.unwrap();
        assert_eq!(exact[0].subject_id, *member);
        let search = Search { except: Some(*member), ..of(version, &query, 10) };
        let found = nearest::search(&registry, &caller, &search).await.unwrap();
        assert_eq!((found.scan, found.neighbours.len()), (Scan::Hnsw, 10));
        hits +=
            found.neighbours.iter().filter(|near| exact[1..].iter().any(|e| e.subject_id == near.subject_id)).count();
    }
    let recall = hits as f64 / 400.0;
    println!("of what is among them: {recall:.3}");
    assert!(recall >= 0.95, "{recall}");

    // Whatever the planner thinks of it: by the index for administrators and for others, and none for a small version.
    let others = Caller { administrator: false, patterns: vec!["set-*".into()], ..Caller::system("bob") };
    for caller in [&caller, &others] {
        let plan = nearest::explain(&registry, caller, &of(version, &queries[0], 10), Scan::Hnsw).await.unwrap();
        assert!(plan.contains("Index Scan using embeddings_hnsw2_dataset_"), "{plan}");
    }
    let plan = nearest::explain(&registry, &caller, &of(version, &queries[0], 10), Scan::Exact).await.unwrap();
    assert!(!plan.contains("hnsw") && plan.contains("Sort"), "{plan}");
    let found = nearest::search(&registry, &caller, &of(small, &queries[0], 10)).await.unwrap();
    assert_eq!((found.scan, found.embedded, found.neighbours.len()), (Scan::Exact, Some(0), 0));
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_invisible_or_deleted_does_not_starve_the_answer(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let version = publish(&registry, "a", "one").await.id;
    let ids = fill(&registry, &pool, version, 2500).await;
    assert!(nearest::maintain(&registry, version, SubjectKind::Dataset, 2000).await.unwrap());
    // All but 30 are private to another, and one of those is deleted.
    let seen: HashSet<Uuid> = ids[..30].iter().copied().collect();
    sqlx::query("UPDATE datasets SET visibility = 'private', owner = 'ann' WHERE NOT id = ANY ($1)")
        .bind(&ids[..30])
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("UPDATE datasets SET deleted_at = now() WHERE id = $1").bind(ids[0]).execute(&pool).await.unwrap();
    let query = Random(5).vector();
    let bob = Caller { administrator: false, ..Caller::system("bob") };
    let found = nearest::search(&registry, &bob, &of(version, &query, 20)).await.unwrap();
    assert_eq!(found.neighbours.len(), 20);
    assert!(found.neighbours.iter().all(|near| seen.contains(&near.subject_id) && near.subject_id != ids[0]));
    let all = nearest::search(&registry, &bob, &of(version, &query, 100)).await.unwrap();
    assert_eq!((all.neighbours.len(), all.scan), (29, Scan::Exact), "the index gave up, the scan did not");
    assert_eq!(all.neighbours[..20], found.neighbours[..]);
    let except = Search { except: Some(found.neighbours[0].subject_id), ..of(version, &query, 20) };
    let rest = nearest::search(&registry, &bob, &except).await.unwrap();
    assert_eq!(rest.neighbours[0], found.neighbours[1]);
    for wrong in [of(version, &query[1..], 10), of(version, &query, 0), of(version, &query, 201)] {
        assert_eq!(nearest::search(&registry, &bob, &wrong).await.unwrap_err().code(), "invalid_value");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn runs_come_with_their_last_checkpoint(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let version = publish(&registry, "a", "one").await.id;
    let made = zoo(&registry, "zoo", 3, 2).await;
    let runs: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM runs ORDER BY index").fetch_all(&pool).await.unwrap();
    let new: Vec<_> = runs
        .iter()
        .enumerate()
        .map(|(at, run)| registry::embeddings::NewEmbedding {
            subject_id: *run,
            classes: vec![0, 1],
            embedding: vec![1.0, at as f32],
        })
        .collect();
    let system = Caller::system("t");
    let mut write = registry.write(&system).await.unwrap();
    registry::embeddings::insert_bulk(&mut write, version, SubjectKind::Run, &new).await.unwrap();
    write.commit().await.unwrap();
    let search = Search { kind: SubjectKind::Run, ..of(version, &[1.0, 0.0], 2) };
    let found = nearest::search(&registry, &system, &search).await.unwrap();
    let order: Vec<Uuid> = found.neighbours.iter().map(|near| near.subject_id).collect();
    assert_eq!(order, runs[..2]);
    let last: Uuid = sqlx::query_scalar("SELECT id FROM checkpoints WHERE run_id = $1 AND epoch = 1")
        .bind(runs[0])
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!((found.neighbours[0].checkpoint_id, found.neighbours[0].zoo_id), (Some(last), Some(made.id.as_uuid())));
    let stored = nearest::stored(&registry, version, SubjectKind::Run, runs[1], Some(&[0, 1])).await.unwrap();
    assert_eq!(stored, Some(vec![1.0, 1.0]));
    sqlx::query("UPDATE zoos SET deleted_at = now()").execute(&pool).await.unwrap();
    assert!(nearest::search(&registry, &system, &search).await.unwrap().neighbours.is_empty());
}
