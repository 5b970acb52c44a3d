//! The artifact store in a bucket of a real S3 server (moto's), also through a proxy that fails.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use registry::backup::{self, Programs};
use registry::fsck;
use registry::garbage::{self, GarbageOptions, GarbageReport};
use registry::{ArtifactPlace, ArtifactStore, Caller, Registry, S3Key, S3Options};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixtures::{self, count};
use crate::moto::S3;

const TYPE: &str = "application/octet-stream";
const MIB: usize = 1 << 20;
const BUCKET: &str = "artifacts";

/// What the bucket holds, as anybody sees it.
trait Bucket {
    fn client(&self) -> AmazonS3;
    async fn keys(&self) -> Vec<String>;
}

impl Bucket for S3 {
    fn client(&self) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_region("us-east-1")
            .build()
            .unwrap()
    }

    async fn keys(&self) -> Vec<String> {
        use object_store::ObjectStore;
        let found = self.client().list(None).map_ok(|found| found.location.to_string());
        let mut keys: Vec<String> = found.try_collect().await.unwrap();
        keys.sort();
        keys
    }
}

fn place() -> ArtifactPlace {
    format!("s3://{BUCKET}/team/one").parse().unwrap()
}

fn options(address: SocketAddr) -> S3Options {
    S3Options {
        endpoint: Some(format!("http://{address}")),
        region: Some("us-east-1".into()),
        path_style: None,
        allow_http: true,
        key: Some(S3Key { id: "key".into(), secret: "secret".into() }),
    }
}

/// A registry whose artifacts are in the bucket behind an address.
fn registry_at(address: SocketAddr, pool: &PgPool) -> Registry {
    let store = ArtifactStore::at(&place(), &options(address), pool.clone()).unwrap();
    Registry::new(pool.clone(), store)
}

