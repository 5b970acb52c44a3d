//! Open mode is for programs of this machine. A web page of somebody else runs in this machine's browser too, and its
//! host may resolve to loopback: such a request names that host.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header::HOST;

use crate::error::{Error, Result};

/// Refuses a request that was meant for another host.
pub(crate) fn check(request: &Request) -> Result<()> {
    let header = request.headers().get(HOST);
    let host = match (request.uri().authority(), header) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(value)) => value.to_str().unwrap_or("unreadable"),
        (None, None) => return Ok(()),
    };
    if is_local(host) { Ok(()) } else { Err(Error::HostNotAllowed(host.chars().take(100).collect())) }
}

/// Whether `host` or `host:port` names this machine itself.
fn is_local(host: &str) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let name = without_port.trim_start_matches('[').trim_end_matches(']');
    let is_name = name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    is_name || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in ["localhost", "LocalHost:8080", "a.localhost:1", "127.0.0.1", "127.8.9.1:80", "[::1]:80", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", "[::2]:1"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
