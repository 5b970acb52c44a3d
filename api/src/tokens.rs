//! Tokens: who may do what, and how much. All but the description of the caller's own token is for administrators.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::quotas::{self, Usage};
use registry::tokens::{self as rows, Scopes};
use registry::{Caller, ListRequest};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::answer::Answer;
use crate::auth::{Allowed, quota_headers};
use crate::error::Result;
use crate::extract::{self, Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::page::Listing;
use crate::problem::{GetProblems, ListProblems, TokenProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(this)).routes(routes!(get, revoke))
}

/// What a token allows.
#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Read what is visible.
    Read,
    /// Generate weights.
    Generate,
    /// Send data and models, train, and move aliases.
    Train,
    /// Everything, also tokens and the audit trail.
    Administer,
}

impl From<rows::Scope> for Scope {
    fn from(scope: rows::Scope) -> Self {
        match scope {
            rows::Scope::Read => Self::Read,
            rows::Scope::Generate => Self::Generate,
            rows::Scope::Train => Self::Train,
            rows::Scope::Administer => Self::Administer,
        }
    }
}

impl From<Scope> for rows::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Read => Self::Read,
            Scope::Generate => Self::Generate,
            Scope::Train => Self::Train,
            Scope::Administer => Self::Administer,
        }
    }
}

fn scopes(held: &Scopes) -> Vec<Scope> {
    held.0.iter().copied().map(Scope::from).collect()
}

/// A token, without its secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct Token {
    /// Its id.
    id: Uuid,
    /// What its maker calls it.
    #[schema(example = "ci")]
    name: String,
    /// The public beginning of its secret.
    #[schema(example = "wsm_Ab3dEf9h")]
    prefix: String,
    /// Name of the principal that its holder acts as; what it makes belongs to that name.
    #[schema(example = "ann")]
    owner: String,
    /// What it allows; `administer` includes the others.
    scopes: Vec<Scope>,
    /// Globs of the resource names that it sees; none: all.
    #[schema(example = json!(["digits-*"]))]
    patterns: Vec<String>,
    /// Samples that it may generate on a day (UTC); null: any number.
    #[schema(required, example = 1000)]
    samples_per_day: Option<i64>,
    /// Seconds of computing that it may use on a day (UTC); null: any number.
    #[schema(required, example = 3600.0)]
    compute_seconds_per_day: Option<f64>,
    /// When it ends; null: when it is revoked.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    #[schema(required)]
    last_used_at: Option<DateTime<Utc>>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was revoked.
    #[schema(required)]
    revoked_at: Option<DateTime<Utc>>,
}

impl From<rows::Token> for Token {
    fn from(row: rows::Token) -> Self {
        Self {
            id: row.id.as_uuid(),
            name: row.name,
            prefix: row.prefix,
            owner: row.owner,
            scopes: scopes(&row.scopes),
            patterns: row.patterns,
            samples_per_day: row.samples_per_day,
            compute_seconds_per_day: row.compute_seconds_per_day,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            created_at: row.created_at,
            revoked_at: row.revoked_at,
        }
    }
}

/// A token that was just made.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedToken {
    #[serde(flatten)]
    token: Token,
    /// The secret, for `Authorization: Bearer`. It is shown only here.
    #[schema(example = "wsm_Ab3dEf9h_0123456789abcdefghijABCDEFGHIJ0123456789abc")]
    secret: String,
}

/// A token to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewToken {
    /// What to call it: 1 to 100 printable ASCII characters.
    #[schema(example = "ci", pattern = "^[ -~]{1,100}$")]
    name: String,
    /// Name of the principal that its holder acts as; the caller's own by default.
    #[schema(example = "ann", pattern = "^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$")]
    owner: Option<String>,
    /// What it allows, at least one.
    #[schema(min_items = 1)]
    scopes: Vec<Scope>,
    /// Globs of the resource names that it sees, `*` being any text; none: all.
    #[schema(example = json!(["digits-*"]), max_items = 50)]
    #[serde(default)]
    patterns: Vec<String>,
    /// Samples that it may generate on a day (UTC).
    #[schema(example = 1000, minimum = 0)]
    samples_per_day: Option<i64>,
    /// Seconds of computing that it may use on a day (UTC).
    #[schema(example = 3600.0, minimum = 0)]
    compute_seconds_per_day: Option<f64>,
    /// Seconds that it is valid; without it, until it is revoked.
    #[schema(example = 2_592_000, minimum = 1, maximum = 3_153_600_000_u64)]
    expires_in: Option<u64>,
}

