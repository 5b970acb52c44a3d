//! Generators and their versions: numbered from 1, immutable, a number never given twice.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    About, Access, Caller, Change, Error, GeneratorId, GeneratorRef, ListRequest, NewAbout, Page, Registry, Result,
    Selector, VersionId, Write, ZooId, names,
};

/// A generator: a name with versions.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Generator {
    /// Its id.
    pub id: GeneratorId,
    /// Its unique name.
    pub name: String,
    /// Number of versions, yanked ones too.
    pub versions: i64,
    /// The highest version that is not yanked.
    pub latest: Option<i32>,
    /// When its first version was published.
    pub created_at: DateTime<Utc>,
    /// Owner, visibility, tags, description.
    #[sqlx(flatten)]
    pub about: About,
}

/// One immutable version of a generator.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct GeneratorVersion {
    /// Its id.
    pub id: VersionId,
    /// The generator's name.
    pub generator: String,
    /// Its number, from 1.
    pub version: i32,
    /// Digest of the bundle's content.
    pub digest: String,
    /// What it generates weights for, such as `image`.
    pub modality: String,
    /// The bundle's manifest.
    pub manifest: Value,
    /// Digest of the stored bundle (tar).
    pub artifact_digest: String,
    /// The zoo it was trained on, when that is in this registry.
    pub zoo_id: Option<ZooId>,
    /// Its tags.
    pub tags: Vec<String>,
    /// What is said about it.
    pub description: String,
    /// When it was yanked: `latest` passes over it.
    pub yanked_at: Option<DateTime<Utc>>,
    /// Why it was yanked, or empty.
    pub yank_reason: String,
    /// When it was published.
    pub created_at: DateTime<Utc>,
}

/// A version to publish.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// The generator's name; the generator is made when there is none.
    pub name: String,
    /// What the generator is for, its tags and visibility; used when it is made.
    pub about: NewAbout,
    /// Digest of the bundle's content.
    pub digest: String,
    /// What it generates weights for, such as `image`.
    pub modality: String,
    /// The bundle's manifest.
    pub manifest: Value,
    /// Digest of the stored bundle (tar).
    pub artifact_digest: String,
    /// The zoo it was trained on, when that is in this registry.
    pub zoo_id: Option<ZooId>,
}

/// Which generators to list.
#[derive(Clone, Debug, Default)]
pub struct GeneratorFilter {
    /// Only the one of this name.
    pub name: Option<String>,
    /// Only those with a version of this modality.
    pub modality: Option<String>,
}

const COLUMNS: &str = "g.id, g.name, g.created_at,
    (SELECT count(*) FROM generator_versions v WHERE v.generator_id = g.id) AS versions,
    (SELECT max(version) FROM generator_versions v WHERE v.generator_id = g.id AND v.yanked_at IS NULL) AS latest,
    g.owner, g.visibility, g.tags, g.description, g.updated_at, g.deleted_at";

const VERSION_COLUMNS: &str = "v.id, g.name AS generator, v.version, v.digest, v.modality, v.manifest,
    v.artifact_digest, v.zoo_id, v.tags, v.description, v.yanked_at, v.yank_reason, v.created_at";

const VERSION_FROM: &str =
    "FROM generator_versions v JOIN generators g ON g.id = v.generator_id AND g.deleted_at IS NULL";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM generators g",
    late: "",
    alias: "g",
    sight: Sight::Named("g"),
    deletable: true,
    described: true,
    orders: &[
        Order { field: "name", column: "g.name", kind: Kind::Text },
        Order { field: "created_at", column: "g.created_at", kind: Kind::Time },
    ],
    default_order: "name",
};

const VERSIONS: Listed = Listed {
    columns: VERSION_COLUMNS,
    from: VERSION_FROM,
    late: "",
    alias: "v",
    sight: Sight::Named("g"),
    deletable: false,
    described: true,
    orders: &[Order { field: "version", column: "v.version", kind: Kind::Integer }],
    default_order: "-version",
};

impl Generator {
    fn access(&self) -> Access<'_> {
        Access { name: Some(&self.name), owner: &self.about.owner, visibility: &self.about.visibility }
    }
}

