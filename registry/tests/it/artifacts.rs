use std::io;

use bytes::Bytes;
use futures::TryStreamExt;
use registry::digest_of;
use sqlx::PgPool;

use crate::fixtures::{absent_digest, count, files, registry};

const TYPE: &str = "application/octet-stream";

#[sqlx::test(migrations = "../migrations")]
async fn round_trip_and_ranges(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let store = registry.artifacts();
    let made = store.put_bytes(&b"0123456789"[..], "text/plain").await.unwrap();
    assert_eq!(made.digest, digest_of(b"0123456789"));
    assert_eq!((made.size, made.media_type.as_str()), (10, "text/plain"));
    assert_eq!(store.stat(&made.digest).await.unwrap(), made);
    assert_eq!(store.read(&made.digest).await.unwrap(), &b"0123456789"[..]);
    assert_eq!(store.get_range(&made.digest, 2..5).await.unwrap(), &b"234"[..]);
    assert_eq!(store.get_range(&made.digest, 9..10).await.unwrap(), &b"9"[..]);
    for range in [(5, 5), (6, 5), (0, 11), (10, 11)] {
        let refused = store.get_range(&made.digest, range.0..range.1).await.unwrap_err();
        assert_eq!(refused.code(), "invalid_range", "{range:?}");
    }
    let empty = store.put_bytes(Bytes::new(), TYPE).await.unwrap();
    assert_eq!(store.read(&empty.digest).await.unwrap(), Bytes::new());
}

#[sqlx::test(migrations = "../migrations")]
async fn the_same_bytes_are_one_file_and_one_row(pool: PgPool) {
    let (registry, directory) = registry(pool.clone());
    let store = registry.artifacts();
    let first = store.put_bytes(&b"same"[..], "text/plain").await.unwrap();
    let again = store.put_bytes(&b"same"[..], "text/plain").await.unwrap();
    let chunks = futures::stream::iter([Ok(Bytes::from("sa")), Ok(Bytes::from("me"))]);
    let streamed = store.put_stream(chunks, "text/plain", Some(4)).await.unwrap();
    let many = store.put_many(vec!["same".into(); 50], "text/plain").await.unwrap();
    assert!(again == first && streamed == first && many.iter().all(|made| *made == first));
    let hex = first.digest.strip_prefix("sha256:").unwrap();
    let expected = directory.path().join("sha256").join(&hex[..2]).join(&hex[2..]);
    assert_eq!(files(directory.path()), [expected.display().to_string()]);
    assert_eq!(count(&pool, "artifacts").await, 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn large_files_are_streamed_both_ways(pool: PgPool) {
    let (registry, directory) = registry(pool);
    let store = registry.artifacts();
    let content: Vec<u8> = (0..12_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (source, copy) = (directory.path().join("source"), directory.path().join("copy"));
    std::fs::write(&source, &content).unwrap();
    let made = store.put_file(&source, "application/x-tar").await.unwrap();
    assert_eq!((made.size, made.digest.clone()), (12_000_000, digest_of(&content)));

    let reader = store.open(&made.digest, Some(3_000_000..9_000_000)).await.unwrap();
    assert_eq!(reader.range, 3_000_000..9_000_000);
    let chunks: Vec<Bytes> = reader.stream.try_collect().await.unwrap();
    assert!(chunks.len() > 1, "in pieces");
    assert!(chunks.concat() == content[3_000_000..9_000_000]);

    store.save(&made.digest, &copy).await.unwrap();
    assert!(std::fs::read(&copy).unwrap() == content);
    assert_eq!(files(directory.path()).len(), 3, "no temporary file stays");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_failed_upload_leaves_nothing(pool: PgPool) {
    let (registry, directory) = registry(pool.clone());
    let store = registry.artifacts();
    let chunks = || [Ok(Bytes::from("abc")), Ok(Bytes::from("def"))];
    let large = store.put_stream(futures::stream::iter(chunks()), TYPE, Some(5)).await.unwrap_err();
    assert_eq!(large.code(), "too_large");
    let broken = [Ok(Bytes::from("abc")), Err(io::Error::other("gone"))];
    let broken = store.put_stream(futures::stream::iter(broken), TYPE, None).await.unwrap_err();
    assert_eq!(broken.code(), "input");
    let missing = store.put_file(&directory.path().join("nothing"), TYPE).await.unwrap_err();
    assert_eq!(missing.code(), "io");
    assert_eq!(files(directory.path()), Vec::<String>::new());
    assert_eq!(count(&pool, "artifacts").await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_file_without_a_row_is_adopted(pool: PgPool) {
    let (registry, directory) = registry(pool.clone());
    let store = registry.artifacts();
    let made = store.put_bytes(&b"orphan"[..], TYPE).await.unwrap();
    sqlx::query("DELETE FROM artifacts").execute(&pool).await.unwrap();
    assert!(!store.exists(&made.digest).await.unwrap(), "without a row it is not there");
    assert_eq!(store.read(&made.digest).await.unwrap_err().code(), "artifact_missing");
    store.put_bytes(&b"orphan"[..], TYPE).await.unwrap();
    assert!(store.exists(&made.digest).await.unwrap());
    assert_eq!(files(directory.path()).len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn missing_and_damaged_files_are_told_apart_and_healed(pool: PgPool) {
    let (registry, directory) = registry(pool);
    let store = registry.artifacts();
    let made = store.put_bytes(&b"precious"[..], TYPE).await.unwrap();
    let path = files(directory.path()).remove(0);
    let target = directory.path().join("copy");

    std::fs::write(&path, b"precioux").unwrap();
    assert_eq!(store.read(&made.digest).await.unwrap_err().code(), "artifact_corrupt");
    assert_eq!(store.save(&made.digest, &target).await.unwrap_err().code(), "artifact_corrupt");
    assert!(!target.exists() && files(directory.path()).len() == 1);
    std::fs::write(&path, b"short").unwrap();
    assert_eq!(store.read(&made.digest).await.unwrap_err().code(), "artifact_corrupt");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(store.read(&made.digest).await.unwrap_err().code(), "artifact_missing");

    store.put_bytes(&b"precious"[..], TYPE).await.unwrap();
    assert_eq!(store.read(&made.digest).await.unwrap(), &b"precious"[..]);
    assert_eq!(store.stat(&absent_digest()).await.unwrap_err().code(), "artifact_missing");
    assert_eq!(store.exists("../../etc/passwd").await.unwrap_err().code(), "invalid_value");
}