impl NewToken {
    fn row(self, caller: &Caller) -> rows::NewToken {
        rows::NewToken {
            name: self.name,
            owner: self.owner.unwrap_or_else(|| caller.name.clone()),
            scopes: self.scopes.into_iter().map(rows::Scope::from).collect(),
            patterns: self.patterns,
            samples_per_day: self.samples_per_day,
            compute_seconds_per_day: self.compute_seconds_per_day,
            expires_in: self.expires_in.map(Duration::from_secs),
        }
    }
}

/// Whoever asks.
#[derive(Serialize, ToSchema)]
pub(crate) struct Myself {
    /// Name of the principal.
    #[schema(example = "ann")]
    principal: String,
    /// What is allowed.
    scopes: Vec<Scope>,
    /// Globs of the resource names that are seen; none: all.
    #[schema(example = json!(["digits-*"]))]
    patterns: Vec<String>,
    /// The token; null in open mode.
    #[schema(required)]
    token: Option<Token>,
    /// Today's quotas; null in open mode.
    #[schema(required)]
    quotas: Option<Quotas>,
}

/// A token's quotas of the current day (UTC), and what was used of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct Quotas {
    /// Samples generated, or reserved by requests under way.
    #[schema(example = 120)]
    samples: i64,
    /// Samples that may still be generated; null: any number.
    #[schema(required, example = 880)]
    samples_left: Option<i64>,
    /// Seconds of computing used.
    #[schema(example = 12.5)]
    compute_seconds: f64,
    /// Seconds of computing that may still be used; null: any number.
    #[schema(required, example = 3587.5)]
    compute_seconds_left: Option<f64>,
    /// Seconds until the day ends.
    #[schema(example = 41_000)]
    reset_seconds: i64,
}

impl From<Usage> for Quotas {
    fn from(usage: Usage) -> Self {
        Self {
            samples: usage.samples,
            samples_left: usage.samples_limit.map(|limit| (limit - usage.samples).max(0)),
            compute_seconds: usage.compute_seconds,
            compute_seconds_left: usage.compute_seconds_limit.map(|limit| (limit - usage.compute_seconds).max(0.0)),
            reset_seconds: usage.reset_seconds,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Most items of the page, 1 to 200.
    #[param(example = 50, minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// `created_at` or `-created_at`, which is newest first and the default.
    #[param(example = "-created_at")]
    order: Option<String>,
    /// Only tokens of this principal.
    #[param(example = "ann")]
    owner: Option<String>,
    /// Only tokens that can be used now (`true`), or only those that cannot (`false`).
    active: Option<bool>,
}

/// List tokens
///
/// Newest first, without their secrets.
#[utoipa::path(
    get, path = "/v1/tokens", operation_id = "listTokens", tag = "tokens", params(ListQuery),
    security(("token" = ["administer"])),
    responses((status = 200, description = "A page of tokens.", body = Listing<Token>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "ci", "prefix": "wsm_Ab3dEf9h", "owner": "ann",
            "scopes": ["read", "generate"], "patterns": ["digits-*"], "samples_per_day": 1000,
            "compute_seconds_per_day": null, "expires_at": "2026-02-01T00:00:00Z", "last_used_at": null,
            "created_at": "2026-01-01T00:00:00Z", "revoked_at": null}],
        "next_cursor": null})), ListProblems)
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Listing<Token>>> {
    let mut request = ListRequest { cursor: query.cursor, order: query.order, ..ListRequest::default() };
    request.limit = query.limit.unwrap_or(request.limit);
    let filter = rows::TokenFilter { owner: query.owner, active: query.active };
    let page = rows::list(state.registry(), &caller, &filter, &request).await?;
    Ok(Listing::of(page, Token::from))
}