/// Publishes a bundle as the next version of a generator. The same digest again returns the version it has.
///
/// # Errors
/// `invalid_name`, `name_not_allowed`, `not_owner`, `invalid_value`, `artifact_missing`, `not_found` (the zoo; the
/// generator when it was deleted: restore it first).
pub async fn publish(write: &mut Write, new: &NewVersion) -> Result<GeneratorVersion> {
    names::check(&new.name)?;
    let generator = ensure_generator(write, new).await?;
    let existing: Option<VersionId> =
        sqlx::query_scalar("SELECT id FROM generator_versions WHERE generator_id = $1 AND digest = $2")
            .bind(generator)
            .bind(&new.digest)
            .fetch_optional(write.connection())
            .await?;
    let id = match existing {
        Some(id) => id,
        None => insert_version(write, generator, new).await?,
    };
    let sql = format!("SELECT {VERSION_COLUMNS} {VERSION_FROM} WHERE v.id = $1");
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_one(write.connection()).await?)
}

/// The generator's id, its row locked: publishing to one generator goes one at a time.
async fn ensure_generator(write: &mut Write, new: &NewVersion) -> Result<GeneratorId> {
    write.caller().require_name(&new.name)?;
    let owner = write.caller().name.clone();
    let id = GeneratorId::generate();
    // A name that was purged goes on with its numbers.
    let made = sqlx::query(
        "INSERT INTO generators (id, name, owner, visibility, tags, description, last_version)
         SELECT $1, $2, $3, $4, $5, $6,
                COALESCE((SELECT last_version FROM retired_generators WHERE name = $2), 0)
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(id)
    .bind(&new.name)
    .bind(owner)
    .bind(new.about.visibility())
    .bind(&new.about.tags)
    .bind(&new.about.description)
    .execute(write.connection())
    .await?;
    if made.rows_affected() > 0 {
        let after = json!({"id": id, "visibility": new.about.visibility()});
        write.audit(Change::made("generator.create", "generator", &new.name, after)).await?;
    }
    lock(write, &new.name).await
}

/// Locks the row of a generator of the caller's until the transaction ends.
pub(crate) async fn lock(write: &mut Write, name: &str) -> Result<GeneratorId> {
    let found: Option<(GeneratorId, String, String)> = sqlx::query_as(
        "SELECT id, owner, visibility FROM generators WHERE name = $1 AND deleted_at IS NULL FOR NO KEY UPDATE",
    )
    .bind(name)
    .fetch_optional(write.connection())
    .await?;
    let (id, owner, visibility) = found.ok_or_else(|| Error::not_found("generator", name))?;
    let access = Access { name: Some(name), owner: &owner, visibility: &visibility };
    write.caller().require_sight("generator", name, access)?;
    write.caller().require_ownership("generator", name, &owner)?;
    Ok(id)
}

async fn insert_version(write: &mut Write, generator: GeneratorId, new: &NewVersion) -> Result<VersionId> {
    let version: i32 = sqlx::query_scalar(
        "UPDATE generators SET last_version = last_version + 1, updated_at = now() WHERE id = $1
         RETURNING last_version",
    )
    .bind(generator)
    .fetch_one(write.connection())
    .await?;
    let id = VersionId::generate();
    sqlx::query(
        "INSERT INTO generator_versions
            (id, generator_id, version, digest, modality, manifest, artifact_digest, zoo_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(generator)
    .bind(version)
    .bind(&new.digest)
    .bind(&new.modality)
    .bind(&new.manifest)
    .bind(&new.artifact_digest)
    .bind(new.zoo_id)
    .execute(write.connection())
    .await?;
    let after = json!({"digest": new.digest, "zoo_id": new.zoo_id});
    let name = format!("{}@{version}", new.name);
    write.audit(Change::made("generator_version.publish", "generator version", name, after)).await?;
    Ok(id)
}

/// The version a reference means: `name` or `name@latest` (the highest that is not yanked), `name@3`, `name@alias`.
///
/// # Errors
/// `invalid_reference`; `not_found`, which says whether the generator or the version is missing.
pub async fn resolve(registry: &Registry, caller: &Caller, reference: &str) -> Result<GeneratorVersion> {
    let parsed: GeneratorRef = reference.parse()?;
    // One statement finds the generator and the version: this is on the path of every generation.
    let condition = match &parsed.selector {
        Selector::Latest => "v.yanked_at IS NULL",
        Selector::Version(_) => "v.version = $2::int",
        Selector::Alias(_) => {
            "v.version = (SELECT a.version FROM aliases a WHERE a.generator_id = g.id AND a.alias = $2)"
        }
    };
    let selector = match &parsed.selector {
        Selector::Latest => String::new(),
        Selector::Version(version) => version.to_string(),
        Selector::Alias(alias) => alias.clone(),
    };
    // `$2` has to appear for its type to be known.
    let sql = format!(
        "SELECT {VERSION_COLUMNS}, g.owner, g.visibility {VERSION_FROM}
         WHERE g.name = $1 AND $2::text IS NOT NULL AND {condition} ORDER BY v.version DESC LIMIT 1"
    );
    let found: Option<SeenVersion> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(&parsed.name)
        .bind(selector)
        .fetch_optional(registry.pool())
        .await?;
    if let Some(version) = found.and_then(|row| row.seen_by(caller)) {
        return Ok(version);
    }
    get(registry, caller, &parsed.name).await?;
    let resource = match parsed.selector {
        Selector::Alias(_) => "generator alias",
        _ => "generator version",
    };
    Err(Error::not_found(resource, parsed))
}

#[derive(sqlx::FromRow)]
struct SeenVersion {
    #[sqlx(flatten)]
    version: GeneratorVersion,
    owner: String,
    visibility: String,
}

impl SeenVersion {
    fn seen_by(self, caller: &Caller) -> Option<GeneratorVersion> {
        let access = Access { name: Some(&self.version.generator), owner: &self.owner, visibility: &self.visibility };
        caller.sees(access).then_some(self.version)
    }
}

/// The version of an id.
///
/// # Errors
/// `not_found`, also when the caller may not see its generator or that was deleted.
pub async fn by_version_id(registry: &Registry, caller: &Caller, id: VersionId) -> Result<GeneratorVersion> {
    let sql = format!("SELECT {VERSION_COLUMNS}, g.owner, g.visibility {VERSION_FROM} WHERE v.id = $1");
    let found: Option<SeenVersion> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(registry.pool()).await?;
    found.and_then(|row| row.seen_by(caller)).ok_or_else(|| Error::not_found("generator version", id))
}

/// The generator of a name.
///
/// # Errors
/// `not_found`, also when the caller may not see it or it was deleted.
pub async fn get(registry: &Registry, caller: &Caller, name: &str) -> Result<Generator> {
    let sql = format!("SELECT {COLUMNS} FROM generators g WHERE g.name = $1 AND g.deleted_at IS NULL");
    let found: Option<Generator> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(name).fetch_optional(registry.pool()).await?;
    found.filter(|row| caller.sees(row.access())).ok_or_else(|| Error::not_found("generator", name))
}

/// Generators, by name unless another order is asked for (`name`, `created_at`).
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &GeneratorFilter,
    request: &ListRequest,
) -> Result<Page<Generator>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    query.equal("g.name", filter.name.as_ref());
    if let Some(modality) = &filter.modality {
        query.sql.push(" AND EXISTS (SELECT FROM generator_versions v WHERE v.generator_id = g.id AND v.modality = ");
        query.sql.push_bind(modality.clone()).push(")");
    }
    query.page(registry).await
}

/// Versions of a generator, newest first.
///
/// # Errors
/// `not_found`, `invalid_cursor`, `invalid_value`.
pub async fn versions(
    registry: &Registry,
    caller: &Caller,
    name: &str,
    request: &ListRequest,
) -> Result<Page<GeneratorVersion>> {
    let generator = get(registry, caller, name).await?;
    let mut query = Query::start(&VERSIONS, request, caller)?;
    query.equal("v.generator_id", Some(&generator.id));
    query.page(registry).await
}
