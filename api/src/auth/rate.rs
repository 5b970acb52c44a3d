//! Rate limits by token, or by address where there is none, and the headers that tell about limits
//! (draft-ietf-httpapi-ratelimit-headers).

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Request};
use registry::TokenId;
use registry::quotas::Usage;
use tower_governor::GovernorError;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::KeyExtractor;

use crate::error::{Error, Result};

/// What is left.
pub(crate) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// What there is.
pub(crate) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Clients that have not asked for long are forgotten after this many requests.
const SWEEP: u32 = 4096;
/// Most requests a second.
const MAX_RATE: u32 = 1_000_000;
/// Seconds of a day.
const DAY: u64 = 86_400;

/// How many requests a client may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests a second in the long run, 1 to 1,000,000.
    pub per_second: u32,
    /// Requests at once, 1 or more.
    pub burst: u32,
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// The holders of a token.
    Token(TokenId),
    /// An address; none where the connection has no address.
    Address(Option<IpAddr>),
}

/// Finds the client that the layer of authorisation left in a request's extensions.
#[derive(Clone, Copy, Debug)]
struct ByClient;

impl KeyExtractor for ByClient {
    type Key = Client;

    fn extract<T>(&self, request: &Request<T>) -> std::result::Result<Client, GovernorError> {
        request.extensions().get::<Client>().copied().ok_or(GovernorError::UnableToExtractKey)
    }
}

/// What is left for a client after one more request; `None` when that was one too many.
type Count = Box<dyn Fn(&Client) -> Option<u32> + Send + Sync>;

/// Counts requests.
pub(crate) struct Limiter {
    count: Count,
    rate: RateLimit,
}

/// Where a client stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    rate: RateLimit,
    remaining: u32,
}

impl Limiter {
    /// A limiter; what is out of range becomes the nearest that is in it.
    pub(crate) fn new(rate: RateLimit) -> Self {
        let rate = RateLimit { per_second: rate.per_second.clamp(1, MAX_RATE), burst: rate.burst.max(1) };
        Self { count: counter(rate), rate }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// `rate_limited`.
    pub(crate) fn count(&self, client: Client) -> Result<Standing> {
        match (self.count)(&client) {
            Some(remaining) => Ok(Standing { rate: self.rate, remaining }),
            None => Err(Error::RateLimited(self.rate)),
        }
    }
}

fn counter(rate: RateLimit) -> Count {
    let period = Duration::from_secs(1) / rate.per_second;
    let mut config = GovernorConfigBuilder::default().key_extractor(ByClient);
    let Some(config) = config.period(period).burst_size(rate.burst).use_headers().finish() else {
        // Neither is zero here.
        return Box::new(move |_| Some(rate.burst));
    };
    let (limiter, counted) = (config.limiter().clone(), AtomicU32::new(0));
    Box::new(move |client| {
        if counted.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            limiter.retain_recent();
        }
        limiter.check_key(client).ok().map(|state| state.remaining_burst_capacity())
    })
}

impl Standing {
    /// A client that has nothing left.
    pub(crate) fn exhausted(rate: RateLimit) -> Self {
        Self { rate, remaining: 0 }
    }

    /// Adds `RateLimit` and `RateLimit-Policy`.
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let Standing { rate: RateLimit { per_second, burst }, remaining } = self;
        // The window is the time in which nothing becomes everything.
        let window = |requests: u32| requests.div_ceil(per_second).max(1);
        append(headers, RATE_LIMIT_POLICY, format!("\"requests\";q={burst};w={}", window(burst)));
        let missing = burst.saturating_sub(remaining);
        append(headers, RATE_LIMIT, format!("\"requests\";r={remaining};t={}", window(missing)));
    }
}

/// Adds where a token stands with its daily quotas.
pub(crate) fn quota_headers(headers: &mut HeaderMap, usage: &Usage) {
    let reset = usage.reset_seconds.max(1);
    let mut tell = |name: &str, limit: i64, left: i64| {
        append(headers, RATE_LIMIT_POLICY, format!("\"{name}\";q={limit};w={DAY}"));
        append(headers, RATE_LIMIT, format!("\"{name}\";r={};t={reset}", left.max(0)));
    };
    if let Some(limit) = usage.samples_limit {
        tell("samples", limit, limit - usage.samples);
    }
    if let Some(limit) = usage.compute_seconds_limit {
        tell("compute-seconds", limit as i64, (limit - usage.compute_seconds) as i64);
    }
}

/// Adds what an exceeded quota leaves.
pub(crate) fn exceeded_headers(headers: &mut HeaderMap, what: &str, limit: i64, left: i64, reset_seconds: u64) {
    let name = what.replace(' ', "-");
    append(headers, RATE_LIMIT_POLICY, format!("\"{name}\";q={limit};w={DAY}"));
    append(headers, RATE_LIMIT, format!("\"{name}\";r={left};t={reset_seconds}"));
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // Letters, digits and punctuation of ASCII: always a header.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_apart() {
        let limiter = Limiter::new(RateLimit { per_second: 1, burst: 3 });
        let (one, other) = (Client::Token(TokenId::generate()), Client::Address(None));
        for left in [2, 1, 0] {
            assert_eq!(limiter.count(one).unwrap().remaining, left);
        }
        let error = limiter.count(one).unwrap_err();
        assert_eq!((error.code(), error.status().as_u16()), ("rate_limited", 429));
        assert!(limiter.count(other).is_ok());
    }

    #[test]
    fn rates_out_of_range() {
        assert!(Limiter::new(RateLimit { per_second: 0, burst: 0 }).count(Client::Address(None)).is_ok());
        assert!(Limiter::new(RateLimit { per_second: u32::MAX, burst: 1 }).count(Client::Address(None)).is_ok());
    }

    #[test]
    fn headers() {
        let mut headers = HeaderMap::new();
        Standing { rate: RateLimit { per_second: 10, burst: 25 }, remaining: 4 }.write(&mut headers);
        let usage = Usage {
            samples_limit: Some(100),
            samples: 30,
            compute_seconds_limit: Some(2.5),
            compute_seconds: 3.0,
            reset_seconds: 60,
        };
        quota_headers(&mut headers, &usage);
        let all = |name: HeaderName| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            all(RATE_LIMIT),
            [r#""requests";r=4;t=3"#, r#""samples";r=70;t=60"#, r#""compute-seconds";r=0;t=60"#]
        );
        assert_eq!(
            all(RATE_LIMIT_POLICY),
            [r#""requests";q=25;w=3"#, r#""samples";q=100;w=86400"#, r#""compute-seconds";q=2;w=86400"#]
        );
    }
}
