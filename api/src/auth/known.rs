//! Tokens that were recognised a moment ago: a request costs no query of its own for its token.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use registry::tokens::{self, Authenticated};
use registry::{Registry, TokenId};
use sha2::{Digest, Sha256};

use super::Identity;
use crate::error::Result;

/// How long a token is believed: so long another server's revocation may go unnoticed here.
const TTL: Duration = Duration::from_secs(5);
/// Tokens remembered at most.
const CAPACITY: usize = 4096;

/// Recognised tokens by the SHA-256 of their secrets; secrets themselves are not kept.
#[derive(Default)]
pub(crate) struct Known(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    entries: HashMap<[u8; 32], Entry>,
    /// Counts revocations: what was read before one may not be remembered after it.
    revocations: u64,
}

struct Entry {
    identity: Identity,
    until: Instant,
}

impl Known {
    /// Who shows a secret; asks the registry unless it did so a moment ago.
    ///
    /// # Errors
    /// `token_invalid`, `token_expired`, `token_revoked`.
    pub(crate) async fn identify(&self, registry: &Registry, secret: &str) -> Result<Identity> {
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let begun = Instant::now();
        let revocations = match self.find(&digest, begun) {
            Ok(identity) => return Ok(identity),
            Err(revocations) => revocations,
        };
        let found = tokens::authenticate(registry, secret).await?;
        if found.stale {
            note_use(registry, found.token.id);
        }
        // Counted from before the question, so that the time it took is not added to the token's life.
        let until = begun + found.expires_in.map_or(TTL, |left| left.min(TTL));
        let identity = identity(&found);
        self.remember(digest, Entry { identity: identity.clone(), until }, revocations);
        Ok(identity)
    }

    /// Forgets a token that was revoked.
    pub(crate) fn forget(&self, token: TokenId) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.revocations += 1;
        inner.entries.retain(|_, entry| entry.identity.caller.token != Some(token));
    }

    fn find(&self, digest: &[u8; 32], now: Instant) -> std::result::Result<Identity, u64> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.entries.get(digest).filter(|entry| now < entry.until);
        entry.map(|entry| entry.identity.clone()).ok_or(inner.revocations)
    }

    fn remember(&self, digest: [u8; 32], entry: Entry, revocations: u64) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.revocations != revocations {
            return;
        }
        if inner.entries.len() >= CAPACITY {
            let now = Instant::now();
            inner.entries.retain(|_, entry| now < entry.until);
        }
        if inner.entries.len() < CAPACITY {
            inner.entries.insert(digest, entry);
        }
    }
}

fn identity(found: &Authenticated) -> Identity {
    Identity { caller: found.token.caller(), scopes: found.token.scopes.clone() }
}

/// Notes the use off the request's path.
fn note_use(registry: &Registry, token: TokenId) {
    let registry = registry.clone();
    tokio::spawn(async move {
        if let Err(error) = tokens::touch(&registry, token).await {
            tracing::warn!(%error, %token, "the last use of a token was not noted");
        }
    });
}

#[cfg(test)]
mod tests {
    use registry::Caller;
    use registry::tokens::Scopes;

    use super::*;

    fn entry(token: TokenId, until: Instant) -> Entry {
        let caller = Caller { token: Some(token), ..Caller::system("ann") };
        Entry { identity: Identity { caller, scopes: Scopes(vec![]) }, until }
    }

    #[test]
    fn what_is_known_ends() {
        let (known, token, now) = (Known::default(), TokenId::generate(), Instant::now());
        known.remember([1; 32], entry(token, now + TTL), 0);
        assert_eq!(known.find(&[1; 32], now).unwrap().caller.token, Some(token));
        assert_eq!(known.find(&[2; 32], now).unwrap_err(), 0);
        assert!(known.find(&[1; 32], now + TTL).is_err());
        known.forget(token);
        assert_eq!(known.find(&[1; 32], now).unwrap_err(), 1);
    }

    #[test]
    fn a_revocation_outruns_a_question_under_way() {
        let (known, token, now) = (Known::default(), TokenId::generate(), Instant::now());
        let before = known.find(&[1; 32], now).unwrap_err();
        known.forget(token);
        known.remember([1; 32], entry(token, now + TTL), before);
        assert!(known.find(&[1; 32], now).is_err());
    }

    #[test]
    fn there_is_room_for_so_many() {
        let (known, now) = (Known::default(), Instant::now());
        let digest = |n: usize| -> [u8; 32] { Sha256::digest(n.to_le_bytes()).into() };
        for n in 0..CAPACITY + 10 {
            known.remember(digest(n), entry(TokenId::generate(), now + TTL), 0);
        }
        assert_eq!(known.0.lock().unwrap().entries.len(), CAPACITY);
        assert!(known.find(&digest(0), now).is_ok() && known.find(&digest(CAPACITY), now).is_err());
    }
}
