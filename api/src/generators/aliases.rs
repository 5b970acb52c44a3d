//! Aliases of generator versions: they move atomically, and every move is kept.

use axum::Json;
use axum::extract::State;
use axum::http::header::{ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use registry::Caller;
use registry::aliases::{self as rows, Expected};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Error, Result};
use crate::extract::{self, Path, Query};
use crate::page::{Listing, PageQuery};
use crate::problem::{AliasProblems, GetProblems, SubListProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get, put, delete)).routes(routes!(history))
}

/// A name that points to a version of a generator.
#[derive(Serialize, ToSchema)]
pub(crate) struct Alias {
    /// The generator's name.
    #[schema(example = "digits")]
    generator: String,
    /// The alias, unique within the generator.
    #[schema(example = "champion")]
    alias: String,
    /// The version it points to.
    #[schema(example = 3)]
    version: i32,
    /// When it was first set.
    created_at: DateTime<Utc>,
    /// When it last moved.
    updated_at: DateTime<Utc>,
}

impl From<rows::Alias> for Alias {
    fn from(row: rows::Alias) -> Self {
        Self {
            generator: row.generator,
            alias: row.alias,
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

impl Alias {
    fn etag(&self) -> String {
        format!("\"{}\"", self.version)
    }
}

/// One move of an alias.
#[derive(Serialize, ToSchema)]
pub(crate) struct AliasChange {
    /// Where it pointed before; null when it was new.
    #[schema(required, example = 2)]
    previous: Option<i32>,
    /// Where it pointed from then on; null when it was removed.
    #[schema(required, example = 3)]
    version: Option<i32>,
    /// Who moved it.
    #[schema(example = "ann")]
    actor: String,
    /// When.
    created_at: DateTime<Utc>,
}

/// Where an alias shall point.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AliasTarget {
    /// Number of a version of the generator.
    #[schema(example = 3, minimum = 1)]
    version: i32,
}

/// List the aliases of a generator
///
/// By name; all of them are on one page.
#[utoipa::path(
    get, path = "/v1/generators/{name}/aliases", operation_id = "listAliases", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The aliases.", body = Listing<Alias>, example = json!({
        "items": [{"generator": "digits", "alias": "champion", "version": 3,
                   "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z"}],
        "next_cursor": null})), GetProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Path(name): Path<String>) -> Result<Json<Listing<Alias>>> {
    let items = rows::list(state.registry(), &caller, &name).await?.into_iter().map(Alias::from).collect();
    Ok(Json(Listing { items, next_cursor: None }))
}

/// Get an alias
///
/// The `ETag` is for `If-Match` when it is to be moved.
#[utoipa::path(
    get, path = "/v1/generators/{name}/aliases/{alias}", operation_id = "getAlias", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("alias" = String, Path, description = "The alias.", example = "champion")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The alias.", body = Alias,
               headers(("ETag" = String, description = "Its state, for `If-Match`.")), example = json!({
        "generator": "digits", "alias": "champion", "version": 3,
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z"})), GetProblems)
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Response> {
    let alias = Alias::from(rows::get(state.registry(), &caller, &name, &alias).await?);
    Ok(([(ETAG, alias.etag())], Json(alias)).into_response())
}

/// Point an alias to a version
///
/// Makes it when there is none. With `If-Match`, it moves only from the state that the `ETag` names; with
/// `If-None-Match: *`, it is only made. Every move is kept in its history.
#[utoipa::path(
    put, path = "/v1/generators/{name}/aliases/{alias}", operation_id = "putAlias", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("alias" = String, Path, description = "The alias; neither a number nor `latest`.", example = "champion"),
           ("If-Match" = Option<String>, Header, description = "The `ETag` it has to have, or `*`.", example = "\"2\""),
           ("If-None-Match" = Option<String>, Header, description = "`*`: it must not exist.", example = "*")),
    request_body(content = AliasTarget, description = "Where it shall point.", example = json!({"version": 3})),
    security(("token" = ["train"])),
    responses((status = 200, description = "Moved, or there already.", body = Alias,
               headers(("ETag" = String, description = "Its state, for `If-Match`.")), example = json!({
                   "generator": "digits", "alias": "champion", "version": 3,
                   "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z"})),
              (status = 201, description = "Made.", body = Alias,
               headers(("ETag" = String, description = "Its state, for `If-Match`."),
                       ("Location" = String, description = "The alias' address."))), AliasProblems)
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
    headers: HeaderMap,
    extract::Json(target): extract::Json<AliasTarget>,
) -> Result<Response> {
    let expected = expected(&state, &caller, &name, &alias, &headers).await?;
    let mut write = state.registry().write(&caller).await?;
    let previous = rows::set(&mut write, &name, &alias, target.version, expected).await?;
    write.commit().await?;
    let alias = Alias::from(rows::get(state.registry(), &caller, &name, &alias).await?);
    let etag = [(ETAG, alias.etag())];
    Ok(match previous {
        Some(_) => (etag, Json(alias)).into_response(),
        None => {
            let location = format!("/v1/generators/{}/aliases/{}", alias.generator, alias.alias);
            (StatusCode::CREATED, etag, [(LOCATION, location)], Json(alias)).into_response()
        }
    })
}

