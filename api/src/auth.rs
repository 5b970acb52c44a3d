//! Who asks and what they may do: every operation's scope is the one that its OpenAPI declaration names.
//!
//! A handler that needs the [`Caller`] takes it as an argument.

mod scopes;

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use axum::middleware::Next;
use axum::response::Response;
use registry::Caller;

use crate::envelope::RequestId;
use crate::error::{Error, Result};
use crate::state::AppState;
pub(crate) use scopes::SCHEME;
use scopes::{Needs, Table};

/// Name of the caller in open mode.
const LOCAL: &str = "local";
/// Addresses of a proxied client, nearest last.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// How clients prove who they are, and how much they may ask.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AuthSettings {
    /// No tokens: whoever reaches the server is an administrator. For loopback only.
    pub open: bool,
    /// Proxies in front of the server, each of which appends the address it sees to `X-Forwarded-For`; with 0 the
    /// header is not looked at.
    pub trusted_proxies: usize,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| Error::Internal("the operation is outside the authorised routes".into()))
    }
}

/// What the layer of authorisation knows.
#[derive(Clone)]
pub(crate) struct Guard {
    state: AppState,
    table: std::sync::Arc<Table>,
}

impl Guard {
    /// A guard of the operations of a document.
    pub(crate) fn new(state: AppState, document: &utoipa::openapi::OpenApi) -> Self {
        Self { state, table: std::sync::Arc::new(Table::of(document)) }
    }
}

/// Lets a request through with its [`Caller`], or refuses it.
pub(crate) async fn authorise(State(guard): State<Guard>, mut request: Request, next: Next) -> Result<Response> {
    let needs = match request.extensions().get::<MatchedPath>() {
        Some(path) => guard.table.needs(request.method(), path.as_str())?,
        None => return Err(Error::UnknownRoute(request.uri().path().to_owned())),
    };
    if needs != Needs::Nothing {
        let caller = identify(&guard.state, request.headers(), request.extensions())?;
        request.extensions_mut().insert(caller);
    }
    Ok(next.run(request).await)
}

fn identify(state: &AppState, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller> {
    let settings = &state.settings().auth;
    let mut caller = Caller::system(LOCAL);
    caller.request_id = extensions.get::<RequestId>().map(|id| id.0.clone());
    caller.address = address(settings.trusted_proxies, headers, extensions);
    Ok(caller)
}

/// The client's address: the connection's, or what the outermost trusted proxy saw.
fn address(trusted_proxies: usize, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    if trusted_proxies == 0 {
        return peer;
    }
    let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    // Only what trusted proxies appended counts: a client may have sent any number of addresses before it.
    let seen = hops.len().checked_sub(trusted_proxies).and_then(|at| hops[at].parse().ok());
    seen.or(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_addresses_count_from_the_right() {
        let mut extensions = Extensions::new();
        extensions.insert(ConnectInfo(SocketAddr::from(([10, 0, 0, 1], 9))));
        let mut headers = HeaderMap::new();
        headers.append(FORWARDED_FOR, "1.1.1.1, 2.2.2.2".parse().unwrap());
        headers.append(FORWARDED_FOR, "3.3.3.3".parse().unwrap());
        for (trusted, expected) in [(0, "10.0.0.1"), (1, "3.3.3.3"), (2, "2.2.2.2"), (3, "1.1.1.1"), (4, "10.0.0.1")] {
            assert_eq!(address(trusted, &headers, &extensions), expected.parse().ok(), "{trusted}");
        }
        assert_eq!(address(1, &HeaderMap::new(), &Extensions::new()), None);
    }
}
