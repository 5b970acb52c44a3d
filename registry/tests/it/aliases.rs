use registry::aliases::Expected;
use sqlx::PgPool;

use crate::calls::aliases::{get, history, list, set};
use crate::fixtures::{page, publish, registry};

#[sqlx::test(migrations = "../migrations")]
async fn moves_and_history(pool: PgPool) {
    let (registry, _files) = registry(pool);
    publish(&registry, "digits", "one").await;
    publish(&registry, "digits", "two").await;
    let set = async |version, expected| set(&registry, "digits", "stable", version, expected).await;
    assert_eq!(set(1, Expected::Absent).await.unwrap(), None);
    assert_eq!(set(2, Expected::Version(1)).await.unwrap(), Some(1));
    assert_eq!(set(2, Expected::Any).await.unwrap(), Some(2), "no move");
    assert_eq!(set(1, Expected::Any).await.unwrap(), Some(2));
    assert_eq!(get(&registry, "digits", "stable").await.unwrap().version, 1);

    let newest = history(&registry, "digits", "stable", &page(2, None)).await.unwrap();
    let oldest = history(&registry, "digits", "stable", &page(2, newest.next_cursor)).await.unwrap();
    let moves: Vec<_> = newest.items.iter().chain(&oldest.items).map(|c| (c.previous, c.version)).collect();
    assert_eq!(moves, [(Some(2), Some(1)), (Some(1), Some(2)), (None, Some(1))]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_move_on_an_old_belief_is_a_conflict(pool: PgPool) {
    let (registry, _files) = registry(pool);
    publish(&registry, "digits", "one").await;
    publish(&registry, "digits", "two").await;
    let set = async |version, expected| set(&registry, "digits", "stable", version, expected).await;
    let missing = set(1, Expected::Version(1)).await.unwrap_err();
    assert!(missing.to_string().contains("at no version, not at version 1"), "{missing}");
    set(2, Expected::Any).await.unwrap();
    for expected in [Expected::Absent, Expected::Version(1)] {
        let conflict = set(1, expected).await.unwrap_err();
        assert_eq!(conflict.code(), "conflict");
        assert!(conflict.to_string().contains("`stable` of `digits` is at version 2"), "{conflict}");
    }
    assert_eq!(get(&registry, "digits", "stable").await.unwrap().version, 2);
    assert_eq!(history(&registry, "digits", "stable", &page(200, None)).await.unwrap().items.len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn of_two_movers_with_one_belief_one_wins(pool: PgPool) {
    let (registry, _files) = registry(pool);
    for content in ["one", "two", "three"] {
        publish(&registry, "digits", content).await;
    }
    set(&registry, "digits", "stable", 1, Expected::Any).await.unwrap();
    let (a, b) = tokio::join!(
        set(&registry, "digits", "stable", 2, Expected::Version(1)),
        set(&registry, "digits", "stable", 3, Expected::Version(1)),
    );
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_input(pool: PgPool) {
    let (registry, _files) = registry(pool);
    publish(&registry, "digits", "one").await;
    let code = async |generator, alias, version| {
        set(&registry, generator, alias, version, Expected::Any).await.unwrap_err().code()
    };
    assert_eq!(code("letters", "stable", 1).await, "not_found");
    assert_eq!(code("digits", "stable", 2).await, "not_found");
    for alias in ["latest", "7", "Stable", ""] {
        assert_eq!(code("digits", alias, 1).await, "invalid_name", "{alias}");
    }
    assert!(list(&registry, "digits").await.unwrap().is_empty());
    assert_eq!(get(&registry, "digits", "stable").await.unwrap_err().code(), "not_found");
    assert_eq!(list(&registry, "letters").await.unwrap_err().code(), "not_found");
}
