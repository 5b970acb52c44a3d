//! The description of the API, and that the kept copy of it is up to date.

use std::collections::HashSet;

use serde_json::Value;
use sqlx::PgPool;

use crate::support::App;

fn document() -> Value {
    serde_json::from_str(&api::openapi_json()).unwrap()
}

fn operations(document: &Value) -> Vec<(String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let each = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods
            .filter(|(name, _)| ["get", "put", "post", "delete", "head", "patch"].contains(&name.as_str()))
            .map(move |(method, operation)| (format!("{method} {path}"), operation.clone()))
    });
    each.collect()
}

#[test]
fn the_kept_document_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../openapi/openapi.json");
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == api::openapi_json(), "openapi/openapi.json is not what the code says: run `make openapi`");
}

#[test]
fn every_operation_is_described() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let tags: HashSet<&str> =
        document["tags"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    let mut ids = HashSet::new();
    let operations = operations(&document);
    assert!(operations.len() >= 25, "{}", operations.len());
    for (name, operation) in operations {
        assert!(ids.insert(operation["operationId"].as_str().expect(&name).to_owned()), "{name}: the id is not unique");
        let tag = operation["tags"].as_array().expect(&name);
        assert!(tag.len() == 1 && tags.contains(tag[0].as_str().unwrap()), "{name}: {tag:?}");
        let summary = operation["summary"].as_str().expect(&name);
        assert!(!summary.is_empty() && !summary.ends_with('.'), "{name}: {summary}");
        assert!(operation.to_string().contains("\"example\":"), "{name} has no example");
        check_responses(&name, &operation["responses"]);
    }
}

fn check_responses(name: &str, responses: &Value) {
    let mut problems = 0;
    for (status, response) in responses.as_object().unwrap() {
        assert!(!response["description"].as_str().unwrap().is_empty(), "{name} {status}");
        if status.as_str() >= "400" {
            let content = &response["content"]["application/problem+json"];
            assert_eq!(content["schema"]["$ref"], "#/components/schemas/Problem", "{name} {status}");
            assert_eq!(content["example"]["status"].to_string(), *status, "{name}");
            problems += 1;
        }
    }
    assert!(problems >= 1, "{name} names no problem");
}

#[test]
fn every_reference_leads_somewhere() {
    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(target)) => references.push(target.clone()),
                _ => collect(value, references),
            }),
            Value::Array(list) => list.iter().for_each(|value| collect(value, references)),
            _ => {}
        }
    }
    let document = document();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn it_is_served_with_a_page_to_read_it(pool: PgPool) {
    let app = App::new(pool);
    let reply = app.get("/openapi.json").await;
    assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, "application/json"));
    assert_eq!(String::from_utf8(reply.bytes).unwrap(), api::openapi_json());
    assert_eq!(app.get("/docs").await.header("location"), "/docs/");
    let page = app.get("/docs/").await;
    assert!(page.status == 200 && String::from_utf8_lossy(&page.bytes).contains("swagger-ui"));
    let script = String::from_utf8_lossy(&app.get("/docs/swagger-initializer.js").await.bytes).into_owned();
    assert!(script.contains("/openapi.json"), "{script}");
}

#[sqlx::test(migrations = "../migrations")]
async fn every_described_path_is_routed(pool: PgPool) {
    let app = App::new(pool);
    for (path, item) in document()["paths"].as_object().unwrap() {
        let concrete = path.replace("{id}", "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e").replace("{index}", "0");
        let concrete = concrete.replace(['{', '}'], "");
        for method in item.as_object().unwrap().keys() {
            let reply = app.ask(method.to_uppercase().parse().unwrap(), &concrete, &[]).await;
            let unrouted = reply.status == 405 || String::from_utf8_lossy(&reply.bytes).contains("unknown_route");
            assert!(!unrouted, "{method} {path}: {}", reply.status);
        }
    }
}
