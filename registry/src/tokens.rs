//! Bearer tokens: who may do what. Only a token's SHA-256 is stored; the secret is shown once, when it is made.

mod scope;
mod secret;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use subtle::ConstantTimeEq;

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{Caller, Change, Error, ListRequest, Page, Registry, Result, TokenId, Write};
pub use scope::{Scope, Scopes};
pub use secret::Secret;

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// What its maker calls it.
    pub name: String,
    /// The public beginning of the secret, `wsm_` and 8 characters.
    pub prefix: String,
    /// Name of the principal that its holder acts as.
    pub owner: String,
    /// What it allows.
    #[sqlx(try_from = "Vec<String>")]
    pub scopes: Scopes,
    /// Globs of the resource names that it sees; none: all.
    pub patterns: Vec<String>,
    /// Samples that it may generate on a day (UTC); none: any number.
    pub samples_per_day: Option<i64>,
    /// Seconds of computing that it may use on a day (UTC); none: any number.
    pub compute_seconds_per_day: Option<f64>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A token to make.
#[derive(Clone, Debug, Default)]
pub struct NewToken {
    /// What to call it, 1 to 100 printable ASCII characters.
    pub name: String,
    /// Name of the principal that its holder acts as.
    pub owner: String,
    /// What it allows, at least one.
    pub scopes: Vec<Scope>,
    /// Globs of the resource names that it sees; none: all. A token that administers sees all.
    pub patterns: Vec<String>,
    /// Samples a day.
    pub samples_per_day: Option<i64>,
    /// Seconds of computing a day.
    pub compute_seconds_per_day: Option<f64>,
    /// How long it is valid, by the database's clock; none: until it is revoked.
    pub expires_in: Option<Duration>,
}

/// Which tokens to list.
#[derive(Clone, Debug, Default)]
pub struct TokenFilter {
    /// Only those of this principal.
    pub owner: Option<String>,
    /// Only those that can be used now, or only those that cannot.
    pub active: Option<bool>,
}

/// A secret that was recognised.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Its token.
    pub token: Token,
    /// How long it is still valid, by the database's clock.
    pub expires_in: Option<Duration>,
    /// Whether its last use was noted a minute ago or longer.
    pub stale: bool,
}

const COLUMNS: &str = "t.id, t.name, 'wsm_' || t.prefix AS prefix, t.owner, t.scopes, t.patterns, t.samples_per_day,
    t.compute_seconds_per_day, t.expires_at, t.last_used_at, t.created_at, t.revoked_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM tokens t",
    late: "",
    alias: "t",
    sight: Sight::Checked,
    deletable: false,
    described: false,
    orders: &[Order { field: "created_at", column: "t.created_at", kind: Kind::Time }],
    default_order: "-created_at",
};

/// Whether a token that administers was ever made.
const ADMINISTERED: &str = "SELECT EXISTS (SELECT FROM tokens WHERE 'administer' = ANY (scopes))";
/// The lock under which the first token is made; any number that nothing else uses.
const FIRST_TOKEN_LOCK: i64 = 0x7773_6d5f_746f_6b65;
/// Longest validity that can be asked for: 100 years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Token {
    /// Whoever shows this token; the request's id and address are not known here.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller {
            token: Some(self.id),
            administrator: self.scopes.allow(Scope::Administer),
            patterns: self.patterns.clone(),
            ..Caller::system(&self.owner)
        }
    }

    fn audited(&self) -> Value {
        json!({
            "name": self.name, "prefix": self.prefix, "owner": self.owner, "scopes": self.scopes,
            "patterns": self.patterns, "samples_per_day": self.samples_per_day,
            "compute_seconds_per_day": self.compute_seconds_per_day, "expires_at": self.expires_at,
            "revoked_at": self.revoked_at,
        })
    }
}

/// Makes a token; its secret can be had only here.
///
/// # Errors
/// `invalid_value`: a name, owner, scope, pattern, quota or validity that is not allowed.
pub async fn create(write: &mut Write, new: &NewToken) -> Result<(Token, Secret)> {
    let mut scopes = new.scopes.clone();
    scopes.sort_unstable();
    scopes.dedup();
    // Postgres has no text with a zero in it, and would say so in words of its own.
    if new.name.contains('\0') {
        return Err(Error::invalid("name", "use 1 to 100 printable ASCII characters"));
    }
    if new.expires_in.is_some_and(|time| time.is_zero() || time > LONGEST) {
        return Err(Error::invalid("expires_in", "give a time from 1 second to 100 years"));
    }
    let secret = Secret::generate();
    let token: Token = sqlx::query_as(AssertSqlSafe(format!(
        "INSERT INTO tokens AS t (id, name, prefix, sha256, owner, scopes, patterns, samples_per_day,
             compute_seconds_per_day, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + make_interval(secs => $10))
         RETURNING {COLUMNS}"
    )))
    .bind(TokenId::generate())
    .bind(&new.name)
    .bind(secret.prefix())
    .bind(secret.sha256().to_vec())
    .bind(&new.owner)
    .bind(scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>())
    .bind(&new.patterns)
    .bind(new.samples_per_day)
    .bind(new.compute_seconds_per_day)
    .bind(new.expires_in.map(|time| time.as_secs_f64()))
    .fetch_one(write.connection())
    .await?;
    let (id, after) = (token.id.to_string(), Some(token.audited()));
    write.audit(Change { action: "token.create", resource: "token", id, before: None, after }).await?;
    Ok((token, secret))
}

