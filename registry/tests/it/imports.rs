//! Checkpoints of models that others trained.

use registry::architectures::NewArchitecture;
use registry::checkpoints::{self, CheckpointFilter};
use registry::imports::{self, Added, NewImport, Origin, Source};
use registry::zoos::Zoo;
use registry::{Caller, ListRequest, NewAbout, Registry, Result, ZooId, digest_of, lineage, runs, zoos};
use serde_json::json;
use sqlx::PgPool;

use crate::fixtures::{absent_digest, artifact, dataset, new_architecture, page, registry, zoo};

fn system() -> Caller {
    Caller::system("test")
}

async fn empty(registry: &Registry, caller: &Caller, name: &str) -> Zoo {
    let mut write = registry.write(caller).await.unwrap();
    let made = imports::create_zoo(&mut write, name, None, NewAbout::default()).await.unwrap();
    write.commit().await.unwrap();
    made
}

async fn new(registry: &Registry, run: &str, content: &str) -> NewImport {
    NewImport {
        run: run.into(),
        dataset: Origin::default(),
        epoch: None,
        accuracy: None,
        loss: None,
        artifact_digest: artifact(registry, content).await.digest,
        source: Source {
            name: format!("{content}.pt"),
            digest: digest_of(format!("file {content}").as_bytes()),
            key: "state_dict".into(),
            strip_prefix: String::new(),
        },
        tags: vec!["vision".into(), "small".into()],
        description: String::new(),
    }
}

async fn add(registry: &Registry, caller: &Caller, zoo: ZooId, new: &[NewImport]) -> Result<Vec<Added>> {
    let mut write = registry.write(caller).await?;
    let added = imports::add(&mut write, zoo, new).await?;
    write.commit().await?;
    Ok(added)
}

#[sqlx::test(migrations = "../migrations")]
async fn each_content_is_there_once(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let zoo = empty(&registry, &system(), "resnets").await;
    assert_eq!((zoo.architecture_id, &zoo.digest, zoo.checkpoints), (None, &None, 0));
    let (a, b) = (new(&registry, "a", "a").await, new(&registry, "b", "b").await);
    let mut again = new(&registry, "c", "a").await;
    again.source.digest = digest_of(b"another file with the same tensors");
    let added = add(&registry, &system(), zoo.id, &[a.clone(), b.clone(), again]).await.unwrap();
    assert!(matches!(added[..], [Added::New(x), Added::New(_), Added::Known(y)] if x == y), "{added:?}");
    let second = add(&registry, &system(), zoo.id, &[b.clone(), a.clone()]).await.unwrap();
    assert_eq!(second, [Added::Known(added[1].id()), Added::Known(added[0].id())]);

    let now = zoos::by_id(&registry, &system(), zoo.id).await.unwrap();
    assert_eq!(now.checkpoints, 2);
    let row = checkpoints::get(&registry, &system(), added[0].id()).await.unwrap();
    assert_eq!((row.epoch, row.accuracy, row.loss, row.seed, row.dataset_id), (None, None, None, None, None));
    assert_eq!((row.run_name.as_deref(), row.classes.len(), row.tags.len()), (Some("a"), 0, 2));
    assert_eq!((row.source_name.as_deref(), row.source_digest), (Some("a.pt"), Some(a.source.digest.clone())));

    let digests = [a.source.digest.clone(), absent_digest()];
    let known = imports::journal(&registry, zoo.id, &digests, "state_dict", "").await.unwrap();
    assert_eq!(known.into_iter().collect::<Vec<_>>(), [(a.source.digest.clone(), added[0].id())]);
    assert!(imports::journal(&registry, zoo.id, &digests, "ema", "").await.unwrap().is_empty());
    // The same weights may be in two zoos.
    let other = empty(&registry, &system(), "other").await;
    assert!(matches!(add(&registry, &system(), other.id, &[a]).await.unwrap()[..], [Added::New(_)]));
}

