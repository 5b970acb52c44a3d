//! Storing bytes.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::digest::{digest_of, key, temporary_key, written};
use super::{Artifact, ArtifactStore, CONCURRENT_WRITES};
use crate::{Error, Result};

/// Bytes read from a local file at a time.
const READ_CHUNK: usize = 1 << 20;
/// Parts of a multipart upload that may be under way.
const PARTS_UNDER_WAY: usize = 4;

impl ArtifactStore {
    /// Stores bytes that are in memory. Bytes that are there already are not written again.
    ///
    /// # Errors
    /// `storage` or `database`; nothing is recorded then.
    pub async fn put_bytes(&self, bytes: impl Into<Bytes>, media_type: &str) -> Result<Artifact> {
        let artifact = self.write_bytes(bytes.into(), media_type).await?;
        self.record(std::slice::from_ref(&artifact)).await?;
        Ok(artifact)
    }

    /// Stores many small pieces, several at a time, and records them in one statement. The answer is in their order.
    ///
    /// # Errors
    /// The first `storage` or `database` error; nothing is recorded then.
    pub async fn put_many(&self, pieces: Vec<Bytes>, media_type: &str) -> Result<Vec<Artifact>> {
        let artifacts: Vec<Artifact> = futures::stream::iter(pieces)
            .map(|piece| self.write_bytes(piece, media_type))
            .buffered(CONCURRENT_WRITES)
            .try_collect()
            .await?;
        self.record(&artifacts).await?;
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

    /// Stores a stream of bytes of at most `limit` bytes (`None`: no limit) without holding it in memory.
    ///
    /// # Errors
    /// `too_large`, `input` when the stream fails, `storage`, `database`; nothing is kept then.
    pub async fn put_stream<S>(&self, chunks: S, media_type: &str, limit: Option<u64>) -> Result<Artifact>
    where
        S: Stream<Item = io::Result<Bytes>>,
    {
        let incoming = temporary_key();
        let mut upload = WriteMultipart::new(self.store.put_multipart(&incoming).await?);
        let (digest, size) = match receive(chunks, limit, &mut upload).await {
            Ok(received) => received,
            Err(error) => {
                // The first failure is the one worth telling.
                let _ = upload.abort().await;
                return Err(error);
            }
        };
        upload.finish().await?;
        self.settle(&incoming, &key(&digest)?, size).await?;
        let artifact = Artifact { digest, size, media_type: media_type.into() };
        self.record(std::slice::from_ref(&artifact)).await?;
        Ok(artifact)
    }

    /// Moves complete bytes to their final key, or drops them when they are there already.
    async fn settle(&self, incoming: &Key, key: &Key, size: u64) -> Result<()> {
        if self.holds(key, size).await? {
            self.store.delete(incoming).await?;
        } else {
            self.store.rename(incoming, key).await?;
        }
        Ok(())
    }

    async fn write_bytes(&self, bytes: Bytes, media_type: &str) -> Result<Artifact> {
        let (digest, size) = (digest_of(&bytes), bytes.len() as u64);
        let key = key(&digest)?;
        if !self.holds(&key, size).await? {
            // A put is atomic: local stores write beside the key and rename, buckets publish whole objects.
            self.store.put(&key, PutPayload::from(bytes)).await?;
        }
        Ok(Artifact { digest, size, media_type: media_type.into() })
    }

    async fn holds(&self, key: &Key, size: u64) -> Result<bool> {
        match self.store.head(key).await {
            Ok(found) => Ok(found.size == size),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Passes the chunks on to the upload; returns their digest and size.
async fn receive<S>(chunks: S, limit: Option<u64>, upload: &mut WriteMultipart) -> Result<(String, u64)>
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
        upload.wait_for_capacity(PARTS_UNDER_WAY).await?;
        upload.put(chunk);
    }
    Ok((written(hash.finalize().as_slice()), size))
}
