//! `gc`: removes artifacts that nothing refers to, files without a row, and what uploads that were cut off left.
//!
//! Mark: whatever a foreign key refers to. Sweep: what nothing refers to and no upload has touched for the grace
//! period. The row goes first, then the file, both under the lock of the digest's bucket, so that an upload of the same
//! bytes either comes before (and its row is younger than the grace period) or after (and writes the file anew).

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::json;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres};

use crate::artifacts::{self, FileKind, StoredFile};
use crate::references::{self, Reference};
use crate::{Caller, Change, Error, Registry, Result};

/// Held by a `gc` alone, and by backups together: "WSGC".
const MAINTENANCE_LOCK: i64 = 0x5753_4743;
/// Rows looked at in one statement.
const PAGE: i64 = 10_000;
/// Artifacts removed under a lock at a time: uploads of the bucket wait as long.
const AT_ONCE: usize = 200;
/// How often, and in what distance, a bucket that uploads use is tried.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// How to collect.
#[derive(Clone, Copy, Debug)]
pub struct GarbageOptions {
    /// What was uploaded, or written, within this time stays. It has to be longer than the longest time from the
    /// beginning of an upload to the row that refers to it.
    pub grace: Duration,
    /// Whether to report only.
    pub dry_run: bool,
}

/// A number of things and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Bytes of all.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GarbageReport {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// The grace period in seconds.
    pub grace_seconds: f64,
    /// Artifacts that nothing refers to, with their files.
    pub artifacts: Tally,
    /// Files of artifacts without a row.
    pub orphans: Tally,
    /// Files of uploads that were cut off.
    pub incoming: Tally,
    /// Uploads in parts to a bucket that were cut off.
    pub uploads: u64,
    /// Artifacts and files left for the next time because uploads of their bucket were under way throughout.
    pub busy: u64,
}

impl GarbageReport {
    /// Bytes of all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.artifacts.bytes + self.orphans.bytes + self.incoming.bytes
    }

    /// Whether there was nothing to remove.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.artifacts.count + self.orphans.count + self.incoming.count + self.uploads == 0
    }
}

/// Collects garbage. Uploads may run beside it, another `gc` or a backup may not.
///
/// # Errors
/// `maintenance_busy`, `storage`, `io`, `database`. What was removed until then was garbage; the next one goes on.
pub async fn collect(registry: &Registry, caller: &Caller, options: GarbageOptions) -> Result<GarbageReport> {
    let mut connection = registry.pool().acquire().await?;
    // Its locks end with it, whatever happens.
    connection.close_on_drop();
    take(&mut connection, "pg_try_advisory_lock").await?;
    let cutoff: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp() - make_interval(secs => $1)")
        .bind(options.grace.as_secs_f64())
        .fetch_one(&mut *connection)
        .await?;
    let references = references::find(&mut connection).await?;
    let report = GarbageReport {
        dry_run: options.dry_run,
        grace_seconds: options.grace.as_secs_f64(),
        ..GarbageReport::default()
    };
    let mut sweep = Sweep { registry, connection, cutoff, references, report };
    sweep.artifacts().await?;
    sweep.files().await?;
    sweep.uploads().await?;
    let Sweep { mut connection, report, .. } = sweep;
    give_back(&mut connection, "pg_advisory_unlock").await?;
    if !report.dry_run && !report.is_clean() {
        let mut write = registry.write(caller).await?;
        let change = Change::made("artifact.collect", "artifact", "gc", json!(report));
        write.audit(change).await?;
        write.commit().await?;
    }
    Ok(report)
}

