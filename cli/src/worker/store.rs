//! The files of a training under way, in the registry: another machine finds them.

use bytes::Bytes;
use registry::jobs::work::Claim;
use registry::{Registry, jobs};
use tokio::runtime::Handle;
use training::snapshots::Snapshots;
use training::{Error, Result};

/// Snapshots of one attempt. To be used on threads that may block.
pub struct JobStore {
    registry: Registry,
    claim: Claim,
    handle: Handle,
}

impl JobStore {
    /// The store of an attempt; to be made on the async runtime.
    pub fn new(registry: &Registry, claim: Claim) -> Self {
        Self { registry: registry.clone(), claim, handle: Handle::current() }
    }

    fn wait<T>(&self, work: impl Future<Output = registry::Result<T>>) -> Result<T> {
        self.handle.block_on(work).map_err(|error| match error.code() {
            // Another attempt has the job: this one is over.
            "job_lost" => Error::Interrupted,
            _ => Error::Snapshots(error.to_string()),
        })
    }
}

impl Snapshots for JobStore {
    fn save(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.wait(jobs::save_snapshot(&self.registry, self.claim, name, Bytes::copy_from_slice(bytes)))
    }

    fn load(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let found = self.wait(jobs::load_snapshot(&self.registry, self.claim.job, name));
        match found {
            Ok(bytes) => Ok(bytes.map(|bytes| bytes.to_vec())),
            Err(error) => Err(error),
        }
    }

    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.wait(jobs::snapshot_digest(&self.registry, self.claim.job, name))?.is_some())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.wait(jobs::remove_snapshot(&self.registry, self.claim, name))
    }
}
