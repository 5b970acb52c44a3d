//! Every operation of the OpenAPI document refuses whoever may not call it.
//!
//! A new operation must be added to [`OPERATIONS`], with its scope; a new path parameter to [`PARAMETERS`].

use api::Settings;
use axum::body::Body;
use axum::http::{Method, Request};
use registry::Caller;
use registry::tokens::{self, NewToken, Scope};
use serde_json::Value;
use sqlx::PgPool;

use crate::support::{App, Reply};

/// What an operation needs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Needs {
    Nothing,
    AnyToken,
    Scope(Scope),
    /// One of these.
    Either([Scope; 2]),
}

const READ: Needs = Needs::Scope(Scope::Read);
const GENERATE: Needs = Needs::Scope(Scope::Generate);
const TRAIN: Needs = Needs::Scope(Scope::Train);
const ADMINISTER: Needs = Needs::Scope(Scope::Administer);

/// All operations. That each is here, and none besides, is tested.
const OPERATIONS: &[(&str, Needs)] = &[
    ("GET /health/live", Needs::Nothing),
    ("GET /health/ready", Needs::Nothing),
    ("GET /metrics", Needs::Nothing),
    ("GET /v1/architectures", READ),
    ("POST /v1/architectures", TRAIN),
    ("DELETE /v1/architectures/{name}", TRAIN),
    ("GET /v1/architectures/{name}", READ),
    ("PATCH /v1/architectures/{name}", TRAIN),
    ("POST /v1/architectures/{name}/purge", ADMINISTER),
    ("POST /v1/architectures/{name}/restore", TRAIN),
    ("GET /v1/audit", ADMINISTER),
    ("GET /v1/checkpoints", READ),
    ("DELETE /v1/checkpoints/{id}", TRAIN),
    ("GET /v1/checkpoints/{id}", READ),
    ("PATCH /v1/checkpoints/{id}", TRAIN),
    ("GET /v1/checkpoints/{id}/file", READ),
    ("HEAD /v1/checkpoints/{id}/file", READ),
    ("GET /v1/checkpoints/{id}/metadata", READ),
    ("POST /v1/checkpoints/{id}/purge", ADMINISTER),
    ("POST /v1/checkpoints/{id}/restore", TRAIN),
    ("GET /v1/datasets", READ),
    ("POST /v1/datasets", TRAIN),
    ("POST /v1/datasets/upload", TRAIN),
    ("DELETE /v1/datasets/{id}", TRAIN),
    ("GET /v1/datasets/{id}", READ),
    ("PATCH /v1/datasets/{id}", TRAIN),
    ("GET /v1/datasets/{id}/file", READ),
    ("GET /v1/datasets/{id}/nearest", READ),
    ("POST /v1/datasets/{id}/purge", ADMINISTER),
    ("POST /v1/datasets/{id}/restore", TRAIN),
    ("GET /v1/datasets/{id}/sample", READ),
    ("GET /v1/datasets/{id}/thumbnail", READ),
    ("GET /v1/extractors", READ),
    ("POST /v1/extractors", TRAIN),
    ("DELETE /v1/extractors/{name}", TRAIN),
    ("GET /v1/extractors/{name}", READ),
    ("PATCH /v1/extractors/{name}", TRAIN),
    ("GET /v1/extractors/{name}/file", READ),
    ("POST /v1/extractors/{name}/purge", ADMINISTER),
    ("POST /v1/extractors/{name}/restore", TRAIN),
    ("GET /v1/generations", READ),
    ("POST /v1/generations", GENERATE),
    ("DELETE /v1/generations/{id}", GENERATE),
    ("GET /v1/generations/{id}", READ),
    ("PATCH /v1/generations/{id}", GENERATE),
    ("GET /v1/generations/{id}/evaluations", READ),
    ("POST /v1/generations/{id}/evaluations", GENERATE),
    ("GET /v1/generations/{id}/evaluations/{evaluation}", READ),
    ("POST /v1/generations/{id}/purge", ADMINISTER),
    ("POST /v1/generations/{id}/restore", GENERATE),
    ("GET /v1/generations/{id}/samples/{index}/file", READ),
    ("HEAD /v1/generations/{id}/samples/{index}/file", READ),
    ("GET /v1/generations/{id}/samples/{index}/adapter", READ),
    ("GET /v1/generations/{id}/samples/{index}/metadata", READ),
    ("GET /v1/generators", READ),
    ("DELETE /v1/generators/{name}", TRAIN),
    ("GET /v1/generators/{name}", READ),
    ("PATCH /v1/generators/{name}", TRAIN),
    ("GET /v1/generators/{name}/aliases", READ),
    ("DELETE /v1/generators/{name}/aliases/{alias}", TRAIN),
    ("GET /v1/generators/{name}/aliases/{alias}", READ),
    ("PUT /v1/generators/{name}/aliases/{alias}", TRAIN),
    ("GET /v1/generators/{name}/aliases/{alias}/history", READ),
    ("POST /v1/generators/{name}/purge", ADMINISTER),
    ("POST /v1/generators/{name}/restore", TRAIN),
    ("GET /v1/generators/{name}/versions", READ),
    ("POST /v1/generators/{name}/versions", TRAIN),
    ("GET /v1/generators/{name}/versions/{version}", READ),
    ("PATCH /v1/generators/{name}/versions/{version}", TRAIN),
    ("GET /v1/generators/{name}/versions/{version}/bundle", READ),
    ("HEAD /v1/generators/{name}/versions/{version}/bundle", READ),
    ("POST /v1/generators/{name}/versions/{version}/purge", ADMINISTER),
    ("POST /v1/generators/{name}/versions/{version}/restore", TRAIN),
    ("POST /v1/generators/{name}/versions/{version}/yank", TRAIN),
    ("GET /v1/jobs", READ),
    ("GET /v1/jobs/{id}", READ),
    ("POST /v1/jobs/{id}/cancel", Needs::Either([Scope::Generate, Scope::Train])),
    ("GET /v1/jobs/{id}/events", READ),
    ("GET /v1/lineage", READ),
    ("GET /v1/models", READ),
    ("POST /v1/models/{name}/searches", TRAIN),
    ("GET /v1/tokens", ADMINISTER),
    ("POST /v1/tokens", ADMINISTER),
    ("GET /v1/tokens/self", Needs::AnyToken),
    ("DELETE /v1/tokens/{id}", ADMINISTER),
    ("GET /v1/tokens/{id}", ADMINISTER),
    ("GET /v1/zoos", READ),
    ("POST /v1/zoos", TRAIN),
    ("DELETE /v1/zoos/{id}", TRAIN),
    ("GET /v1/zoos/{id}", READ),
    ("PATCH /v1/zoos/{id}", TRAIN),
    ("POST /v1/zoos/{id}/checkpoints", TRAIN),
    ("POST /v1/zoos/{id}/imports", TRAIN),
    ("POST /v1/zoos/{id}/purge", ADMINISTER),
    ("POST /v1/zoos/{id}/restore", TRAIN),
    ("GET /v1/zoos/{id}/runs", READ),
];

