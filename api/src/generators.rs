//! Generators and their versions.

mod aliases;
mod train;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use chrono::{DateTime, Utc};
use registry::Caller;
use registry::generators as rows;
use registry::lifecycle as life_rows;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::about::About;
use crate::answer::Answer;
use crate::error::Result;
use crate::extract::{self, Path, Query};
use crate::files::{self, Binary, File, TAR};
use crate::idempotency::IdempotencyKey;
use crate::lifecycle::{Patch, lifecycle};
use crate::page::{Listing, list_query};
use crate::problem::{ChangeProblems, FileProblems, GetProblems, ListProblems, SubListProblems};
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(list_versions))
        .routes(routes!(get_version, update_version))
        .routes(routes!(yank))
        .routes(routes!(restore_version))
        .routes(routes!(purge_version))
        .merge(life::routes())
        .routes(routes!(get_bundle, head_bundle))
        .merge(aliases::routes())
        .merge(train::routes())
}

/// A name with versions.
#[derive(Serialize, ToSchema)]
pub(crate) struct Generator {
    /// Its id.
    id: Uuid,
    /// Its unique name.
    #[schema(example = "digits")]
    name: String,
    /// Number of versions, yanked ones too.
    #[schema(example = 3)]
    versions: i64,
    /// The highest version that is not yanked.
    #[schema(required, example = 3)]
    latest: Option<i32>,
    /// When its first version was published.
    created_at: DateTime<Utc>,
    #[serde(flatten)]
    about: About,
}

impl From<rows::Generator> for Generator {
    fn from(row: rows::Generator) -> Self {
        Self {
            id: row.id.as_uuid(),
            name: row.name,
            versions: row.versions,
            latest: row.latest,
            created_at: row.created_at,
            about: row.about.into(),
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
    /// Its tags.
    tags: Vec<String>,
    /// What is said about it.
    description: String,
    /// When it was yanked, if it was: `latest` passes over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    yanked_at: Option<DateTime<Utc>>,
    /// Why it was yanked.
    #[serde(skip_serializing_if = "String::is_empty")]
    yank_reason: String,
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
            tags: row.tags,
            description: row.description,
            yanked_at: row.yanked_at,
            yank_reason: row.yank_reason,
            created_at: row.created_at,
        };
        (summary, row.manifest)
    }
}

list_query!(ListQuery {
    /// Only the one of this name.
    name: Option<String>,
    /// Only those with a version of this modality: `image`, `features` or `text`.
    modality: Option<String>,
});

list_query!(VersionsQuery {});

/// List generators
///
/// By name.
#[utoipa::path(
    get, path = "/v1/generators", operation_id = "listGenerators", tag = "generators", params(ListQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of generators.", body = Listing<Generator>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits",
            "versions": 3, "latest": 3, "created_at": "2026-01-01T00:00:00Z", "owner": "ann", "visibility": "public",
            "tags": ["vision"], "description": "5-way classifiers of handwritten digits",
            "updated_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(State(state): State<AppState>, caller: Caller, Query(query): Query<ListQuery>) -> Result<Response> {
    let request = query.request();
    let filter = rows::GeneratorFilter { name: query.name, modality: query.modality };
    let page = rows::list(state.registry(), &caller, &filter, &request).await?;
    Listing::select(page, query.fields.as_deref(), Generator::from)
}

/// Get a generator
#[utoipa::path(
    get, path = "/v1/generators/{name}", operation_id = "getGenerator", tag = "generators",
    params(("name" = String, Path, description = "Its name.", example = "digits")),
    security(("token" = ["read"])),
    responses((status = 200, description = "The generator.", body = Generator, example = json!({
        "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "name": "digits",
        "versions": 3, "latest": 3, "created_at": "2026-01-01T00:00:00Z", "owner": "ann", "visibility": "public",
        "tags": ["vision"], "description": "5-way classifiers of handwritten digits",
        "updated_at": "2026-01-01T00:00:00Z"})), GetProblems)
)]
async fn get(State(state): State<AppState>, caller: Caller, Path(name): Path<String>) -> Result<Json<Generator>> {
    read(&state, &caller, name).await.map(Json)
}

async fn read(state: &AppState, caller: &Caller, name: String) -> Result<Generator> {
    Ok(rows::get(state.registry(), caller, &name).await?.into())
}

lifecycle!(
    life: Generator, "a generator", tag "generators", scope "train",
    "/v1/generators/{name}", "/v1/generators/{name}/restore", "/v1/generators/{name}/purge",
    ids ("updateGenerator", "deleteGenerator", "restoreGenerator", "purgeGenerator"),
    key ("name", String, "digits"), Generator, read
);

