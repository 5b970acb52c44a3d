//! What can be done to any resource: change what is said about it, delete, restore, purge; yank for versions.
//!
//! Deleting hides; the row stays, and with it the lineage of what was made from it. Purging removes the row of
//! something deleted (or yanked), unless something still refers to it; its artifacts are then for `gc`.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::{Access, Change, Error, Result, Write};

/// A kind of resource with a life of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// By name.
    Architecture,
    /// By id.
    Dataset,
    /// By name.
    Extractor,
    /// By id.
    Zoo,
    /// By id; belongs to its zoo.
    Checkpoint,
    /// By name.
    Generator,
    /// As `name@3`; belongs to its generator.
    Version,
    /// By id.
    Generation,
}

/// A change of what is said about a resource; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// The new description.
    pub description: Option<String>,
    /// All new tags.
    pub tags: Option<Vec<String>>,
    /// `public` or `private`; not for checkpoints and versions.
    pub visibility: Option<String>,
    /// The new owner; for administrators; not for checkpoints and versions.
    pub owner: Option<String>,
}

/// What is done, as the audit trail says it.
#[derive(Clone, Copy)]
enum Verb {
    Update,
    Delete,
    Yank,
    Restore,
    Purge,
}

/// `resource.verb` for each verb.
macro_rules! actions {
    ($verb:expr, $resource:literal) => {
        match $verb {
            Verb::Update => concat!($resource, ".update"),
            Verb::Delete => concat!($resource, ".delete"),
            Verb::Yank => concat!($resource, ".yank"),
            Verb::Restore => concat!($resource, ".restore"),
            Verb::Purge => concat!($resource, ".purge"),
        }
    };
}

/// The columns that decide and are changed.
#[derive(Clone, sqlx::FromRow)]
struct Found {
    id: Uuid,
    name: Option<String>,
    owner: String,
    visibility: String,
    tags: Vec<String>,
    description: String,
    hidden_at: Option<DateTime<Utc>>,
}

impl Resource {
    /// The word for it in errors and in the audit trail.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Architecture => "architecture",
            Self::Dataset => "dataset",
            Self::Extractor => "extractor",
            Self::Zoo => "zoo",
            Self::Checkpoint => "checkpoint",
            Self::Generator => "generator",
            Self::Version => "generator version",
            Self::Generation => "generation",
        }
    }

    fn action(self, verb: Verb) -> &'static str {
        match self {
            Self::Architecture => actions!(verb, "architecture"),
            Self::Dataset => actions!(verb, "dataset"),
            Self::Extractor => actions!(verb, "extractor"),
            Self::Zoo => actions!(verb, "zoo"),
            Self::Checkpoint => actions!(verb, "checkpoint"),
            Self::Generator => actions!(verb, "generator"),
            Self::Version => actions!(verb, "generator_version"),
            Self::Generation => actions!(verb, "generation"),
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Architecture => "architectures",
            Self::Dataset => "datasets",
            Self::Extractor => "extractors",
            Self::Zoo => "zoos",
            Self::Checkpoint => "checkpoints",
            Self::Generator => "generators",
            Self::Version => "generator_versions",
            Self::Generation => "generations",
        }
    }

    /// Whether owner and visibility are those of what it belongs to.
    fn belongs(self) -> bool {
        matches!(self, Self::Checkpoint | Self::Version)
    }

    /// When it was deleted; a version is yanked instead.
    fn hidden(self) -> &'static str {
        if self == Self::Version { "yanked_at" } else { "deleted_at" }
    }

    fn select(self) -> String {
        let own = format!("t.id, t.tags, t.description, t.{} AS hidden_at", self.hidden());
        let (columns, from) = match self {
            Self::Architecture | Self::Extractor | Self::Generator => {
                ("t.name, t.owner, t.visibility", "WHERE t.name = $1")
            }
            Self::Dataset | Self::Zoo => ("t.name, t.owner, t.visibility", "WHERE t.id = $1::uuid"),
            Self::Generation => ("NULL AS name, t.owner, t.visibility", "WHERE t.id = $1::uuid"),
            Self::Checkpoint => {
                ("p.name, p.owner, p.visibility", "JOIN zoos p ON p.id = t.zoo_id WHERE t.id = $1::uuid")
            }
            Self::Version => (
                "p.name, p.owner, p.visibility",
                "JOIN generators p ON p.id = t.generator_id WHERE p.name || '@' || t.version = $1",
            ),
        };
        format!("SELECT {own}, {columns} FROM {} t {from} FOR NO KEY UPDATE OF t", self.table())
    }

    /// What may still refer to a row ($1), in words.
    fn dependents(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Architecture => &[("a zoo", "SELECT EXISTS (SELECT FROM zoos WHERE architecture_id = $1)")],
            Self::Dataset => &[
                ("a run of a zoo", "SELECT EXISTS (SELECT FROM runs WHERE dataset_id = $1)"),
                ("a generation", "SELECT EXISTS (SELECT FROM generations WHERE dataset_id = $1)"),
            ],
            Self::Zoo => &[("a generator version", "SELECT EXISTS (SELECT FROM generator_versions WHERE zoo_id = $1)")],
            Self::Generator => &[(
                "a generation",
                "SELECT EXISTS (SELECT FROM generations n JOIN generator_versions v ON v.id = n.version_id
                                WHERE v.generator_id = $1)",
            )],
            Self::Version => &[
                (
                    "an alias",
                    "SELECT EXISTS (SELECT FROM aliases a JOIN generator_versions v USING (generator_id, version)
                                    WHERE v.id = $1)",
                ),
                ("a generation", "SELECT EXISTS (SELECT FROM generations WHERE version_id = $1)"),
            ],
            // A bundle has a copy of its extractor.
            Self::Checkpoint | Self::Extractor | Self::Generation => &[],
        }
    }

    /// What purging removes, in order; $1 is the row's id.
    fn removal(self) -> &'static [&'static str] {
        match self {
            Self::Architecture => &["DELETE FROM architectures WHERE id = $1"],
            Self::Extractor => &["DELETE FROM extractors WHERE id = $1"],
            Self::Dataset => &[
                "DELETE FROM embeddings WHERE subject_kind = 'dataset' AND subject_id = $1",
                "DELETE FROM datasets WHERE id = $1",
            ],
            Self::Zoo => &[
                "DELETE FROM embeddings WHERE subject_kind = 'run'
                    AND subject_id IN (SELECT id FROM runs WHERE zoo_id = $1)",
                "DELETE FROM checkpoints WHERE zoo_id = $1",
                "DELETE FROM runs WHERE zoo_id = $1",
                "DELETE FROM zoos WHERE id = $1",
            ],
            Self::Checkpoint => &["DELETE FROM checkpoints WHERE id = $1"],
            Self::Generator => &[
                "INSERT INTO retired_generators (name, last_version)
                    SELECT name, last_version FROM generators WHERE id = $1
                    ON CONFLICT (name) DO UPDATE SET last_version = EXCLUDED.last_version",
                "DELETE FROM embeddings WHERE version_id IN (SELECT id FROM generator_versions WHERE generator_id = $1)",
                "DELETE FROM aliases WHERE generator_id = $1",
                "DELETE FROM alias_history WHERE generator_id = $1",
                "DELETE FROM generator_versions WHERE generator_id = $1",
                "DELETE FROM generators WHERE id = $1",
            ],
            Self::Version => {
                &["DELETE FROM embeddings WHERE version_id = $1", "DELETE FROM generator_versions WHERE id = $1"]
            }
            Self::Generation => {
                &["DELETE FROM samples WHERE generation_id = $1", "DELETE FROM generations WHERE id = $1"]
            }
        }
    }
}

