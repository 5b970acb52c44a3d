//! `Idempotency-Key`: a repeated request is answered once.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{App, Reply, digits, npz};

async fn keyed(app: &App, path: &str, key: &str, body: impl Into<Body>) -> Reply {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").header("Idempotency-Key", key);
    app.send(request.body(body.into()).unwrap()).await
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"))).fetch_one(pool).await.unwrap()
}

fn generation(dataset: registry::DatasetId, seed: u64) -> Value {
    json!({"generator": "digits", "dataset": {"id": dataset, "classes": ["3", "1", "4"]}, "steps": 1, "seed": seed})
}

#[sqlx::test(migrations = "../migrations")]
async fn the_same_request_gets_the_same_answer(pool: PgPool) {
    let app = App::new(pool.clone());
    app.publish("digits").await;
    let dataset = app.digits().await;
    let body = generation(dataset.id, 7).to_string();
    let first = keyed(&app, "/v1/generations", "k-1", body.clone()).await;
    assert_eq!(first.status, 201, "{}", String::from_utf8_lossy(&first.bytes));
    assert_eq!(first.header("idempotency-replayed"), "");
    for _ in 0..2 {
        let again = keyed(&app, "/v1/generations", "k-1", body.clone()).await;
        assert_eq!((again.status, &again.bytes), (first.status, &first.bytes));
        for name in ["location", "content-type"] {
            assert!(!first.header(name).is_empty());
            assert_eq!(again.header(name), first.header(name));
        }
        assert_eq!(again.header("idempotency-replayed"), "true");
        assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
    }
    assert_eq!(count(&pool, "generations").await, 1);

    let other = generation(dataset.id, 8).to_string();
    keyed(&app, "/v1/generations", "k-1", other.clone()).await.problem(422, "idempotency_key_reused");
    keyed(&app, "/v1/datasets", "k-1", body.clone()).await.problem(422, "idempotency_key_reused");
    keyed(&app, "/v1/generations?x=1", "k-1", body.clone()).await.problem(422, "idempotency_key_reused");
    assert_eq!(keyed(&app, "/v1/generations", "k-2", other).await.status, 201);
    assert_eq!(app.post("/v1/generations", &generation(dataset.id, 7)).await.status, 201, "no key: a new one");
    assert_eq!(count(&pool, "generations").await, 3);
    for bad in ["", "a b", &"x".repeat(256)] {
        keyed(&app, "/v1/generations", bad, body.clone()).await.problem(400, "header_invalid");
    }
    // Who has the table but not the key cannot read what was answered.
    let kept: Vec<u8> = sqlx::query_scalar("SELECT answer FROM idempotency LIMIT 1").fetch_one(&pool).await.unwrap();
    assert!(!kept.windows(6).any(|part| part == b"digits"));
}

