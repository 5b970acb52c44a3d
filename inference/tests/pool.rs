//! The session pool under contention and after a panic.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use inference::SessionPool;
use support::{forward, runtime};

#[test]
fn no_more_sessions_than_the_size_and_none_lost() {
    let pool = SessionPool::new(&runtime(2), "forward", forward()).unwrap();
    assert_eq!((pool.size(), pool.name()), (2, "forward"));
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let lease = pool.lease().unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(200));
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(lease);
                }
            });
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[test]
fn a_panic_gives_the_session_back() {
    let pool = SessionPool::new(&runtime(1), "forward", forward()).unwrap();
    assert_eq!(pool.size(), 1);
    for _ in 0..3 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _lease = pool.lease().unwrap();
            panic!("in the middle of a run");
        }));
        assert!(result.is_err());
    }
    // Would wait for ever if the only session were lost.
    drop(pool.lease().unwrap());
}

#[test]
fn the_pool_stays_small_on_many_cores() {
    let pool = SessionPool::new(&runtime(64), "forward", forward()).unwrap();
    assert_eq!(pool.size(), 4);
    assert_eq!(SessionPool::new(&runtime(1), "broken", *b"broken").unwrap_err().code(), "bundle_invalid");
}
