//! `gc` and `fsck`, also beside uploads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use registry::fsck::{self, FsckReport};
use registry::garbage::{self, GarbageOptions, GarbageReport, Tally};
use registry::{Caller, Registry, digest_of};
use sqlx::PgPool;

use crate::fixtures::{self, artifact, count, files, registry};

const TYPE: &str = "application/octet-stream";

async fn gc(registry: &Registry, grace: Duration, dry_run: bool) -> GarbageReport {
    garbage::collect(registry, &Caller::system("cli"), GarbageOptions { grace, dry_run }).await.unwrap()
}

async fn fsck(registry: &Registry) -> FsckReport {
    fsck::check(registry, true).await.unwrap()
}

fn path_of(folder: &Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    folder.join("sha256").join(&hex[..2]).join(&hex[2..])
}

fn tally(count: u64, bytes: u64) -> Tally {
    Tally { count, bytes }
}

/// Every column that refers to artifacts counts, and is found by an index: deleting an artifact looks into each.
#[sqlx::test(migrations = "../migrations")]
async fn every_reference_has_an_index(pool: PgPool) {
    let without: Vec<String> = sqlx::query_scalar(
        "SELECT c.conrelid::regclass || '.' || a.attname FROM pg_constraint c
         JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE c.contype = 'f' AND c.confrelid = 'artifacts'::regclass
           AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = a.attnum)",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(without, Vec::<String>::new(), "give each an index");
    let (registry, _folder) = registry(pool);
    let references = fsck(&registry).await.references;
    for expected in ["checkpoints.artifact_digest", "architectures.forward_artifact", "samples.artifact_digest"] {
        assert!(references.iter().any(|found| found == expected), "{references:?}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn only_garbage_goes(pool: PgPool) {
    let (registry, folder) = registry(pool.clone());
    let dataset = fixtures::dataset(&registry, "kept").await;
    let version = fixtures::publish(&registry, "digits", "bundle").await;
    let kept = count(&pool, "artifacts").await;
    let loose = artifact(&registry, "nothing refers to this").await;
    let orphan = digest_of(b"orphan");
    std::fs::create_dir_all(path_of(folder.path(), &orphan).parent().unwrap()).unwrap();
    std::fs::write(path_of(folder.path(), &orphan), b"orphan").unwrap();
    let incoming = folder.path().join("incoming");
    std::fs::create_dir_all(&incoming).unwrap();
    std::fs::write(incoming.join("0199#1"), b"cut").unwrap();
    std::fs::write(incoming.join("0199"), b"off").unwrap();
    std::fs::write(folder.path().join("README"), b"not ours").unwrap();
    sqlx::query("INSERT INTO uploads (key, upload_id, started_at) VALUES ('incoming/x', 'y', now() - interval '9 h')")
        .execute(&pool)
        .await
        .unwrap();

    let early = gc(&registry, Duration::from_secs(3600), false).await;
    assert_eq!((early.is_clean(), early.uploads, early.bytes()), (false, 1, 0), "younger than the grace period");
    let before = files(folder.path());
    let dry = gc(&registry, Duration::ZERO, true).await;
    assert_eq!((dry.artifacts, dry.orphans, dry.incoming), (tally(1, 22), tally(1, 6), tally(2, 6)));
    assert_eq!(files(folder.path()), before, "a dry run removes nothing");
    let wet = gc(&registry, Duration::ZERO, false).await;
    assert_eq!(GarbageReport { dry_run: true, ..wet.clone() }, dry, "what it said");
    assert_eq!(wet.bytes(), 34);
    assert!(gc(&registry, Duration::ZERO, false).await.is_clean());

    assert!(!registry.artifacts().exists(&loose.digest).await.unwrap());
    assert!(!path_of(folder.path(), &loose.digest).exists() && !path_of(folder.path(), &orphan).exists());
    assert!(folder.path().join("README").exists(), "never what it does not know");
    assert_eq!(count(&pool, "artifacts").await, kept);
    for digest in [&dataset.artifact_digest, &version.artifact_digest] {
        registry.artifacts().read(digest).await.unwrap();
    }
    let actions: Vec<String> = sqlx::query_scalar("SELECT action FROM audit WHERE resource = 'artifact' ORDER BY at")
        .fetch_all(&pool)
        .await
        .unwrap();
    assert_eq!(actions, ["artifact.collect", "artifact.collect"]);
}

/// An upload of bytes that are there already makes them as good as new.
#[sqlx::test(migrations = "../migrations")]
async fn an_old_artifact_that_is_uploaded_again_stays(pool: PgPool) {
    let (registry, _folder) = registry(pool.clone());
    let old = artifact(&registry, "old").await;
    let age = "UPDATE artifacts SET touched_at = now() - interval '1 year', created_at = now() - interval '1 year'";
    sqlx::query(age).execute(&pool).await.unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!(gc(&registry, hour, true).await.artifacts.count, 1);
    artifact(&registry, "old").await;
    assert!(gc(&registry, hour, false).await.is_clean());
    assert_eq!(registry.artifacts().read(&old.digest).await.unwrap(), "old");
}

/// Uploads of few contents, over and over, each of which is then referred to, beside a `gc` without pause whose grace
/// period is short: no row ever lacks its file, and no reference is lost.
#[sqlx::test(migrations = "../migrations")]
async fn nothing_is_lost_beside_uploads(pool: PgPool) {
    let (registry, _folder) = registry(pool.clone());
    sqlx::query("CREATE TABLE uses (digest digest REFERENCES artifacts (digest))").execute(&pool).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let collector = {
        let (registry, stop) = (registry.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let (mut runs, mut removed) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                // Long enough for the step from an upload to its reference, on a busy machine.
                let report = gc(&registry, Duration::from_millis(300), false).await;
                runs += 1;
                removed += report.artifacts.count + report.orphans.count;
            }
            (runs, removed)
        })
    };
    let began = Instant::now();
    let uploads: Vec<_> =
        (0..6u32).map(|task| tokio::spawn(upload_over_and_over(registry.clone(), pool.clone(), task, began))).collect();
    let mut done = 0;
    for upload in uploads {
        done += upload.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (runs, removed) = collector.await.unwrap();
    println!("{done} uploads, {runs} runs of gc, {removed} artifacts removed");
    assert!(done > 100 && runs > 5 && removed > 5, "{done} uploads, {runs} runs of gc, {removed} removed");
    let report = fsck(&registry).await;
    assert!(report.is_clean(), "{report:?}");
    let used: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT digest::text FROM uses").fetch_all(&pool).await.unwrap();
    for digest in used {
        registry.artifacts().read(&digest).await.unwrap();
    }
}

/// Uploads, in each of the three ways, and now and then refers to what was uploaded. Gives the number of uploads.
async fn upload_over_and_over(registry: Registry, pool: PgPool, task: u32, began: Instant) -> u32 {
    let mut done = 0;
    while began.elapsed() < Duration::from_secs(6) {
        // Few contents: most uploads meet one that is old, or that gc is just removing.
        let content = |n: u32| Bytes::from(format!("content {}", n % 23));
        let n = done * 7 + task * 3;
        let made = match done % 3 {
            0 => registry.artifacts().put_bytes(content(n), TYPE).await.unwrap(),
            1 => {
                let large = Bytes::from(vec![(n % 5) as u8; 9 << 20]);
                registry.artifacts().put_stream(futures::stream::iter([Ok(large)]), TYPE, None).await.unwrap()
            }
            _ => registry.artifacts().put_many(vec![content(n), content(n + 1)], TYPE).await.unwrap().remove(0),
        };
        if done % 4 == 0 {
            // As every resource does: the row that refers to the artifact comes right after the upload.
            sqlx::query("INSERT INTO uses VALUES ($1)").bind(&made.digest).execute(&pool).await.unwrap();
            registry.artifacts().read(&made.digest).await.unwrap();
            sqlx::query("DELETE FROM uses WHERE digest = $1 AND $2")
                .bind(&made.digest)
                .bind(!n.is_multiple_of(3))
                .execute(&pool)
                .await
                .unwrap();
        }
        done += 1;
        tokio::time::sleep(Duration::from_millis(u64::from(n % 40))).await;
    }
    done
}

#[sqlx::test(migrations = "../migrations")]
async fn gc_runs_alone(pool: PgPool) {
    let (registry, _folder) = registry(pool.clone());
    let mut other = pool.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock_shared(1465075523)").execute(&mut *other).await.unwrap();
    let options = GarbageOptions { grace: Duration::ZERO, dry_run: false };
    let busy = garbage::collect(&registry, &Caller::system("cli"), options).await.unwrap_err();
    assert_eq!(busy.code(), "maintenance_busy");
    sqlx::query("SELECT pg_advisory_unlock_shared(1465075523)").execute(&mut *other).await.unwrap();
    garbage::collect(&registry, &Caller::system("cli"), options).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn fsck_names_everything_that_is_wrong(pool: PgPool) {
    let (registry, folder) = registry(pool.clone());
    fixtures::dataset(&registry, "fine").await;
    let fine = fsck(&registry).await;
    assert!(fine.is_clean() && fine.artifacts == 1 && fine.files == 1, "{fine:?}");

    let [missing, short, damaged] = ["missing", "short", "damaged"].map(str::to_owned);
    let mut digests = Vec::new();
    for content in [&missing, &short, &damaged] {
        digests.push(artifact(&registry, content).await.digest);
    }
    std::fs::remove_file(path_of(folder.path(), &digests[0])).unwrap();
    std::fs::write(path_of(folder.path(), &digests[1]), b"shor").unwrap();
    std::fs::write(path_of(folder.path(), &digests[2]), b"damagec").unwrap();
    let orphan = digest_of(b"orphan");
    std::fs::create_dir_all(path_of(folder.path(), &orphan).parent().unwrap()).unwrap();
    std::fs::write(path_of(folder.path(), &orphan), b"orphan").unwrap();
    std::fs::write(folder.path().join("sha256/misplaced"), b"x").unwrap();
    std::fs::create_dir_all(folder.path().join("incoming")).unwrap();
    std::fs::write(folder.path().join("incoming/0199#1"), b"under way").unwrap();
    // A reference to nothing: only a damaged database has one.
    let dangling = fixtures::absent_digest();
    let mut connection = pool.acquire().await.unwrap();
    sqlx::query("SET session_replication_role = replica").execute(&mut *connection).await.unwrap();
    sqlx::query("UPDATE datasets SET artifact_digest = $1").bind(&dangling).execute(&mut *connection).await.unwrap();
    connection.close().await.unwrap();

    let report = fsck(&registry).await;
    let found: BTreeSet<(&str, &str)> = report.problems.iter().map(|p| (p.code, p.what.as_str())).collect();
    let expected = [
        ("content_differs", digests[2].as_str()),
        ("file_missing", digests[0].as_str()),
        ("file_without_row", orphan.as_str()),
        ("reference_dangling", dangling.as_str()),
        ("size_differs", digests[1].as_str()),
        ("unknown_file", "sha256/misplaced"),
    ];
    assert_eq!(found, BTreeSet::from(expected));
    assert_eq!((report.problem_count, report.incoming, report.is_clean()), (6, 1, false));
    let shallow = fsck::check(&registry, false).await.unwrap();
    assert_eq!(shallow.problem_count, 5, "a shallow one does not read contents");
}
