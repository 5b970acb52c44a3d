//! Idempotency keys: a request that is repeated with its key gets the answer of the first, and changes nothing.
//!
//! A key is first claimed in a transaction of its own, for a lease by the database's clock that its holder renews:
//! the claim of a process that was killed frees itself. [`Write::commit_answer`] puts the answer into the claim's row
//! in the transaction of the change, so that there is no change without its answer and no answer without its change.

use std::time::Duration;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Caller, Error, Registry, Result, Write};

/// How long a claim lasts without being renewed.
pub const LEASE: Duration = Duration::from_secs(60);
/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The right to answer under a key.
#[derive(Clone, Debug)]
pub struct Claim {
    principal: String,
    key_hash: Vec<u8>,
    id: Uuid,
    /// Seals the answer: one that has the table but not the key cannot read what was answered.
    seal: [u8; 32],
}

/// An answer to keep or to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// SHA-256 of the request's body.
    pub body_sha256: [u8; 32],
    /// The HTTP status.
    pub status: u16,
    /// Names and values of the headers.
    pub headers: Vec<(String, String)>,
    /// The answer's body.
    pub body: Vec<u8>,
}

/// What is known of a key.
#[derive(Debug)]
pub enum Key {
    /// It was free, and is now the caller's.
    Claimed(Claim),
    /// A request with this key is under way.
    InFlight,
    /// The key was used for another method, path or query.
    OtherTarget,
    /// A request with this key was answered.
    Answered(Answer),
}

#[derive(sqlx::FromRow)]
struct Row {
    claim_id: Uuid,
    target: String,
    body_sha256: Option<Vec<u8>>,
    status: Option<i16>,
    headers: Option<sqlx::types::Json<Vec<(String, String)>>>,
    answer: Option<Vec<u8>>,
}

/// Claims a key of the caller for a request to `target` (method, path and query), or says what became of it.
///
/// # Errors
/// `database_unavailable`, `database`.
pub async fn claim(registry: &Registry, caller: &Caller, key: &str, target: &str) -> Result<Key> {
    let principal = principal(caller);
    let key_hash = Sha256::digest(key.as_bytes()).to_vec();
    loop {
        let id = Uuid::now_v7();
        // A row is free when its answer has expired, or when it is a claim whose holder stopped renewing it.
        let claimed = sqlx::query(
            "INSERT INTO idempotency AS i (principal, key_hash, claim_id, target, leased_until, expires_at)
             VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5),
                     clock_timestamp() + make_interval(secs => $6))
             ON CONFLICT (principal, key_hash) DO UPDATE
             SET claim_id = excluded.claim_id, target = excluded.target, leased_until = excluded.leased_until,
                 expires_at = excluded.expires_at, body_sha256 = NULL, status = NULL, headers = NULL, answer = NULL
             WHERE CASE WHEN i.status IS NULL THEN i.leased_until ELSE i.expires_at END <= clock_timestamp()",
        )
        .bind(&principal)
        .bind(&key_hash)
        .bind(id)
        .bind(target)
        .bind(LEASE.as_secs_f64())
        .bind(KEPT.as_secs_f64())
        .execute(registry.pool())
        .await?;
        if claimed.rows_affected() == 1 {
            let seal = seal(&principal, key, id);
            return Ok(Key::Claimed(Claim { principal, key_hash, id, seal }));
        }
        let row: Option<Row> = sqlx::query_as(
            "SELECT claim_id, target, body_sha256, status, headers, answer FROM idempotency
             WHERE principal = $1 AND key_hash = $2",
        )
        .bind(&principal)
        .bind(&key_hash)
        .fetch_optional(registry.pool())
        .await?;
        match row {
            Some(row) if row.target != target => return Ok(Key::OtherTarget),
            Some(row) => return Ok(row.known(|id| seal(&principal, key, id))),
            // It was released in between.
            None => {}
        }
    }
}

