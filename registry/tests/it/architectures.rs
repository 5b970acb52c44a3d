use serde_json::json;
use sqlx::PgPool;

use crate::calls::architectures::{by_id, create, ensure, get, list};
use crate::fixtures::{absent_digest, artifact, new_architecture, page, registry};

#[sqlx::test(migrations = "../migrations")]
async fn create_get_list(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let mut new = new_architecture("tiny-cnn");
    new.forward_artifact = Some(artifact(&registry, "onnx").await.digest);
    let made = create(&registry, &new).await.unwrap();
    assert_eq!((&made.config, &made.layout, made.parameters), (&new.config, &new.layout, 1125));
    assert_eq!(made.forward_artifact, new.forward_artifact);
    assert_eq!(get(&registry, "tiny-cnn").await.unwrap(), made);
    assert_eq!(by_id(&registry, made.id).await.unwrap(), made);

    create(&registry, &new_architecture("mlp")).await.unwrap();
    let first = list(&registry, &page(1, None)).await.unwrap();
    let second = list(&registry, &page(1, first.next_cursor)).await.unwrap();
    assert_eq!((first.items[0].name.as_str(), second.items[0].name.as_str()), ("mlp", "tiny-cnn"));
    assert_eq!(second.next_cursor, None);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_name_is_taken_by_one_layout(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let made = create(&registry, &new_architecture("mlp")).await.unwrap();
    let taken = create(&registry, &new_architecture("mlp")).await.unwrap_err();
    assert_eq!(taken.code(), "already_exists");
    assert!(taken.to_string().contains("architecture `mlp`"), "{taken}");
    assert_eq!(ensure(&registry, &new_architecture("mlp")).await.unwrap(), made);

    let mut other = new_architecture("mlp");
    other.layout = json!([]);
    assert_eq!(ensure(&registry, &other).await.unwrap_err().code(), "already_exists");
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_input(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let mut new = new_architecture("MLP");
    assert_eq!(create(&registry, &new).await.unwrap_err().code(), "invalid_name");
    new.name = "mlp".into();
    new.parameters = 0;
    assert_eq!(create(&registry, &new).await.unwrap_err().code(), "invalid_value");
    new.parameters = 1;
    new.forward_artifact = Some(absent_digest());
    let missing = create(&registry, &new).await.unwrap_err();
    assert_eq!(missing.code(), "artifact_missing");
    assert!(missing.to_string().contains(&absent_digest()), "{missing}");
    assert_eq!(get(&registry, "mlp").await.unwrap_err().code(), "not_found");
}