/// Make a token
///
/// The answer is the only one that has the secret.
#[utoipa::path(
    post, path = "/v1/tokens", operation_id = "createToken", tag = "tokens",
    request_body(content = NewToken, description = "What the token is for.", example = json!({
        "name": "ci", "owner": "ann", "scopes": ["read", "generate"], "patterns": ["digits-*"],
        "samples_per_day": 1000, "expires_in": 2_592_000})),
    security(("token" = ["administer"])),
    responses((status = 201, description = "The token and its secret.", body = CreatedToken,
        headers(("Location" = String, description = "The token's address.")), example = json!({
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "ci", "prefix": "wsm_Ab3dEf9h", "owner": "ann",
            "scopes": ["read", "generate"], "patterns": ["digits-*"], "samples_per_day": 1000,
            "compute_seconds_per_day": null, "expires_at": "2026-02-01T00:00:00Z", "last_used_at": null,
            "created_at": "2026-01-01T00:00:00Z", "revoked_at": null,
            "secret": "wsm_Ab3dEf9h_0123456789abcdefghijABCDEFGHIJ0123456789abc"})), TokenProblems)
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    extract::Json(new): extract::Json<NewToken>,
) -> Result<Response> {
    let mut write = state.registry().write(&caller).await?;
    let (token, secret) = rows::create(&mut write, &new.row(&caller)).await?;
    let location = format!("/v1/tokens/{}", token.id);
    let body = CreatedToken { token: token.into(), secret: secret.reveal().to_owned() };
    Answer::created(&location, &body)?.commit(write, &key).await
}

/// Get a token
#[utoipa::path(
    get, path = "/v1/tokens/{id}", operation_id = "getToken", tag = "tokens",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["administer"])),
    responses((status = 200, description = "The token, without its secret.", body = Token), GetProblems)
)]
async fn get(State(state): State<AppState>, Path(id): Path<Uuid>) -> Result<Json<Token>> {
    Ok(Json(rows::get(state.registry(), id.into()).await?.into()))
}

/// Revoke a token
///
/// For ever. This server refuses it from now on, others within seconds. To revoke it again changes nothing.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", operation_id = "revokeToken", tag = "tokens",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e")),
    security(("token" = ["administer"])),
    responses((status = 200, description = "The revoked token.", body = Token), GetProblems)
)]
async fn revoke(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Json<Token>> {
    let mut write = state.registry().write(&caller).await?;
    let revoked = rows::revoke(&mut write, id.into()).await?;
    write.commit().await?;
    state.known().forget(revoked.id);
    Ok(Json(revoked.into()))
}

/// Tell who asks
///
/// The principal, what the token allows, and what is left of today's quotas. Any valid token may ask.
#[utoipa::path(
    get, path = "/v1/tokens/self", operation_id = "getSelf", tag = "tokens", security(("token" = [])),
    responses((status = 200, description = "Whoever asks.", body = Myself, example = json!({
        "principal": "ann", "scopes": ["read", "generate"], "patterns": ["digits-*"],
        "token": {
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "ci", "prefix": "wsm_Ab3dEf9h", "owner": "ann",
            "scopes": ["read", "generate"], "patterns": ["digits-*"], "samples_per_day": 1000,
            "compute_seconds_per_day": null, "expires_at": "2026-02-01T00:00:00Z", "last_used_at": null,
            "created_at": "2026-01-01T00:00:00Z", "revoked_at": null},
        "quotas": {"samples": 120, "samples_left": 880, "compute_seconds": 12.5, "compute_seconds_left": null,
            "reset_seconds": 41_000}})), ListProblems)
)]
async fn this(
    State(state): State<AppState>,
    caller: Caller,
    Allowed(held): Allowed,
) -> Result<(axum::http::HeaderMap, Json<Myself>)> {
    let (mut headers, mut token, mut today) = (axum::http::HeaderMap::new(), None, None);
    if let Some(id) = caller.token {
        let usage = quotas::usage(state.registry(), id).await?;
        quota_headers(&mut headers, &usage);
        today = Some(usage.into());
        token = Some(rows::get(state.registry(), id).await?.into());
    }
    let scopes = scopes(&held);
    Ok((headers, Json(Myself { principal: caller.name, scopes, patterns: caller.patterns, token, quotas: today })))
}