fn content(size: usize, seed: u32) -> Vec<u8> {
    (0..size as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn stream(content: &[u8]) -> impl futures::Stream<Item = io::Result<Bytes>> + use<> {
    let chunks: Vec<_> = content.chunks(700_001).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    futures::stream::iter(chunks)
}

async fn gc(registry: &Registry) -> GarbageReport {
    let options = GarbageOptions { grace: Duration::ZERO, dry_run: false };
    garbage::collect(registry, &Caller::system("cli"), options).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bucket_does_what_a_folder_does(pool: PgPool) {
    let s3 = S3::start(BUCKET);
    let registry = registry_at(s3.address, &pool);
    let store = registry.artifacts();
    let small = store.put_bytes(&b"0123456789"[..], TYPE).await.unwrap();
    assert_eq!(store.read(&small.digest).await.unwrap(), &b"0123456789"[..]);
    assert_eq!(store.get_range(&small.digest, 2..5).await.unwrap(), &b"234"[..]);
    let hex = small.digest.strip_prefix("sha256:").unwrap();
    assert_eq!(s3.keys().await, [format!("team/one/sha256/{}/{}", &hex[..2], &hex[2..])]);

    // In parts, and the same bytes again: one object.
    let large = content(21 * MIB + 5, 1);
    let made = store.put_stream(stream(&large), TYPE, None).await.unwrap();
    assert_eq!(made.digest, registry::digest_of(&large));
    assert_eq!(store.put_stream(stream(&large), TYPE, None).await.unwrap(), made);
    let range = store.get_range(&made.digest, 9_000_000..9_000_100).await.unwrap();
    assert_eq!(range, &large[9_000_000..9_000_100]);
    let mut reader = store.open(&made.digest, None).await.unwrap();
    let mut back = Vec::new();
    while let Some(chunk) = reader.stream.try_next().await.unwrap() {
        back.extend_from_slice(&chunk);
    }
    assert!(back == large);
    let many = store.put_many((0..20u8).map(|n| vec![n; 100].into()).collect(), TYPE).await.unwrap();
    assert_eq!((many.len(), s3.keys().await.len()), (20, 22));
    assert_eq!((count(&pool, "artifacts").await, count(&pool, "uploads").await), (22, 0));
    let limited = store.put_stream(stream(&large), TYPE, Some(20 * MIB as u64)).await.unwrap_err();
    assert_eq!((limited.code(), count(&pool, "uploads").await), ("too_large", 0));

    let report = fsck::check(&registry, true).await.unwrap();
    assert!(report.is_clean() && report.artifacts == 22 && report.files == 22, "{report:?}");
    assert_eq!(gc(&registry).await.artifacts.count, 22);
    assert_eq!(s3.keys().await, Vec::<String>::new());
}

/// What a killed process leaves: an object without a row, one under a temporary key, an upload in parts.
#[sqlx::test(migrations = "../migrations")]
async fn leftovers_in_a_bucket_are_collected(pool: PgPool) {
    let s3 = S3::start(BUCKET);
    let registry = registry_at(s3.address, &pool);
    fixtures::dataset(&registry, "kept").await;
    let orphan = registry.artifacts().put_bytes(&b"orphan"[..], TYPE).await.unwrap();
    sqlx::query("DELETE FROM artifacts WHERE digest = $1").bind(&orphan.digest).execute(&pool).await.unwrap();
    s3.client().put(&"team/one/incoming/0199".into(), "cut off".into()).await.unwrap();
    s3.client().put(&"team/two/sha256/aa/bb".into(), "another registry's".into()).await.unwrap();
    // Cut off after two parts, as by a kill: nothing is told to stop.
    let chunks = stream(&content(20 * MIB, 2));
    let stalled = futures::StreamExt::chain(chunks, futures::stream::pending());
    let upload = registry.artifacts().put_stream(stalled, TYPE, None);
    assert!(tokio::time::timeout(Duration::from_secs(8), upload).await.is_err());
    assert_eq!(count(&pool, "uploads").await, 1);

    let report = fsck::check(&registry, true).await.unwrap();
    let codes: Vec<&str> = report.problems.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, ["file_without_row"]);
    // moto keeps whole seconds: an object of this second is not older than now.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let report = gc(&registry).await;
    let found = (report.artifacts.count, report.orphans.count, report.incoming.count, report.uploads);
    assert_eq!(found, (0, 1, 1, 1), "{report:?}");
    assert_eq!(count(&pool, "uploads").await, 0);
    assert_eq!(s3.keys().await.len(), 2, "what is referred to, and what is not ours");
    assert!(fsck::check(&registry, true).await.unwrap().is_clean());
}

/// What the proxy does to the requests whose number it is given.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Answers 500 and does not pass the request on.
    Status(&'static str),
    /// Cuts the connection after the request's head.
    Cut,
}

/// Passes requests on, a connection each, but fails `fails` of every `of`.
async fn proxy(to: SocketAddr, fault: Fault, fails: usize, of: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let failed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&failed);
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((client, _)) = listener.accept().await {
            let fails = number % of < fails;
            number += 1;
            if fails {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            tokio::spawn(async move { pass(client, to, fails.then_some(fault)).await });
        }
    });
    (address, failed)
}

async fn pass(mut client: TcpStream, to: SocketAddr, fault: Option<Fault>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut some = [0; 4096];
        let read = client.read(&mut some).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&some[..read]);
    }
    match fault {
        Some(Fault::Cut) => return Ok(()),
        Some(Fault::Status(status)) => {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            client.write_all(answer.as_bytes()).await?;
            // The body is read to its end, or the client would see a reset in place of the answer.
            client.shutdown().await?;
            return tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop);
        }
        None => {}
    }
    let mut server = TcpStream::connect(to).await?;
    // Every request comes on a connection of its own, so that each can fail by itself.
    let end = head.windows(2).position(|two| two == b"\r\n").unwrap();
    server.write_all(&head[..end]).await?;
    server.write_all(b"\r\nconnection: close").await?;
    server.write_all(&head[end..]).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[sqlx::test(migrations = "../migrations")]
