//! Generators and their versions.

mod aliases;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::generators as rows;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::Result;
use crate::extract::{Path, Query};
use crate::files::{self, Binary, File, TAR};
use crate::page::{self, Listing};
use crate::problem::{FileProblems, GetProblems, ListProblems, SubListProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(list_versions))
        .routes(routes!(get_version))
        .routes(routes!(get_bundle, head_bundle))
        .merge(aliases::routes())
}

/// A name with versions.
#[derive(Serialize, ToSchema)]
pub(crate) struct Generator {
    /// Its id.
    id: Uuid,
    /// Its unique name.
    #[schema(example = "digits")]
    name: String,
    /// What it is for.
    #[schema(example = "5-way classifiers of handwritten digits")]
    description: String,
    /// Number of versions.
    #[schema(example = 3)]
    versions: i64,
    /// The highest version there is.
    #[schema(required, example = 3)]
    latest: Option<i32>,
    /// When its first version was published.
    created_at: DateTime<Utc>,
}

impl From<rows::Generator> for Generator {
    fn from(row: rows::Generator) -> Self {
        Self {
            id: row.id.as_uuid(),
            name: row.name,
            description: row.description,
            versions: row.versions,
            latest: row.latest,
            created_at: row.created_at,
        }
    }
}

/// One immutable version of a generator, without its manifest.
#[derive(Serialize, ToSchema)]
pub(crate) struct VersionSummary {
    /// Its id.
    id: Uuid,
    /// The generator's name.
    #[schema(example = "digits")]
    generator: String,
    /// Its number, from 1.
    #[schema(example = 3)]
    version: i32,
    /// The generator's digest: that of the bundle's manifest.
    digest: String,
    /// What conditions it: `image`, `features` or `text`.
    #[schema(example = "image")]
    modality: String,
    /// The zoo it was trained on, when that is in this registry.
    #[schema(required)]
    zoo_id: Option<Uuid>,
    /// Where to download the bundle (tar).
    #[schema(example = "/v1/generators/digits/versions/3/bundle")]
    bundle_url: String,
    /// When it was published.
    created_at: DateTime<Utc>,
}

/// One immutable version of a generator.
#[derive(Serialize, ToSchema)]
pub(crate) struct Version {
    #[serde(flatten)]
    summary: VersionSummary,
    /// The bundle's manifest: architectures, encoder, latent space, schedule, training and metrics.
    #[schema(value_type = Object)]
    manifest: Value,
}

impl VersionSummary {
    fn split(row: rows::GeneratorVersion) -> (Self, Value) {
        let summary = Self {
            id: row.id.as_uuid(),
            bundle_url: format!("/v1/generators/{}/versions/{}/bundle", row.generator, row.version),
            generator: row.generator,
            version: row.version,
            digest: row.digest,
            modality: row.modality,
            zoo_id: row.zoo_id.map(registry::ZooId::as_uuid),
            created_at: row.created_at,
        };
        (summary, row.manifest)
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
    /// Only generators whose name or description contains this text; case does not count.
    #[param(example = "digits")]
    search: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    /// Most items of the page, 1 to 200.
    #[param(example = 50, minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// List generators
///
/// By name.
#[utoipa::path(
    get, path = "/v1/generators", operation_id = "listGenerators", tag = "generators", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of generators.", body = Listing<Generator>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits",
            "description": "5-way classifiers of handwritten digits", "versions": 3, "latest": 3,
            "created_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, Query(query): Query<ListQuery>) -> Result<Json<Listing<Generator>>> {
    let page = page::request(query.limit, query.cursor);
    let page = rows::list(state.registry(), query.search.as_deref(), &page).await?;
    Ok(Listing::of(page, Generator::from))
}

/// Get a generator
#[utoipa::path(
    get, path = "/v1/generators/{name}", operation_id = "getGenerator", tag = "generators",
    params(("name" = String, Path, description = "Its name.", example = "digits")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The generator.", body = Generator, example = json!({
        "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits",
        "description": "5-way classifiers of handwritten digits", "versions": 3, "latest": 3,
        "created_at": "2026-01-01T00:00:00Z"})), GetProblems)
)]
async fn get(State(state): State<AppState>, Path(name): Path<String>) -> Result<Json<Generator>> {
    Ok(Json(rows::get(state.registry(), &name).await?.into()))
}