/// Makes a token that administers when there never was one, whatever became of it; several processes may call it at once.
///
/// # Errors
/// `database`, `database_unavailable`.
pub async fn create_first(registry: &Registry) -> Result<Option<(Token, Secret)>> {
    if sqlx::query_scalar(ADMINISTERED).fetch_one(registry.pool()).await? {
        return Ok(None);
    }
    let mut write = registry.write(&Caller::system("serve")).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(FIRST_TOKEN_LOCK).execute(write.connection()).await?;
    if sqlx::query_scalar(ADMINISTERED).fetch_one(write.connection()).await? {
        return Ok(None);
    }
    let new = NewToken {
        name: "first administrator".into(),
        owner: "administrator".into(),
        scopes: vec![Scope::Administer],
        ..NewToken::default()
    };
    let made = create(&mut write, &new).await?;
    write.commit().await?;
    Ok(Some(made))
}

/// The token of an id.
///
/// # Errors
/// `not_found`.
pub async fn get(registry: &Registry, id: TokenId) -> Result<Token> {
    sqlx::query_as(AssertSqlSafe(format!("SELECT {COLUMNS} FROM tokens t WHERE t.id = $1")))
        .bind(id)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("token", id))
}

/// The token whose secret begins with a prefix, with or without `wsm_`.
///
/// # Errors
/// `not_found`.
pub async fn by_prefix(registry: &Registry, prefix: &str) -> Result<Token> {
    let bare = prefix.strip_prefix(secret::BEGIN).unwrap_or(prefix);
    sqlx::query_as(AssertSqlSafe(format!("SELECT {COLUMNS} FROM tokens t WHERE t.prefix = $1")))
        .bind(bare)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("token", prefix))
}

/// Tokens, newest first. For administrators: whoever calls checks that.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &TokenFilter,
    request: &ListRequest,
) -> Result<Page<Token>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    if let Some(owner) = &filter.owner {
        query.sql.push(" AND t.owner = ").push_bind(owner.clone());
    }
    if let Some(active) = filter.active {
        query.sql.push(format_args!(
            " AND {}(t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()))",
            if active { "" } else { "NOT " }
        ));
    }
    query.page(registry).await
}

/// Revokes a token for ever; to revoke it again changes nothing.
///
/// # Errors
/// `not_found`.
pub async fn revoke(write: &mut Write, id: TokenId) -> Result<Token> {
    let before: Token =
        sqlx::query_as(AssertSqlSafe(format!("SELECT {COLUMNS} FROM tokens t WHERE t.id = $1 FOR UPDATE")))
            .bind(id)
            .fetch_optional(write.connection())
            .await?
            .ok_or_else(|| Error::not_found("token", id))?;
    if before.revoked_at.is_some() {
        return Ok(before);
    }
    let after: Token = sqlx::query_as(AssertSqlSafe(format!(
        "UPDATE tokens t SET revoked_at = now() WHERE t.id = $1 RETURNING {COLUMNS}"
    )))
    .bind(id)
    .fetch_one(write.connection())
    .await?;
    let change = Change {
        action: "token.revoke",
        resource: "token",
        id: id.to_string(),
        before: Some(before.audited()),
        after: Some(after.audited()),
    };
    write.audit(change).await?;
    Ok(after)
}

#[derive(sqlx::FromRow)]
struct Found {
    #[sqlx(flatten)]
    token: Token,
    sha256: Vec<u8>,
    expired: bool,
    seconds_left: Option<f64>,
    stale: bool,
}

/// The token of a secret. Its SHA-256 is compared in constant time; whether it is still valid is said by the
/// database's clock.
///
/// # Errors
/// `token_invalid`, `token_revoked`, `token_expired`.
pub async fn authenticate(registry: &Registry, secret: &str) -> Result<Authenticated> {
    let secret: Secret = secret.parse()?;
    let found: Option<Found> = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, t.sha256, COALESCE(t.expires_at <= now(), false) AS expired,
             extract(epoch FROM t.expires_at - now())::float8 AS seconds_left,
             COALESCE(t.last_used_at <= now() - interval '1 minute', true) AS stale
         FROM tokens t WHERE t.prefix = $1"
    )))
    .bind(secret.prefix())
    .fetch_optional(registry.pool())
    .await?;
    let found = found.ok_or(Error::TokenInvalid)?;
    if !bool::from(found.sha256.as_slice().ct_eq(&secret.sha256())) {
        return Err(Error::TokenInvalid);
    }
    if found.token.revoked_at.is_some() {
        return Err(Error::TokenRevoked);
    }
    if found.expired {
        return Err(Error::TokenExpired);
    }
    let expires_in = found.seconds_left.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
    Ok(Authenticated { token: found.token, expires_in, stale: found.stale })
}

/// Notes that a token was used, unless that was noted within the last minute.
///
/// # Errors
/// `database`, `database_unavailable`.
pub async fn touch(registry: &Registry, id: TokenId) -> Result<()> {
    sqlx::query(
        "UPDATE tokens SET last_used_at = now()
         WHERE id = $1 AND COALESCE(last_used_at <= now() - interval '1 minute', true)",
    )
    .bind(id)
    .execute(registry.pool())
    .await?;
    Ok(())
}
