//! Plans at size: lists, search and lineage go through indexes.

use std::time::Instant;

use registry::checkpoints::CheckpointFilter;
use registry::datasets::DatasetFilter;
use registry::generators::GeneratorFilter;
use registry::lineage::{Direction, graph};
use registry::listing::plans;
use registry::synthetic::{self, Kind, Sizes, id};
use registry::{ListRequest, Registry};
use sqlx::PgPool;

use crate::calls::{checkpoints, datasets, generators, me};
use crate::fixtures::{artifact, registry};

const SIZES: Sizes = Sizes { checkpoints: 100_000, datasets: 5_000, generators: 1_000 };

/// Statements of this database that read a table from end to end, with their number of calls: Postgres counts scans.
async fn sequential_scans(pool: &PgPool) -> Vec<(String, i64)> {
    // Counters of other sessions arrive when those have been idle for a moment.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    sqlx::query_as(
        "SELECT relname::text, seq_scan FROM pg_stat_user_tables
         WHERE relname IN ('checkpoints', 'runs', 'artifacts', 'datasets', 'samples', 'embeddings') ORDER BY relname",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

async fn every_list(registry: &Registry) {
    let request = |order: Option<&str>| ListRequest { order: order.map(str::to_owned), ..ListRequest::default() };
    let all = CheckpointFilter::default();
    let mut filters = vec![all.clone()];
    filters.push(CheckpointFilter { zoo: Some(id(Kind::Zoo, 7).into()), ..all.clone() });
    filters.push(CheckpointFilter { run: Some(id(Kind::Run, 70).into()), ..all.clone() });
    filters.push(CheckpointFilter { min_accuracy: Some(0.99), ..all.clone() });
    for filter in &filters {
        for order in [None, Some("-created_at"), Some("accuracy"), Some("-accuracy")] {
            let began = Instant::now();
            let page = checkpoints::list(registry, filter, &request(order)).await.unwrap();
            assert!(!page.items.is_empty(), "{filter:?} {order:?}");
            let Some(cursor) = page.next_cursor else { continue };
            let next = ListRequest { cursor: Some(cursor), ..request(order) };
            checkpoints::list(registry, filter, &next).await.unwrap();
            println!("{filter:?} {order:?}: two pages in {:?}", began.elapsed());
        }
    }
    let tagged = ListRequest { tags: vec!["fold-77".into()], ..ListRequest::default() };
    assert_eq!(checkpoints::list(registry, &all, &tagged).await.unwrap().items.len(), 11);
    for order in [None, Some("name"), Some("-examples")] {
        datasets::list(registry, &DatasetFilter::default(), &request(order)).await.unwrap();
    }
    let search = |words: &str| ListRequest { search: Some(words.into()), ..ListRequest::default() };
    assert_eq!(
        datasets::list(registry, &DatasetFilter::default(), &search("number 4321")).await.unwrap().items.len(),
        1
    );
    assert!(
        !generators::list(registry, &GeneratorFilter::default(), &search("family 7")).await.unwrap().items.is_empty()
    );
    for node in [
        format!("checkpoint:{}", id(Kind::Checkpoint, 4242)),
        format!("dataset:{}", id(Kind::Dataset, 42)),
        format!("sample:{}/1", id(Kind::Generation, 42)),
        "version:bench-gen-42@1".to_owned(),
    ] {
        let found = graph(registry, &me(), &node.parse().unwrap(), Direction::Both, 10, 100).await.unwrap();
        assert!(found.nodes.len() > 5, "{node}");
    }
}

/// The plans of lists and searches, with and without a cursor: an index each, nothing sorted that is not small.
async fn explained(registry: &Registry) {
    let all = CheckpointFilter::default();
    let of_zoo = CheckpointFilter { zoo: Some(id(Kind::Zoo, 7).into()), ..all.clone() };
    let good = CheckpointFilter { min_accuracy: Some(0.99), ..all.clone() };
    let of_run = CheckpointFilter { run: Some(id(Kind::Run, 70).into()), ..all.clone() };
    let page = checkpoints::list(registry, &all, &ListRequest::default()).await.unwrap();
    let request = |order: &str| ListRequest { order: Some(order.into()), ..ListRequest::default() };
    let next = ListRequest { cursor: page.next_cursor, ..ListRequest::default() };
    let tagged = ListRequest { tags: vec!["fold-77".into()], ..ListRequest::default() };
    let words = ListRequest { search: Some("number 4321".into()), ..ListRequest::default() };
    let nothing = DatasetFilter::default();
    let lists = [
        (&all, ListRequest::default(), "checkpoints_created_at_idx"),
        (&all, next, "checkpoints_created_at_idx"),
        (&all, request("-accuracy"), "checkpoints_accuracy_idx"),
        (&of_zoo, request("-created_at"), "checkpoints_zoo_id_idx"),
        (&of_zoo, request("accuracy"), "checkpoints_zoo_accuracy_idx"),
        (&good, request("-accuracy"), "checkpoints_accuracy_idx"),
        (&of_run, ListRequest::default(), "checkpoints_run_id_epoch_key"),
        (&all, tagged, "checkpoints_tags_idx"),
    ];
    for (filter, request, index) in lists {
        let plans = plans(async {
            checkpoints::list(registry, filter, &request).await.unwrap();
        });
        expect(&plans.await, index);
    }
    for (request, index) in [(request("name"), "datasets_name"), (words, "datasets_search_idx")] {
        let plans = plans(async {
            datasets::list(registry, &nothing, &request).await.unwrap();
        });
        expect(&plans.await, index);
    }
}

fn expect(plans: &[String], index: &str) {
    let [plan] = plans else { panic!("{plans:?}") };
    assert!(plan.contains(index), "not through {index}:\n{plan}");
    for table in ["checkpoints", "runs", "artifacts", "datasets"] {
        assert!(!plan.contains(&format!("Seq Scan on {table}")), "{plan}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn no_list_reads_a_whole_table(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let digest = artifact(&registry, "weights").await.digest;
    synthetic::fill(&registry, &SIZES, &digest).await.unwrap();
    assert!(synthetic::filled(&registry, &SIZES).await.unwrap());
    let other = Sizes { datasets: 1, ..SIZES };
    assert_eq!(synthetic::filled(&registry, &other).await.unwrap_err().code(), "invalid_value");

    explained(&registry).await;
    let before = sequential_scans(&pool).await;
    every_list(&registry).await;
    assert_eq!(before, sequential_scans(&pool).await, "a list read a whole table");
}