#[sqlx::test(migrations = "../migrations")]
async fn many_at_once_are_added_once(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let zoo = empty(&registry, &system(), "resnets").await;
    let mut all = Vec::new();
    for i in 0..20 {
        all.push(new(&registry, &format!("run {}", i % 7), &format!("content {i}")).await);
    }
    let (caller, reversed) = (system(), all.iter().rev().cloned().collect::<Vec<_>>());
    let adding = (0..6).map(|i| add(&registry, &caller, zoo.id, if i % 2 == 0 { &all } else { &reversed }));
    let answers = futures::future::join_all(adding).await;
    let new: usize = answers.iter().flatten().flatten().filter(|added| matches!(added, Added::New(_))).count();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(new, 20);
    let runs = runs::list(&registry, &caller, Some(zoo.id), &page(200, None)).await.unwrap().items;
    assert_eq!(runs.iter().map(|run| run.index).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
}

#[sqlx::test(migrations = "../migrations")]
async fn facts_are_checked_and_nothing_is_half_there(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let zoo = empty(&registry, &system(), "resnets").await;
    let good = new(&registry, "a", "a").await;
    let code = async |change: fn(&mut NewImport)| {
        let mut bad = new(&registry, "b", "b").await;
        change(&mut bad);
        add(&registry, &system(), zoo.id, &[good.clone(), bad]).await.unwrap_err().code()
    };
    assert_eq!(code(|new| new.accuracy = Some(1.5)).await, "invalid_value");
    assert_eq!(code(|new| new.accuracy = Some(f32::NAN)).await, "invalid_value");
    assert_eq!(code(|new| new.loss = Some(f32::INFINITY)).await, "invalid_value");
    assert_eq!(code(|new| new.epoch = Some(-1)).await, "invalid_value");
    assert_eq!(code(|new| new.run = String::new()).await, "invalid_value");
    assert_eq!(code(|new| new.tags = vec!["A B".into()]).await, "invalid_value");
    assert_eq!(code(|new| new.source.name = String::new()).await, "invalid_value");
    assert_eq!(code(|new| new.source.digest = "md5".into()).await, "invalid_value");
    assert_eq!(code(|new| new.artifact_digest = absent_digest()).await, "artifact_missing");
    assert_eq!(zoos::by_id(&registry, &system(), zoo.id).await.unwrap().checkpoints, 0);
    let twice =
        [NewImport { epoch: Some(3), ..good.clone() }, NewImport { epoch: Some(3), ..new(&registry, "a", "c").await }];
    assert_eq!(add(&registry, &system(), zoo.id, &twice).await.unwrap_err().code(), "already_exists");
    assert_eq!(add(&registry, &system(), ZooId::generate(), &[good]).await.unwrap_err().code(), "not_found");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_run_has_one_dataset(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let zoo = empty(&registry, &system(), "resnets").await;
    let registered = dataset(&registry, "digits").await;
    let digits = imports::origin(&registry, &system(), "digits").await.unwrap();
    assert_eq!(digits, Origin { id: Some(registered.id), name: Some("digits".into()) });
    assert_eq!(imports::origin(&registry, &system(), &registered.id.to_string()).await.unwrap(), digits);
    let cifar = imports::origin(&registry, &system(), "CIFAR-10").await.unwrap();
    assert_eq!(cifar, Origin { id: None, name: Some("CIFAR-10".into()) });
    let absent = imports::origin(&registry, &system(), &ZooId::generate().to_string()).await;
    assert_eq!(absent.unwrap_err().code(), "not_found");
    assert_eq!(imports::origin(&registry, &system(), &"x".repeat(201)).await.unwrap_err().code(), "invalid_value");

    let of = async |content: &str, origin: &Origin| NewImport {
        dataset: origin.clone(),
        ..new(&registry, "run", content).await
    };
    let first = of("a", &digits).await;
    let added = add(&registry, &system(), zoo.id, std::slice::from_ref(&first)).await.unwrap();
    let other = [of("b", &cifar).await];
    assert_eq!(add(&registry, &system(), zoo.id, &other).await.unwrap_err().code(), "invalid_value");
    let unsaid = [of("c", &Origin::default()).await];
    add(&registry, &system(), zoo.id, &unsaid).await.unwrap();
    let filter = CheckpointFilter { dataset: Some(registered.id), ..CheckpointFilter::default() };
    let listed = checkpoints::list(&registry, &system(), &filter, &page(10, None)).await.unwrap().items;
    assert_eq!((listed.len(), listed[0].dataset_name.as_deref()), (2, Some("digits")));
    // Lineage goes from the checkpoint to the dataset, and has a name for a checkpoint without an epoch.
    let root = format!("checkpoint:{}", added[0].id()).parse().unwrap();
    let graph = lineage::graph(&registry, &system(), &root, lineage::Direction::Sources, 5, 100).await.unwrap();
    assert_eq!(graph.nodes[0].label, "resnets run run");
    assert!(graph.nodes.iter().any(|node| node.id == registered.id.as_uuid()), "{graph:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn the_first_checkpoint_settles_the_architecture(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let caller = system();
    let zoo = empty(&registry, &caller, "resnets").await;
    let settle = async |new: NewArchitecture| {
        let mut write = registry.write(&caller).await?;
        let settled = imports::settle_architecture(&mut write, zoo.id, &new).await?;
        write.commit().await?;
        Result::Ok(settled)
    };
    let other = NewArchitecture { layout: json!([1]), ..new_architecture("other") };
    let (a, b) = tokio::join!(settle(new_architecture("mlp")), settle(other));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b, "whoever came second learns what the first has settled");
    assert_eq!(zoos::by_id(&registry, &caller, zoo.id).await.unwrap().architecture_id, Some(a.id));
}

#[sqlx::test(migrations = "../migrations")]
async fn only_the_owner_adds(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let user = |name: &str| Caller { administrator: false, ..Caller::system(name) };
    let zoo = empty(&registry, &user("ann"), "resnets").await;
    let one = [new(&registry, "a", "a").await];
    assert_eq!(add(&registry, &user("bob"), zoo.id, &one).await.unwrap_err().code(), "not_owner");
    assert!(add(&registry, &user("ann"), zoo.id, &one).await.is_ok());
}

#[sqlx::test(migrations = "../migrations")]
async fn unknown_accuracies_are_ordered_below_all(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let trained = zoo(&registry, "trained", 2, 2).await;
    let mut unknown = Vec::new();
    for i in 0..3 {
        unknown.push(new(&registry, "a", &format!("content {i}")).await);
    }
    add(&registry, &system(), trained.id, &unknown).await.unwrap();
    for (order, first) in [("accuracy", None), ("-accuracy", Some(0.5))] {
        let mut request = ListRequest { order: Some(order.into()), ..page(2, None) };
        let mut seen = Vec::new();
        loop {
            let filter = CheckpointFilter::default();
            let page = checkpoints::list(&registry, &system(), &filter, &request).await.unwrap();
            seen.extend(page.items.into_iter().map(|row| row.accuracy));
            request.cursor = page.next_cursor;
            if request.cursor.is_none() {
                break;
            }
        }
        assert_eq!((seen.len(), seen[0]), (7, first), "{order}: {seen:?}");
        assert_eq!(seen.iter().filter(|accuracy| accuracy.is_none()).count(), 3);
    }
    let filter = |min, max| CheckpointFilter { min_accuracy: min, max_accuracy: max, ..CheckpointFilter::default() };
    for (filter, expected) in [(filter(Some(0.0), None), 4), (filter(None, Some(1.0)), 4), (filter(None, None), 7)] {
        assert_eq!(
            checkpoints::list(&registry, &system(), &filter, &page(50, None)).await.unwrap().items.len(),
            expected
        );
    }
}
