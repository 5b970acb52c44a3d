//! What refers to artifacts, read from the database's own catalogue: a new table counts by itself.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::Result;

/// A column with a foreign key to artifacts; both names quoted for SQL.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Reference {
    pub table: String,
    pub column: String,
}

/// All columns that refer to artifacts.
pub(crate) async fn find(connection: &mut PgConnection) -> Result<Vec<Reference>> {
    Ok(sqlx::query_as(
        "SELECT c.conrelid::regclass::text AS table, quote_ident(a.attname) AS column
         FROM pg_constraint c
         JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE c.contype = 'f' AND c.confrelid = 'artifacts'::regclass
         ORDER BY 1, 2",
    )
    .fetch_all(connection)
    .await?)
}

/// A condition on `a` (artifacts): that nothing refers to it.
pub(crate) fn nothing_refers(references: &[Reference]) -> String {
    let one = |r: &Reference| format!("NOT EXISTS (SELECT FROM {} r WHERE r.{} = a.digest)", r.table, r.column);
    if references.is_empty() { "true".into() } else { references.iter().map(one).collect::<Vec<_>>().join(" AND ") }
}

/// Digests that a column has and artifacts have not: only damage to the database makes such.
pub(crate) async fn dangling(connection: &mut PgConnection, reference: &Reference) -> Result<Vec<String>> {
    let Reference { table, column } = reference;
    let query = format!(
        "SELECT DISTINCT r.{column}::text FROM {table} r
         WHERE r.{column} IS NOT NULL AND NOT EXISTS (SELECT FROM artifacts a WHERE a.digest = r.{column})
         ORDER BY 1"
    );
    // The names are the catalogue's own, quoted by it.
    Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(connection).await?)
}
