//! `fsck`: compares every artifact's row with its file, and every file with its row.

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use crate::artifacts::{self, FileKind};
use crate::{Artifact, ArtifactStore, Error, Registry, Result, references};

/// Rows, or files, looked at in one statement.
const PAGE: i64 = 1_000;
/// Files that are asked for, or read, at a time.
const AT_ONCE: usize = 8;
/// Problems that a report lists; the others are counted.
const LISTED: usize = 1_000;

/// What is wrong with one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `file_missing`, `size_differs`, `content_differs`, `file_without_row`, `unknown_file`, `reference_dangling`.
    pub code: &'static str,
    /// The digest, or the file's name.
    pub what: String,
    /// In words, with what to do.
    pub detail: String,
}

/// What was compared, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// Whether contents were compared with their digests.
    pub deep: bool,
    /// Rows compared with their files.
    pub artifacts: u64,
    /// Bytes that these rows tell of.
    pub bytes: u64,
    /// Files compared with their rows.
    pub files: u64,
    /// Files of uploads under way or cut off: no problem, and for `gc` when they are old.
    pub incoming: u64,
    /// Columns that refer to artifacts, as `table.column`.
    pub references: Vec<String>,
    /// How many problems there are.
    pub problem_count: u64,
    /// The problems; the first 1,000 of them.
    pub problems: Vec<Problem>,
}

impl FsckReport {
    /// Whether all is as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < LISTED {
            self.problems.push(problem);
        }
    }
}

/// Compares rows and files; `deep` reads every byte. Uploads and `gc` may run beside it.
///
/// # Errors
/// `storage`, `io`, `database`: it could not be compared. What is wrong with what could be is in the report.
pub async fn check(registry: &Registry, deep: bool) -> Result<FsckReport> {
    let mut connection = registry.pool().acquire().await?;
    // Its locks end with it, whatever happens.
    connection.close_on_drop();
    let mut report = FsckReport { deep, ..FsckReport::default() };
    rows(registry, &mut connection, &mut report).await?;
    files(registry, &mut connection, &mut report).await?;
    for reference in references::find(&mut connection).await? {
        let column = format!("{}.{}", reference.table, reference.column);
        for digest in references::dangling(&mut connection, &reference).await? {
            let detail = format!("{column} refers to an artifact that has no row: restore the database from a backup");
            report.add(Problem { code: "reference_dangling", what: digest, detail });
        }
        report.references.push(column);
    }
    Ok(report)
}

async fn rows(registry: &Registry, connection: &mut PgConnection, report: &mut FsckReport) -> Result<()> {
    let mut last = String::from("sha256:");
    loop {
        let page: Vec<Artifact> =
            sqlx::query_as("SELECT digest, size, media_type FROM artifacts WHERE digest > $1 ORDER BY digest LIMIT $2")
                .bind(&last)
                .bind(PAGE)
                .fetch_all(&mut *connection)
                .await?;
        let Some(artifact) = page.last() else { return Ok(()) };
        last.clone_from(&artifact.digest);
        report.artifacts += page.len() as u64;
        report.bytes += page.iter().map(|artifact| artifact.size).sum::<u64>();
        let (store, deep) = (registry.artifacts(), report.deep);
        let found: Vec<Option<Problem>> = futures::stream::iter(page)
            .map(|artifact| async move { compare(store, &artifact, deep).await })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        for problem in found.into_iter().flatten() {
            // A file that gc has just removed went after its row.
            if row_exists(connection, &problem.what).await? {
                report.add(problem);
            }
        }
    }
}

async fn compare(store: &ArtifactStore, artifact: &Artifact, deep: bool) -> Result<Option<Problem>> {
    let problem = |code, detail| Ok(Some(Problem { code, what: artifact.digest.clone(), detail }));
    let Some(size) = store.size_of_file(&artifact.digest).await? else {
        return problem("file_missing", "the row has no file: restore it from a backup, or upload it again".into());
    };
    if size != artifact.size {
        let detail = format!(
            "the file has {size} bytes, the row says {}: restore it from a backup, or upload it again",
            artifact.size
        );
        return problem("size_differs", detail);
    }
    if !deep {
        return Ok(None);
    }
    match digest_in(store, &artifact.digest).await {
        Ok(found) if found == artifact.digest => Ok(None),
        Ok(found) => {
            let detail =
                format!("the file's content has {found}: restore it from a backup, or remove it and upload again");
            problem("content_differs", detail)
        }
        // Removed since its size was read; the row is looked at again.
        Err(Error::ArtifactMissing { .. }) => problem("file_missing", "the row has no file: restore it".into()),
        Err(error) => Err(error),
    }
}

/// The digest of the bytes that are stored for one.
async fn digest_in(store: &ArtifactStore, digest: &str) -> Result<String> {
    let mut reader = store.open(digest, None).await?;
    let mut hash = Sha256::new();
    while let Some(chunk) = reader.stream.try_next().await? {
        hash.update(&chunk);
    }
    Ok(format!("sha256:{}", hex::encode(hash.finalize())))
}

async fn files(registry: &Registry, connection: &mut PgConnection, report: &mut FsckReport) -> Result<()> {
    let mut files = registry.artifacts().files().try_chunks(PAGE as usize).boxed();
    while let Some(page) = files.next().await {
        let page = page.map_err(|error| error.1)?;
        report.files += page.len() as u64;
        let mut digests = Vec::new();
        for file in page {
            match file.kind {
                FileKind::Artifact(digest) => digests.push(digest),
                FileKind::Incoming => report.incoming += 1,
                FileKind::Unknown => {
                    let detail = "no file of this program: move it elsewhere".into();
                    report.add(Problem { code: "unknown_file", what: file.key, detail });
                }
            }
        }
        let known: Vec<String> = sqlx::query_scalar("SELECT digest::text FROM artifacts WHERE digest = ANY ($1)")
            .bind(&digests)
            .fetch_all(&mut *connection)
            .await?;
        let known: std::collections::HashSet<String> = known.into_iter().collect();
        for digest in digests.into_iter().filter(|digest| !known.contains(digest)) {
            if is_orphan(registry, connection, &digest).await? {
                let detail = "the file has no row: `weightsmith gc` removes it after the grace period".into();
                report.add(Problem { code: "file_without_row", what: digest, detail });
            }
        }
    }
    Ok(())
}

/// Whether a file has no row, and no upload is about to write one.
async fn is_orphan(registry: &Registry, connection: &mut PgConnection, digest: &str) -> Result<bool> {
    let bucket = artifacts::bucket(digest);
    while !artifacts::try_alone(connection, bucket).await? {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let row = row_exists(connection, digest).await?;
    artifacts::release(connection, bucket).await?;
    Ok(!row && registry.artifacts().size_of_file(digest).await?.is_some())
}

async fn row_exists(connection: &mut PgConnection, digest: &str) -> Result<bool> {
    let query = sqlx::query_scalar("SELECT EXISTS (SELECT FROM artifacts WHERE digest = $1)").bind(digest);
    Ok(query.fetch_one(connection).await?)
}
