use registry::aliases::Expected;
use registry::generators::GeneratorFilter;
use registry::{ListRequest, VersionId, ZooId};
use sqlx::PgPool;

use crate::calls::aliases;
use crate::calls::generators::{by_version_id, get, list, publish, resolve, versions};
use crate::fixtures::{self, absent_digest, count, new_version, page, registry};

#[sqlx::test(migrations = "../migrations")]
async fn versions_are_numbered_and_the_same_digest_is_published_once(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let first = fixtures::publish(&registry, "digits", "one").await;
    let second = fixtures::publish(&registry, "digits", "two").await;
    assert_eq!((first.version, second.version), (1, 2));
    assert_eq!(fixtures::publish(&registry, "digits", "one").await, first);
    assert_eq!(fixtures::publish(&registry, "other", "one").await.version, 1);
    assert_eq!(by_version_id(&registry, second.id).await.unwrap(), second);

    let generator = get(&registry, "digits").await.unwrap();
    assert_eq!((generator.versions, generator.latest), (2, Some(2)));
    let newest = versions(&registry, "digits", &page(1, None)).await.unwrap();
    let oldest = versions(&registry, "digits", &page(1, newest.next_cursor)).await.unwrap();
    assert_eq!((newest.items, oldest.items), (vec![second], vec![first]));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_number_is_never_given_twice(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    fixtures::publish(&registry, "digits", "one").await;
    let second = fixtures::publish(&registry, "digits", "two").await;
    sqlx::query("DELETE FROM generator_versions WHERE id = $1").bind(second.id).execute(&pool).await.unwrap();
    assert_eq!(resolve(&registry, "digits").await.unwrap().version, 1);
    assert_eq!(fixtures::publish(&registry, "digits", "two").await.version, 3);

    let lowered = sqlx::query("UPDATE generators SET last_version = 0").execute(&pool).await.unwrap_err();
    assert_eq!(registry::Error::from(lowered).code(), "invalid_value");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_version_never_changes(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let made = fixtures::publish(&registry, "digits", "one").await;
    for change in ["version = 7", "manifest = '{}'", "digest = 'sha256:' || repeat('0', 64)", "modality = 'text'"] {
        let sql = sqlx::AssertSqlSafe(format!("UPDATE generator_versions SET {change}"));
        let refused = registry::Error::from(sqlx::query(sql).execute(&pool).await.unwrap_err());
        assert!(refused.to_string().contains("never changes"), "{change}: {refused}");
    }
    assert_eq!(by_version_id(&registry, made.id).await.unwrap(), made);
}

#[sqlx::test(migrations = "../migrations")]
async fn concurrent_publishers_get_different_numbers(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let mut news = Vec::new();
    for i in 0..8 {
        news.push(new_version(&registry, "digits", &format!("bundle {i}")).await);
    }
    let all = futures::future::join_all(news.iter().map(|new| publish(&registry, new))).await;
    let mut numbers: Vec<i32> = all.into_iter().map(|version| version.unwrap().version).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    let listed = versions(&registry, "digits", &page(200, None)).await.unwrap().items;
    assert_eq!(listed.iter().map(|v| v.version).collect::<Vec<_>>(), [8, 7, 6, 5, 4, 3, 2, 1], "newest first");
}

#[sqlx::test(migrations = "../migrations")]
async fn references(pool: PgPool) {
    let (registry, _files) = registry(pool);
    for content in ["one", "two", "three"] {
        fixtures::publish(&registry, "digits", content).await;
    }
    aliases::set(&registry, "digits", "stable", 2, Expected::Any).await.unwrap();
    let version = async |reference| resolve(&registry, reference).await.unwrap().version;
    assert_eq!(version("digits").await, 3);
    assert_eq!(version("digits@latest").await, 3);
    assert_eq!(version("digits@1").await, 1);
    assert_eq!(version("digits@stable").await, 2);

    let error = async |reference| resolve(&registry, reference).await.unwrap_err();
    assert!(error("letters").await.to_string().contains("no generator `letters`"));
    assert!(error("letters@1").await.to_string().contains("no generator `letters`"));
    assert!(error("digits@4").await.to_string().contains("no generator version `digits@4`"));
    assert!(error("digits@best").await.to_string().contains("no generator alias `digits@best`"));
    assert_eq!(error("digits@").await.code(), "invalid_reference");
}

#[sqlx::test(migrations = "../migrations")]
async fn listing_and_search(pool: PgPool) {
    let (registry, _files) = registry(pool);
    for name in ["digits", "tiny-cnn", "heads"] {
        fixtures::publish(&registry, name, name).await;
    }
    let mut other = new_version(&registry, "adapters", "x").await;
    other.about.description = "LLM_Adapters, 100 % small".into();
    publish(&registry, &other).await.unwrap();
    let names = async |search: Option<&str>| {
        let request = ListRequest { search: search.map(str::to_owned), ..page(200, None) };
        let found = list(&registry, &GeneratorFilter::default(), &request).await.unwrap().items;
        found.into_iter().map(|generator| generator.name).collect::<Vec<_>>()
    };
    assert_eq!(names(None).await, ["adapters", "digits", "heads", "tiny-cnn"]);
    assert_eq!(names(Some("DIGITS")).await, ["digits", "heads", "tiny-cnn"], "names and descriptions");
    assert_eq!(names(Some("llm_adap")).await, ["adapters"]);
    assert!(names(Some("%")).await.is_empty(), "no patterns");
    assert_eq!(names(Some("cnn")).await, ["tiny-cnn"], "a part of a name");
    assert_eq!(names(Some("tiny-c")).await, ["tiny-cnn"]);
    assert!(names(Some("digits nothing")).await.is_empty(), "all words");
    let first = list(&registry, &GeneratorFilter::default(), &page(3, None)).await.unwrap();
    let second = list(&registry, &GeneratorFilter::default(), &page(3, first.next_cursor)).await.unwrap();
    assert_eq!(second.items[0].name, "tiny-cnn");
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_input_leaves_nothing(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let good = new_version(&registry, "digits", "one").await;
    let code = async |change: fn(&mut registry::generators::NewVersion)| {
        let mut new = good.clone();
        change(&mut new);
        publish(&registry, &new).await.unwrap_err().code()
    };
    assert_eq!(code(|new| new.name = "Digits".into()).await, "invalid_name");
    assert_eq!(code(|new| new.digest = "md5:0".into()).await, "invalid_value");
    assert_eq!(code(|new| new.artifact_digest = absent_digest()).await, "artifact_missing");
    assert_eq!(code(|new| new.zoo_id = Some(ZooId::generate())).await, "not_found");
    assert_eq!(code(|new| new.about.description = "x".repeat(10_001)).await, "invalid_value");
    assert_eq!(count(&pool, "generators").await, 0);
    assert_eq!(by_version_id(&registry, VersionId::generate()).await.unwrap_err().code(), "not_found");
    assert_eq!(versions(&registry, "digits", &page(1, None)).await.unwrap_err().code(), "not_found");
}
