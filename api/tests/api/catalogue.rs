//! The catalogue: lists, single things, aliases, health.

use axum::http::Method;
use registry::architectures::{self, NewArchitecture};
use registry::checkpoints::NewCheckpoint;
use registry::runs::NewRun;
use registry::zoos::{self, NewZoo, Zoo};
use registry::{Caller, NewAbout, Seed, digest_of};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::App;

const SOME_ID: &str = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e";

/// A zoo of two runs with two checkpoints each, of accuracies 0.5, 0.6, 0.7, 0.8.
pub async fn zoo(app: &App) -> Zoo {
    let new = NewArchitecture {
        name: "head-4-3".into(),
        config: json!({"kind": "head"}),
        parameters: 15,
        layout: json!({"params": []}),
        forward_artifact: None,
        about: NewAbout::default(),
    };
    let mut write = app.registry.write(&Caller::system("test")).await.unwrap();
    let architecture = architectures::create(&mut write, &new).await.unwrap();
    let dataset = app.digits().await;
    let mut runs = Vec::new();
    for index in 0..2 {
        let mut checkpoints = Vec::new();
        for epoch in 0..2 {
            let file = vec![(index * 2 + epoch) as u8; 100];
            let artifact = app.registry.artifacts().put_bytes(file, "application/vnd.safetensors").await.unwrap();
            let accuracy = 0.5 + 0.1 * (index * 2 + epoch) as f32;
            checkpoints.push(NewCheckpoint { epoch, accuracy, loss: 1.0, artifact_digest: artifact.digest });
        }
        let (seed, classes) = (Seed(u64::MAX), vec![3, 1, 4]);
        runs.push(NewRun { index, dataset_id: dataset.id, classes, seed, checkpoints });
    }
    let new = NewZoo {
        name: "small".into(),
        architecture_id: Some(architecture.id),
        config: json!({}),
        digest: Some(digest_of(b"small")),
        about: NewAbout::default(),
    };
    let zoo = zoos::create_with_runs(&mut write, &new, &runs).await.unwrap();
    write.commit().await.unwrap();
    zoo
}

