//! Reading bytes back.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::digest::{key, written};
use super::{Artifact, ArtifactStore};
use crate::{Error, Result};

/// Bytes of a local file that are read at a time.
const PIECE: usize = 512 << 10;
/// Pieces of a local file that are read ahead.
const PIECES_AHEAD: usize = 3;

/// An artifact's bytes, or a range of them, as a stream.
pub struct ArtifactReader {
    /// The whole artifact.
    pub artifact: Artifact,
    /// The bytes the stream gives.
    pub range: Range<u64>,
    /// The bytes, in chunks.
    pub stream: BoxStream<'static, Result<Bytes>>,
}

impl ArtifactStore {
    /// Opens an artifact, whole or a range of bytes that lies inside it.
    ///
    /// # Errors
    /// `artifact_missing`, `invalid_range`, `storage`, `database`.
    pub async fn open(&self, digest: &str, range: Option<Range<u64>>) -> Result<ArtifactReader> {
        let artifact = self.stat(digest).await?;
        let range = check_range(range, artifact.size)?;
        if range.is_empty() {
            return Ok(ArtifactReader { artifact, range, stream: futures::stream::empty().boxed() });
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = match self.store.get_opts(&key(digest)?, options).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { path, source }) => {
                tracing::error!(%digest, %path, %source, "the row of an artifact has no file");
                return Err(Error::ArtifactMissing { digest: digest.into() });
            }
            Err(error) => return Err(error.into()),
        };
        if found.meta.size != artifact.size {
            return Err(Error::ArtifactCorrupt { digest: digest.into() });
        }
        let stream = match found.payload {
            GetResultPayload::File(file, _) => from_file(file, range.clone()).boxed(),
            GetResultPayload::Stream(chunks) => chunks.map_err(Error::from).boxed(),
        };
        Ok(ArtifactReader { artifact, range, stream })
    }

    /// A range of an artifact's bytes, in memory.
    ///
    /// # Errors
    /// As [`ArtifactStore::open`].
    pub async fn get_range(&self, digest: &str, range: Range<u64>) -> Result<Bytes> {
        collect(self.open(digest, Some(range)).await?).await
    }

    /// All of an artifact's bytes, in memory, after comparing them with the digest.
    ///
    /// # Errors
    /// As [`ArtifactStore::open`], and `artifact_corrupt` when the bytes are not those of the digest.
    pub async fn read(&self, digest: &str) -> Result<Bytes> {
        let bytes = collect(self.open(digest, None).await?).await?;
        if super::digest_of(&bytes) == digest {
            Ok(bytes)
        } else {
            Err(Error::ArtifactCorrupt { digest: digest.into() })
        }
    }

    /// Copies an artifact to a local file: written beside `path`, compared with the digest, then renamed to it.
    ///
    /// # Errors
    /// As [`ArtifactStore::read`], and `io`; `path` is unchanged then.
    pub async fn save(&self, digest: &str, path: &Path) -> Result<()> {
        let reader = self.open(digest, None).await?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.{}.part", Uuid::now_v7()));
        let saved = match copy(reader, &partial).await {
            Ok(found) if found == digest => tokio::fs::rename(&partial, path).await.map_err(Error::io(path)),
            Ok(_) => Err(Error::ArtifactCorrupt { digest: digest.into() }),
            Err(error) => Err(error),
        };
        if saved.is_err() {
            // It may not have come to exist; the error that stopped it is the one to tell.
            let _ = tokio::fs::remove_file(&partial).await;
        }
        saved
    }
}

/// A range of a local file in large pieces, the next ones read while one is on its way: the store's own stream reads 8
/// KiB at a time, which costs a download most of its speed.
fn from_file(file: std::fs::File, range: Range<u64>) -> impl Stream<Item = Result<Bytes>> {
    let file = Arc::new(file);
    let size = |start: u64| usize::try_from(range.end - start).unwrap_or(PIECE).min(PIECE);
    let pieces: Vec<(u64, usize)> = range.clone().step_by(PIECE).map(|start| (start, size(start))).collect();
    let read = move |(start, size)| {
        let file = file.clone();
        async move {
            let piece = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; size];
                file.read_exact_at(&mut piece, start).map(|()| Bytes::from(piece))
            });
            piece.await.map_err(std::io::Error::other).and_then(|read| read).map_err(Error::io("an artifact's file"))
        }
    };
    futures::stream::iter(pieces).map(read).buffered(PIECES_AHEAD)
}

fn check_range(range: Option<Range<u64>>, size: u64) -> Result<Range<u64>> {
    match range {
        None => Ok(0..size),
        Some(range) if range.start < range.end && range.end <= size => Ok(range),
        Some(Range { start, end }) => Err(Error::InvalidRange { start, end, size }),
    }
}

async fn collect(mut reader: ArtifactReader) -> Result<Bytes> {
    let size = usize::try_from(reader.range.end - reader.range.start).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.stream.try_next().await? {
        if bytes.is_empty() && chunk.len() == size {
            return Ok(chunk);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Writes the stream to a new file; returns the digest of what was written.
async fn copy(mut reader: ArtifactReader, path: &Path) -> Result<String> {
    let mut file = tokio::fs::File::create_new(path).await.map_err(Error::io(path))?;
    let mut hash = Sha256::new();
    while let Some(chunk) = reader.stream.try_next().await? {
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(Error::io(path))?;
    }
    file.sync_all().await.map_err(Error::io(path))?;
    Ok(written(hash.finalize().as_slice()))
}
