//! Describe, search, select, delete, restore, purge, yank and lineage, over HTTP.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::catalogue::zoo;
use crate::support::App;

async fn patch(app: &App, path: &str, body: Value) -> crate::support::Reply {
    app.body(Method::PATCH, path, "application/json", body.to_string()).await
}

fn names(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_said_is_found_and_selected(pool: PgPool) {
    let app = App::new(pool);
    let dataset = app.digits().await;
    let path = format!("/v1/datasets/{}", dataset.id);
    let changed = patch(&app, &path, json!({"description": "Post codes", "tags": ["vision", "small"]})).await.json();
    assert_eq!((&changed["description"], &changed["tags"]), (&json!("Post codes"), &json!(["vision", "small"])));
    for query in ["q=post", "q=digi", "tags=small,vision", "order=-name&q=codes"] {
        assert_eq!(names(&app.json(&format!("/v1/datasets?{query}")).await), ["digits"], "{query}");
    }
    for query in ["q=letters", "tags=small,large", "owner=nobody", "deleted=true"] {
        assert!(names(&app.json(&format!("/v1/datasets?{query}")).await).is_empty(), "{query}");
    }
    let reply = app.get("/v1/datasets?fields=name,tags").await;
    assert_eq!(reply.header("content-type"), "application/vnd.weightsmith.fields+json");
    assert_eq!(reply.json()["items"], json!([{"name": "digits", "tags": ["vision", "small"]}]));
    for (query, field) in [("fields=size", "fields"), ("order=size", "order"), ("q=%20", "q")] {
        let problem = app.get(&format!("/v1/datasets?{query}")).await.problem(422, "invalid_value");
        assert_eq!(problem["field"], field);
    }
    for (body, field) in [(json!({"tags": ["A"]}), "tags"), (json!({"visibility": "secret"}), "visibility")] {
        assert_eq!(patch(&app, &path, body).await.problem(422, "invalid_value")["field"], field);
    }
    patch(&app, &path, json!({"name": "x"})).await.problem(422, "json_invalid");
}

#[sqlx::test(migrations = "../migrations")]
async fn deleted_restored_purged(pool: PgPool) {
    let app = App::new(pool);
    let zoo = zoo(&app).await;
    let path = format!("/v1/zoos/{}", zoo.id);
    let act = async |method: Method, path: &str| app.ask(method, path, &[]).await;
    act(Method::POST, &format!("{path}/purge")).await.problem(409, "not_deleted");
    assert_eq!(act(Method::DELETE, &path).await.status, 204);
    app.get(&path).await.problem(404, "not_found");
    assert_eq!(names(&app.json("/v1/zoos?deleted=true").await), ["small"]);
    assert_eq!(app.json("/v1/checkpoints").await["items"], json!([]));
    assert_eq!(act(Method::POST, &format!("{path}/restore")).await.status, 204);
    assert_eq!(app.json(&path).await["checkpoints"], 4);
    let architecture = "/v1/architectures/head-4-3";
    assert_eq!(act(Method::DELETE, architecture).await.status, 204);
    act(Method::POST, &format!("{architecture}/purge")).await.problem(409, "in_use");
    assert_eq!(act(Method::DELETE, &path).await.status, 204);
    assert_eq!(act(Method::POST, &format!("{path}/purge")).await.status, 204);
    assert_eq!(act(Method::POST, &format!("{architecture}/purge")).await.status, 204);
    act(Method::POST, &format!("{path}/restore")).await.problem(404, "not_found");
}

#[sqlx::test(migrations = "../migrations")]
async fn versions_are_yanked_and_come_back(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let yank = async |body: Value| app.post("/v1/generators/digits/versions/1/yank", &body).await;
    assert_eq!(yank(json!({"reason": "wrong labels"})).await.status, 204);
    let version = app.json("/v1/generators/digits/versions/1").await;
    assert_eq!(version["yank_reason"], "wrong labels");
    app.get("/v1/generators/digits/versions/latest").await.problem(404, "not_found");
    let alias =
        app.body(Method::PUT, "/v1/generators/digits/aliases/champion", "application/json", r#"{"version": 1}"#);
    alias.await.problem(409, "yanked");
    let restored = app.ask(Method::POST, "/v1/generators/digits/versions/1/restore", &[]).await;
    assert_eq!(restored.status, 204);
    assert_eq!(app.json("/v1/generators/digits/versions/latest").await["version"], 1);
    let alias =
        app.body(Method::PUT, "/v1/generators/digits/aliases/champion", "application/json", r#"{"version": 1}"#);
    assert_eq!(alias.await.status, 201);
    let removed = app.ask(Method::DELETE, "/v1/generators/digits/aliases/champion", &[("if-match", "\"2\"")]).await;
    removed.problem(412, "conflict");
    let removed = app.ask(Method::DELETE, "/v1/generators/digits/aliases/champion", &[("if-match", "\"1\"")]).await;
    assert_eq!(removed.status, 204);
    let history = app.json("/v1/generators/digits/aliases/champion/history").await;
    assert_eq!((&history["items"][0]["version"], &history["items"][1]["version"]), (&Value::Null, &json!(1)));
}

#[sqlx::test(migrations = "../migrations")]
async fn lineage_of_a_sample(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let dataset = app.digits().await;
    let body = json!({"generator": "digits", "steps": 1,
                      "dataset": {"id": dataset.id, "classes": ["3", "1", "4"]}});
    let made = app.post("/v1/generations", &body).await.json();
    let node = format!("sample:{}/0", made["id"].as_str().unwrap());
    let graph = app.json(&format!("/v1/lineage?node={node}&direction=sources")).await;
    let kinds: Vec<&str> = graph["nodes"].as_array().unwrap().iter().map(|n| n["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["sample", "generation", "version", "dataset"]);
    for node in graph["nodes"].as_array().unwrap() {
        assert_eq!(app.get(node["url"].as_str().unwrap()).await.status, 200, "{node}");
    }
    assert_eq!((graph["edges"].as_array().unwrap().len(), &graph["truncated"]), (3, &json!(false)));
    app.get("/v1/lineage?node=thing:1").await.problem(422, "invalid_value");
    app.get("/v1/lineage?node=version:nothing@1").await.problem(404, "not_found");
    app.get("/v1/lineage?node=version:digits@1&depth=0").await.problem(422, "invalid_value");
}