#[sqlx::test(migrations = "../migrations")]
async fn fifty_at_once_make_one(pool: PgPool) {
    let app = App::new(pool.clone());
    app.publish("digits").await;
    let dataset = app.digits().await;
    let body = generation(dataset.id, 7).to_string();
    let requests = (0..50).map(|_| async {
        loop {
            let reply = keyed(&app, "/v1/generations", "one", body.clone()).await;
            if reply.status != 409 {
                return reply;
            }
            reply.problem(409, "idempotency_in_flight");
            assert_eq!(reply.header("retry-after"), "1");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let replies = futures::future::join_all(requests).await;
    assert!(replies.iter().all(|reply| (reply.status, &reply.bytes) == (replies[0].status, &replies[0].bytes)));
    assert_eq!(replies[0].status, 201);
    let firsts = replies.iter().filter(|reply| reply.header("idempotency-replayed").is_empty()).count();
    assert_eq!((firsts, count(&pool, "generations").await, count(&pool, "samples").await), (1, 1, 1));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_failure_gives_the_key_back(pool: PgPool) {
    let app = App::new(pool.clone());
    let bad = json!({"name": "d", "npz": "?"}).to_string();
    keyed(&app, "/v1/datasets", "k", bad.clone()).await.problem(422, "base64_invalid");
    assert_eq!(count(&pool, "idempotency").await, 0);
    keyed(&app, "/v1/datasets", "k", bad).await.problem(422, "base64_invalid");
    let broken = futures::stream::iter([Ok(vec![b'{']), Err(std::io::Error::other("gone"))]);
    keyed(&app, "/v1/datasets", "k", Body::from_stream(broken)).await.problem(400, "body_incomplete");
    let good = json!({"name": "d", "npz": npz(digits())}).to_string();
    assert_eq!(keyed(&app, "/v1/datasets", "k", good).await.status, 201);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_abandoned_key_comes_back(pool: PgPool) {
    let app = App::new(pool.clone());
    app.publish("digits").await;
    let dataset = app.digits().await;
    let long = app.long_request(dataset.id).await.to_string();
    let request = keyed(&app, "/v1/generations", "k", long.clone());
    assert!(tokio::time::timeout(Duration::from_millis(300), request).await.is_err(), "it takes longer");
    let freed = async {
        while count(&pool, "idempotency").await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("a client that goes away gives its key back");

    // A server that was killed gives nothing back: its lease ends.
    let body = generation(dataset.id, 7).to_string();
    assert_eq!(keyed(&app, "/v1/generations", "before", body.clone()).await.status, 201);
    let claim = "INSERT INTO idempotency (principal, key_hash, claim_id, target, leased_until, expires_at)
        SELECT (SELECT min(principal) FROM idempotency), sha256('dead'), gen_random_uuid(), 'POST /v1/generations',
               clock_timestamp() + make_interval(secs => $1), clock_timestamp() + interval '1 day'
        ON CONFLICT (principal, key_hash) DO UPDATE SET leased_until = excluded.leased_until";
    sqlx::query(claim).bind(30.0).execute(&pool).await.unwrap();
    keyed(&app, "/v1/generations", "dead", body.clone()).await.problem(409, "idempotency_in_flight");
    sqlx::query(claim).bind(-1.0).execute(&pool).await.unwrap();
    assert_eq!(keyed(&app, "/v1/generations", "dead", body).await.status, 201);
}

/// How an operation keeps its answer.
#[derive(Debug, PartialEq)]
enum Keeps {
    /// In the transaction of the change.
    WithChange,
}

/// Every POST there is: a new one has to say how it keeps its answer.
fn keeps(operation: &str) -> Keeps {
    match operation {
        "createArchitecture" | "importCheckpoint" | "createToken" | "yankGeneratorVersion" => Keeps::WithChange,
        "createEvaluation" | "createZoo" | "trainGeneratorVersion" | "importArchive" | "searchModel" => {
            Keeps::WithChange
        }
        "createDataset" | "uploadDataset" | "createExtractor" | "createGeneration" | "cancelJob" => Keeps::WithChange,
        name if name.starts_with("purge") || name.starts_with("restore") => Keeps::WithChange,
        other => panic!("{other}: say how this POST keeps its answer, and make a request of it below"),
    }
}

fn posts() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&api::openapi_json()).unwrap();
    let paths = document["paths"].as_object().unwrap().clone();
    let posts = paths.into_iter().filter_map(|(path, item)| {
        let operation = item.get("post")?;
        let names = |member: &str| operation[member].as_array().into_iter().flatten().map(|p| p["name"].clone());
        assert!(names("parameters").any(|name| name == "Idempotency-Key"), "{path} does not describe its header");
        assert!(operation["responses"]["409"].is_object(), "{path} does not describe 409");
        Some((path, operation["operationId"].as_str().unwrap().to_owned()))
    });
    posts.collect()
}

/// Who the test's requests are, as keys are kept.
async fn principal(app: &App, pool: &PgPool) -> registry::Caller {
    let body = json!({"name": "d", "npz": npz(digits())}).to_string();
    assert_eq!(keyed(app, "/v1/datasets", "who", body).await.status, 201);
    let principal: String = sqlx::query_scalar("SELECT principal FROM idempotency").fetch_one(pool).await.unwrap();
    match principal.split_once(':').unwrap() {
        ("token", id) => registry::Caller {
            token: Some(id.parse::<uuid::Uuid>().unwrap().into()),
            ..registry::Caller::system("any")
        },
        (_, name) => registry::Caller::system(name),
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn every_post_takes_a_key(pool: PgPool) {
    use registry::idempotency::{Answer, Key, claim};
    use sha2::{Digest, Sha256};
    let app = App::new(pool.clone());
    let caller = principal(&app, &pool).await;
    let posts = posts();
    assert!(posts.len() > 10, "{posts:?}");
    for (template, operation) in posts {
        keeps(&operation);
        let path = template.replace("{id}", "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e").replace(['{', '}'], "");
        let Key::Claimed(held) = claim(&app.registry, &caller, &operation, &format!("POST {path}")).await.unwrap()
        else {
            panic!("{operation}: the key is new");
        };
        keyed(&app, &path, &operation, "{}").await.problem(409, "idempotency_in_flight");
        let answer = Answer {
            body_sha256: Sha256::digest(b"{}").into(),
            status: 201,
            headers: vec![("location".into(), "/there".into())],
            body: operation.clone().into_bytes(),
        };
        app.registry.write(&caller).await.unwrap().commit_answer(&held, answer).await.unwrap();
        let again = keyed(&app, &path, &operation, "{}").await;
        assert_eq!((again.status.as_u16(), &again.bytes[..]), (201, operation.as_bytes()), "{path}");
        assert_eq!((again.header("idempotency-replayed"), again.header("location")), ("true", "/there"), "{path}");
        keyed(&app, &path, &operation, "{ }").await.problem(422, "idempotency_key_reused");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn no_change_without_its_answer(pool: PgPool) {
    let app = App::new(pool.clone());
    app.publish("digits").await;
    let dataset = app.digits().await;
    let body = json!({"name": "d", "npz": npz(&digits().select_classes(&[1, 2]).unwrap())}).to_string();
    let purge = format!("/v1/datasets/{}/purge", dataset.id);
    assert_eq!(app.ask(axum::http::Method::DELETE, &format!("/v1/datasets/{}", dataset.id), &[]).await.status, 204);
    sqlx::raw_sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no answers'; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE OF answer ON idempotency FOR EACH ROW WHEN (NEW.answer IS NOT NULL)
         EXECUTE FUNCTION refuse()",
    )
    .execute(&pool)
    .await
    .unwrap();
    let before = (count(&pool, "datasets").await, count(&pool, "audit").await);
    let made = json!({"generator": "digits", "steps": 1, "dataset": {"npz": npz(&digits().select_classes(&[3, 1, 4]).unwrap())}});
    let made = made.to_string();
    for (path, body) in [("/v1/datasets", body.as_str()), (&purge, ""), ("/v1/generations", &made)] {
        keyed(&app, path, "k", body.to_owned()).await.problem(500, "database");
        assert_eq!((count(&pool, "datasets").await, count(&pool, "audit").await), before, "{path}");
        assert_eq!((count(&pool, "generations").await, count(&pool, "idempotency").await), (0, 0), "{path}");
    }
    sqlx::raw_sql("DROP TRIGGER refuse ON idempotency").execute(&pool).await.unwrap();
    assert_eq!(keyed(&app, &purge, "k", "").await.status, 204);
    let again = keyed(&app, &purge, "k", "").await;
    assert_eq!(
        (again.status.as_u16(), again.header("idempotency-replayed")),
        (204, "true"),
        "gone, and the same answer"
    );
}
