//! The datasets and runs near a dataset, by cosine distance of the embeddings of one generator version.
//!
//! Few embeddings are scanned exactly. Where a version has many, it gets a partial HNSW index: its embeddings have one
//! dimension, as such an index needs. Whoever asks sees only what they may see, so the scan goes on behind invisible
//! neighbours until the answer is full.

use pgvector::Vector;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use crate::embeddings::{self, SubjectKind};
use crate::page::MAX_LIMIT;
use crate::{Caller, Error, Registry, Result, VersionId};

/// Embeddings of a kind from which on a version gets an index, unless a setting says otherwise.
pub const INDEX_FROM: i64 = 2_000;
/// Dimensions that an HNSW index of pgvector can have.
const MAX_INDEXED: usize = 2_000;
/// Candidates that a search of an index keeps, at least, for a query that is no member of the graph. Random vectors,
/// the hardest, have a recall of 0.95 and more with as many.
const EF_SEARCH: u32 = 200;
/// The same for what is in the graph itself: the search ends among the neighbours that were found when it was put in
/// (10,000 random vectors of 256 dimensions: recall of ten 0.99, in 0.4 of the time).
const EF_MEMBER: u32 = 40;
/// Neighbours of a vector in the graph of an index, and candidates for them when it is built.
const GRAPH: (u32, u32) = (24, 200);

/// How neighbours were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scan {
    /// All embeddings were compared.
    Exact,
    /// By the HNSW index; a neighbour may be missed.
    Hnsw,
}

/// A dataset or a run near another dataset.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub struct Near {
    /// The dataset's or run's id.
    pub subject_id: Uuid,
    /// Name of the dataset, or of the run's zoo.
    pub name: String,
    /// The run's zoo.
    pub zoo_id: Option<Uuid>,
    /// The dataset; of a run the one it was trained on.
    pub dataset_id: Uuid,
    /// The run's last checkpoint.
    pub checkpoint_id: Option<Uuid>,
    /// Accuracy of that checkpoint.
    pub accuracy: Option<f32>,
    /// The task: classes of the dataset, in order.
    pub classes: Vec<i32>,
    /// Cosine distance, 0 (same direction) to 2 (opposite).
    pub distance: f64,
}

/// What is near, nearest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbourhood {
    /// The neighbours.
    pub neighbours: Vec<Near>,
    /// How they were found.
    pub scan: Scan,
    /// Embeddings of this kind under the version, also of what the caller does not see; counted where all were compared.
    pub embedded: Option<i64>,
}

/// A search.
#[derive(Clone, Debug)]
pub struct Search<'a> {
    /// The generator version whose encoder made the embeddings.
    pub version: VersionId,
    /// What is looked for.
    pub kind: SubjectKind,
    /// The embedding to be near to.
    pub query: &'a [f32],
    /// The subject whose stored embedding the query is; it is left out, being nearest to itself.
    pub except: Option<Uuid>,
    /// Most neighbours, 1 to [`MAX_LIMIT`].
    pub limit: u32,
}

/// The stored embedding of a subject under a version, if there is one: of a task, or without that of its largest.
///
/// # Errors
/// `database`.
pub async fn stored(
    registry: &Registry,
    version: VersionId,
    kind: SubjectKind,
    subject: Uuid,
    classes: Option<&[i32]>,
) -> Result<Option<Vec<f32>>> {
    let found: Option<Vector> = sqlx::query_scalar(
        "SELECT embedding FROM embeddings
         WHERE version_id = $1 AND subject_kind = $2 AND subject_id = $3 AND ($4::int[] IS NULL OR classes = $4)
         ORDER BY cardinality(classes) DESC, classes LIMIT 1",
    )
    .bind(version)
    .bind(kind.as_str())
    .bind(subject)
    .bind(classes)
    .fetch_optional(registry.pool())
    .await?;
    Ok(found.map(|vector| vector.to_vec()))
}

/// Finds what is near and visible to the caller; deleted datasets and runs of deleted zoos are not.
///
/// # Errors
/// `invalid_value` (limit; values and dimension of the query).
pub async fn search(registry: &Registry, caller: &Caller, search: &Search<'_>) -> Result<Neighbourhood> {
    if search.limit == 0 || search.limit > MAX_LIMIT {
        return Err(Error::invalid("limit", format!("ask for 1 to {MAX_LIMIT} neighbours, not {}", search.limit)));
    }
    embeddings::check(search.query, search.query.len())?;
    // Each statement is a journey to the server and back: one connection for all, settings with the transaction's begin.
    let mut connection = registry.pool().acquire().await?;
    if indexed(&mut connection, search).await? {
        let neighbours = rows(&mut connection, caller, search, Scan::Hnsw).await?;
        if neighbours.len() == search.limit as usize {
            return Ok(Neighbourhood { neighbours, scan: Scan::Hnsw, embedded: None });
        }
        // So much is invisible that the index gave up, or there are no more: everything has to be compared.
    }
    let neighbours = rows(&mut connection, caller, search, Scan::Exact).await?;
    let embedded = Some(count(&mut connection, search.version, search.kind).await?);
    Ok(Neighbourhood { neighbours, scan: Scan::Exact, embedded })
}

