//! A full disk, and the memory of large uploads: each in a process of its own.

use std::io;
use std::process::Command;

use bytes::Bytes;
use futures::TryStreamExt;
use registry::{ArtifactPlace, ArtifactStore, Registry, S3Key, S3Options};
use sqlx::PgPool;

use crate::fixtures::{count, files, url};
use crate::moto::S3;

const TYPE: &str = "application/octet-stream";
const FOLDER: &str = "REGISTRY_TEST_FOLDER";
const URL: &str = "REGISTRY_TEST_URL";
const ENDPOINT: &str = "REGISTRY_TEST_ENDPOINT";
const MIB: usize = 1 << 20;

/// Runs an ignored test of this file in a process of its own, after some shell commands.
async fn run(test: &str, shell: &str, pool: &PgPool, folder: &std::path::Path) -> String {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{shell} exec \"$0\" --ignored --exact --nocapture faults::{test}"));
    command.arg(std::env::current_exe().unwrap()).env(FOLDER, folder).env(URL, url(pool));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

async fn child() -> (Registry, PgPool) {
    let [url, folder] = [URL, FOLDER].map(|name| std::env::var(name).expect("the other test sets it"));
    let pool = PgPool::connect(&url).await.unwrap();
    let place = match std::env::var(ENDPOINT) {
        Ok(_) => "s3://artifacts/x".parse().unwrap(),
        Err(_) => ArtifactPlace::Folder(folder.into()),
    };
    let options = S3Options {
        endpoint: std::env::var(ENDPOINT).ok(),
        allow_http: true,
        key: Some(S3Key { id: "key".into(), secret: "secret".into() }),
        ..S3Options::default()
    };
    let store = ArtifactStore::at(&place, &options, pool.clone()).unwrap();
    (Registry::new(pool.clone(), store), pool)
}

fn stream(mib: usize, seed: u8) -> impl futures::Stream<Item = io::Result<Bytes>> {
    futures::stream::iter((0..mib * 4).map(move |n| Ok(Bytes::from(vec![(n as u8) ^ seed; MIB / 4]))))
}

/// No file may grow over 12 MiB: what the kernel answers to a write beyond is as on a full disk.
#[sqlx::test(migrations = "../migrations")]
async fn a_full_disk_leaves_nothing(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    run("child_on_a_full_disk", "trap '' XFSZ; ulimit -f $((12 * 2048));", &pool, folder.path()).await;
    assert_eq!(files(folder.path()).len(), 1, "only what fitted");
    assert_eq!(count(&pool, "artifacts").await, 1);
}

#[tokio::test]
#[ignore = "run by another test"]
async fn child_on_a_full_disk() {
    let (registry, _) = child().await;
    let store = registry.artifacts();
    let streamed = store.put_stream(stream(40, 1), TYPE, None).await.unwrap_err();
    assert_eq!(streamed.code(), "storage_full", "{streamed:?}");
    let whole = store.put_bytes(vec![1; 20 * MIB], TYPE).await.unwrap_err();
    assert_eq!(whole.code(), "storage_full", "{whole:?}");
    assert!(whole.to_string().contains("weightsmith gc"));
    store.put_stream(stream(10, 2), TYPE, None).await.unwrap();
}

/// `REGISTRY_TEST_MIB=1024` for the measurement that the documentation quotes.
#[sqlx::test(migrations = "../migrations")]
async fn large_uploads_and_downloads_take_constant_memory(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let said = run("child_that_moves_much", "", &pool, folder.path()).await;
    println!("{said}");
    sqlx::query("TRUNCATE artifacts CASCADE").execute(&pool).await.unwrap();
    let s3 = S3::start("artifacts");
    let export = format!("export {ENDPOINT}=http://{};", s3.address);
    let said = run("child_that_moves_much", &export, &pool, folder.path()).await;
    println!("in a bucket: {said}");
}

#[tokio::test]
#[ignore = "run by another test"]
async fn child_that_moves_much() {
    let mib = std::env::var("REGISTRY_TEST_MIB").map_or(256, |text| text.parse().unwrap());
    let (registry, _) = child().await;
    registry.artifacts().put_bytes(&b"warm"[..], TYPE).await.unwrap();
    let before = peak_mib();
    let made = registry.artifacts().put_stream(stream(mib, 3), TYPE, None).await.unwrap();
    let uploaded = peak_mib();
    let mut reader = registry.artifacts().open(&made.digest, None).await.unwrap();
    let mut read = 0;
    while let Some(chunk) = reader.stream.try_next().await.unwrap() {
        read += chunk.len();
    }
    let both = peak_mib();
    println!("\n{mib} MiB: peak memory {before} MiB before, {uploaded} after the upload, {both} after the download");
    assert_eq!((read, made.size), (mib * MIB, (mib * MIB) as u64));
    assert!(both < before + 64, "{before} MiB before, {uploaded} after the upload, {both} after the download");
}

/// The most memory this process has had resident.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
