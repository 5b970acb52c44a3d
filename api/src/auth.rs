//! Who asks and what they may do: every operation's scope is the one that its OpenAPI declaration names.
//!
//! A handler that needs the [`Caller`] takes it as an argument.

mod bearer;
mod known;
mod local;
pub(crate) mod quota;
mod rate;
mod scopes;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use registry::Caller;
use registry::tokens::{Scope, Scopes};

use crate::envelope::RequestId;
use crate::error::{Error, Result};
use crate::state::AppState;
pub(crate) use known::Known;
pub use rate::RateLimit;
pub(crate) use rate::Standing;
use rate::{Client, Limiter};
pub(crate) use rate::{exceeded_headers, quota_headers};
pub(crate) use scopes::SCHEME;
use scopes::{Needs, Table};

/// Name of the caller in open mode.
const LOCAL: &str = "local";
/// Addresses of a proxied client, nearest last.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// How clients prove who they are, and how much they may ask.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AuthSettings {
    /// No tokens: whoever reaches the server is an administrator. [`crate::serve`] refuses it on other addresses than
    /// loopback.
    pub open: bool,
    /// Proxies in front of the server, each of which appends the address it sees to `X-Forwarded-For`; with 0 the
    /// header is not looked at.
    pub trusted_proxies: usize,
    /// Requests that a client may make; none: any number.
    pub rate: Option<RateLimit>,
}

impl AuthSettings {
    /// Refuses open mode on an address that others can reach.
    ///
    /// # Errors
    /// `open_needs_loopback`.
    pub fn check(&self, bind: SocketAddr) -> Result<()> {
        match self.open && !bind.ip().is_loopback() {
            true => Err(Error::OpenNeedsLoopback(bind)),
            false => Ok(()),
        }
    }
}

/// Whoever asks, and what they may ask.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) caller: Caller,
    pub(crate) scopes: Scopes,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| Error::Internal("the operation needs no token and asks for the caller".into()))
    }
}

/// What a token allows, for the operation that tells it.
pub(crate) struct Allowed(pub(crate) Scopes);

impl FromRequestParts<AppState> for Allowed {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self> {
        let scopes = parts.extensions.get::<Scopes>().cloned();
        scopes.map(Self).ok_or_else(|| Error::Internal("the operation needs no token and asks for its scopes".into()))
    }
}

/// What the layer of authorisation knows.
#[derive(Clone)]
pub(crate) struct Guard {
    state: AppState,
    table: Arc<Table>,
    limiter: Option<Arc<Limiter>>,
}

impl Guard {
    /// A guard of the operations of a document.
    pub(crate) fn new(state: AppState, document: &utoipa::openapi::OpenApi) -> Self {
        let limiter = state.settings().auth.rate.map(|rate| Arc::new(Limiter::new(rate)));
        Self { state, table: Arc::new(Table::of(document)), limiter }
    }

    /// Counts a request of a client.
    fn count(&self, client: Client) -> Result<Option<Standing>> {
        self.limiter.as_ref().map(|limiter| limiter.count(client)).transpose()
    }
}

/// Lets a request through with its [`Caller`], or refuses it.
pub(crate) async fn authorise(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match admit(&guard, request).await {
        Ok((request, standing)) => {
            let mut response = next.run(request).await;
            if let Some(standing) = standing {
                standing.write(response.headers_mut());
            }
            response
        }
        Err(error) => error.into_response(),
    }
}

async fn admit(guard: &Guard, mut request: Request) -> Result<(Request, Option<Standing>)> {
    let needs = match request.extensions().get::<MatchedPath>() {
        Some(path) => guard.table.needs(request.method(), path.as_str())?,
        None => return Err(Error::UnknownRoute(request.uri().path().to_owned())),
    };
    let Needs::Token(alternatives) = needs else {
        return Ok((request, None));
    };
    let address = address(guard.state.settings().auth.trusted_proxies, request.headers(), request.extensions());
    // A request cannot be kept over a wait: its body is not to be shared between threads.
    let shown = show(&guard.state, &request);
    let identity = match identify(&guard.state, shown).await {
        Ok(identity) => identity,
        Err(error) => {
            // Whoever tries tokens may not try for ever.
            guard.count(Client::Address(address))?;
            return Err(error);
        }
    };
    let Identity { mut caller, scopes: held } = identity;
    let standing = guard.count(caller.token.map_or(Client::Address(address), Client::Token))?;
    require(&alternatives, &held)?;
    caller.address = address;
    caller.request_id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(held);
    Ok((request, standing))
}

/// The secret that a request shows; none in open mode.
fn show(state: &AppState, request: &Request) -> Result<Option<String>> {
    match state.settings().auth.open {
        true => local::check(request).map(|()| None),
        false => Ok(Some(bearer::secret(request.headers())?.to_owned())),
    }
}

async fn identify(state: &AppState, shown: Result<Option<String>>) -> Result<Identity> {
    match shown? {
        Some(secret) => state.known().identify(state.registry(), &secret).await,
        None => Ok(Identity { caller: Caller::system(LOCAL), scopes: Scopes(Scope::ALL.to_vec()) }),
    }
}

/// Refuses scopes that suffice for none of the alternatives; the first missing one of each is told.
fn require(alternatives: &[Vec<Scope>], held: &Scopes) -> Result<()> {
    let missing = |needed: &Vec<Scope>| needed.iter().copied().find(|scope| !held.allow(*scope));
    let missing: Option<Vec<Scope>> = alternatives.iter().map(missing).collect();
    missing.map_or(Ok(()), |missing| Err(Error::ScopeMissing(missing)))
}

/// The client's address: the connection's, or what the outermost trusted proxy saw.
fn address(trusted_proxies: usize, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
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

    #[test]
    fn open_mode_is_for_loopback() {
        let open = AuthSettings { open: true, ..AuthSettings::default() };
        for (bind, fine) in [("127.0.0.1:1", true), ("[::1]:1", true), ("0.0.0.0:1", false), ("10.1.2.3:1", false)] {
            let bind = bind.parse().unwrap();
            assert_eq!(open.check(bind).is_ok(), fine, "{bind}");
            assert!(AuthSettings::default().check(bind).is_ok());
        }
    }
}