/// Values of path parameters, with which nothing is found.
const PARAMETERS: &[(&str, &str)] = &[
    ("{id}", "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
    ("{index}", "0"),
    ("{evaluation}", "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
    ("{name}", "nothing"),
    ("{version}", "1"),
    ("{alias}", "champion"),
    ("{kind}", "dataset"),
];

fn described() -> Vec<(String, Value)> {
    let document: Value = serde_json::from_str(&api::openapi_json()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["operationId"].is_string() {
                operations.push((format!("{} {path}", method.to_uppercase()), operation.clone()));
            }
        }
    }
    operations
}

/// Method and path with values for its parameters.
fn concrete(operation: &str) -> (Method, String) {
    let (method, path) = operation.split_once(' ').unwrap();
    let path = PARAMETERS.iter().fold(path.to_owned(), |path, (name, value)| path.replace(name, value));
    assert!(!path.contains('{'), "{operation}: add its parameter to PARAMETERS");
    (method.parse().unwrap(), path)
}

async fn call(app: &App, method: &Method, path: &str, secret: Option<&str>) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(secret) = secret {
        request = request.header("authorization", format!("Bearer {secret}"));
    }
    let body = match method.as_str() {
        "POST" | "PUT" | "PATCH" => {
            request = request.header("content-type", "application/json");
            Body::from("{}")
        }
        _ => Body::empty(),
    };
    app.send(request.body(body).unwrap()).await
}

fn refused(operation: &str, reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status.as_u16(), status, "{operation}: {}", String::from_utf8_lossy(&reply.bytes));
    let challenge = reply.header("www-authenticate");
    assert!(challenge.starts_with("Bearer realm="), "{operation}: {challenge}");
    match operation.starts_with("HEAD ") {
        true => assert!(reply.bytes.is_empty(), "{operation}"),
        false => drop(reply.problem(status, code)),
    }
}

fn all_but(scope: Scope) -> Vec<Scope> {
    // One that administers may do everything.
    Scope::ALL.into_iter().filter(|other| *other != scope && *other != Scope::Administer).collect()
}

