//! Work on groups, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Calls `work` for each of `all`, in order, on as many threads as there are cores; on a GPU, which has one queue, on one.
///
/// # Errors
/// The first one of `work`; the other threads then stop at their next item.
pub(super) fn for_each<T: Send>(all: Vec<T>, work: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = if crate::device::current().is_cpu() { cores.min(all.len()) } else { 1 };
    let slots: Vec<Mutex<Option<T>>> = all.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let take = || slots.get(next.fetch_add(1, Ordering::Relaxed)).and_then(|slot| slot.lock().ok()?.take());
    let run = || {
        while let Some(item) = take() {
            if let Err(error) = work(item) {
                next.store(slots.len(), Ordering::Relaxed);
                if let Ok(mut slot) = failure.lock() {
                    slot.get_or_insert(error);
                }
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(run);
        }
    });
    match failure.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => Err(Error::Config("a zoo worker stopped without a word".into())),
    }
}
