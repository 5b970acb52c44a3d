//! Bytes on their way in, whose digest is not known yet.

use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use sqlx::PgPool;
use tokio::task::JoinSet;

use super::digest::temporary_key;
use super::{ArtifactStore, Backend};
use crate::{Error, Result};

/// Bytes of a part; a bucket takes 10,000 of them. What is smaller than one part is kept in memory and written whole.
pub(super) const PART: usize = 8 << 20;
/// Parts of an upload that may be under way: with the one that is being filled, what an upload holds in memory.
const PARTS_UNDER_WAY: usize = 2;
/// What a local file is written in, and how many writes may be under way.
const WRITE: usize = 1 << 20;
const WRITES_UNDER_WAY: usize = 4;

/// Where the bytes of an upload are once all have come.
pub(super) enum Received {
    /// In memory.
    Bytes(Bytes),
    /// Under a temporary key.
    Key(Key),
}

/// An upload under way.
pub(super) struct Upload {
    store: ArtifactStore,
    /// Not yet written: less than a part.
    held: Vec<Bytes>,
    held_size: usize,
    sink: Option<(Key, Sink)>,
}

enum Sink {
    File(WriteMultipart),
    Bucket(Parts),
}

impl Upload {
    pub(super) fn new(store: &ArtifactStore) -> Self {
        Self { store: store.clone(), held: Vec::new(), held_size: 0, sink: None }
    }

    /// Takes the next bytes; waits while too many are under way.
    pub(super) async fn put(&mut self, mut chunk: Bytes) -> Result<()> {
        while self.held_size + chunk.len() >= PART {
            self.hold(chunk.split_to(PART - self.held_size));
            self.flush().await?;
        }
        self.hold(chunk);
        Ok(())
    }

    fn hold(&mut self, chunk: Bytes) {
        self.held_size += chunk.len();
        self.held.push(chunk);
    }

    /// Writes what is held.
    async fn flush(&mut self) -> Result<()> {
        if self.sink.is_none() {
            let key = temporary_key();
            let sink = self.store.sink(&key).await?;
            self.sink = Some((key, sink));
        }
        let held = std::mem::take(&mut self.held);
        self.held_size = 0;
        match &mut self.sink {
            Some((_, Sink::File(file))) => {
                for chunk in held {
                    file.wait_for_capacity(WRITES_UNDER_WAY).await?;
                    file.put(chunk);
                }
            }
            Some((_, Sink::Bucket(parts))) => parts.put(held).await?,
            None => {}
        }
        Ok(())
    }

    /// All bytes have come.
    pub(super) async fn finish(mut self) -> Result<Received> {
        if self.sink.is_none() {
            return Ok(Received::Bytes(joined(self.held)));
        }
        if self.held_size > 0
            && let Err(error) = self.flush().await
        {
            self.abort().await;
            return Err(error);
        }
        match self.sink {
            Some((key, Sink::File(file))) => file.finish().await.map(|_| Received::Key(key)).map_err(Error::from),
            Some((key, Sink::Bucket(parts))) => parts.finish().await.map(|()| Received::Key(key)),
            None => Ok(Received::Bytes(Bytes::new())),
        }
    }

    /// Drops what has come. The failure that led here is the one worth telling, so this has none.
    pub(super) async fn abort(self) {
        match self.sink {
            Some((_, Sink::File(file))) => drop(file.abort().await),
            Some((_, Sink::Bucket(parts))) => parts.abort().await,
            None => {}
        }
    }
}

fn joined(mut held: Vec<Bytes>) -> Bytes {
    if held.len() == 1 { held.pop().unwrap_or_default() } else { held.concat().into() }
}

impl ArtifactStore {
    async fn sink(&self, key: &Key) -> Result<Sink> {
        match &self.backend {
            Backend::Bucket(store) => {
                Ok(Sink::Bucket(Parts::begin(Arc::clone(store), self.pool.clone(), key.clone()).await?))
            }
            Backend::Folder(_) | Backend::Other => {
                let upload = self.store.put_multipart(key).await?;
                Ok(Sink::File(WriteMultipart::new_with_chunk_size(upload, WRITE)))
            }
        }
    }
}

/// An upload in parts to a bucket, noted in the database: a bucket does not list what was cut off.
struct Parts {
    store: Arc<dyn MultipartStore>,
    pool: PgPool,
    key: Key,
    id: String,
    next: usize,
    under_way: JoinSet<Result<(usize, PartId)>>,
    done: Vec<(usize, PartId)>,
}

impl Parts {
    async fn begin(store: Arc<dyn MultipartStore>, pool: PgPool, key: Key) -> Result<Self> {
        let id = store.create_multipart(&key).await?;
        let parts = Self { store, pool, key, id, next: 0, under_way: JoinSet::new(), done: Vec::new() };
        let noted = sqlx::query("INSERT INTO uploads (key, upload_id) VALUES ($1, $2)")
            .bind(parts.key.as_ref())
            .bind(&parts.id)
            .execute(&parts.pool)
            .await;
        match noted {
            Ok(_) => Ok(parts),
            Err(error) => {
                parts.abort().await;
                Err(error.into())
            }
        }
    }

    async fn put(&mut self, chunks: Vec<Bytes>) -> Result<()> {
        while self.under_way.len() >= PARTS_UNDER_WAY {
            self.wait_for_one().await?;
        }
        let (store, key, id, index) = (Arc::clone(&self.store), self.key.clone(), self.id.clone(), self.next);
        self.next += 1;
        self.under_way.spawn(async move {
            let part = store.put_part(&key, &id, index, PutPayload::from_iter(chunks)).await?;
            Ok((index, part))
        });
        Ok(())
    }

    async fn wait_for_one(&mut self) -> Result<()> {
        match self.under_way.join_next().await {
            None => {}
            Some(Ok(part)) => self.done.push(part?),
            Some(Err(error)) => return Err(Error::Input(std::io::Error::other(error))),
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            if let Err(error) = self.wait_for_one().await {
                self.abort().await;
                return Err(error);
            }
        }
        let mut parts = std::mem::take(&mut self.done);
        parts.sort_by_key(|(index, _)| *index);
        let parts = parts.into_iter().map(|(_, part)| part).collect();
        match self.store.complete_multipart(&self.key, &self.id, parts).await {
            Ok(_) => {
                self.forget().await;
                Ok(())
            }
            Err(error) => {
                self.abort().await;
                Err(error.into())
            }
        }
    }

    /// Drops the parts; when that is not possible now, the note stays and `gc` does it.
    async fn abort(mut self) {
        self.under_way.shutdown().await;
        match self.store.abort_multipart(&self.key, &self.id).await {
            Ok(()) => self.forget().await,
            Err(error) => tracing::warn!(%error, key = %self.key, "an upload was not aborted: gc will"),
        }
    }

    async fn forget(&self) {
        let forgotten =
            sqlx::query("DELETE FROM uploads WHERE key = $1").bind(self.key.as_ref()).execute(&self.pool).await;
        if let Err(error) = forgotten {
            tracing::warn!(%error, key = %self.key, "an upload that has ended is still noted: gc will forget it");
        }
    }
}
