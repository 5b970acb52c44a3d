//! How much work is done at a time, and how much may wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::envelope::panic_text;
use crate::error::{Error, Result};
use crate::metrics;

/// Places for blocking work, and a queue before them.
pub(crate) struct Work {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
    size: usize,
}

/// How much of [`Work`] is in use.
pub(crate) struct Usage {
    /// Requests that wait.
    pub(crate) waiting: usize,
    /// Requests that may wait.
    pub(crate) queue: usize,
    /// Requests that may work at a time.
    pub(crate) places: usize,
    /// Requests that work.
    pub(crate) busy: usize,
}

/// A place for blocking work, given back when dropped.
pub(crate) struct Place(#[allow(dead_code)] OwnedSemaphorePermit);

/// Counts a waiting request until it is dropped.
struct Waiting<'w>(&'w AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Work {
    pub(crate) fn new(places: usize, queue: usize) -> Self {
        let size = places.max(1);
        Self { places: Arc::new(Semaphore::new(size)), waiting: AtomicUsize::new(0), queue, size }
    }

    /// How much of it is in use.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            waiting: self.waiting.load(Ordering::Acquire),
            queue: self.queue,
            places: self.size,
            busy: self.size.saturating_sub(self.places.available_permits()),
        }
    }

    /// A place, after waiting for one when there is room in the queue.
    pub(crate) async fn place(&self) -> Result<Place> {
        let begin = std::time::Instant::now();
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            metrics::waited(begin.elapsed());
            return Ok(Place(permit));
        }
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiting = Waiting(&self.waiting);
        if before >= self.queue {
            return Err(Error::Busy(self.queue));
        }
        let permit = self.places.clone().acquire_owned().await;
        metrics::waited(begin.elapsed());
        permit.map(Place).map_err(|_| Error::Internal("the work queue is closed".into()))
    }
}

/// Tells blocking work that nobody waits for it any more.
#[derive(Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// One that others set.
    pub(crate) fn of(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Sets its [`Cancel`] when the request that holds it ends, however it ends.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs blocking work on its place; the place is free when the work has really ended. When the request goes away, the
/// work's [`Cancel`] is set.
pub(crate) async fn run<T: Send + 'static>(
    place: Place,
    work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
) -> Result<T> {
    let cancel = Cancel::default();
    let _guard = CancelOnDrop(cancel.clone());
    blocking(move || {
        let _place = place;
        work(&cancel)
    })
    .await
}

/// Runs blocking code on a thread where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(join) => Err(match join.try_into_panic() {
            Ok(panic) => Error::Internal(format!("work panicked: {}", panic_text(&*panic))),
            Err(_) => Error::Cancelled,
        }),
    }
}

/// Refuses a name that the registry would refuse, before anything is stored under it.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match name.as_bytes() {
        [begin, rest @ ..] if first(*begin) && rest.len() < 100 && rest.iter().all(|b| inner(*b)) => Ok(()),
        _ => {
            let name = name.chars().take(120).collect();
            Err(Error::from(registry::Error::InvalidName { name, also: "" }).in_field("name"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_has_an_end() {
        let work = Work::new(1, 1);
        let first = work.place().await.unwrap();
        let mut second = Box::pin(work.place());
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(work.place().await.err().unwrap().code(), "busy");
        drop(first);
        let second = second.await.unwrap();
        let third = work.place();
        let mut third = Box::pin(third);
        assert!(futures::poll!(&mut third).is_pending(), "the queue has room again");
        drop(third);
        drop(second);
        assert!(work.place().await.is_ok());
    }

    #[tokio::test]
    async fn abandoned_work_is_told() {
        let work = Work::new(1, 0);
        let place = work.place().await.unwrap();
        let (started, begun) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(run(place, move |cancel| {
            started.send(()).unwrap();
            while !cancel.is_set() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            cancel.check()
        }));
        begun.await.unwrap();
        assert!(work.place().await.is_err());
        task.abort();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while work.place().await.is_err() {
                tokio::task::yield_now().await;
            }
        });
        waited.await.expect("the place comes back");
    }

    #[tokio::test]
    async fn a_panic_of_work_is_an_error() {
        let error = blocking::<()>(|| panic!("oh no")).await.unwrap_err();
        assert!(error.to_string().contains("oh no") && error.code() == "internal");
    }

    #[test]
    fn names() {
        for good in ["a", "0", "digits-mlp_2", &"x".repeat(100)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a b", "a@b", &"x".repeat(101)] {
            assert_eq!(check_name(bad).unwrap_err().code(), "invalid_name", "{bad}");
        }
    }
}
