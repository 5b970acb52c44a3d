//! Many clients that each ask again as soon as they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};

/// Latencies of one operation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half the requests were answered within this many milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 were.
    pub p99_ms: f64,
    /// Requests a second, of all clients together.
    pub per_second: f64,
    /// Requests measured.
    pub requests: usize,
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many seconds.
    Seconds(f64),
    /// After so many requests.
    Requests(u32),
}

/// Lets `clients` send `ask(client, n)`, n counting up over all clients; every answer has to be a success.
///
/// # Errors
/// The first request that fails.
pub async fn measure(
    clients: usize,
    until: Until,
    ask: impl Fn(&reqwest::Client, u32) -> reqwest::RequestBuilder + Send + Sync + 'static,
) -> Result<Latency> {
    let (ask, next) = (Arc::new(ask), Arc::new(AtomicU32::new(0)));
    let began = Instant::now();
    let goes_on = move |number: u32| match until {
        Until::Seconds(seconds) => began.elapsed().as_secs_f64() < seconds,
        Until::Requests(most) => number < most,
    };
    let mut tasks = Vec::with_capacity(clients);
    for _ in 0..clients {
        let (ask, next) = (ask.clone(), next.clone());
        tasks.push(tokio::spawn(async move {
            // One connection each, as clients of a service have.
            let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build()?;
            let mut took = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if !goes_on(number) {
                    return Ok::<_, Error>(took);
                }
                let request = ask(&http, number);
                let start = Instant::now();
                let answer = request.send().await?;
                let (status, address) = (answer.status(), answer.url().clone());
                let body = answer.bytes().await?;
                took.push(start.elapsed());
                if !status.is_success() {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    return Err(Error::Internal(format!("{address} answered {status}: {text}")));
                }
            }
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.map_err(|e| Error::Internal(e.to_string()))??);
    }
    Ok(summary(all, began.elapsed()))
}

fn summary(mut took: Vec<Duration>, whole: Duration) -> Latency {
    took.sort_unstable();
    let at = |share: f64| {
        let index = ((took.len() as f64 * share).ceil() as usize).clamp(1, took.len().max(1)) - 1;
        took.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    Latency {
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        per_second: took.len() as f64 / whole.as_secs_f64().max(1e-9),
        requests: took.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let took = (1..=200).rev().map(Duration::from_millis).collect();
        let latency = summary(took, Duration::from_secs(2));
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.per_second), (100.0, 198.0, 100.0));
        assert!(summary(Vec::new(), Duration::from_secs(1)).p50_ms.is_nan());
    }
}
