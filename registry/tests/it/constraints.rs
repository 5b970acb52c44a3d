use std::collections::BTreeSet;

use registry::Error;
use sqlx::PgPool;

/// Every named rule of the schema has an explanation, and no explanation is for a rule that is gone.
#[sqlx::test(migrations = "../migrations")]
async fn every_constraint_is_explained(pool: PgPool) {
    let in_schema: Vec<String> = sqlx::query_scalar(
        // Only triggers that come before a change refuse it.
        "SELECT conname::text FROM pg_constraint c
         WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f', 'c')
           AND conrelid IS DISTINCT FROM '_sqlx_migrations'::regclass
         UNION SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal AND tgtype & 2 = 2",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let in_schema: BTreeSet<String> = in_schema.into_iter().collect();
    let explained: BTreeSet<String> = registry::constraints::known().map(str::to_owned).collect();
    assert!(in_schema.len() > 50, "{in_schema:?}");
    assert_eq!(in_schema, explained);
}

#[sqlx::test(migrations = "../migrations")]
async fn the_schema_itself_refuses_bad_names(pool: PgPool) {
    let insert = |name: String| {
        sqlx::query("INSERT INTO generators (id, name) VALUES ($1, $2)").bind(uuid::Uuid::now_v7()).bind(name)
    };
    for name in ["", "A", "-a", "a b", "a\n", "ä", &"x".repeat(101)] {
        let refused = Error::from(insert(name.into()).execute(&pool).await.unwrap_err());
        assert_eq!(refused.code(), "invalid_name", "{name:?}");
    }
    insert("x".repeat(100)).execute(&pool).await.unwrap();
    let taken = Error::from(insert("x".repeat(100)).execute(&pool).await.unwrap_err());
    assert!(taken.to_string().contains(&format!("`{}`", "x".repeat(100))), "{taken}");
}

#[sqlx::test(migrations = "../migrations")]
async fn internals_stay_out_of_the_sentence(pool: PgPool) {
    let error = Error::from(sqlx::query("SELECT secret FROM hidden").execute(&pool).await.unwrap_err());
    assert_eq!(error.code(), "database");
    assert!(!error.to_string().contains("hidden"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("hidden"), "the log has it: {source}");
}