impl Found {
    fn state(&self) -> Value {
        json!({"owner": self.owner, "visibility": self.visibility, "tags": self.tags,
               "description": self.description, "deleted": self.hidden_at.is_some()})
    }
}

/// The row of a key, locked, when the caller sees and owns it.
async fn owned(write: &mut Write, resource: Resource, key: &str) -> Result<Found> {
    let absent = || Error::not_found(resource.word(), key);
    let by_name =
        matches!(resource, Resource::Architecture | Resource::Extractor | Resource::Generator | Resource::Version);
    if key.contains('\0') || (!by_name && key.parse::<Uuid>().is_err()) {
        return Err(absent());
    }
    let found: Option<Found> =
        sqlx::query_as(AssertSqlSafe(resource.select())).bind(key).fetch_optional(write.connection()).await?;
    let found = found.ok_or_else(absent)?;
    let access = Access { name: found.name.as_deref(), owner: &found.owner, visibility: &found.visibility };
    write.caller().require_sight(resource.word(), key, access)?;
    write.caller().require_ownership(resource.word(), key, &found.owner)?;
    Ok(found)
}

/// Changes what is said about a resource.
///
/// # Errors
/// `not_found`, `not_owner`, `invalid_value`.
pub async fn update(write: &mut Write, resource: Resource, key: &str, patch: &Patch) -> Result<()> {
    let found = owned(write, resource, key).await?;
    if resource.belongs() && (patch.visibility.is_some() || patch.owner.is_some()) {
        let rule = "they are those of the zoo or generator it belongs to: change them there";
        return Err(Error::invalid(if patch.owner.is_some() { "owner" } else { "visibility" }, rule));
    }
    if let Some(owner) = &patch.owner {
        if !write.caller().administrator {
            return Err(Error::invalid("owner", "only administrators give a resource to another owner"));
        }
        check_owner(owner)?;
    }
    if patch.description.as_ref().is_some_and(|text| text.contains('\0')) {
        return Err(Error::invalid("description", "text has no zero bytes"));
    }
    let (owner, updated) = match resource.belongs() {
        true => ("", ""),
        false => (", visibility = COALESCE($4, visibility), owner = COALESCE($5, owner)", ", updated_at = now()"),
    };
    let sql = format!(
        "UPDATE {} SET description = COALESCE($2, description), tags = COALESCE($3, tags){owner}{updated} WHERE id = $1",
        resource.table()
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(found.id).bind(&patch.description).bind(&patch.tags);
    if !resource.belongs() {
        query = query.bind(&patch.visibility).bind(&patch.owner);
    }
    query.execute(write.connection()).await?;
    let after = Found {
        description: patch.description.clone().unwrap_or_else(|| found.description.clone()),
        tags: patch.tags.clone().unwrap_or_else(|| found.tags.clone()),
        visibility: patch.visibility.clone().unwrap_or_else(|| found.visibility.clone()),
        owner: patch.owner.clone().unwrap_or_else(|| found.owner.clone()),
        ..found.clone()
    };
    log(write, Verb::Update, resource, key, &found, Some(after.state())).await
}

fn check_owner(owner: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if (1..=100).contains(&owner.len()) && owner.chars().all(allowed) {
        Ok(())
    } else {
        Err(Error::invalid("owner", "use 1 to 100 letters, digits and - _ . @"))
    }
}

/// Hides a resource; what is deleted already stays so.
///
/// # Errors
/// `not_found`, `not_owner`; for a version see [`yank`].
pub async fn delete(write: &mut Write, resource: Resource, key: &str) -> Result<()> {
    hide(write, resource, key, "").await
}

/// Marks a version as not to be used any more: `latest` passes over it, aliases cannot be moved to it; who names its
/// number still gets it.
///
/// # Errors
/// `not_found`, `not_owner`, `invalid_value` (the reason).
pub async fn yank(write: &mut Write, version: &str, reason: &str) -> Result<()> {
    if reason.chars().count() > 1000 || reason.contains('\0') {
        return Err(Error::invalid("reason", "use at most 1000 characters"));
    }
    hide(write, Resource::Version, version, reason).await
}

async fn hide(write: &mut Write, resource: Resource, key: &str, reason: &str) -> Result<()> {
    let found = owned(write, resource, key).await?;
    if found.hidden_at.is_some() {
        return Ok(());
    }
    let reason_too = if resource == Resource::Version { ", yank_reason = $2" } else { "" };
    set_hidden(write, resource, found.id, &format!("clock_timestamp(){reason_too}"), reason).await?;
    let verb = if resource == Resource::Version { Verb::Yank } else { Verb::Delete };
    let mut after = found.state();
    after["deleted"] = json!(true);
    if !reason.is_empty() {
        after["reason"] = json!(reason);
    }
    log(write, verb, resource, key, &found, Some(after)).await
}

/// Takes back a deletion or a yank; what is there stays so.
///
/// # Errors
/// `not_found`, `not_owner`.
pub async fn restore(write: &mut Write, resource: Resource, key: &str) -> Result<()> {
    let found = owned(write, resource, key).await?;
    if found.hidden_at.is_none() {
        return Ok(());
    }
    let reason_too = if resource == Resource::Version { ", yank_reason = $2" } else { "" };
    set_hidden(write, resource, found.id, &format!("NULL{reason_too}"), "").await?;
    let mut after = found.state();
    after["deleted"] = json!(false);
    log(write, Verb::Restore, resource, key, &found, Some(after)).await
}

async fn set_hidden(write: &mut Write, resource: Resource, id: Uuid, to: &str, reason: &str) -> Result<()> {
    let updated = if resource.belongs() { "" } else { ", updated_at = now()" };
    let sql = format!("UPDATE {} SET {} = {to}{updated} WHERE id = $1", resource.table(), resource.hidden());
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(id);
    if resource == Resource::Version {
        query = query.bind(reason);
    }
    query.execute(write.connection()).await?;
    Ok(())
}

/// Removes the row of a deleted resource (of a yanked version) and what belongs to it. For administrators: whoever
/// calls checks that.
///
/// # Errors
/// `not_found`, `not_deleted`, `in_use`.
pub async fn purge(write: &mut Write, resource: Resource, key: &str) -> Result<()> {
    let found = owned(write, resource, key).await?;
    if found.hidden_at.is_none() {
        return Err(Error::NotDeleted { resource: resource.word(), name: key.into() });
    }
    let in_use = |by: &str| Error::InUse { resource: resource.word(), name: key.into(), by: by.into() };
    for (by, exists) in resource.dependents() {
        if sqlx::query_scalar(*exists).bind(found.id).fetch_one(write.connection()).await? {
            return Err(in_use(by));
        }
    }
    for statement in resource.removal() {
        let done = sqlx::query(*statement).bind(found.id).execute(write.connection()).await;
        if let Err(sqlx::Error::Database(error)) = &done
            && error.is_foreign_key_violation()
        {
            return Err(in_use(error.table().unwrap_or("another resource")));
        }
        done?;
    }
    log(write, Verb::Purge, resource, key, &found, None).await
}

async fn log(
    write: &mut Write,
    verb: Verb,
    resource: Resource,
    key: &str,
    before: &Found,
    after: Option<Value>,
) -> Result<()> {
    let change = Change {
        action: resource.action(verb),
        resource: resource.word(),
        id: key.into(),
        before: Some(before.state()),
        after,
    };
    write.audit(change).await
}