/// Whether there is a usable index; refuses a query of another dimension than the version's.
async fn indexed(connection: &mut PgConnection, search: &Search<'_>) -> Result<bool> {
    let (stored, valid): (Option<i32>, Option<bool>) = sqlx::query_as(
        "SELECT (SELECT vector_dims(embedding) FROM embeddings WHERE version_id = $1 LIMIT 1),
                (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($2))",
    )
    .bind(search.version)
    .bind(index_name(search.version, search.kind))
    .fetch_one(connection)
    .await?;
    embeddings::same_dimension(stored, search.query.len())?;
    Ok(valid == Some(true))
}

/// The plan of a search, as `EXPLAIN` gives it: for tests.
#[doc(hidden)]
pub async fn explain(registry: &Registry, caller: &Caller, search: &Search<'_>, scan: Scan) -> Result<String> {
    let mut transaction = registry.pool().begin_with(AssertSqlSafe(begin(search, scan))).await?;
    let mut query = statement("EXPLAIN ", caller, search, scan);
    let lines: Vec<(String,)> = query.build_query_as().persistent(false).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(lines.into_iter().map(|(line,)| line).collect::<Vec<_>>().join("\n"))
}

async fn rows(connection: &mut PgConnection, caller: &Caller, search: &Search<'_>, scan: Scan) -> Result<Vec<Near>> {
    let mut query = statement("", caller, search, scan);
    if scan == Scan::Exact {
        // Each version has a statement of its own. Few versions are large enough for an index, and those are asked
        // often; the others would crowd out what else is prepared.
        return Ok(query.build_query_as().persistent(false).fetch_all(connection).await?);
    }
    let mut transaction = connection.begin_with(AssertSqlSafe(begin(search, scan))).await?;
    let rows = query.build_query_as().fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows)
}

/// Begins a transaction with the settings of a scan, which end with it.
fn begin(search: &Search<'_>, scan: Scan) -> String {
    match scan {
        Scan::Exact => "BEGIN READ ONLY".to_owned(),
        // With few rows left the planner would rather compare all of them; with a sort ruled out the index orders.
        Scan::Hnsw => format!(
            "BEGIN READ ONLY; SET LOCAL hnsw.iterative_scan = 'strict_order'; SET LOCAL enable_sort = off;
             SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL hnsw.ef_search = {}",
            (if search.except.is_some() { EF_MEMBER } else { EF_SEARCH }).max(search.limit.saturating_mul(4)).min(1000)
        ),
    }
}

fn statement(prefix: &str, caller: &Caller, search: &Search<'_>, scan: Scan) -> QueryBuilder<Postgres> {
    let (version, kind, dimension) = (search.version, search.kind.as_str(), search.query.len());
    let (columns, joins, alias) = match search.kind {
        SubjectKind::Dataset => (
            "d.name::text AS name, NULL::uuid AS zoo_id, d.id AS dataset_id, NULL::uuid AS checkpoint_id,
             NULL::real AS accuracy",
            "JOIN datasets d ON d.id = e.subject_id AND d.deleted_at IS NULL",
            "d",
        ),
        SubjectKind::Run => (
            "z.name::text AS name, z.id AS zoo_id, r.dataset_id, c.id AS checkpoint_id, c.accuracy",
            "JOIN runs r ON r.id = e.subject_id JOIN zoos z ON z.id = r.zoo_id AND z.deleted_at IS NULL
             LEFT JOIN LATERAL (SELECT id, accuracy FROM checkpoints WHERE run_id = r.id AND deleted_at IS NULL
                                ORDER BY epoch DESC LIMIT 1) c ON true",
            "z",
        ),
    };
    let distance = match scan {
        Scan::Hnsw => format!("e.embedding::vector({dimension}) <=> "),
        // Not the index's expression.
        Scan::Exact => "e.embedding <=> ".to_owned(),
    };
    let mut query = QueryBuilder::new(format!("{prefix}SELECT e.subject_id, {columns}, e.classes, {distance}"));
    query.push_bind(Vector::from(search.query.to_vec()));
    // The version and kind as they stand in the index's condition: a parameter would not match it.
    query.push(format_args!(
        " AS distance FROM embeddings e {joins} WHERE e.version_id = '{version}' AND e.subject_kind = '{kind}'"
    ));
    if let Some(except) = search.except {
        query.push(" AND e.subject_id <> ").push_bind(except);
    }
    caller.push_sight(&mut query, alias, true);
    query.push(format_args!(" ORDER BY {distance}")).push_bind(Vector::from(search.query.to_vec()));
    query.push(" LIMIT ").push_bind(i64::from(search.limit));
    query
}

