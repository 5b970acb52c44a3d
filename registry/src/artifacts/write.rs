//! Storing bytes.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::digest::{digest_of, key, written};
use super::upload::{PART, Received, Upload};
use super::{Artifact, ArtifactStore, BUCKET_LIMIT, Backend, CONCURRENT_WRITES};
use crate::{Error, Result};

/// Bytes read from a local file at a time.
const READ_CHUNK: usize = 1 << 20;

impl ArtifactStore {
    /// Stores bytes that are in memory. Bytes that are there already are not written again.
    ///
    /// # Errors
    /// `storage` or `database`; nothing is recorded then.
    pub async fn put_bytes(&self, bytes: impl Into<Bytes>, media_type: &str) -> Result<Artifact> {
        let bytes = bytes.into();
        let artifact = described(&bytes, media_type);
        self.put_digested(artifact, bytes).await
    }

    /// Stores many small pieces, several at a time, and records them in one statement. The answer is in their order.
    ///
    /// # Errors
    /// The first `storage` or `database` error; nothing is recorded then.
    pub async fn put_many(&self, pieces: Vec<Bytes>, media_type: &str) -> Result<Vec<Artifact>> {
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let artifacts: Vec<Artifact> = pieces.iter().map(|piece| described(piece, media_type)).collect();
        let settling = self.settling(artifacts.iter().map(|artifact| artifact.digest.as_str())).await?;
        let writes = artifacts.iter().cloned().zip(pieces).collect::<Vec<_>>();
        futures::stream::iter(writes)
            .map(|(artifact, piece)| self.write_bytes(artifact, piece))
            .buffer_unordered(CONCURRENT_WRITES)
            .try_collect::<()>()
            .await?;
        settling.record(&artifacts).await?;
        Ok(artifacts)
    }

    /// Stores a local file without holding it in memory.
    ///
    /// # Errors
    /// `io` when the file cannot be opened, `input` when it cannot be read to its end, `storage`, `database`.
    pub async fn put_file(&self, path: &Path, media_type: &str) -> Result<Artifact> {
        let file = tokio::fs::File::open(path).await.map_err(Error::io(path))?;
        let chunks = futures::stream::try_unfold(file, |mut file| async move {
            let mut chunk = Vec::with_capacity(READ_CHUNK);
            let read = (&mut file).take(READ_CHUNK as u64).read_to_end(&mut chunk).await?;
            Ok::<_, io::Error>((read > 0).then(|| (Bytes::from(chunk), file)))
        });
        self.put_stream(chunks, media_type, None).await
    }

    /// Stores a stream of bytes of at most `limit` bytes (`None`: no limit but the 5 GiB of a bucket) without holding
    /// it in memory: at most 24 MiB of it at a time.
    ///
    /// # Errors
    /// `too_large`, `input` when the stream fails, `storage`, `database`; nothing is kept then.
    pub async fn put_stream<S>(&self, chunks: S, media_type: &str, limit: Option<u64>) -> Result<Artifact>
    where
        S: Stream<Item = io::Result<Bytes>>,
    {
        let limit = match self.backend {
            Backend::Bucket(_) => Some(limit.unwrap_or(BUCKET_LIMIT).min(BUCKET_LIMIT)),
            Backend::Folder(_) | Backend::Other => limit,
        };
        let mut upload = Upload::new(self);
        let (digest, size) = match receive(chunks, limit, &mut upload).await {
            Ok(received) => received,
            Err(error) => {
                upload.abort().await;
                return Err(error);
            }
        };
        let artifact = Artifact { digest, size, media_type: media_type.into() };
        match upload.finish().await? {
            Received::Bytes(bytes) => self.put_digested(artifact, bytes).await,
            Received::Key(incoming) => {
                let settled = self.settle(&incoming, artifact).await;
                if settled.is_err() {
                    self.drop_incoming(&incoming).await;
                }
                settled
            }
        }
    }

    /// Writes the file of an artifact whose row comes later, and compares it with its digest: for a restore.
    pub(crate) async fn adopt(&self, path: &Path, digest: &str) -> Result<()> {
        let mut file = tokio::fs::File::open(path).await.map_err(Error::io(path))?;
        // Complete at once, or not there.
        let mut upload = WriteMultipart::new_with_chunk_size(self.store.put_multipart(&key(digest)?).await?, PART);
        let mut hash = Sha256::new();
        loop {
            let mut chunk = Vec::with_capacity(READ_CHUNK);
            (&mut file).take(READ_CHUNK as u64).read_to_end(&mut chunk).await.map_err(Error::io(path))?;
            if chunk.is_empty() {
                break;
            }
            hash.update(&chunk);
            upload.wait_for_capacity(2).await?;
            upload.put(chunk.into());
        }
        if written(hash.finalize().as_slice()) != digest {
            let _ = upload.abort().await;
            return Err(Error::ArtifactCorrupt { digest: digest.into() });
        }
        upload.finish().await?;
        Ok(())
    }

    /// Moves complete bytes to their final key, or drops them when they are there already, and writes their row.
    async fn settle(&self, incoming: &Key, artifact: Artifact) -> Result<Artifact> {
        let key = key(&artifact.digest)?;
        let settling = self.settling(std::iter::once(artifact.digest.as_str())).await?;
        let held = self.holds(&key, artifact.size).await?;
        if !held {
            self.store.rename(incoming, &key).await?;
        }
        settling.record(std::slice::from_ref(&artifact)).await?;
        if held {
            self.drop_incoming(incoming).await;
        }
        Ok(artifact)
    }

    /// Removes bytes under a temporary key; `gc` does it when that is not possible now.
    async fn drop_incoming(&self, incoming: &Key) {
        match self.store.delete(incoming).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(%error, key = %incoming, "an upload's bytes were not removed: gc will"),
        }
    }

    async fn put_digested(&self, artifact: Artifact, bytes: Bytes) -> Result<Artifact> {
        let settling = self.settling(std::iter::once(artifact.digest.as_str())).await?;
        self.write_bytes(artifact.clone(), bytes).await?;
        settling.record(std::slice::from_ref(&artifact)).await?;
        Ok(artifact)
    }

    async fn write_bytes(&self, artifact: Artifact, bytes: Bytes) -> Result<()> {
        let key = key(&artifact.digest)?;
        if !self.holds(&key, artifact.size).await? {
            // A put is atomic: local stores write beside the key and rename, buckets publish whole objects.
            self.store.put(&key, PutPayload::from(bytes)).await?;
        }
        Ok(())
    }

    async fn holds(&self, key: &Key, size: u64) -> Result<bool> {
        match self.store.head(key).await {
            Ok(found) => Ok(found.size == size),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn described(bytes: &Bytes, media_type: &str) -> Artifact {
    Artifact { digest: digest_of(bytes), size: bytes.len() as u64, media_type: media_type.into() }
}

/// Passes the chunks on to the upload; returns their digest and size.
async fn receive<S>(chunks: S, limit: Option<u64>, upload: &mut Upload) -> Result<(String, u64)>
where
    S: Stream<Item = io::Result<Bytes>>,
{
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    futures::pin_mut!(chunks);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(Error::Input)?;
        size += chunk.len() as u64;
        if let Some(limit) = limit.filter(|limit| size > *limit) {
            return Err(Error::TooLarge { limit });
        }
        hash.update(&chunk);
        upload.put(chunk).await?;
    }
    Ok((written(hash.finalize().as_slice()), size))
}