/// List the versions of a generator
///
/// Newest first, without their manifests.
#[utoipa::path(
    get, path = "/v1/generators/{name}/versions", operation_id = "listGeneratorVersions", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"), PageQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of versions.", body = Listing<VersionSummary>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "generator": "digits", "version": 3,
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "modality": "image", "zoo_id": "0199a1f6-3c5e-7d0a-9a53-000000000001",
            "bundle_url": "/v1/generators/digits/versions/3/bundle", "created_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), SubListProblems)
)]
async fn list_versions(
    State(state): State<AppState>,
    Path(name): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Listing<VersionSummary>>> {
    let page = rows::versions(state.registry(), &name, &page::request(query.limit, query.cursor)).await?;
    Ok(Listing::of(page, |row| VersionSummary::split(row).0))
}

/// Get a version of a generator
///
/// By its number, an alias, or `latest`.
#[utoipa::path(
    get, path = "/v1/generators/{name}/versions/{version}", operation_id = "getGeneratorVersion", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("version" = String, Path, description = "A number, an alias, or `latest`.", example = "3")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The version.", body = Version, example = json!({
        "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "generator": "digits", "version": 3,
        "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "modality": "image", "zoo_id": "0199a1f6-3c5e-7d0a-9a53-000000000001",
        "bundle_url": "/v1/generators/digits/versions/3/bundle", "created_at": "2026-01-01T00:00:00Z",
        "manifest": {"format": 1, "name": "digits"}})), GetProblems)
)]
async fn get_version(
    State(state): State<AppState>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<Version>> {
    let (summary, manifest) = VersionSummary::split(resolve(&state, &name, &version).await?);
    Ok(Json(Version { summary, manifest }))
}

async fn resolve(state: &AppState, name: &str, version: &str) -> Result<rows::GeneratorVersion> {
    Ok(rows::resolve(state.registry(), &format!("{name}@{version}")).await?)
}

/// Download a generator's bundle
///
/// The bundle as a tar. `ETag` is the tar's digest; `Range`, `If-Range` and `If-None-Match` work.
#[utoipa::path(
    get, path = "/v1/generators/{name}/versions/{version}/bundle", operation_id = "downloadGeneratorBundle",
    tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("version" = String, Path, description = "A number, an alias, or `latest`.", example = "3")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The bundle.", body = Binary, content_type = "application/x-tar"),
              (status = 206, description = "The range asked for.", body = Binary, content_type = "application/x-tar"),
              (status = 304, description = "The bundle is the one that `If-None-Match` names."), FileProblems)
)]
async fn get_bundle(
    state: State<AppState>,
    path: Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    bundle(state, path, method, headers).await
}

/// Ask about a generator's bundle
///
/// The headers of the download alone.
#[utoipa::path(
    head, path = "/v1/generators/{name}/versions/{version}/bundle", operation_id = "headGeneratorBundle",
    tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("version" = String, Path, description = "A number, an alias, or `latest`.", example = "3")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The headers of the download."),
              (status = 304, description = "The bundle is the one that `If-None-Match` names."), FileProblems)
)]
async fn head_bundle(
    state: State<AppState>,
    path: Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    bundle(state, path, method, headers).await
}

async fn bundle(
    State(state): State<AppState>,
    Path((name, version)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let row = resolve(&state, &name, &version).await?;
    let name = format!("{}-{}.tar", row.generator, row.version);
    let file = File { digest: &row.artifact_digest, name, media_type: TAR };
    files::answer(state.registry().artifacts(), &method, &headers, file).await
}