/// Remove an alias
///
/// Its history stays. With `If-Match`, only from the state that the `ETag` names.
#[utoipa::path(
    delete, path = "/v1/generators/{name}/aliases/{alias}", operation_id = "deleteAlias", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("alias" = String, Path, description = "The alias.", example = "champion"),
           ("If-Match" = Option<String>, Header, description = "The `ETag` it has to have, or `*`.", example = "\"2\"")),
    responses((status = 204, description = "Removed."), AliasProblems),
    security(("token" = ["train"]))
)]
async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode> {
    let expected = expected(&state, &caller, &name, &alias, &headers).await?;
    let mut write = state.registry().write(&caller).await?;
    rows::remove(&mut write, &name, &alias, expected).await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where the request's conditions expect the alias to be.
async fn expected(state: &AppState, caller: &Caller, name: &str, alias: &str, headers: &HeaderMap) -> Result<Expected> {
    match condition(headers)? {
        Condition::Exists => match rows::get(state.registry(), caller, name, alias).await {
            Ok(current) => Ok(Expected::Version(current.version)),
            Err(registry::Error::NotFound { resource: "generator alias", .. }) => Err(Error::AliasAbsent),
            Err(error) => Err(error.into()),
        },
        Condition::Expected(expected) => Ok(expected),
    }
}

#[derive(Debug, PartialEq)]
enum Condition {
    Exists,
    Expected(Expected),
}

fn condition(headers: &HeaderMap) -> Result<Condition> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    match (text(IF_MATCH), text(IF_NONE_MATCH)) {
        (None, None) => Ok(Condition::Expected(Expected::Any)),
        (None, Some("*")) => Ok(Condition::Expected(Expected::Absent)),
        (Some("*"), None) => Ok(Condition::Exists),
        (Some(etag), None) => {
            let version = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')?.parse().ok());
            let rule = "give the one ETag that the alias answered, such as \"2\", or *";
            let version = version.ok_or(Error::HeaderInvalid { name: "if-match", rule })?;
            Ok(Condition::Expected(Expected::Version(version)))
        }
        _ => Err(Error::HeaderInvalid { name: "if-none-match", rule: "only * is possible, and not with if-match" }),
    }
}

/// List the moves of an alias
///
/// Newest first.
#[utoipa::path(
    get, path = "/v1/generators/{name}/aliases/{alias}/history", operation_id = "listAliasHistory", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("alias" = String, Path, description = "The alias.", example = "champion"), PageQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of moves.", body = Listing<AliasChange>, example = json!({
        "items": [{"previous": 2, "version": 3, "actor": "ann", "created_at": "2026-01-02T00:00:00Z"}],
        "next_cursor": null})), SubListProblems)
)]
async fn history(
    State(state): State<AppState>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Listing<AliasChange>>> {
    let page = rows::history(state.registry(), &caller, &name, &alias, &query.request()).await?;
    Ok(Listing::of(page, |row| AliasChange {
        previous: row.previous,
        version: row.version,
        actor: row.actor,
        created_at: row.created_at,
    }))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn of(pairs: &[(HeaderName, &'static str)]) -> Result<Condition> {
        condition(&pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect())
    }

    #[test]
    fn conditions() {
        assert_eq!(of(&[]).unwrap(), Condition::Expected(Expected::Any));
        assert_eq!(of(&[(IF_MATCH, "\"7\"")]).unwrap(), Condition::Expected(Expected::Version(7)));
        assert_eq!(of(&[(IF_MATCH, "*")]).unwrap(), Condition::Exists);
        assert_eq!(of(&[(IF_NONE_MATCH, "*")]).unwrap(), Condition::Expected(Expected::Absent));
        for bad in [
            &[(IF_MATCH, "7")][..],
            &[(IF_MATCH, "W/\"7\"")],
            &[(IF_MATCH, "\"1\", \"2\"")],
            &[(IF_NONE_MATCH, "\"1\"")],
            &[(IF_MATCH, "*"), (IF_NONE_MATCH, "*")],
        ] {
            assert_eq!(of(bad).unwrap_err().status().as_u16(), 400);
        }
    }
}
