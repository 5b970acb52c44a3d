//! A small cache of things that are slow to load, by digest: least recently used ones go first, when there are too many or
//! they hold too much memory.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::error::Result;

type Cell<T> = Arc<OnceCell<Arc<T>>>;

/// At most `capacity` values, and at most `budget` bytes where there is more than one. Requests for the same value wait for
/// one load of it.
pub(crate) struct Cache<T> {
    capacity: usize,
    budget: u64,
    /// Bytes that a value holds.
    size: fn(&T) -> u64,
    /// Most recently used first; a handful, so a scan beats a map.
    entries: Mutex<Vec<(String, Cell<T>)>>,
}

impl<T> Cache<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self::sized(capacity, u64::MAX, |_| 0)
    }

    /// One whose values hold `size` bytes each, and together no more than `budget`.
    pub(crate) fn sized(capacity: usize, budget: u64, size: fn(&T) -> u64) -> Self {
        Self { capacity: capacity.max(1), budget, size, entries: Mutex::default() }
    }

    /// The value of a key, loaded when it is not there. A failed load is tried again by the next request.
    pub(crate) async fn get<F>(&self, key: &str, load: impl FnOnce() -> F) -> Result<Arc<T>>
    where
        F: Future<Output = Result<T>>,
    {
        let cell = self.cell(key);
        let load = || async {
            let value = load().await.map(Arc::new)?;
            self.make_room(key, (self.size)(&value));
            Ok(value)
        };
        let value = cell.get_or_try_init(load).await;
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

    /// Drops the least recently used of the other values until there is room for one of `bytes`.
    fn make_room(&self, key: &str, bytes: u64) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = self.budget.saturating_sub(bytes);
        entries.retain(|(known, cell)| {
            let held = cell.get().map_or(0, |value| (self.size)(value));
            if known != key && held > room {
                // What was used before it is no reason to keep what was used longer ago.
                room = 0;
                return held == 0;
            }
            room -= if known == key { 0 } else { held };
            true
        });
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
    async fn what_is_kept_fits_the_budget() {
        let cache = Cache::<u64>::sized(9, 100, |value| *value);
        let loads = AtomicUsize::new(0);
        let get = |size: u64| {
            let (cache, loads) = (&cache, &loads);
            async move {
                let load = || async {
                    loads.fetch_add(1, Ordering::SeqCst);
                    Ok(size)
                };
                *cache.get(&size.to_string(), load).await.unwrap()
            }
        };
        for size in [60, 30, 10, 60, 30, 10] {
            assert_eq!(get(size).await, size);
        }
        assert_eq!(loads.load(Ordering::SeqCst), 3, "all fit");
        // Room for 50 beside 10, 30 and 60: those used last stay.
        get(50).await;
        get(10).await;
        get(30).await;
        assert_eq!(loads.load(Ordering::SeqCst), 4);
        get(60).await;
        assert_eq!(loads.load(Ordering::SeqCst), 5);
        // One that is too large alone is kept, and nothing beside it.
        get(500).await;
        get(500).await;
        assert_eq!(loads.load(Ordering::SeqCst), 6);
        get(10).await;
        assert_eq!(loads.load(Ordering::SeqCst), 7);
    }

    #[tokio::test]
    async fn failures_are_not_kept() {
        let cache = Cache::<u8>::new(1);
        cache.get("good", || async { Ok(1) }).await.unwrap();
        assert!(cache.get("bad", || async { Err(Error::Cancelled) }).await.is_err());
        assert_eq!(*cache.get("bad", || async { Ok(2) }).await.unwrap(), 2);
    }
}
