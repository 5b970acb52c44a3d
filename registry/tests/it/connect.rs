//! `Registry::connect`: migrations on a database that is empty, up to date, newer, or not reachable.

use registry::Registry;
use registry::zoos::ZooFilter;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use crate::calls::zoos;
use crate::fixtures::page;

/// The URL of a test's own database.
fn url(pool: &PgPool) -> String {
    use sqlx::ConnectOptions;
    let options: &PgConnectOptions = &pool.connect_options();
    options.to_url_lossy().to_string()
}

async fn connect(pool: &PgPool) -> registry::Result<Registry> {
    let directory = tempfile::tempdir().unwrap();
    Registry::connect(&url(pool), directory.path()).await
}

#[sqlx::test(migrations = false)]
async fn an_empty_database_is_migrated_by_whoever_comes_first(pool: PgPool) {
    let (a, b) = tokio::join!(connect(&pool), connect(&pool));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(zoos::list(&a, &ZooFilter::default(), &page(1, None)).await.unwrap().items.is_empty());
    b.ping().await.unwrap();
    b.close().await;
    assert_eq!(b.ping().await.unwrap_err().code(), "database_unavailable");
    connect(&pool).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_newer_or_changed_schema_is_refused(pool: PgPool) {
    connect(&pool).await.unwrap();
    sqlx::query("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1").execute(&pool).await.unwrap();
    assert_eq!(connect(&pool).await.unwrap_err().code(), "schema_mismatch");
    sqlx::query("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 1").execute(&pool).await.unwrap();
    let newer = connect(&pool).await.unwrap_err();
    assert_eq!(newer.code(), "schema_newer");
    assert!(newer.to_string().contains("9999"), "{newer}");
}

#[tokio::test]
async fn an_unreachable_server_is_told_from_a_bad_url() {
    let directory = tempfile::tempdir().unwrap();
    for url in ["postgres://localhost/x?host=/nonexistent", "mysql://localhost/x", "nonsense"] {
        let error = Registry::connect(url, directory.path()).await.unwrap_err();
        assert_eq!(error.code(), "database_unavailable", "{url}: {error:?}");
    }
}
