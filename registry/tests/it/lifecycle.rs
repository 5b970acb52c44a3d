//! Owners, visibility, tags, search, delete, restore, purge, yank, and the audit trail of all of it.

use registry::aliases::Expected;
use registry::audit::{self, AuditFilter};
use registry::datasets::DatasetFilter;
use registry::lifecycle::{Patch, Resource};
use registry::{Caller, ListRequest, NewAbout, Registry};
use serde_json::json;
use sqlx::PgPool;

use crate::calls::{aliases, as_caller, datasets, generators, lifecycle, me};
use crate::fixtures::{self, count, dataset, new_dataset, page, publish, registry, zoo};

fn ann() -> Caller {
    Caller { administrator: false, ..Caller::system("ann") }
}

fn bob() -> Caller {
    Caller { administrator: false, ..Caller::system("bob") }
}

async fn private_of_ann(registry: &Registry) -> registry::datasets::Dataset {
    let mut new = new_dataset(registry, "hers").await;
    new.about = NewAbout { description: "A secret".into(), tags: vec!["vision".into()], private: true };
    as_caller(registry, &ann(), async |write| registry::datasets::create(write, &new).await).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn the_invisible_is_not_there(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let hers = private_of_ann(&registry).await;
    assert_eq!((hers.about.owner.as_str(), hers.about.visibility.as_str()), ("ann", "private"));
    dataset(&registry, "digits").await;

    let seen = async |caller: &Caller| {
        let page =
            registry::datasets::list(&registry, caller, &DatasetFilter::default(), &page(10, None)).await.unwrap();
        page.items.into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    let (ann, bob) = (ann(), bob());
    assert_eq!(seen(&ann).await, ["digits", "hers"]);
    assert_eq!(seen(&bob).await, ["digits"]);
    assert_eq!(seen(&me()).await, ["digits", "hers"], "an administrator");
    let patterned = Caller { patterns: vec!["dig*".into()], ..ann.clone() };
    assert_eq!(seen(&patterned).await, ["digits"]);

    let key = hers.id.to_string();
    assert_eq!(registry::datasets::get(&registry, &bob, hers.id).await.unwrap_err().code(), "not_found");
    assert_eq!(registry::datasets::get(&registry, &patterned, hers.id).await.unwrap_err().code(), "not_found");
    let delete = async |caller, key: &str| {
        as_caller(&registry, caller, async |write| registry::lifecycle::delete(write, Resource::Dataset, key).await)
            .await
    };
    assert_eq!(delete(&bob, &key).await.unwrap_err().code(), "not_found");
    let public = datasets::by_name(&registry, "digits").await.unwrap();
    assert_eq!(delete(&bob, &public.id.to_string()).await.unwrap_err().code(), "not_owner");
    delete(&ann, &key).await.unwrap();

    let mut same = new_dataset(&registry, "hers").await;
    same.name = "mine".into();
    let refused = as_caller(&registry, &bob, async |write| registry::datasets::ensure(write, &same).await).await;
    assert_eq!(refused.unwrap_err().code(), "already_exists", "and what it is stays hidden");
    let outside = as_caller(&registry, &patterned, async |write| registry::datasets::ensure(write, &same).await).await;
    assert_eq!(outside.unwrap_err().code(), "name_not_allowed");
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_said_is_found(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let digits = dataset(&registry, "hand-written-digits").await;
    dataset(&registry, "letters").await;
    let patch = Patch {
        description: Some("Scanned by the post office".into()),
        tags: Some(vec!["vision".into(), "small/8x8".into()]),
        ..Patch::default()
    };
    lifecycle::update(&registry, Resource::Dataset, &digits.id.to_string(), &patch).await.unwrap();
    let names = async |request: ListRequest| {
        let page = datasets::list(&registry, &DatasetFilter::default(), &request).await.unwrap();
        page.items.into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    let search = |text: &str| ListRequest { search: Some(text.into()), ..ListRequest::default() };
    for words in ["digits", "written", "POST office", "hand-writ", "vision", "small/8x8", "off"] {
        assert_eq!(names(search(words)).await, ["hand-written-digits"], "{words}");
    }
    assert!(names(search("ice")).await.is_empty(), "words from their beginning");
    let tagged = |tags: &[&str]| ListRequest { tags: tags.iter().map(|t| (*t).into()).collect(), ..Default::default() };
    assert_eq!(names(tagged(&["vision"])).await.len(), 1);
    assert!(names(tagged(&["vision", "large"])).await.is_empty(), "all tags");
    let ordered = |order: &str| ListRequest { order: Some(order.into()), ..Default::default() };
    assert_eq!(names(ordered("name")).await, ["hand-written-digits", "letters"]);
    assert_eq!(names(ordered("-name")).await, ["letters", "hand-written-digits"]);
    assert_eq!(names(ListRequest { owner: Some("ann".into()), ..Default::default() }).await.len(), 0);

    for (patch, field) in [
        (Patch { tags: Some(vec!["A b".into()]), ..Patch::default() }, "tags"),
        (Patch { visibility: Some("secret".into()), ..Patch::default() }, "visibility"),
        (Patch { description: Some("x".repeat(10_001)), ..Patch::default() }, "description"),
        (Patch { owner: Some(String::new()), ..Patch::default() }, "owner"),
    ] {
        let refused =
            lifecycle::update(&registry, Resource::Dataset, &digits.id.to_string(), &patch).await.unwrap_err();
        assert!(refused.to_string().starts_with(field) && refused.code() == "invalid_value", "{refused}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn delete_restore_purge(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let made = zoo(&registry, "digits", 2, 2).await;
    let (zoo_key, other) = (made.id.to_string(), dataset(&registry, "other").await);
    let dataset_key = datasets::by_name(&registry, "digits").await.unwrap().id.to_string();

    let early = lifecycle::purge(&registry, Resource::Zoo, &zoo_key).await.unwrap_err();
    assert_eq!(early.code(), "not_deleted");
    lifecycle::delete(&registry, Resource::Zoo, &zoo_key).await.unwrap();
    lifecycle::delete(&registry, Resource::Zoo, &zoo_key).await.unwrap();
    assert_eq!(crate::calls::zoos::by_id(&registry, made.id).await.unwrap_err().code(), "not_found");
    let all = registry::checkpoints::CheckpointFilter::default();
    assert!(crate::calls::checkpoints::list(&registry, &all, &page(10, None)).await.unwrap().items.is_empty());
    lifecycle::restore(&registry, Resource::Zoo, &zoo_key).await.unwrap();
    assert_eq!(crate::calls::checkpoints::list(&registry, &all, &page(10, None)).await.unwrap().items.len(), 4);

    lifecycle::delete(&registry, Resource::Dataset, &dataset_key).await.unwrap();
    let used = lifecycle::purge(&registry, Resource::Dataset, &dataset_key).await.unwrap_err();
    assert!(used.code() == "in_use" && used.to_string().contains("a run of a zoo"), "{used}");
    lifecycle::delete(&registry, Resource::Zoo, &zoo_key).await.unwrap();
    lifecycle::purge(&registry, Resource::Zoo, &zoo_key).await.unwrap();
    lifecycle::purge(&registry, Resource::Dataset, &dataset_key).await.unwrap();
    for (table, rows) in [("zoos", 0), ("runs", 0), ("checkpoints", 0), ("datasets", 1)] {
        assert_eq!(count(&pool, table).await, rows, "{table}");
    }

    // The same content again brings back what was deleted.
    lifecycle::delete(&registry, Resource::Dataset, &other.id.to_string()).await.unwrap();
    assert_eq!(dataset(&registry, "other").await.id, other.id);
    assert!(datasets::get(&registry, other.id).await.unwrap().about.deleted_at.is_none());
    for key in ["", "x", "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "a\0"] {
        assert_eq!(lifecycle::delete(&registry, Resource::Dataset, key).await.unwrap_err().code(), "not_found");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn yanked_versions_step_back(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    for content in ["one", "two"] {
        publish(&registry, "digits", content).await;
    }
    lifecycle::yank(&registry, "digits@2", "wrong labels").await.unwrap();
    assert_eq!(generators::resolve(&registry, "digits").await.unwrap().version, 1);
    let second = generators::resolve(&registry, "digits@2").await.unwrap();
    assert!(second.yanked_at.is_some() && second.yank_reason == "wrong labels");
    assert_eq!(generators::get(&registry, "digits").await.unwrap().latest, Some(1));
    let refused = aliases::set(&registry, "digits", "champion", 2, Expected::Any).await.unwrap_err();
    assert_eq!(refused.code(), "yanked");
    lifecycle::restore(&registry, Resource::Version, "digits@2").await.unwrap();
    assert_eq!(generators::resolve(&registry, "digits").await.unwrap().version, 2);

    aliases::set(&registry, "digits", "champion", 2, Expected::Any).await.unwrap();
    lifecycle::yank(&registry, "digits@2", "").await.unwrap();
    assert_eq!(lifecycle::purge(&registry, Resource::Version, "digits@2").await.unwrap_err().code(), "in_use");
    aliases::remove(&registry, "digits", "champion", Expected::Version(2)).await.unwrap();
    lifecycle::purge(&registry, Resource::Version, "digits@2").await.unwrap();
    assert_eq!(publish(&registry, "digits", "two").await.version, 3, "no number twice");
    let moves = aliases::history(&registry, "digits", "champion", &page(10, None)).await.unwrap().items;
    assert_eq!(moves.iter().map(|m| (m.previous, m.version)).collect::<Vec<_>>(), [(Some(2), None), (None, Some(2))]);
    assert!(moves.iter().all(|m| m.actor == "me"));

    lifecycle::delete(&registry, Resource::Generator, "digits").await.unwrap();
    assert_eq!(generators::resolve(&registry, "digits@1").await.unwrap_err().code(), "not_found");
    let again = fixtures::new_version(&registry, "digits", "three").await;
    assert_eq!(generators::publish(&registry, &again).await.unwrap_err().code(), "not_found", "restore it first");
    lifecycle::purge(&registry, Resource::Generator, "digits").await.unwrap();
    assert_eq!(publish(&registry, "digits", "three").await.version, 4, "not even after a purge");
}

#[sqlx::test(migrations = "../migrations")]
async fn every_change_is_in_the_audit_trail(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let caller = Caller {
        request_id: Some("r-1".into()),
        address: Some("127.0.0.1".parse().unwrap()),
        administrator: true,
        ..ann()
    };
    let new = new_dataset(&registry, "digits").await;
    let made = as_caller(&registry, &caller, async |w| registry::datasets::create(w, &new).await).await.unwrap();
    let patch = Patch { description: Some("new".into()), ..Patch::default() };
    let key = made.id.to_string();
    lifecycle::update(&registry, Resource::Dataset, &key, &patch).await.unwrap();
    lifecycle::delete(&registry, Resource::Dataset, &key).await.unwrap();
    lifecycle::purge(&registry, Resource::Dataset, &key).await.unwrap();

    let filter = AuditFilter { resource_id: Some(key), ..AuditFilter::default() };
    let entries = audit::list(&registry, &me(), &filter, &page(10, None)).await.unwrap().items;
    let actions: Vec<_> = entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["dataset.purge", "dataset.delete", "dataset.update", "dataset.create"]);
    let made = &entries[3];
    assert_eq!((made.actor.as_str(), made.request_id.as_deref()), ("ann", Some("r-1")));
    assert_eq!(made.address.as_deref(), Some("127.0.0.1"));
    let (before, after) = (entries[2].before.as_ref().unwrap(), entries[2].after.as_ref().unwrap());
    assert_eq!((&before["description"], &after["description"]), (&json!(""), &json!("new")));
    assert_eq!(entries[0].after, None);

    // A change that is not committed leaves no trace.
    let rows = count(&pool, "audit").await;
    let mut write = registry.write(&caller).await.unwrap();
    registry::datasets::create(&mut write, &new).await.unwrap();
    drop(write);
    assert_eq!(count(&pool, "audit").await, rows);
}
