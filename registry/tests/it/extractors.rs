use registry::extractors::{self, NewExtractor};
use registry::lifecycle::{self, Patch, Resource};
use registry::{Caller, ListRequest, NewAbout, Registry};
use serde_json::json;
use sqlx::PgPool;

use crate::fixtures::{artifact, count, registry};

async fn new_extractor(registry: &Registry, name: &str) -> NewExtractor {
    NewExtractor {
        name: name.into(),
        spec: json!({"name": name, "input": "images", "output": "features"}),
        dim: 512,
        artifact_digest: artifact(registry, name).await.digest,
        about: NewAbout::default(),
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn an_extractor_is_a_resource_like_others(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let system = Caller::system("t");
    let mut write = registry.write(&system).await.unwrap();
    let made = extractors::create(&mut write, &new_extractor(&registry, "clip").await).await.unwrap();
    write.commit().await.unwrap();
    assert_eq!(extractors::get(&registry, &system, "clip").await.unwrap(), made);
    let mut write = registry.write(&system).await.unwrap();
    let taken = extractors::create(&mut write, &new_extractor(&registry, "clip").await).await.unwrap_err();
    assert_eq!(taken.code(), "already_exists");

    let mut write = registry.write(&system).await.unwrap();
    let private = Patch { visibility: Some("private".into()), ..Patch::default() };
    lifecycle::update(&mut write, Resource::Extractor, "clip", &private).await.unwrap();
    write.commit().await.unwrap();
    let other = Caller { administrator: false, ..Caller::system("bob") };
    assert_eq!(extractors::get(&registry, &other, "clip").await.unwrap_err().code(), "not_found");
    let seen = async |caller| extractors::list(&registry, caller, &ListRequest::default()).await.unwrap().items.len();
    assert_eq!((seen(&system).await, seen(&other).await), (1, 0));

    let mut write = registry.write(&system).await.unwrap();
    lifecycle::delete(&mut write, Resource::Extractor, "clip").await.unwrap();
    lifecycle::purge(&mut write, Resource::Extractor, "clip").await.unwrap();
    write.commit().await.unwrap();
    assert_eq!(count(&pool, "extractors").await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_input(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let good = new_extractor(&registry, "good").await;
    let code = async |new: NewExtractor| {
        let mut write = registry.write(&Caller::system("t")).await.unwrap();
        extractors::create(&mut write, &new).await.unwrap_err().code()
    };
    assert_eq!(code(NewExtractor { name: "pixels".into(), ..good.clone() }).await, "invalid_value");
    assert_eq!(code(NewExtractor { name: "A".into(), ..good.clone() }).await, "invalid_name");
    assert_eq!(code(NewExtractor { dim: 0, ..good.clone() }).await, "invalid_value");
    let absent = crate::fixtures::absent_digest();
    assert_eq!(code(NewExtractor { artifact_digest: absent, ..good }).await, "artifact_missing");
}
