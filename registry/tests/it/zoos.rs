//! Zoos, runs and checkpoints.

use std::time::{Duration, Instant};

use bytes::Bytes;
use registry::checkpoints::{CheckpointFilter, all_of_zoo};
use registry::runs::NewRun;
use registry::zoos::ZooFilter;
use registry::{DatasetId, Seed, ZooId};
use sqlx::PgPool;

use crate::calls::{checkpoints, runs, zoos};
use crate::fixtures::{absent_digest, count, new_runs, new_zoo, page, registry, zoo};

#[sqlx::test(migrations = "../migrations")]
async fn a_zoo_with_runs_and_checkpoints(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let made = zoo(&registry, "digits", 4, 3).await;
    assert_eq!((made.runs, made.checkpoints), (4, 12));
    assert_eq!(zoos::get(&registry, "digits").await.unwrap(), made);
    let empty = zoos::create(&registry, &new_zoo(&registry, "empty").await).await.unwrap();
    assert_eq!((empty.runs, empty.checkpoints), (0, 0));
    let filter = ZooFilter { architecture: made.architecture_id, ..ZooFilter::default() };
    let listed = zoos::list(&registry, &filter, &page(200, None)).await.unwrap();
    assert_eq!(listed.items, [made.clone(), empty]);

    let first = runs::list(&registry, Some(made.id), &page(3, None)).await.unwrap();
    let second = runs::list(&registry, Some(made.id), &page(3, first.next_cursor.clone())).await.unwrap();
    let all: Vec<_> = first.items.iter().chain(&second.items).collect();
    assert_eq!(all.iter().map(|run| run.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(all[1].classes, [1, 2, 3, 4, 5], "the order of the classes is the task's");
    assert_eq!(all[1].seed, Some(Seed(u64::MAX - 1)), "all 64 bits of a seed survive");
    assert_eq!(&runs::get(&registry, all[1].id).await.unwrap(), all[1]);
}

#[sqlx::test(migrations = "../migrations")]
async fn checkpoints_are_found_by_zoo_run_and_accuracy(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let made = zoo(&registry, "digits", 4, 3).await;
    zoo(&registry, "other", 1, 1).await;
    let all = all_of_zoo(&registry, made.id).await.unwrap();
    assert_eq!(all.len(), 12);
    assert_eq!((all[4].run_index, all[4].epoch, all[4].size), (1, Some(1), 7));
    assert_eq!(checkpoints::get(&registry, all[4].id).await.unwrap(), all[4]);

    let list = async |filter| checkpoints::list(&registry, &filter, &page(200, None)).await.unwrap().items;
    let everything = CheckpointFilter::default();
    assert_eq!(list(everything.clone()).await.len(), 13);
    assert_eq!(list(CheckpointFilter { zoo: Some(made.id), ..everything.clone() }).await.len(), 12);
    let of_run = list(CheckpointFilter { run: Some(all[4].run_id), ..everything.clone() }).await;
    assert_eq!(of_run.iter().map(|c| c.epoch).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    // Accuracies are (run + epoch) / 7: 5/7 is reached once, 4/7 by two more.
    let good = list(CheckpointFilter { min_accuracy: Some(4.0 / 7.0), ..everything }).await;
    assert_eq!(good.len(), 3);
}

#[sqlx::test(migrations = "../migrations")]
async fn all_or_nothing(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let new = new_zoo(&registry, "digits").await;
    let good = new_runs(&registry, 3, 2).await;
    let code = async |change: fn(&mut NewRun)| {
        let mut new_runs = good.clone();
        change(&mut new_runs[2]);
        zoos::create_with_runs(&registry, &new, &new_runs).await.unwrap_err().code()
    };
    assert_eq!(code(|run| run.index = 0).await, "already_exists");
    assert_eq!(code(|run| run.dataset_id = DatasetId::generate()).await, "not_found");
    assert_eq!(code(|run| run.classes = vec![3, 10]).await, "invalid_value");
    assert_eq!(code(|run| run.classes = vec![3, -1]).await, "invalid_value");
    assert_eq!(code(|run| run.classes = vec![3]).await, "invalid_value");
    assert_eq!(code(|run| run.classes = vec![3, 3]).await, "invalid_value");
    assert_eq!(code(|run| run.checkpoints[1].epoch = 0).await, "already_exists");
    assert_eq!(code(|run| run.checkpoints[1].accuracy = 1.01).await, "invalid_value");
    assert_eq!(code(|run| run.checkpoints[1].accuracy = f32::NAN).await, "invalid_value");
    assert_eq!(code(|run| run.checkpoints[1].loss = f32::INFINITY).await, "invalid_value");
    assert_eq!(code(|run| run.checkpoints[1].loss = f32::NAN).await, "invalid_value");
    assert_eq!(code(|run| run.checkpoints[1].artifact_digest = absent_digest()).await, "artifact_missing");
    for table in ["zoos", "runs", "checkpoints"] {
        assert_eq!(count(&pool, table).await, 0, "{table}");
    }
    let nowhere = runs::insert_bulk(&registry, ZooId::generate(), &good).await.unwrap_err();
    assert_eq!(nowhere.to_string().split_once(" `").unwrap().0, "there is no zoo");
}

#[sqlx::test(migrations = "../migrations")]
async fn ten_thousand_checkpoints_take_seconds(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let made = zoos::create(&registry, &new_zoo(&registry, "big").await).await.unwrap();
    let mut runs = new_runs(&registry, 2000, 5).await;

    let began = Instant::now();
    let pieces: Vec<Bytes> = (0..10_000u32).map(|i| i.to_le_bytes().repeat(500).into()).collect();
    let stored = registry.artifacts().put_many(pieces, "application/octet-stream").await.unwrap();
    let files = began.elapsed();
    let checkpoints = runs.iter_mut().flat_map(|run| &mut run.checkpoints);
    checkpoints.zip(&stored).for_each(|(checkpoint, artifact)| checkpoint.artifact_digest = artifact.digest.clone());

    let began = Instant::now();
    assert_eq!(runs::insert_bulk(&registry, made.id, &runs).await.unwrap().len(), 2000);
    let rows = began.elapsed();
    println!("10,000 files {files:?}, 2,000 runs and 10,000 checkpoints {rows:?}");
    assert!(rows < Duration::from_secs(10) && files < Duration::from_secs(60), "{rows:?} {files:?}");

    let all = all_of_zoo(&registry, made.id).await.unwrap();
    let digests: Vec<_> = all.iter().map(|checkpoint| &checkpoint.artifact_digest).collect();
    assert_eq!(digests, stored.iter().map(|artifact| &artifact.digest).collect::<Vec<_>>());
    assert_eq!(zoos::by_id(&registry, made.id).await.unwrap().checkpoints, 10_000);
}
