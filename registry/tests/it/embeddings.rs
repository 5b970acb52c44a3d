use registry::VersionId;
use registry::embeddings::{NewEmbedding, SubjectKind, any, nearest, spread};
use sqlx::PgPool;
use uuid::Uuid;

use crate::calls::embeddings::insert_bulk;
use crate::fixtures::{count, dataset, publish, registry, zoo};

fn embedding(subject_id: Uuid, classes: &[i32], values: &[f32]) -> NewEmbedding {
    NewEmbedding { subject_id, classes: classes.to_vec(), embedding: values.to_vec() }
}

#[sqlx::test(migrations = "../migrations")]
async fn nearest_first_by_cosine(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let version = publish(&registry, "digits", "one").await.id;
    let digits = dataset(&registry, "digits").await.id.as_uuid();
    let new = [
        embedding(digits, &[0, 1], &[0.0, 1.0, 0.0]),
        embedding(digits, &[1, 0], &[5.0, 0.1, 0.0]),
        embedding(digits, &[2, 3], &[-1.0, 0.0, 0.0]),
        embedding(digits, &[3, 2], &[1.0, 1.0, 0.0]),
    ];
    insert_bulk(&registry, version, SubjectKind::Dataset, &new).await.unwrap();
    let near = async |limit| nearest(&registry, version, SubjectKind::Dataset, &[2.0, 0.0, 0.0], limit).await.unwrap();
    let found = near(10).await;
    let order: Vec<_> = found.iter().map(|n| n.classes.clone()).collect();
    assert_eq!(order, [vec![1, 0], vec![3, 2], vec![0, 1], vec![2, 3]], "length does not count, direction does");
    let expected = [1.0 - 5.0 / 5.001f64.hypot(0.0), 1.0 - 0.5f64.sqrt(), 1.0, 2.0];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found.distance - expected).abs() < 1e-4, "{found:?} {expected}");
    }
    assert_eq!(near(1).await, found[..1]);
    assert!(nearest(&registry, version, SubjectKind::Run, &[1.0, 0.0, 0.0], 10).await.unwrap().is_empty());
}

#[sqlx::test(migrations = "../migrations")]
async fn the_spread_is_the_mean_distance_to_the_nearest_that_differs(pool: PgPool) {
    let (registry, _files) = registry(pool);
    let version = publish(&registry, "digits", "one").await.id;
    let digits = dataset(&registry, "digits").await.id.as_uuid();
    let of = async || spread(&registry, version, SubjectKind::Dataset).await.unwrap();
    assert!(of().await.is_none() && !any(&registry, version, SubjectKind::Dataset).await.unwrap());
    // Twice the same direction: of one task, as runs with other seeds are.
    let mut new = vec![embedding(digits, &[0, 1], &[1.0, 0.0]), embedding(digits, &[1, 0], &[2.0, 0.0])];
    insert_bulk(&registry, version, SubjectKind::Dataset, &new).await.unwrap();
    assert!(of().await.is_none() && any(&registry, version, SubjectKind::Dataset).await.unwrap());
    assert!(!any(&registry, version, SubjectKind::Run).await.unwrap());
    new.push(embedding(digits, &[2, 3], &[1.0, 1.0]));
    new.push(embedding(digits, &[3, 2], &[0.0, 1.0]));
    insert_bulk(&registry, version, SubjectKind::Dataset, &new).await.unwrap();
    // Each is 45 degrees from the nearest other direction.
    assert!((of().await.unwrap() - (1.0 - 0.5f64.sqrt())).abs() < 1e-6);
}

#[sqlx::test(migrations = "../migrations")]
async fn versions_have_their_own_dimension_and_a_task_is_replaced(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let (first, second) = (publish(&registry, "digits", "one").await.id, publish(&registry, "digits", "two").await.id);
    zoo(&registry, "zoo", 2, 1).await;
    let run: Uuid = sqlx::query_scalar("SELECT id FROM runs LIMIT 1").fetch_one(&pool).await.unwrap();
    let store = async |version, values: &[f32]| {
        insert_bulk(&registry, version, SubjectKind::Run, &[embedding(run, &[0, 1], values)]).await
    };
    store(first, &[1.0, 0.0]).await.unwrap();
    store(second, &[1.0, 0.0, 0.0]).await.unwrap();
    store(first, &[0.0, 1.0]).await.unwrap();
    let found = nearest(&registry, first, SubjectKind::Run, &[0.0, 1.0], 10).await.unwrap();
    assert_eq!((found.len(), found[0].subject_id, found[0].distance), (1, run, 0.0));

    let refused = store(first, &[1.0, 0.0, 0.0]).await.unwrap_err();
    assert!(refused.to_string().contains("have 2 dimensions, not 3"), "{refused}");
    let refused = nearest(&registry, first, SubjectKind::Run, &[1.0], 10).await.unwrap_err();
    assert!(refused.to_string().contains("have 2 dimensions, not 1"), "{refused}");
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_input(pool: PgPool) {
    let (registry, _files) = registry(pool.clone());
    let version = publish(&registry, "digits", "one").await.id;
    let digits = dataset(&registry, "digits").await.id.as_uuid();
    let code = async |version, new: &[NewEmbedding]| {
        insert_bulk(&registry, version, SubjectKind::Dataset, new).await.unwrap_err().code()
    };
    let good = embedding(digits, &[0, 1], &[1.0, 0.0]);
    assert_eq!(code(VersionId::generate(), std::slice::from_ref(&good)).await, "not_found");
    assert_eq!(code(version, &[embedding(Uuid::now_v7(), &[0, 1], &[1.0, 0.0])]).await, "not_found");
    for values in [&[][..], &[0.0, 0.0], &[f32::NAN, 1.0], &[f32::INFINITY, 1.0], &[1.0; 16_001]] {
        assert_eq!(code(version, &[embedding(digits, &[0, 1], values)]).await, "invalid_value");
    }
    assert_eq!(code(version, &[good.clone(), embedding(digits, &[1, 0], &[1.0])]).await, "invalid_value");
    assert_eq!(code(version, &[good.clone(), good.clone()]).await, "invalid_value");
    assert_eq!(count(&pool, "embeddings").await, 0);
    for limit in [0, 201] {
        let refused = nearest(&registry, version, SubjectKind::Dataset, &[1.0], limit).await.unwrap_err();
        assert_eq!(refused.code(), "invalid_value");
    }
    insert_bulk(&registry, version, SubjectKind::Dataset, &[]).await.unwrap();
}
