//! Daily quotas around a piece of work: samples are set aside before it, seconds of computing are noted after it.

use std::time::Instant;

use axum::http::HeaderMap;
use registry::quotas::{self, Reservation};
use registry::{Caller, Registry};

use super::quota_headers;
use crate::error::Result;

/// Samples set aside for a piece of work. Dropped before [`Reserved::made`], it gives them back; the time that was
/// computed counts in either case.
pub(crate) struct Reserved {
    registry: Registry,
    reservation: Option<Reservation>,
    begun: Option<Instant>,
}

impl Reserved {
    /// Sets samples aside.
    ///
    /// # Errors
    /// `quota_exceeded`.
    pub(crate) async fn of(registry: &Registry, caller: &Caller, samples: usize) -> Result<Self> {
        let reservation = quotas::reserve(registry, caller, samples as u64).await?;
        Ok(Self { registry: registry.clone(), reservation, begun: None })
    }

    /// Computing begins: what was waited for does not count.
    pub(crate) fn begin(&mut self) {
        self.begun = Some(Instant::now());
    }

    fn seconds(&self) -> f64 {
        self.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64())
    }

    /// The samples were made.
    pub(crate) async fn made(mut self) {
        let seconds = self.seconds();
        if let Some(reservation) = self.reservation.take() {
            settle(&self.registry, &reservation, seconds, true).await;
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let seconds = self.seconds();
        let Some(reservation) = self.reservation.take() else {
            return;
        };
        // Without a runtime the process ends, and the samples stay counted: a quota is never exceeded by that.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let registry = self.registry.clone();
            runtime.spawn(async move { settle(&registry, &reservation, seconds, false).await });
        }
    }
}

async fn settle(registry: &Registry, reservation: &Reservation, seconds: f64, made: bool) {
    let released = if made { Ok(()) } else { quotas::release(registry, reservation).await };
    let consumed = quotas::consume(registry, reservation, seconds).await;
    if let Err(error) = released.and(consumed) {
        tracing::warn!(%error, "what a token used was not noted");
    }
}

/// Adds where the caller's quotas stand to an answer; an answer that is there already does not fail for want of them.
pub(crate) async fn tell(registry: &Registry, caller: &Caller, headers: &mut HeaderMap) {
    let Some(token) = caller.token else {
        return;
    };
    match quotas::usage(registry, token).await {
        Ok(usage) => quota_headers(headers, &usage),
        Err(error) => tracing::warn!(%error, "the quotas of a token could not be read"),
    }
}
