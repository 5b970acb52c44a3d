//! What is refused, and that nothing is stored then.

use api::Settings;
use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{App, digits, npz, png, zip};

async fn rows(pool: &PgPool, table: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"))).fetch_one(pool).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn bodies(pool: PgPool) {
    let app = App::with(pool, Settings { body_limit: 1000, ..Settings::default() });
    let post = async |kind: &str, body: &str| app.body(Method::POST, "/v1/generations", kind, body.to_owned()).await;
    post("application/json", "{").await.problem(400, "json_malformed");
    post("application/json", "").await.problem(400, "json_malformed");
    post("text/plain", "{}").await.problem(415, "media_type_unsupported");
    app.ask(Method::POST, "/v1/generations", &[]).await.problem(415, "media_type_unsupported");
    post("application/json", "{}").await.problem(422, "json_invalid");
    post("application/json", "[]").await.problem(422, "json_invalid");
    let problem = post("application/json", &format!("\"{}\"", "x".repeat(1000))).await.problem(413, "body_too_large");
    assert!(problem["detail"].as_str().unwrap().contains("1000 bytes"), "{problem}");

    // Without an announced length, the limit is found while reading.
    let chunks = (0..4).map(|_| Ok::<_, std::io::Error>(vec![b' '; 400]));
    let body = Body::from_stream(futures::stream::iter(chunks));
    app.body(Method::POST, "/v1/generations", "application/json", body).await.problem(413, "body_too_large");

    let broken = futures::stream::iter([Ok(vec![b'{']), Err(std::io::Error::other("gone"))]);
    let reply = app.body(Method::POST, "/v1/generations", "application/json", Body::from_stream(broken)).await;
    reply.problem(400, "body_incomplete");
}

#[sqlx::test(migrations = "../migrations")]
async fn routes_and_methods(pool: PgPool) {
    let app = App::new(pool);
    let problem = app.get("/v2/generations").await.problem(404, "unknown_route");
    assert_eq!(problem["instance"], "/v2/generations");
    app.get("/v1/generations/").await.problem(404, "unknown_route");
    app.get("/docs/nothing.js").await.problem(404, "unknown_route");
    let reply = app.ask(Method::DELETE, "/v1/datasets", &[]).await;
    reply.problem(405, "method_not_allowed");
    assert!(reply.header("allow").contains("GET") && reply.header("allow").contains("POST"));
    let reply = app.ask(Method::GET, "/v1/zoos", &[("x-request-id", "mine-1")]).await;
    assert_eq!(reply.header("x-request-id"), "mine-1");
}

#[sqlx::test(migrations = "../migrations")]
async fn datasets(pool: PgPool) {
    let app = App::new(pool.clone());
    let image = |class: &str, data: &str| json!({"class": class, "data": data});
    let (small, large) = (png(8, 1), png(9, 2));
    let npz = npz(digits());
    for (body, status, code, field) in [
        (json!({"name": "Digits", "npz": npz}), 422, "invalid_name", Some("name")),
        (json!({"npz": npz}), 422, "json_invalid", None),
        (json!({"name": "d"}), 422, "json_invalid", None),
        (json!({"name": "d", "npz": npz, "zip": npz}), 422, "json_invalid", None),
        (json!({"name": "d", "id": "x"}), 422, "json_invalid", Some("id")),
        (json!({"name": "d", "npz": "?"}), 422, "base64_invalid", Some("npz")),
        (json!({"name": "d", "npz": "AAAA"}), 422, "zip_invalid", Some("npz")),
        (json!({"name": "d", "npz": npz, "classes": ["3", "x"]}), 422, "unknown_class", Some("classes")),
        (json!({"name": "d", "npz": npz, "classes": ["3"]}), 422, "too_few_classes", Some("classes")),
        (json!({"name": "d", "zip": zip(&["a", "b"], 0.6)}), 422, "zip_invalid", Some("zip")),
        (json!({"name": "d", "zip": zip(&["a"], 1.0)}), 422, "too_few_classes", Some("zip")),
        (json!({"name": "d", "images": []}), 422, "too_few_classes", Some("images")),
        (
            json!({"name": "d", "images": [image("a", &small), image("b", &large)]}),
            422,
            "image_size_mismatch",
            Some("images[1]"),
        ),
        (
            json!({"name": "d", "images": [image("a", &small), image("b", "AAAA")]}),
            422,
            "image_invalid",
            Some("images[1]"),
        ),
        (
            json!({"name": "d", "images": [image("a", &small), image("b", &small)], "classes": ["a", "b", "c"]}),
            422,
            "class_without_images",
            Some("images"),
        ),
        (json!({"name": "d", "images": [{"class": "a"}]}), 422, "json_invalid", Some("images[0]")),
    ] {
        let problem = app.post("/v1/datasets", &body).await.problem(status, code);
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{problem}");
    }
    assert_eq!((rows(&pool, "datasets").await, rows(&pool, "artifacts").await), (0, 0));
    assert_eq!(app.stored_files(), 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn too_much_data(pool: PgPool) {
    let datasets = datasets::Limits { max_examples: 100, ..datasets::Limits::default() };
    let app = App::with(pool, Settings { datasets, ..Settings::default() });
    let problem = app.post("/v1/datasets", &json!({"name": "d", "npz": npz(digits())})).await;
    let problem = problem.problem(413, "limit_exceeded");
    assert!(problem["detail"].as_str().unwrap().contains("limit of 100"), "{problem}");
}

#[sqlx::test(migrations = "../migrations")]
async fn datasets_are_idempotent_by_content(pool: PgPool) {
    let app = App::new(pool.clone());
    let body = json!({"name": "three", "npz": npz(digits()), "classes": ["3", "1", "4"]});
    let made = app.post("/v1/datasets", &body).await;
    let dataset = made.json();
    assert_eq!(made.status, 201, "{dataset}");
    assert_eq!(made.header("location"), format!("/v1/datasets/{}", dataset["id"].as_str().unwrap()));
    assert_eq!((&dataset["classes"], &dataset["modality"]), (&json!(["3", "1", "4"]), &json!("image")));
    assert_eq!(dataset["shape"], json!([1, 8, 8]));
    let again = app.post("/v1/datasets", &body).await;
    assert_eq!((again.status.as_u16(), again.json()), (200, dataset.clone()));
    assert_eq!(app.json(made.header("location")).await, dataset);
    assert_eq!(app.json("/v1/datasets?name=three&modality=image").await["items"], json!([dataset]));
    assert_eq!(app.json("/v1/datasets?name=other").await["items"], json!([]));

    let images = json!({"name": "two", "images": [
        {"class": "b", "data": png(8, 1)}, {"class": "a", "data": png(8, 200)}]});
    let reply = app.post("/v1/datasets", &images).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["classes"]), (201, &json!(["b", "a"])));
    let zipped = app.post("/v1/datasets", &json!({"name": "z", "zip": zip(&["a", "b"], 1.0)})).await;
    assert_eq!((zipped.status.as_u16(), &zipped.json()["examples"]), (201, &json!(2)));
    assert_eq!(rows(&pool, "datasets").await, 3);
}
