//! Tokens over HTTP, what others do not see, limits and quotas, and open mode.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{AuthSettings, RateLimit, Settings};
use axum::body::Body;
use axum::http::{Method, Request};
use registry::tokens::{self, NewToken, Scope};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{App, Reply, digits, npz};

async fn ask(app: &App, secret: &str, method: Method, path: &str, body: &Value) -> Reply {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {secret}"));
    let request = match body {
        Value::Null => request.body(Body::empty()),
        body => request.header("content-type", "application/json").body(Body::from(body.to_string())),
    };
    app.send(request.unwrap()).await
}

async fn get(app: &App, secret: &str, path: &str) -> Reply {
    ask(app, secret, Method::GET, path, &Value::Null).await
}

async fn post(app: &App, secret: &str, path: &str, body: &Value) -> Reply {
    ask(app, secret, Method::POST, path, body).await
}

fn closed(pool: PgPool) -> App {
    App::closed(pool, Settings::default())
}

#[sqlx::test(migrations = "../migrations")]
async fn tokens_over_http(pool: PgPool) {
    let app = closed(pool.clone());
    let admin = app.token("root", &[Scope::Administer]).await.1;
    let new = json!({"name": "ci", "owner": "ann", "scopes": ["generate", "read"], "patterns": ["digits-*"],
        "samples_per_day": 1000, "expires_in": 3600});
    let made = post(&app, &admin, "/v1/tokens", &new).await;
    assert_eq!(made.status, 201, "{}", made.json());
    let mut token = made.json();
    let secret = token.as_object_mut().unwrap().remove("secret").unwrap();
    let secret = secret.as_str().unwrap();
    let path = format!("/v1/tokens/{}", token["id"].as_str().unwrap());
    assert_eq!((made.header("location"), &token["scopes"]), (path.as_str(), &json!(["read", "generate"])));
    assert_eq!(get(&app, &admin, &path).await.json(), token);

    let myself = get(&app, secret, "/v1/tokens/self").await;
    assert!(myself.headers.get_all("ratelimit").iter().any(|v| v.to_str().unwrap().starts_with("\"samples\";r=1000;")));
    let myself = myself.json();
    assert_eq!((&myself["principal"], &myself["patterns"]), (&json!("ann"), &json!(["digits-*"])));
    assert_eq!((&myself["quotas"]["samples"], &myself["quotas"]["samples_left"]), (&json!(0), &json!(1000)));
    assert_eq!(myself["token"]["id"], token["id"]);
    get(&app, secret, &path).await.problem(403, "scope_missing");

    let listed = get(&app, &admin, "/v1/tokens?owner=ann&active=true").await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert!(!listed.to_string().contains(&secret[13..]));
    // Known here a moment ago, and refused from the moment it is revoked.
    let revoked = ask(&app, &admin, Method::DELETE, &path, &Value::Null).await;
    assert!(revoked.status == 200 && revoked.json()["revoked_at"].is_string(), "{}", revoked.json());
    get(&app, secret, "/v1/tokens/self").await.problem(401, "token_revoked");
    let again = ask(&app, &admin, Method::DELETE, &path, &Value::Null).await.json();
    // Not the whole: the use before the revocation is noted off the request's path, and may be noted in between.
    assert_eq!((&again["id"], &again["revoked_at"]), (&token["id"], &revoked.json()["revoked_at"]));
    let listed = get(&app, &admin, "/v1/tokens?owner=ann&active=false").await.json();
    assert_eq!(listed["items"][0]["id"], token["id"]);

    let trail = get(&app, &admin, "/v1/audit?actor=root&resource=token").await.json();
    let actions: Vec<&Value> = trail["items"].as_array().unwrap().iter().map(|entry| &entry["action"]).collect();
    assert_eq!(actions, [&json!("token.revoke"), &json!("token.create")]);
    let entry = &trail["items"][1];
    assert_eq!((&entry["resource_id"], &entry["request_id"]), (&token["id"], &json!(made.header("x-request-id"))));
    assert!(entry["token_id"].is_string() && entry["before"].is_null() && entry["after"]["name"] == "ci", "{entry}");
    assert!(!trail.to_string().contains(&secret[13..]));
    let later = get(&app, &admin, "/v1/audit?since=2999-01-01T00:00:00Z").await.json();
    assert_eq!(later["items"], json!([]));

    for (field, bad) in [
        ("owner", json!({"name": "x", "owner": "a b", "scopes": ["read"]})),
        ("scopes", json!({"name": "x", "scopes": []})),
        ("patterns", json!({"name": "x", "scopes": ["administer"], "patterns": ["a*"]})),
        ("expires_in", json!({"name": "x", "scopes": ["read"], "expires_in": 0})),
    ] {
        let problem = post(&app, &admin, "/v1/tokens", &bad).await.problem(422, "invalid_value");
        assert_eq!(problem["field"], field, "{problem}");
    }
    post(&app, &admin, "/v1/tokens", &json!({"name": "x", "scopes": ["write"]})).await.problem(422, "json_invalid");
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_not_for_others_is_not_there_for_them(pool: PgPool) {
    let app = closed(pool);
    let scopes = [Scope::Read, Scope::Generate, Scope::Train];
    let (ann, bob) = (app.token("ann", &scopes).await.1, app.token("bob", &scopes).await.1);
    let narrow = NewToken { patterns: vec!["other-*".into()], ..App::new_token("ann", &scopes) };
    let narrow = app.make_token(&narrow).await.1;
    let root = app.token("root", &[Scope::Administer]).await.1;
    app.publish("digits").await;
    let body = json!({"name": "mine", "npz": npz(digits()), "about": {"visibility": "private"}});
    let dataset = post(&app, &ann, "/v1/datasets", &body).await;
    assert_eq!(dataset.status, 201, "{}", dataset.json());
    let dataset = dataset.json()["id"].clone();
    let body = json!({"generator": "digits", "dataset": {"id": dataset, "classes": ["3", "1", "4"]}, "steps": 2});
    let made = post(&app, &ann, "/v1/generations", &body).await;
    assert_eq!(made.status, 201, "{}", made.json());
    let made = made.json();
    let generation = format!("/v1/generations/{}", made["id"].as_str().unwrap());
    let file = made["samples"][0]["url"].as_str().unwrap().to_owned();
    let dataset = format!("/v1/datasets/{}", dataset.as_str().unwrap());
    for path in [&dataset, &generation, &file] {
        for secret in [&ann, &root] {
            assert_eq!(get(&app, secret, path).await.status, 200, "{path}");
        }
        get(&app, &bob, path).await.problem(404, "not_found");
    }
    for list in ["/v1/datasets", "/v1/generations"] {
        assert_eq!(get(&app, &bob, list).await.json()["items"], json!([]), "{list}");
        assert_eq!(get(&app, &ann, list).await.json()["items"].as_array().unwrap().len(), 1, "{list}");
    }
    post(&app, &bob, "/v1/generations", &body).await.problem(404, "not_found");
    // A name outside the token's patterns, although the resource is public or one's own.
    let paths = ["/v1/generators/digits", "/v1/generators/digits/versions/1/bundle", &dataset];
    for path in paths {
        get(&app, &narrow, path).await.problem(404, "not_found");
        assert_eq!(get(&app, &ann, path).await.status, 200, "{path}");
    }
    assert_eq!(get(&app, &narrow, "/v1/generators").await.json()["items"], json!([]));
    let named = json!({"name": "mine-2", "npz": npz(&digits().select_classes(&[1, 2]).unwrap())});
    post(&app, &narrow, "/v1/datasets", &named).await.problem(403, "name_not_allowed");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_use_is_noted_off_the_path(pool: PgPool) {
    let app = closed(pool);
    let (token, secret) = app.token("ann", &[Scope::Read]).await;
    assert_eq!(get(&app, &secret, "/v1/datasets").await.status, 200);
    let deadline = Instant::now() + Duration::from_secs(10);
    while tokens::get(&app.registry, token.id).await.unwrap().last_used_at.is_none() {
        assert!(Instant::now() < deadline, "the use is not noted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_another_server_revokes_is_noticed_in_seconds(pool: PgPool) {
    let app = closed(pool.clone());
    let secret = app.token("ann", &[Scope::Read]).await.1;
    assert_eq!(get(&app, &secret, "/v1/tokens/self").await.status, 200);
    sqlx::query("UPDATE tokens SET revoked_at = now()").execute(&pool).await.unwrap();
    // Believed for a while, so that a request costs no question.
    assert_eq!(get(&app, &secret, "/v1/datasets").await.status, 200);
    let begun = Instant::now();
    while get(&app, &secret, "/v1/datasets").await.status == 200 {
        assert!(begun.elapsed() < Duration::from_secs(8), "still believed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    get(&app, &secret, "/v1/datasets").await.problem(401, "token_revoked");
}

#[sqlx::test(migrations = "../migrations")]
async fn an_expiry_is_not_outlived_by_what_is_remembered(pool: PgPool) {
    let app = closed(pool);
    let new = NewToken { expires_in: Some(Duration::from_secs(2)), ..App::new_token("ann", &[Scope::Read]) };
    let (_, secret) = app.make_token(&new).await;
    let begun = Instant::now();
    assert_eq!(get(&app, &secret, "/v1/datasets").await.status, 200);
    tokio::time::sleep(Duration::from_millis(2_050).saturating_sub(begun.elapsed())).await;
    get(&app, &secret, "/v1/datasets").await.problem(401, "token_expired");
}

#[sqlx::test(migrations = "../migrations")]
async fn twenty_requests_at_once_stay_within_the_quota(pool: PgPool) {
    let settings = Settings { queue: 64, ..Settings::default() };
    let app = Arc::new(App::closed(pool.clone(), settings));
    app.publish("digits").await;
    let root = app.token("root", &[Scope::Administer]).await.1;
    let reply = post(&app, &root, "/v1/datasets", &json!({"name": "digits", "npz": npz(digits())})).await.json();
    let new = NewToken { samples_per_day: Some(7), ..App::new_token("ann", &[Scope::Generate, Scope::Read]) };
    let (token, secret) = app.make_token(&new).await;
    let dataset = json!({"id": reply["id"], "classes": ["3", "1", "4"]});
    let body = json!({"generator": "digits", "dataset": dataset, "count": 2, "steps": 2});
    let tries = (0..20).map(|_| {
        let (app, secret, body) = (app.clone(), secret.clone(), body.clone());
        tokio::spawn(async move { post(&app, &secret, "/v1/generations", &body).await })
    });
    let replies: Vec<Reply> = futures::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
    let made = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(made, 3);
    for refused in replies.iter().filter(|reply| reply.status != 201) {
        refused.problem(429, "quota_exceeded");
        let wait: u64 = refused.header("retry-after").parse().unwrap();
        assert!((1..=86_400).contains(&wait), "{wait}");
        assert!(refused.headers.get_all("ratelimit").iter().any(|v| v.to_str().unwrap().starts_with("\"samples\";r=")));
        assert!(refused.headers["ratelimit-policy"].to_str().unwrap().contains("w="));
    }
    let samples: i64 = sqlx::query_scalar("SELECT count(*) FROM samples").fetch_one(&pool).await.unwrap();
    assert_eq!(samples, 6);
    let usage = registry::quotas::usage(&app.registry, token.id).await.unwrap();
    assert!(usage.samples == 6 && usage.compute_seconds > 0.0, "{usage:?}");
    // What fails is given back: classes of one image each have nothing left to be evaluated on.
    let one = digits().select_classes(&[3, 1, 4]).unwrap().take(&[0, 1, 2]);
    let bad = json!({"generator": "digits", "dataset": {"npz": npz(&one)}, "evaluate": true, "count": 1});
    let failed = post(&app, &secret, "/v1/generations", &bad).await;
    assert_eq!(failed.status, 422, "{}", failed.json());
    let deadline = Instant::now() + Duration::from_secs(10);
    while registry::quotas::usage(&app.registry, token.id).await.unwrap().samples != 6 {
        assert!(Instant::now() < deadline, "not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last =
        post(&app, &secret, "/v1/generations", &json!({"generator": "digits", "dataset": dataset, "count": 1})).await;
    assert_eq!(last.status, 201, "{}", last.json());
    let told: Vec<&str> = last.headers.get_all("ratelimit").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(told.iter().any(|value| value.starts_with("\"samples\";r=0;t=")), "{told:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn clients_that_ask_too_often_wait(pool: PgPool) {
    let auth = AuthSettings { rate: Some(RateLimit { per_second: 1, burst: 5 }), ..AuthSettings::default() };
    let app = App::closed(pool, Settings { auth, ..Settings::default() });
    let (ann, bob) = (app.token("ann", &[Scope::Read]).await.1, app.token("bob", &[Scope::Read]).await.1);
    let first = get(&app, &ann, "/v1/datasets").await;
    assert_eq!(
        (first.header("ratelimit-policy"), first.header("ratelimit")),
        (r#""requests";q=5;w=5"#, r#""requests";r=4;t=1"#)
    );
    let mut limited = None;
    for _ in 0..20 {
        let reply = get(&app, &ann, "/v1/datasets").await;
        if reply.status != 200 {
            limited = Some(reply);
            break;
        }
    }
    let limited = limited.expect("twenty at once are too many");
    limited.problem(429, "rate_limited");
    assert_eq!((limited.header("retry-after"), limited.header("ratelimit")), ("1", r#""requests";r=0;t=5"#));
    // Others are not held up, and health is not counted.
    assert_eq!(get(&app, &bob, "/v1/datasets").await.status, 200);
    for _ in 0..20 {
        assert_eq!(app.get("/health/live").await.status, 200);
    }
    // Whoever tries tokens is held up by address.
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(get(&app, "wsm_guess", "/v1/datasets").await.json()["code"].as_str().unwrap().to_owned());
    }
    assert!(codes[0] == "token_invalid" && codes.contains(&"rate_limited".to_owned()), "{codes:?}");
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(get(&app, &ann, "/v1/datasets").await.status, 200);
}

#[sqlx::test(migrations = "../migrations")]
async fn open_mode_is_for_this_machine(pool: PgPool) {
    let app = App::new(pool);
    let myself = app.json("/v1/tokens/self").await;
    assert_eq!(
        (&myself["principal"], &myself["token"], &myself["quotas"]),
        (&json!("local"), &Value::Null, &Value::Null)
    );
    assert_eq!(myself["scopes"], json!(["read", "generate", "train", "administer"]));
    let host = async |host: &str| app.ask(Method::GET, "/v1/datasets", &[("host", host)]).await;
    for local in ["localhost:8080", "127.0.0.1", "[::1]:1"] {
        assert_eq!(host(local).await.status, 200, "{local}");
    }
    host("rebound.example:8080").await.problem(403, "host_not_allowed");
}

#[sqlx::test(migrations = "../migrations")]
async fn whoever_trains_cancels_their_own(pool: PgPool) {
    // Jobs need the dispatcher's tables too.
    registry::migrate(&pool).await.unwrap();
    let app = closed(pool);
    let (ann, bob) = (app.token("ann", &[Scope::Train]).await.1, app.token("bob", &[Scope::Train]).await.1);
    let reader = app.token("ann", &[Scope::Read]).await.1;
    let config = serde_json::to_value(training::Config::parse(crate::support::CONFIG).unwrap()).unwrap();
    let job = post(&app, &ann, "/v1/zoos", &json!({ "build": config })).await;
    assert_eq!(job.status, 202, "{}", job.json());
    let cancel = format!("{}/cancel", job.header("location"));
    let refused = post(&app, &reader, &cancel, &Value::Null).await.problem(403, "scope_missing");
    assert!(refused["detail"].as_str().unwrap().contains("`generate` or `train`"), "{refused}");
    post(&app, &bob, &cancel, &Value::Null).await.problem(404, "not_found");
    let cancelled = post(&app, &ann, &cancel, &Value::Null).await;
    assert_eq!((cancelled.status.as_u16(), &cancelled.json()["state"]), (202, &json!("cancelled")));
}