async fn an_upload_survives_failures_that_pass(pool: PgPool) {
    let s3 = S3::start(BUCKET);
    for (round, fault) in
        [Fault::Status("500 Oops"), Fault::Status("503 Slow Down"), Fault::Cut].into_iter().enumerate()
    {
        let (address, failed) = proxy(s3.address, fault, 1, 3).await;
        let registry = registry_at(address, &pool);
        let large = content(20 * MIB, 100 + round as u32);
        let made = registry.artifacts().put_stream(stream(&large), TYPE, None).await.unwrap();
        assert!(registry.artifacts().read(&made.digest).await.unwrap() == large);
        assert!(failed.load(Ordering::Relaxed) > 2, "the proxy has failed");
    }
    assert_eq!(count(&pool, "uploads").await, 0);
    let report = fsck::check(&registry_at(s3.address, &pool), true).await.unwrap();
    assert!(report.is_clean() && report.artifacts == 3 && report.incoming == 0, "{report:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn an_upload_that_fails_for_good_leaves_no_row(pool: PgPool) {
    let s3 = S3::start(BUCKET);
    let (address, failed) = proxy(s3.address, Fault::Status("500 Oops"), 1, 1).await;
    let broken = registry_at(address, &pool);
    let whole = broken.artifacts().put_bytes(&b"small"[..], TYPE).await.unwrap_err();
    assert_eq!(whole.code(), "storage", "{whole:?}");
    assert!(failed.load(Ordering::Relaxed) > 3, "it was tried again");
    let (parts, small) = tokio::join!(
        broken.artifacts().put_stream(stream(&content(20 * MIB, 7)), TYPE, None),
        broken.artifacts().put_many(vec![Bytes::from("a"), Bytes::from("b")], TYPE),
    );
    assert_eq!((parts.unwrap_err().code(), small.unwrap_err().code()), ("storage", "storage"));
    assert_eq!(count(&pool, "artifacts").await, 0);
    assert_eq!(s3.keys().await, Vec::<String>::new());
}

#[sqlx::test(migrations = "../migrations")]
async fn a_backup_of_a_bucket_is_restored_to_a_folder(pool: PgPool) {
    let s3 = S3::start(BUCKET);
    let registry = registry_at(s3.address, &pool);
    let version = fixtures::publish(&registry, "digits", "the bundle").await;
    let large = registry.artifacts().put_stream(stream(&content(9 * MIB, 9)), TYPE, None).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (backup, artifacts) = (folder.path().join("backup"), folder.path().join("artifacts"));
    let distribution = registry::embedded::locate(std::env::var_os("WEIGHTSMITH_POSTGRES").map(Into::into)).unwrap();
    let programs = Programs::of(Some(&distribution));
    let made = backup::make(&registry, &fixtures::url(&pool), &programs, &backup).await.unwrap();
    assert_eq!((made.artifacts, made.artifact_bytes), (2, 10 + 9 * MIB as u64));
    let again = backup::make(&registry, &fixtures::url(&pool), &programs, &backup).await.unwrap_err();
    assert!(again.code() == "backup" && again.to_string().contains("not empty"), "{again}");

    // Into the same server, but a database of its own.
    let name = format!("restored_{}", uuid::Uuid::now_v7().simple());
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    let own: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&pool).await.unwrap();
    let url = fixtures::url(&pool).replace(&own, &name);
    let (place, options) = (ArtifactPlace::Folder(artifacts), S3Options::default());
    let restored = backup::restore(&backup, &programs, &url, &place, &options).await.unwrap();
    assert_eq!(restored, made);
    let there = Registry::connect_to(&url, &place, &options).await.unwrap();
    let report = fsck::check(&there, true).await.unwrap();
    assert!(report.is_clean() && report.artifacts == 2, "{report:?}");
    assert_eq!(there.artifacts().read(&version.artifact_digest).await.unwrap(), "the bundle");
    there.artifacts().read(&large.digest).await.unwrap();
    let twice = backup::restore(&backup, &programs, &url, &place, &options).await.unwrap_err();
    assert!(twice.code() == "backup" && twice.to_string().contains("tables already"), "{twice}");
    there.close().await;

    // Damage of any part is said before the database is touched.
    let hex = version.artifact_digest.strip_prefix("sha256:").unwrap();
    std::fs::write(backup.join("sha256").join(&hex[..2]).join(&hex[2..]), b"the bundlf").unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&pool).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    let damaged = backup::restore(&backup, &programs, &url, &place, &options).await.unwrap_err();
    assert_eq!(damaged.code(), "artifact_corrupt");
    std::fs::write(backup.join("database.dump"), b"x").unwrap();
    let damaged = backup::restore(&backup, &programs, &url, &place, &options).await.unwrap_err();
    assert!(damaged.to_string().contains("database.dump is damaged"), "{damaged}");
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&pool).await.unwrap();
}
