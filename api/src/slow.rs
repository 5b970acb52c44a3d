//! Bodies that stop coming, and requests that take too long.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};

/// How far the body of a request has come.
pub(crate) struct Progress {
    last: Mutex<Instant>,
    stalled: AtomicBool,
    bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { last: Mutex::new(Instant::now()), stalled: AtomicBool::new(false), bytes: AtomicU64::new(0) })
    }

    /// Whether the body stopped coming.
    pub(crate) fn stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    /// Bytes of the body that came so far.
    pub(crate) fn received(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Runs `work` for at most `limit` after the body's last piece came: a long upload may take its time.
pub(crate) async fn limited<F: Future>(limit: Duration, progress: &Progress, work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    loop {
        let deadline = progress.last() + limit;
        match tokio::time::timeout_at(deadline, &mut work).await {
            Ok(output) => return Some(output),
            Err(_) if progress.last() + limit > Instant::now() => {}
            Err(_) => return None,
        }
    }
}

/// A body that fails when it is waited for and nothing comes for as long as `patience`.
pub(crate) fn watched(body: Body, patience: Duration, progress: Arc<Progress>) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let sleep = Box::pin(tokio::time::sleep(patience));
    Body::from_stream(Watched { chunks: body.into_data_stream(), sleep, waiting: false, patience, progress })
}

struct Watched {
    chunks: BodyDataStream,
    sleep: Pin<Box<Sleep>>,
    /// Whether the sleep counts: only while somebody wants to read.
    waiting: bool,
    patience: Duration,
    progress: Arc<Progress>,
}

impl Stream for Watched {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(chunk) = self.chunks.poll_next_unpin(context) {
            self.waiting = false;
            self.progress.touch();
            if let Some(Ok(bytes)) = &chunk {
                self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            return Poll::Ready(chunk);
        }
        if !self.waiting {
            self.waiting = true;
            let deadline = Instant::now() + self.patience;
            self.sleep.as_mut().reset(deadline);
        }
        if self.sleep.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.waiting = false;
        self.progress.stalled.store(true, Ordering::Release);
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))))
    }
}