/// List the versions of a generator
///
/// Newest first, without their manifests.
#[utoipa::path(
    get, path = "/v1/generators/{name}/versions", operation_id = "listGeneratorVersions", tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"), VersionsQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "A page of versions.", body = Listing<VersionSummary>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "generator": "digits", "version": 3,
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "modality": "image", "zoo_id": "0199a1f6-3c5e-7d0a-9a53-000000000001",
            "bundle_url": "/v1/generators/digits/versions/3/bundle", "tags": [], "description": "", "created_at": "2026-01-01T00:00:00Z"}],
        "next_cursor": null})), SubListProblems)
)]
async fn list_versions(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<VersionsQuery>,
) -> Result<Response> {
    let page = rows::versions(state.registry(), &caller, &name, &query.request()).await?;
    Listing::select(page, query.fields.as_deref(), |row| VersionSummary::split(row).0)
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
        "bundle_url": "/v1/generators/digits/versions/3/bundle", "tags": [], "description": "", "created_at": "2026-01-01T00:00:00Z",
        "manifest": {"format": 1, "name": "digits"}})), GetProblems)
)]
async fn get_version(
    State(state): State<AppState>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<Version>> {
    let (summary, manifest) = VersionSummary::split(resolve(&state, &caller, &name, &version).await?);
    Ok(Json(Version { summary, manifest }))
}

async fn resolve(state: &AppState, caller: &Caller, name: &str, version: &str) -> Result<rows::GeneratorVersion> {
    Ok(rows::resolve(state.registry(), caller, &format!("{name}@{version}")).await?)
}

/// Why a version is yanked.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Yank {
    /// The reason, for whoever finds it yanked; at most 1000 characters.
    #[serde(default)]
    #[schema(example = "trained on wrong labels", max_length = 1000)]
    reason: String,
}

/// Change what is said about a version
///
/// Its description and tags; the version itself never changes.
#[utoipa::path(
    patch, path = "/v1/generators/{name}/versions/{version}", operation_id = "updateGeneratorVersion",
    tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("version" = i32, Path, description = "The version's number.", example = 3)),
    request_body(content = Patch, description = "The changes."),
    responses((status = 200, description = "As it is now.", body = Version), ChangeProblems),
    security(("token" = ["train"]))
)]
async fn update_version(
    State(state): State<AppState>,
    caller: Caller,
    Path((name, version)): Path<(String, i32)>,
    extract::Json(patch): extract::Json<Patch>,
) -> Result<Json<Version>> {
    let key = format!("{name}@{version}");
    let mut write = state.registry().write(&caller).await?;
    life_rows::update(&mut write, life_rows::Resource::Version, &key, &patch.into()).await?;
    write.commit().await?;
    version_of(&state, &caller, &key).await
}

async fn version_of(state: &AppState, caller: &Caller, key: &str) -> Result<Json<Version>> {
    let (summary, manifest) = VersionSummary::split(rows::resolve(state.registry(), caller, key).await?);
    Ok(Json(Version { summary, manifest }))
}

/// Yank a version
///
/// `latest` passes over it and no alias can be moved to it. Who names its number still gets it.
#[utoipa::path(
    post, path = "/v1/generators/{name}/versions/{version}/yank", operation_id = "yankGeneratorVersion",
    tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("version" = i32, Path, description = "The version's number.", example = 3)),
    request_body(content = Yank, description = "Why."),
    responses((status = 204, description = "Yanked, or was already."), ChangeProblems),
    security(("token" = ["train"]))
)]
async fn yank(
    State(state): State<AppState>,
    caller: Caller,
    idempotency: IdempotencyKey,
    Path((name, version)): Path<(String, i32)>,
    extract::Json(why): extract::Json<Yank>,
) -> Result<Response> {
    let key = format!("{name}@{version}");
    let mut write = state.registry().write(&caller).await?;
    life_rows::yank(&mut write, &key, &why.reason).await?;
    Answer::no_content().commit(write, &idempotency).await
}

/// Restore a yanked version
///
/// Takes the yank back.
#[utoipa::path(
    post, path = "/v1/generators/{name}/versions/{version}/restore", operation_id = "restoreGeneratorVersion",
    tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("version" = i32, Path, description = "The version's number.", example = 3)),
    responses((status = 204, description = "Restored, or was not yanked."), ChangeProblems),
    security(("token" = ["train"]))
)]
async fn restore_version(
    State(state): State<AppState>,
    caller: Caller,
    idempotency: IdempotencyKey,
    Path((name, version)): Path<(String, i32)>,
) -> Result<Response> {
    let key = format!("{name}@{version}");
    let mut write = state.registry().write(&caller).await?;
    life_rows::restore(&mut write, life_rows::Resource::Version, &key).await?;
    Answer::no_content().commit(write, &idempotency).await
}

/// Purge a version
///
/// Removes a yanked version for good, unless an alias or a generation refers to it. Its number is never given again.
#[utoipa::path(
    post, path = "/v1/generators/{name}/versions/{version}/purge", operation_id = "purgeGeneratorVersion",
    tag = "generators",
    params(("name" = String, Path, description = "The generator's name.", example = "digits"),
           ("version" = i32, Path, description = "The version's number.", example = 3)),
    responses((status = 204, description = "Gone."), ChangeProblems),
    security(("token" = ["administer"]))
)]
async fn purge_version(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Path((name, version)): Path<(String, i32)>,
) -> Result<Response> {
    let mut write = state.registry().write(&caller).await?;
    life_rows::purge(&mut write, life_rows::Resource::Version, &format!("{name}@{version}")).await?;
    Answer::no_content().commit(write, &key).await
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
    caller: Caller,
    path: Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    bundle(state, caller, path, method, headers).await
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
    caller: Caller,
    path: Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    bundle(state, caller, path, method, headers).await
}

async fn bundle(
    State(state): State<AppState>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let row = resolve(&state, &caller, &name, &version).await?;
    let name = format!("{}-{}.tar", row.generator, row.version);
    let file = File { digest: &row.artifact_digest, name, media_type: TAR };
    files::answer(state.registry().artifacts(), &method, &headers, file).await
}
