//! Buffers that are used again step after step: memory fresh from the system is cleared page by page when it is first
//! touched, which took a seventh of a step.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

/// Buffers of a network that nothing holds at the moment, by length. A clone is the same pool.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Mutex<BTreeMap<usize, Vec<Vec<f32>>>>>);

impl Pool {
    /// A buffer of `len` values, left over from whatever used it before.
    pub fn take(&self, len: usize) -> Buffer {
        let free = self.0.lock().ok().and_then(|mut free| free.get_mut(&len)?.pop());
        Buffer { data: free.unwrap_or_else(|| vec![0.0; len]), pool: self.clone() }
    }

    /// A buffer of `len` zeros.
    pub fn zeros(&self, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// A buffer with these values.
    pub fn copy(&self, values: &[f32]) -> Buffer {
        let mut buffer = self.take(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

/// Values that go back to their pool when this is dropped.
#[derive(Debug)]
pub struct Buffer {
    data: Vec<f32>,
    pool: Pool,
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut free) = self.pool.0.lock() {
            free.entry(self.data.len()).or_default().push(std::mem::take(&mut self.data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_used_again() {
        let pool = Pool::default();
        let mut first = pool.copy(&[1.0, 2.0]);
        first[0] = 3.0;
        let at = first.as_ptr();
        assert_ne!(pool.clone().zeros(2).as_ptr(), at);
        drop(first);
        let (again, other) = (pool.zeros(2), pool.take(3));
        assert_eq!((again.as_ptr(), &*again, other.len()), (at, &[0.0, 0.0][..], 3));
    }
}
