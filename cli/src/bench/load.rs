//! Many clients that each ask again as soon as they are answered.

use std::sync::Arc;
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

/// Lets `clients` ask `path(n)` for `seconds`, n counting up over all clients; every answer has to be a success.
///
/// # Errors
/// The first request that fails.
pub async fn measure(
    url: &str,
    clients: usize,
    seconds: f64,
    path: impl Fn(u32) -> String + Send + Sync + 'static,
) -> Result<Latency> {
    let path = Arc::new(path);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let began = Instant::now();
    let mut tasks = Vec::with_capacity(clients);
    for client in 0..clients {
        let (path, url) = (path.clone(), url.to_owned());
        tasks.push(tokio::spawn(async move {
            // One connection each, as clients of a service have.
            let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build()?;
            let mut took = Vec::new();
            let mut number = client as u32;
            while Instant::now() < until {
                let address = format!("{url}{}", path(number));
                let start = Instant::now();
                let answer = http.get(&address).send().await?;
                let status = answer.status();
                let body = answer.bytes().await?;
                took.push(start.elapsed());
                if !status.is_success() {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    return Err(Error::Internal(format!("{address} answered {status}: {text}")));
                }
                number = number.wrapping_add(clients as u32);
            }
            Ok::<_, Error>(took)
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
