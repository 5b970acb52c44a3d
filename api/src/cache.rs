//! A small cache of things that are slow to load, by digest: least recently used ones go first.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::error::Result;

type Cell<T> = Arc<OnceCell<Arc<T>>>;

/// At most `capacity` values. Requests for the same value wait for one load of it.
pub(crate) struct Cache<T> {
    capacity: usize,
    /// Most recently used first; a handful, so a scan beats a map.
    entries: Mutex<Vec<(String, Cell<T>)>>,
}

impl<T> Cache<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), entries: Mutex::default() }
    }

    /// The value of a key, loaded when it is not there. A failed load is tried again by the next request.
    pub(crate) async fn get<F>(&self, key: &str, load: impl FnOnce() -> F) -> Result<Arc<T>>
    where
        F: Future<Output = Result<T>>,
    {
        let cell = self.cell(key);
        let value = cell.get_or_try_init(|| async { load().await.map(Arc::new) }).await;
        if value.is_err() {
            self.forget(key, &cell);
        }
        value.cloned()
    }

    fn cell(&self, key: &str) -> Cell<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().position(|(known, _)| known == key).map(|at| entries.remove(at));
        let entry = found.unwrap_or_else(|| (key.to_owned(), Cell::default()));
        let cell = entry.1.clone();
        entries.insert(0, entry);
        entries.truncate(self.capacity);
        cell
    }

    /// Drops an entry that holds nothing, so that failures do not push out what is of use.
    fn forget(&self, key: &str, cell: &Cell<T>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(known, held)| known != key || !Arc::ptr_eq(held, cell) || held.initialized());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Error;

    #[tokio::test]
    async fn loads_once_and_keeps_the_recent() {
        let cache = Cache::<String>::new(2);
        let loads = AtomicUsize::new(0);
        let get = |key: &'static str| {
            let (cache, loads) = (&cache, &loads);
            async move {
                let load = || async {
                    loads.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    Ok(key.to_uppercase())
                };
                cache.get(key, load).await.unwrap()
            }
        };
        let (a, b) = tokio::join!(get("a"), get("a"));
        assert!(Arc::ptr_eq(&a, &b) && a.as_str() == "A");
        for key in ["b", "a", "c", "a"] {
            get(key).await;
        }
        assert_eq!(loads.load(Ordering::SeqCst), 3, "a stayed, b went");
        get("b").await;
        assert_eq!(loads.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn failures_are_not_kept() {
        let cache = Cache::<u8>::new(1);
        cache.get("good", || async { Ok(1) }).await.unwrap();
        assert!(cache.get("bad", || async { Err(Error::Cancelled) }).await.is_err());
        assert_eq!(*cache.get("bad", || async { Ok(2) }).await.unwrap(), 2);
    }
}