async fn count(connection: &mut PgConnection, version: VersionId, kind: SubjectKind) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM embeddings WHERE version_id = $1 AND subject_kind = $2")
        .bind(version)
        .bind(kind.as_str())
        .fetch_one(connection)
        .await?)
}

/// How the names of indexes begin; the number tells apart those of other graphs.
const INDEX: &str = "embeddings_hnsw2";

fn index_name(version: VersionId, kind: SubjectKind) -> String {
    format!("{INDEX}_{}_{}", kind.as_str(), version.as_uuid().simple())
}

/// Whether the index is usable; none when there is no such index.
async fn index_state(connection: &mut PgConnection, version: VersionId, kind: SubjectKind) -> Result<Option<bool>> {
    Ok(sqlx::query_scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)")
        .bind(index_name(version, kind))
        .fetch_optional(connection)
        .await?)
}

/// Makes the index of a version that has at least `from` embeddings of a kind, unless it is there. Searches and writes
/// go on meanwhile. Gives whether there is an index now.
///
/// # Errors
/// `database`.
pub async fn maintain(registry: &Registry, version: VersionId, kind: SubjectKind, from: i64) -> Result<bool> {
    let mut connection = registry.pool().acquire().await?;
    if index_state(&mut connection, version, kind).await? == Some(true) {
        return Ok(true);
    }
    if count(&mut connection, version, kind).await? < from.max(1) {
        return Ok(false);
    }
    let dimension: Option<i32> =
        sqlx::query_scalar("SELECT vector_dims(embedding) FROM embeddings WHERE version_id = $1 LIMIT 1")
            .bind(version)
            .fetch_optional(&mut *connection)
            .await?;
    let Some(dimension) = dimension.filter(|d| usize::try_from(*d).is_ok_and(|d| d <= MAX_INDEXED)) else {
        return Ok(false);
    };
    // One builder a version: another process that comes now has nothing to do.
    let mine: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
        .bind(index_name(version, kind))
        .fetch_one(&mut *connection)
        .await?;
    if !mine {
        return Ok(false);
    }
    let built = build(&mut connection, version, kind, dimension).await;
    // The lock belongs to the connection, which goes back to the pool.
    sqlx::query("SELECT pg_advisory_unlock(hashtextextended($1, 0))")
        .bind(index_name(version, kind))
        .execute(&mut *connection)
        .await?;
    built.map(|()| true)
}

async fn build(connection: &mut PgConnection, version: VersionId, kind: SubjectKind, dimension: i32) -> Result<()> {
    let (name, kind_text) = (index_name(version, kind), kind.as_str());
    match index_state(connection, version, kind).await? {
        Some(true) => return Ok(()),
        // Left by a build that was cut off.
        Some(false) => drop_index(connection, &name).await?,
        None => {}
    }
    let (m, candidates) = GRAPH;
    let sql = format!(
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON embeddings
         USING hnsw ((embedding::vector({dimension})) vector_cosine_ops) WITH (m = {m}, ef_construction = {candidates})
         WHERE version_id = '{version}' AND subject_kind = '{kind_text}'"
    );
    sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *connection).await?;
    tidy(connection).await
}

async fn drop_index(connection: &mut PgConnection, name: &str) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")))
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// Drops the indexes of versions that were purged, and those of an earlier program.
async fn tidy(connection: &mut PgConnection) -> Result<()> {
    let stale: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         WHERE i.indrelid = 'embeddings'::regclass AND c.relname LIKE 'embeddings\\_hnsw%'
           AND NOT (starts_with(c.relname::text, $1 || '_')
                    AND EXISTS (SELECT FROM generator_versions v
                                WHERE c.relname LIKE '%' || replace(v.id::text, '-', '')))",
    )
    .bind(INDEX)
    .fetch_all(&mut *connection)
    .await?;
    for name in stale {
        drop_index(connection, &name).await?;
    }
    Ok(())
}