/// Takes the lock of maintenance by one of PostgreSQL's functions. Waits a little: a connection that has just been
/// closed may still hold it.
pub(crate) async fn take(connection: &mut PgConnection, function: &'static str) -> Result<()> {
    for _ in 0..TRIES {
        let query = format!("SELECT {function}($1)");
        let taken: bool =
            sqlx::query_scalar(AssertSqlSafe(query)).bind(MAINTENANCE_LOCK).fetch_one(&mut *connection).await?;
        if taken {
            return Ok(());
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    Err(Error::MaintenanceBusy)
}

/// Gives the lock of maintenance back.
pub(crate) async fn give_back(connection: &mut PgConnection, function: &'static str) -> Result<()> {
    let query = format!("SELECT {function}($1)");
    sqlx::query(AssertSqlSafe(query)).bind(MAINTENANCE_LOCK).execute(connection).await?;
    Ok(())
}

struct Sweep<'a> {
    registry: &'a Registry,
    connection: PoolConnection<Postgres>,
    cutoff: DateTime<Utc>,
    references: Vec<Reference>,
    report: GarbageReport,
}

impl Sweep<'_> {
    /// Artifacts that nothing refers to.
    async fn artifacts(&mut self) -> Result<()> {
        let query = format!(
            "SELECT a.digest::text, a.size FROM artifacts a
             WHERE a.digest > $1 AND a.touched_at < $2 AND {} ORDER BY a.digest LIMIT $3",
            references::nothing_refers(&self.references)
        );
        let mut last = String::from("sha256:");
        loop {
            let page: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(query.clone()))
                .bind(&last)
                .bind(self.cutoff)
                .bind(PAGE)
                .fetch_all(&mut *self.connection)
                .await?;
            let Some((digest, _)) = page.last() else { return Ok(()) };
            last.clone_from(digest);
            if self.report.dry_run {
                page.iter().for_each(|(_, size)| self.report.artifacts.add(u64::try_from(*size).unwrap_or(0)));
            } else {
                for (bucket, digests) in by_bucket(page.into_iter().map(|(digest, _)| digest)) {
                    for some in digests.chunks(AT_ONCE) {
                        self.remove_artifacts(bucket, some).await?;
                    }
                }
            }
        }
    }

    async fn remove_artifacts(&mut self, bucket: i32, digests: &[String]) -> Result<()> {
        if !self.enter(bucket).await? {
            self.report.busy += digests.len() as u64;
            return Ok(());
        }
        // Rows that someone is about to refer to are locked, and passed over; no one can refer to the others now, and
        // the second statement sees whatever was committed before.
        let mut transaction = self.connection.begin().await?;
        let locked: Vec<String> = sqlx::query_scalar(
            "SELECT digest::text FROM artifacts WHERE digest = ANY ($1) AND touched_at < $2 ORDER BY digest
             FOR UPDATE SKIP LOCKED",
        )
        .bind(digests)
        .bind(self.cutoff)
        .fetch_all(&mut *transaction)
        .await?;
        let delete = format!(
            "DELETE FROM artifacts a WHERE a.digest = ANY ($1) AND {} RETURNING a.digest::text, a.size",
            references::nothing_refers(&self.references)
        );
        let removed: Vec<(String, i64)> =
            sqlx::query_as(AssertSqlSafe(delete)).bind(locked).fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        for (digest, size) in removed {
            self.registry.artifacts().remove(&artifacts::key_of(&digest)?).await?;
            self.report.artifacts.add(u64::try_from(size).unwrap_or(0));
        }
        artifacts::release(&mut self.connection, bucket).await
    }

    /// Tries for some time to get a bucket alone. Not by waiting in line: uploads that come later would wait behind.
    async fn enter(&mut self, bucket: i32) -> Result<bool> {
        for _ in 0..TRIES {
            if artifacts::try_alone(&mut self.connection, bucket).await? {
                return Ok(true);
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        Ok(false)
    }

    /// Files without a row, and those of uploads that were cut off.
    async fn files(&mut self) -> Result<()> {
        let mut files = self.registry.artifacts().files().try_chunks(PAGE as usize).boxed();
        while let Some(page) = files.next().await {
            let page = page.map_err(|error| error.1)?;
            let (cutoff, mut artifacts) = (self.cutoff, BTreeMap::new());
            for file in page.into_iter().filter(|file| file.modified < cutoff) {
                match &file.kind {
                    FileKind::Artifact(digest) => drop(artifacts.insert(digest.clone(), file)),
                    FileKind::Incoming => self.remove_incoming(&file).await?,
                    FileKind::Unknown => {}
                }
            }
            self.remove_orphans(artifacts).await?;
        }
        Ok(())
    }

    async fn remove_incoming(&mut self, file: &StoredFile) -> Result<()> {
        if !self.report.dry_run {
            self.registry.artifacts().remove(&file.key).await?;
        }
        self.report.incoming.add(file.size);
        Ok(())
    }

    async fn remove_orphans(&mut self, mut files: BTreeMap<String, StoredFile>) -> Result<()> {
        for digest in self.with_row(files.keys().cloned().collect()).await? {
            files.remove(&digest);
        }
        if self.report.dry_run {
            files.values().for_each(|file| self.report.orphans.add(file.size));
            return Ok(());
        }
        for (bucket, digests) in by_bucket(files.keys().cloned()) {
            for some in digests.chunks(AT_ONCE) {
                if !self.enter(bucket).await? {
                    self.report.busy += some.len() as u64;
                    continue;
                }
                // Again: an upload may have adopted one by now.
                let adopted = self.with_row(some.to_vec()).await?;
                for file in some.iter().filter(|digest| !adopted.contains(digest)).filter_map(|d| files.get(d)) {
                    self.registry.artifacts().remove(&file.key).await?;
                    self.report.orphans.add(file.size);
                }
                artifacts::release(&mut self.connection, bucket).await?;
            }
        }
        Ok(())
    }

    async fn with_row(&mut self, digests: Vec<String>) -> Result<Vec<String>> {
        let query = sqlx::query_scalar("SELECT digest::text FROM artifacts WHERE digest = ANY ($1)").bind(digests);
        Ok(query.fetch_all(&mut *self.connection).await?)
    }

    /// Uploads in parts that a bucket keeps.
    async fn uploads(&mut self) -> Result<()> {
        let noted: Vec<(String, String)> =
            sqlx::query_as("SELECT key, upload_id FROM uploads WHERE started_at < $1 ORDER BY key")
                .bind(self.cutoff)
                .fetch_all(&mut *self.connection)
                .await?;
        for (key, id) in noted {
            if !self.report.dry_run {
                self.registry.artifacts().abort_upload(&key, &id).await?;
                sqlx::query("DELETE FROM uploads WHERE key = $1").bind(key).execute(&mut *self.connection).await?;
            }
            self.report.uploads += 1;
        }
        Ok(())
    }
}

fn by_bucket(digests: impl Iterator<Item = String>) -> BTreeMap<i32, Vec<String>> {
    let mut buckets: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for digest in digests {
        buckets.entry(artifacts::bucket(&digest)).or_default().push(digest);
    }
    buckets
}