#[test]
fn every_operation_has_its_test() {
    let described = described();
    for (operation, declared) in &described {
        let known = OPERATIONS.iter().find(|(name, _)| name == operation);
        let (_, needs) = known.unwrap_or_else(|| panic!("{operation}: add it to OPERATIONS, with what it needs"));
        let expected = match needs {
            Needs::Nothing => serde_json::json!([{}]),
            Needs::AnyToken => serde_json::json!([{"token": []}]),
            Needs::Scope(scope) => serde_json::json!([{"token": [scope]}]),
            Needs::Either([a, b]) => serde_json::json!([{"token": [a]}, {"token": [b]}]),
        };
        assert_eq!(declared["security"], expected, "{operation}");
        for status in ["401", "403", "429"].iter().filter(|_| *needs != Needs::Nothing) {
            assert!(declared["responses"][status].is_object(), "{operation} does not describe {status}");
        }
        let _ = concrete(operation);
    }
    for (operation, _) in OPERATIONS {
        assert!(described.iter().any(|(name, _)| name == operation), "{operation} is gone: remove it");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn nobody_calls_what_they_may_not(pool: PgPool) {
    let app = App::closed(pool.clone(), Settings::default());
    let any = app.token("ann", &Scope::ALL).await.1;
    let wrong = format!("{}{}", &any[..13], any[13..].chars().rev().collect::<String>());
    let (expired, expired_secret) = app.token("ann", &Scope::ALL).await;
    let end = sqlx::query("UPDATE tokens SET expires_at = now() WHERE id = $1");
    end.bind(expired.id.as_uuid()).execute(&pool).await.unwrap();
    let (revoked, revoked_secret) = app.token("ann", &Scope::ALL).await;
    let mut write = app.registry.write(&Caller::system("test")).await.unwrap();
    tokens::revoke(&mut write, revoked.id).await.unwrap();
    write.commit().await.unwrap();

    for (operation, needs) in OPERATIONS {
        let (method, path) = concrete(operation);
        if *needs == Needs::Nothing {
            assert_ne!(call(&app, &method, &path, None).await.status, 401, "{operation}");
            continue;
        }
        refused(operation, &call(&app, &method, &path, None).await, 401, "token_missing");
        for garbage in ["x", "", "wsm_", wrong.as_str()] {
            refused(operation, &call(&app, &method, &path, Some(garbage)).await, 401, "token_invalid");
        }
        refused(operation, &call(&app, &method, &path, Some(&expired_secret)).await, 401, "token_expired");
        refused(operation, &call(&app, &method, &path, Some(&revoked_secret)).await, 401, "token_revoked");
        if method == Method::GET {
            let head = format!("HEAD {path}");
            refused(&head, &call(&app, &Method::HEAD, &path, None).await, 401, "token_missing");
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_scope_opens_its_operations_and_no_others(pool: PgPool) {
    let app = App::closed(pool, Settings::default());
    let mut secrets = Vec::new();
    for scope in Scope::ALL {
        let (with, without) = (app.token("ann", &[scope]).await.1, app.token("ann", &all_but(scope)).await.1);
        secrets.push((scope, with, without));
    }
    for (operation, needs) in OPERATIONS {
        let (method, path) = concrete(operation);
        for (scope, with, without) in &secrets {
            let opens = match needs {
                Needs::Nothing => continue,
                Needs::AnyToken => true,
                Needs::Scope(needed) => needed == scope,
                Needs::Either(either) => either.contains(scope),
            };
            if opens {
                let reply = call(&app, &method, &path, Some(with)).await;
                let text = String::from_utf8_lossy(&reply.bytes);
                let status = reply.status.as_u16();
                assert!(
                    ![401, 403, 405].contains(&status) && status < 500,
                    "{operation} with {scope}: {status} {text}"
                );
            }
            if let Needs::Either([first, _]) = needs
                && *scope == Scope::Read
            {
                let reply = call(&app, &method, &path, Some(with)).await;
                refused(operation, &reply, 403, "scope_missing");
                let expected = format!("error=\"insufficient_scope\", scope=\"{first}\"");
                assert!(reply.header("www-authenticate").ends_with(&expected), "{operation}");
            }
            if opens && matches!(needs, Needs::Scope(_)) {
                let reply = call(&app, &method, &path, Some(without)).await;
                refused(operation, &reply, 403, "scope_missing");
                let challenge = reply.header("www-authenticate");
                let expected = format!("error=\"insufficient_scope\", scope=\"{scope}\"");
                assert!(challenge.ends_with(&expected), "{operation}: {challenge}");
            }
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_not_described_is_closed(pool: PgPool) {
    let app = App::closed(pool, Settings::default());
    let secret = app.token("ann", &[Scope::Administer]).await.1;
    let reply = call(&app, &Method::DELETE, "/v1/datasets", Some(&secret)).await;
    reply.problem(405, "method_not_allowed");
    assert_eq!(reply.header("allow"), "GET,HEAD,POST");
    call(&app, &Method::GET, "/v1/nothing", None).await.problem(404, "unknown_route");
    for path in ["/health/live", "/openapi.json", "/docs/"] {
        assert_eq!(call(&app, &Method::GET, path, None).await.status, 200, "{path}");
    }
}

/// The helper's own secrets are what the API takes.
#[sqlx::test(migrations = "../migrations")]
async fn a_token_made_by_the_registry_is_taken(pool: PgPool) {
    let app = App::closed(pool, Settings::default());
    let new = NewToken { name: "t".into(), owner: "ann".into(), scopes: vec![Scope::Read], ..NewToken::default() };
    let (_, secret) = app.make_token(&new).await;
    let reply = call(&app, &Method::GET, "/v1/tokens/self", Some(&secret)).await.json();
    assert_eq!((&reply["principal"], &reply["scopes"]), (&"ann".into(), &serde_json::json!(["read"])));
}
