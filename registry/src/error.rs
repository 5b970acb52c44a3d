//! What can go wrong. `Display` is the sentence for whoever asked; the cause behind it (`source`) is for the log.

use std::path::PathBuf;

use crate::constraints;

/// The result of a registry call.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing has this name or id.
    #[error("there is no {resource} `{name}`: list them to see which there are")]
    NotFound {
        /// The kind of thing, such as `generator`.
        resource: &'static str,
        /// The name or id that was asked for.
        name: String,
    },
    /// The name, digest or index is taken.
    #[error("a {resource} `{name}` already exists: choose another, or use the existing one")]
    AlreadyExists {
        /// The kind of thing.
        resource: &'static str,
        /// The key that is taken.
        name: String,
    },
    /// An alias is not where the caller expected it.
    #[error("the alias `{alias}` of `{generator}` is at {actual}, not at {expected}: read it again and decide anew")]
    Conflict {
        /// The generator's name.
        generator: String,
        /// The alias.
        alias: String,
        /// Where the caller expected it, in words.
        expected: String,
        /// Where it is, in words.
        actual: String,
    },
    /// The resource belongs to someone else.
    #[error("the {resource} `{name}` belongs to {owner}: ask its owner or an administrator to change it")]
    NotOwner {
        /// The kind of thing.
        resource: &'static str,
        /// Its name or id.
        name: String,
        /// Whose it is.
        owner: String,
    },
    /// Purging comes after deleting.
    #[error("the {resource} `{name}` is not deleted: delete it (yank a version) before it is purged")]
    NotDeleted {
        /// The kind of thing.
        resource: &'static str,
        /// Its name or id.
        name: String,
    },
    /// Something still refers to what was to be removed.
    #[error("the {resource} `{name}` is in use by {by}: purge that first")]
    InUse {
        /// The kind of thing.
        resource: &'static str,
        /// Its name or id.
        name: String,
        /// What refers to it.
        by: String,
    },
    /// A yanked version that something should point to.
    #[error("the version {version} of `{generator}` is yanked: choose another, or restore it")]
    Yanked {
        /// The generator's name.
        generator: String,
        /// The version's number.
        version: i32,
    },
    /// A name outside the caller's patterns.
    #[error("the token does not allow the name `{name}`: use one that matches {patterns}")]
    NameNotAllowed {
        /// The refused name.
        name: String,
        /// What is allowed.
        patterns: String,
    },
    /// The job has ended already.
    #[error("the job `{id}` has ended ({state}): there is nothing left to cancel")]
    JobFinished {
        /// The job's id.
        id: String,
        /// How it ended.
        state: String,
    },
    /// Another worker has taken the job over.
    #[error("the job `{0}` is no longer this worker's: another has taken it over, or it has ended")]
    JobLost(String),
    /// The dispatcher of jobs failed.
    #[error("jobs cannot be dispatched: check the database, and see the server's log")]
    Dispatch(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Not a token of this server.
    #[error("the token is not valid: send `Authorization: Bearer` with one that this server made")]
    TokenInvalid,
    /// A token whose time is over.
    #[error("the token has expired: ask an administrator for a new one")]
    TokenExpired,
    /// A token that was withdrawn.
    #[error("the token was revoked: ask an administrator for a new one")]
    TokenRevoked,
    /// The day's quota does not cover what was asked for.
    #[error(
        "the token's quota of {limit} {what} a day has {left} left: ask for less, or again in {reset_seconds} seconds"
    )]
    QuotaExceeded {
        /// What is counted: `samples` or `compute seconds`.
        what: &'static str,
        /// How many a day.
        limit: i64,
        /// How many are left today.
        left: i64,
        /// Seconds until the day (UTC) ends.
        reset_seconds: u64,
    },
    /// A cursor that no list gave out.
    #[error("the cursor is not one this list gave out: pass next_cursor of the page before, or none to begin")]
    InvalidCursor,
    /// A name outside the allowed form.
    #[error(
        "`{name}` is not a valid name: use 1 to 100 lowercase letters, digits, - and _, beginning with a letter or digit{also}"
    )]
    InvalidName {
        /// The refused name.
        name: String,
        /// A further rule of this kind of name, or empty.
        also: &'static str,
    },
    /// A generator reference that cannot be read.
    #[error("`{0}` is not a generator reference: write name, name@3, name@alias or name@latest")]
    InvalidReference(String),
    /// A value outside its range.
    #[error("{field} is not valid: {rule}")]
    InvalidValue {
        /// Which value.
        field: &'static str,
        /// What would be right.
        rule: String,
    },
    /// A byte range outside the artifact.
    #[error("the bytes {start}-{end} are outside the artifact: it has {size} bytes")]
    InvalidRange {
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Bytes there are.
        size: u64,
    },
    /// Another request has taken the idempotency key over.
    #[error("the request took so long that its Idempotency-Key was given to another: see what became of that one")]
    ClaimLost,
    /// More bytes than the caller's limit.
    #[error("the content is larger than the limit of {limit} bytes: send less")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The database was written by a newer program.
    #[error("the database has schema version {found}, this program knows up to {known}: use a newer weightsmith")]
    SchemaNewer {
        /// Version found in the database.
        found: i64,
        /// Newest version this program knows.
        known: i64,
    },
    /// The database's schema lacks migrations, and the program was told not to run them.
    #[error(
        "the database's schema lacks {pending} migrations: run weightsmith db migrate, or start without --no-migrate"
    )]
    SchemaBehind {
        /// How many.
        pending: usize,
    },
    /// The database's schema is not the one this program's migrations made.
    #[error("the database's schema is not the one this program makes: give it an empty database or restore a backup")]
    SchemaMismatch(#[source] sqlx::migrate::MigrateError),
    /// The server has no pgvector.
    #[error(
        "the PostgreSQL server has no usable pgvector extension: install pgvector on it (and, unless you are a superuser, let one run CREATE EXTENSION vector)"
    )]
    PgvectorMissing,
    /// No PostgreSQL was given, or there is none where it should be.
    #[error(
        "no PostgreSQL found{at}: set WEIGHTSMITH_POSTGRES to a PostgreSQL directory with pgvector (the one that holds bin/postgres), or DATABASE_URL to a server"
    )]
    PostgresMissing {
        /// ` at PATH`, or empty.
        at: String,
    },
    /// The private PostgreSQL did not come up.
    #[error("the private PostgreSQL in {directory} did not start: {reason}")]
    PostgresStart {
        /// The server's directory.
        directory: PathBuf,
        /// Why, and what would be right.
        reason: String,
    },
    /// Another process holds the data directory.
    #[error(
        "another weightsmith uses the data directory {0}: stop it, choose another directory, or set DATABASE_URL to share a server"
    )]
    DataDirectoryBusy(PathBuf),
    /// The artifact has no row or no file.
    #[error("there is no artifact {digest}")]
    ArtifactMissing {
        /// The digest asked for.
        digest: String,
    },
    /// The stored bytes do not have the digest they are stored under.
    #[error("the stored bytes of artifact {digest} are damaged: restore the file, or upload it again")]
    ArtifactCorrupt {
        /// The digest asked for.
        digest: String,
    },
    /// The disk of the artifact store is full.
    #[error("the artifact store is full: free space on its disk (`weightsmith gc` removes what nothing refers to)")]
    StorageFull(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another `gc` or a backup is under way.
    #[error("another gc, backup or restore is under way: wait until it has ended")]
    MaintenanceBusy,
    /// A backup that cannot be made there, or cannot be restored.
    #[error("the backup {path} cannot be used: {reason}")]
    Backup {
        /// The backup's folder.
        path: PathBuf,
        /// Why, and what would be right.
        reason: String,
    },
    /// The database cannot be reached.
    #[error("the database cannot be reached: check that the server runs and that DATABASE_URL is right")]
    DatabaseUnavailable(#[source] sqlx::Error),
    /// The database refused or failed, and the caller is not at fault.
    #[error("the database did not complete the request: try again, and see the server's log if it goes on")]
    Database(#[source] sqlx::Error),
    /// The artifact store failed.
    #[error("the artifact store did not complete the request: check its disk or bucket, and see the server's log")]
    Storage(#[source] object_store::Error),
    /// A local file could not be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes to store could not be read.
    #[error("the content to store could not be read to its end: send it again")]
    Input(#[source] std::io::Error),
}

impl Error {
    /// A stable name of the kind of error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::AlreadyExists { .. } => "already_exists",
            Self::Conflict { .. } => "conflict",
            Self::NotOwner { .. } => "not_owner",
            Self::NotDeleted { .. } => "not_deleted",
            Self::InUse { .. } => "in_use",
            Self::Yanked { .. } => "yanked",
            Self::NameNotAllowed { .. } => "name_not_allowed",
            Self::JobFinished { .. } => "job_finished",
            Self::JobLost(_) => "job_lost",
            Self::Dispatch(_) => "dispatch",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::QuotaExceeded { .. } => "quota_exceeded",
            Self::InvalidCursor => "invalid_cursor",
            Self::InvalidName { .. } => "invalid_name",
            Self::InvalidReference(_) => "invalid_reference",
            Self::InvalidValue { .. } => "invalid_value",
            Self::InvalidRange { .. } => "invalid_range",
            Self::ClaimLost => "claim_lost",
            Self::TooLarge { .. } => "too_large",
            Self::SchemaNewer { .. } => "schema_newer",
            Self::SchemaBehind { .. } => "schema_behind",
            Self::SchemaMismatch(_) => "schema_mismatch",
            Self::PgvectorMissing => "pgvector_missing",
            Self::PostgresMissing { .. } => "postgres_missing",
            Self::PostgresStart { .. } => "postgres_start",
            Self::DataDirectoryBusy(_) => "data_directory_busy",
            Self::ArtifactMissing { .. } => "artifact_missing",
            Self::ArtifactCorrupt { .. } => "artifact_corrupt",
            Self::StorageFull(_) => "storage_full",
            Self::MaintenanceBusy => "maintenance_busy",
            Self::Backup { .. } => "backup",
            Self::DatabaseUnavailable(_) => "database_unavailable",
            Self::Database(_) => "database",
            Self::Storage(_) => "storage",
            Self::Io { .. } => "io",
            Self::Input(_) => "input",
        }
    }

    pub(crate) fn not_found(resource: &'static str, name: impl ToString) -> Self {
        Self::NotFound { resource, name: name.to_string() }
    }

    pub(crate) fn invalid(field: &'static str, rule: impl Into<String>) -> Self {
        Self::InvalidValue { field, rule: rule.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if is_going_down(database.as_ref()) => Self::DatabaseUnavailable(error),
            // U+0000, in text and in JSON: the one character that Postgres does not store.
            sqlx::Error::Database(database) if matches!(database.code().as_deref(), Some("22021" | "22P05")) => {
                Self::invalid("text", "it contains the character U+0000, which cannot be stored: leave it out")
            }
            sqlx::Error::Database(database) => {
                constraints::explain(database.as_ref()).unwrap_or_else(|| Self::Database(error))
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Configuration(_) => Self::DatabaseUnavailable(error),
            _ => Self::Database(error),
        }
    }
}

/// Whether the server is stopping, starting, or has cut the connection: it answers again soon.
fn is_going_down(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().is_some_and(|code| code.starts_with("08") || matches!(&*code, "57P01" | "57P02" | "57P03"))
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        if is_full(&error) { Self::StorageFull(Box::new(error)) } else { Self::Storage(error) }
    }
}

/// Whether the cause is a disk with no room, a quota, or a limit on a file's size.
fn is_full(error: &object_store::Error) -> bool {
    use std::io::ErrorKind;

    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge);
        }
        cause = error.source();
    }
    false
}
