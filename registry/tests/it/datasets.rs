use registry::datasets::DatasetFilter;
use registry::{DatasetId, digest_of};
use sqlx::PgPool;

use crate::calls::datasets::{by_digest, create, ensure, get, list};
use crate::fixtures::{absent_digest, new_dataset, page, registry};

#[sqlx::test(migrations = "../migrations")]
async fn create_get(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let new = new_dataset(&registry, "digits").await;
    let made = create(&registry, &new).await.unwrap();
    assert_eq!((&made.shape, &made.class_names, made.examples), (&new.shape, &new.class_names, 1797));
    assert_eq!(get(&registry, made.id).await.unwrap(), made);
    assert_eq!(by_digest(&registry, &new.digest).await.unwrap(), made);
    assert_eq!(ensure(&registry, &new).await.unwrap(), made);
    assert_eq!(create(&registry, &new).await.unwrap_err().code(), "already_exists");
    assert_eq!(get(&registry, DatasetId::generate()).await.unwrap_err().code(), "not_found");
}

#[sqlx::test(migrations = "../migrations")]
async fn pages_are_stable_while_rows_are_added(pool: PgPool) {
    let (registry, _files) = registry(pool);
    for name in ["a", "b", "c", "d", "e"] {
        create(&registry, &new_dataset(&registry, name).await).await.unwrap();
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = list(&registry, &DatasetFilter::default(), &page(2, cursor)).await.unwrap();
        seen.extend(page.items.iter().map(|dataset| dataset.name.clone()));
        // Newer ones go before the first page, not into the ones to come.
        create(&registry, &new_dataset(&registry, &format!("later-{}", seen.len())).await).await.unwrap();
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, ["e", "d", "c", "b", "a"]);
}

#[sqlx::test(migrations = "../migrations")]
async fn filters(pool: PgPool) {
    let (registry, _files) = registry(pool);
    for (name, digest) in [("digits", "1"), ("digits", "2"), ("words", "3")] {
        let mut new = new_dataset(&registry, name).await;
        new.digest = digest_of(digest.as_bytes());
        if name == "words" {
            (new.modality, new.shape, new.class_names, new.examples) = ("text".into(), Vec::new(), Vec::new(), 1);
        }
        create(&registry, &new).await.unwrap();
    }
    let names = |filter: DatasetFilter| {
        let registry = registry.clone();
        async move {
            let page = list(&registry, &filter, &page(200, None)).await.unwrap();
            page.items.into_iter().map(|dataset| dataset.name).collect::<Vec<_>>()
        }
    };
    assert_eq!(
        names(DatasetFilter { name: Some("digits".into()), ..DatasetFilter::default() }).await,
        ["digits", "digits"]
    );
    assert_eq!(names(DatasetFilter { modality: Some("text".into()), ..DatasetFilter::default() }).await, ["words"]);
    let named = DatasetFilter { name: Some("words".into()), labelled: true, ..DatasetFilter::default() };
    assert_eq!(names(named).await, Vec::<String>::new());
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_input(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let good = new_dataset(&registry, "digits").await;
    let code = async |change: fn(&mut registry::datasets::NewDataset)| {
        let mut new = good.clone();
        change(&mut new);
        create(&registry, &new).await.unwrap_err().code()
    };
    assert_eq!(code(|d| d.name = "a b".into()).await, "invalid_name");
    assert_eq!(code(|d| d.shape = vec![]).await, "invalid_value");
    assert_eq!(code(|d| d.shape = vec![1, 0]).await, "invalid_value");
    assert_eq!(code(|d| d.class_names.truncate(1)).await, "invalid_value");
    assert_eq!(code(|d| d.examples = 0).await, "invalid_value");
    assert_eq!(code(|d| d.digest = "abc".into()).await, "invalid_value");
    assert_eq!(code(|d| d.artifact_digest = absent_digest()).await, "artifact_missing");
    let all = list(&registry, &DatasetFilter::default(), &page(1, None)).await.unwrap();
    assert!(all.items.is_empty(), "nothing was stored");
    let cursor = Some("nonsense".to_owned());
    let refused = list(&registry, &DatasetFilter::default(), &page(1, cursor)).await.unwrap_err();
    assert_eq!(refused.code(), "invalid_cursor");
}
