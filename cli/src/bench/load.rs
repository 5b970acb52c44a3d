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
    /// Requests a second, of all clients together, from when each has been answered once until the first ends: before and after
    /// that fewer ask.
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
                    return Ok::<_, Error>((took, Instant::now()));
                }
                let request = ask(&http, number);
                let start = Instant::now();
                let answer = request.send().await?;
                let (status, address) = (answer.status(), answer.url().clone());
                let body = answer.bytes().await?;
                took.push(Answered { at: Instant::now(), took: start.elapsed() });
                if !status.is_success() {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    return Err(Error::Internal(format!("{address} answered {status}: {text}")));
                }
            }
        }));
    }
    let (mut all, mut first_end) = (Vec::new(), None::<Instant>);
    for task in tasks {
        let (own, end) = task.await.map_err(|e| Error::Internal(e.to_string()))??;
        all.extend(own);
        first_end = Some(first_end.map_or(end, |first| first.min(end)));
    }
    Ok(summary(all, clients, (began, first_end.unwrap_or(began))))
}

/// An answer: when it came, and after how long.
#[derive(Clone, Copy, Debug)]
struct Answered {
    at: Instant,
    took: Duration,
}

fn summary(mut all: Vec<Answered>, clients: usize, (began, first_end): (Instant, Instant)) -> Latency {
    all.sort_unstable_by_key(|answer| answer.at);
    let whole = all.last().map_or(Duration::ZERO, |last| last.at - began);
    let mut per_second = all.len() as f64 / whole.as_secs_f64().max(1e-9);
    let busy = all.iter().take_while(|answer| answer.at <= first_end).count();
    // With fewer there is no such time worth speaking of.
    if busy >= 3 * clients {
        let between = all[busy - 1].at - all[clients - 1].at;
        per_second = (busy - clients) as f64 / between.as_secs_f64().max(1e-9);
    }
    let mut took: Vec<Duration> = all.iter().map(|answer| answer.took).collect();
    took.sort_unstable();
    let at = |share: f64| {
        let index = ((took.len() as f64 * share).ceil() as usize).clamp(1, took.len().max(1)) - 1;
        took.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    Latency { p50_ms: at(0.5), p99_ms: at(0.99), per_second, requests: took.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers after so many milliseconds from the beginning, which took as long as is said.
    fn answers(all: impl Iterator<Item = (u64, u64)>, began: Instant) -> Vec<Answered> {
        let millis = Duration::from_millis;
        all.map(|(at, took)| Answered { at: began + millis(at), took: millis(took) }).collect()
    }

    #[test]
    fn percentiles_are_ranks() {
        let began = Instant::now();
        let all = answers((1..=200).rev().map(|i| (10 * i, i)), began);
        let latency = summary(all, 1, (began, began));
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.per_second), (100.0, 198.0, 100.0));
        assert!(summary(Vec::new(), 1, (began, began)).p50_ms.is_nan());
    }

    #[test]
    fn the_rate_is_that_of_all_clients() {
        // Four clients, answered together every second for ten seconds, and each once more, by itself, when others have ended.
        let began = Instant::now();
        let waves = (0..40).map(|i| (1000 * (i / 4 + 1), 1000));
        let last = (0..4).map(|i| (12_000 + 2000 * i, 2000));
        let latency = summary(answers(waves.chain(last), began), 4, (began, began + Duration::from_millis(10_500)));
        assert_eq!((latency.per_second, latency.requests), (4.0, 44));
    }
}