fn items(page: &Value) -> &Vec<Value> {
    page["items"].as_array().unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn empty_lists_are_empty(pool: PgPool) {
    let app = App::new(pool);
    for resource in ["architectures", "datasets", "zoos", "checkpoints", "generators", "generations"] {
        assert_eq!(app.json(&format!("/v1/{resource}")).await, json!({"items": [], "next_cursor": null}), "{resource}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn zoos_runs_and_checkpoints(pool: PgPool) {
    let app = App::new(pool);
    let zoo = zoo(&app).await;
    let architecture = app.json("/v1/architectures/head-4-3").await;
    assert_eq!(architecture["parameters"], 15);
    assert_eq!(items(&app.json("/v1/architectures").await), &vec![architecture.clone()]);

    let found = app.json(&format!("/v1/zoos/{}", zoo.id)).await;
    assert_eq!((&found["runs"], &found["checkpoints"]), (&json!(2), &json!(4)));
    let by = |architecture: &Value| format!("/v1/zoos?architecture={}", architecture.as_str().unwrap());
    assert_eq!(items(&app.json(&by(&architecture["id"])).await).len(), 1);
    assert_eq!(items(&app.json(&by(&json!(SOME_ID))).await).len(), 0);

    let runs = app.json(&format!("/v1/zoos/{}/runs", zoo.id)).await;
    assert_eq!(items(&runs).len(), 2);
    assert_eq!(items(&runs)[0]["seed"], json!(u64::MAX));
    app.get(&format!("/v1/zoos/{SOME_ID}/runs")).await.problem(404, "not_found");

    let run = items(&runs)[1]["id"].as_str().unwrap();
    let of_run = app.json(&format!("/v1/checkpoints?run={run}&zoo={}", zoo.id)).await;
    assert_eq!(items(&of_run).len(), 2);
    let good = app.json("/v1/checkpoints?min_accuracy=0.65").await;
    assert_eq!(items(&good).len(), 2);
    let id = items(&good)[0]["id"].as_str().unwrap();
    assert_eq!(&app.json(&format!("/v1/checkpoints/{id}")).await, &items(&good)[0]);
}

#[sqlx::test(migrations = "../migrations")]
async fn pages_follow_each_other(pool: PgPool) {
    let app = App::new(pool);
    zoo(&app).await;
    let (mut seen, mut path) = (Vec::new(), "/v1/checkpoints?limit=3".to_owned());
    let mut pages = 0;
    loop {
        let page = app.json(&path).await;
        pages += 1;
        seen.extend(items(&page).iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/checkpoints?limit=3&cursor={cursor}"),
            None => break,
        }
    }
    seen.dedup();
    assert_eq!((pages, seen.len()), (2, 4));
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_queries_say_what_is_right(pool: PgPool) {
    let app = App::new(pool);
    let refused = async |path: &str, status, code| app.get(path).await.problem(status, code);
    let problem = refused("/v1/datasets?cursor=nonsense", 400, "invalid_cursor").await;
    assert_eq!(problem["field"], "cursor");
    assert_eq!(refused("/v1/datasets?limit=0", 422, "invalid_value").await["field"], "limit");
    let problem = refused("/v1/datasets?limit=201", 422, "invalid_value").await;
    assert!(problem["detail"].as_str().unwrap().contains("1 to 200"), "{problem}");
    let problem = refused("/v1/datasets?limit=ten", 400, "query_invalid").await;
    assert!(problem["detail"].as_str().unwrap().contains("limit"), "{problem}");
    refused("/v1/checkpoints?min_acuracy=0.5", 400, "query_invalid").await;
    refused("/v1/checkpoints?min_accuracy=NaN", 422, "invalid_value").await;
    refused("/v1/checkpoints?zoo=small", 400, "query_invalid").await;
    refused("/v1/datasets/digits", 400, "path_invalid").await;
    refused("/v1/generations?generator=nobody@3", 404, "not_found").await;
    for path in ["zoos", "datasets", "checkpoints", "generations"] {
        refused(&format!("/v1/{path}/{SOME_ID}"), 404, "not_found").await;
    }
    refused("/v1/architectures/nobody", 404, "not_found").await;
}

#[sqlx::test(migrations = "../migrations")]
async fn generators_versions_and_aliases(pool: PgPool) {
    let app = App::new(pool);
    let version = app.publish("digits").await;
    assert_eq!(app.json("/v1/generators/digits").await["latest"], 1);
    assert_eq!(items(&app.json("/v1/generators?q=TEST").await).len(), 1);
    assert_eq!(items(&app.json("/v1/generators?q=nothing").await).len(), 0);
    let listed = app.json("/v1/generators/digits/versions").await;
    assert!(items(&listed)[0].get("manifest").is_none());
    let full = app.json("/v1/generators/digits/versions/latest").await;
    assert_eq!((&full["digest"], &full["manifest"]["format"]), (&json!(version.digest), &json!(1)));
    app.get("/v1/generators/digits/versions/2").await.problem(404, "not_found");
    app.get("/v1/generators/nobody/versions/1").await.problem(404, "not_found");
    app.get("/v1/generators/nobody/versions").await.problem(404, "not_found");

    let path = "/v1/generators/digits/aliases/champion";
    app.get(path).await.problem(404, "not_found");
    let made = app.body(Method::PUT, path, "application/json", r#"{"version": 1}"#).await;
    assert_eq!((made.status.as_u16(), made.header("location"), made.header("etag")), (201, path, "\"1\""));
    assert_eq!(app.get(path).await.header("etag"), "\"1\"");
    assert_eq!(app.json("/v1/generators/digits/versions/champion").await["version"], 1);
    assert_eq!(items(&app.json("/v1/generators/digits/aliases").await).len(), 1);
    let history = app.json(&format!("{path}/history")).await;
    assert_eq!((&items(&history)[0]["previous"], &items(&history)[0]["version"]), (&Value::Null, &json!(1)));
}

#[sqlx::test(migrations = "../migrations")]
async fn aliases_move_under_conditions(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let put = async |alias: &str, body: &str, headers: &[(&str, &str)]| {
        let mut request = axum::http::Request::builder()
            .method("PUT")
            .uri(format!("/v1/generators/digits/aliases/{alias}"))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app.send(request.body(body.to_owned().into()).unwrap()).await
    };
    let target = r#"{"version": 1}"#;
    put("champion", target, &[("if-match", "*")]).await.problem(412, "conflict");
    put("champion", target, &[("if-match", "\"1\"")]).await.problem(412, "conflict");
    assert_eq!(put("champion", target, &[("if-none-match", "*")]).await.status, 201);
    put("champion", target, &[("if-none-match", "*")]).await.problem(412, "conflict");
    put("champion", target, &[("if-match", "\"7\"")]).await.problem(412, "conflict");
    put("champion", target, &[("if-match", "1")]).await.problem(400, "header_invalid");
    assert_eq!(put("champion", target, &[("if-match", "\"1\"")]).await.status, 200);
    assert_eq!(put("champion", target, &[("if-match", "*")]).await.status, 200);
    put("champion", r#"{"version": 9}"#, &[]).await.problem(404, "not_found");
    put("latest", target, &[]).await.problem(422, "invalid_name");
    assert_eq!(put("champion", r#"{"version": "1"}"#, &[]).await.problem(422, "json_invalid")["field"], "version");
}

#[sqlx::test(migrations = "../migrations")]
async fn health_says_what_is_used(pool: PgPool) {
    let app = App::new(pool.clone());
    assert_eq!(app.json("/health/live").await["status"], "live");
    let ready = app.json("/health/ready").await;
    assert_eq!((&ready["status"], &ready["runtime"]["provider"]), (&json!("ready"), &json!("cpu")));
    let names: Vec<&str> = ready["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["migrations", "database", "artifacts", "session"]);
    assert_eq!(ready["runtime"]["device"], "CPU, 2 threads");
    pool.close().await;
    app.get("/health/ready").await.problem(503, "not_ready");
    assert_eq!(app.json("/health/live").await["status"], "live");
}