impl Row {
    fn known(self, seal: impl FnOnce(Uuid) -> [u8; 32]) -> Key {
        let digest = self.body_sha256.and_then(|digest| <[u8; 32]>::try_from(digest).ok());
        match (self.status.and_then(|status| u16::try_from(status).ok()), digest, self.headers, self.answer) {
            (Some(status), Some(body_sha256), Some(headers), Some(mut body)) => {
                sealed(&mut body, seal(self.claim_id));
                Key::Answered(Answer { body_sha256, status, headers: headers.0, body })
            }
            _ => Key::InFlight,
        }
    }
}

impl Claim {
    /// Makes the lease last anew; says whether the claim is still held.
    ///
    /// # Errors
    /// `database_unavailable`, `database`.
    pub async fn renew(&self, registry: &Registry) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE idempotency SET leased_until = clock_timestamp() + make_interval(secs => $4)
             WHERE principal = $1 AND key_hash = $2 AND claim_id = $3 AND status IS NULL",
        )
        .bind(&self.principal)
        .bind(&self.key_hash)
        .bind(self.id)
        .bind(LEASE.as_secs_f64())
        .execute(registry.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Gives the key back unless it was answered. A commit of the answer that is under way is waited for.
    ///
    /// # Errors
    /// `database_unavailable`, `database`: the lease then ends by itself.
    pub async fn release(&self, registry: &Registry) -> Result<()> {
        sqlx::query(
            "DELETE FROM idempotency WHERE principal = $1 AND key_hash = $2 AND claim_id = $3 AND status IS NULL",
        )
        .bind(&self.principal)
        .bind(&self.key_hash)
        .bind(self.id)
        .execute(registry.pool())
        .await?;
        Ok(())
    }
}

impl Write {
    /// Makes the changes true together with the answer that tells of them.
    ///
    /// # Errors
    /// `claim_lost` when the claim's lease ended and another request took the key; `database`,
    /// `database_unavailable`. Nothing is written then.
    pub async fn commit_answer(mut self, claim: &Claim, answer: Answer) -> Result<()> {
        let mut body = answer.body;
        sealed(&mut body, claim.seal);
        let done = sqlx::query(
            "UPDATE idempotency SET body_sha256 = $4, status = $5, headers = $6, answer = $7,
                    expires_at = clock_timestamp() + make_interval(secs => $8)
             WHERE principal = $1 AND key_hash = $2 AND claim_id = $3 AND status IS NULL",
        )
        .bind(&claim.principal)
        .bind(&claim.key_hash)
        .bind(claim.id)
        .bind(answer.body_sha256.to_vec())
        .bind(i16::try_from(answer.status).map_err(|_| Error::invalid("status", "an HTTP status has three digits"))?)
        .bind(sqlx::types::Json(answer.headers))
        .bind(body)
        .bind(KEPT.as_secs_f64())
        .execute(self.connection())
        .await?;
        if done.rows_affected() != 1 {
            return Err(Error::ClaimLost);
        }
        self.commit().await
    }
}

/// Removes expired answers, and claims whose holders are gone; gives their number.
///
/// # Errors
/// `database_unavailable`, `database`.
pub async fn sweep(registry: &Registry) -> Result<u64> {
    let done = sqlx::query(
        "DELETE FROM idempotency
         WHERE expires_at <= clock_timestamp() AND (status IS NOT NULL OR leased_until <= clock_timestamp())",
    )
    .execute(registry.pool())
    .await?;
    Ok(done.rows_affected())
}

fn principal(caller: &Caller) -> String {
    match caller.token {
        Some(token) => format!("token:{token}"),
        None => format!("name:{}", caller.name),
    }
}

fn seal(principal: &str, key: &str, id: Uuid) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"weightsmith idempotent answer\0");
    hash.update(principal.as_bytes());
    hash.update(b"\0");
    hash.update(key.as_bytes());
    hash.update(id.as_bytes());
    hash.finalize().into()
}

/// Seals bytes, or opens sealed ones: XOR with the ChaCha20 stream of a key that is used for one answer only.
fn sealed(bytes: &mut [u8], key: [u8; 32]) {
    let mut stream = vec![0; bytes.len()];
    ChaCha20Rng::from_seed(key).fill_bytes(&mut stream);
    bytes.iter_mut().zip(stream).for_each(|(byte, pad)| *byte ^= pad);
}
