use std::time::Duration;

use registry::audit::{self, AuditFilter};
use registry::tokens::{self, NewToken, Scope, Secret, Token, TokenFilter};
use registry::{Caller, ListRequest, Registry};
use sqlx::PgPool;

use crate::fixtures::registry;

fn new(name: &str) -> NewToken {
    NewToken {
        name: name.into(),
        owner: "ann".into(),
        scopes: vec![Scope::Generate, Scope::Read],
        ..NewToken::default()
    }
}

async fn make(registry: &Registry, new: &NewToken) -> (Token, Secret) {
    let mut write = registry.write(&Caller::system("test")).await.unwrap();
    let made = tokens::create(&mut write, new).await.unwrap();
    write.commit().await.unwrap();
    made
}

async fn code(registry: &Registry, secret: &str) -> &'static str {
    tokens::authenticate(registry, secret).await.unwrap_err().code()
}

#[sqlx::test(migrations = "../migrations")]
async fn only_the_very_secret_is_recognised(pool: PgPool) {
    let (registry, _folder) = registry(pool.clone());
    let (token, secret) = make(&registry, &NewToken { patterns: vec!["digits-*".into()], ..new("ci") }).await;
    assert!(secret.reveal().starts_with(&token.prefix), "{secret:?} {}", token.prefix);
    let found = tokens::authenticate(&registry, secret.reveal()).await.unwrap();
    assert_eq!((found.token.id, found.expires_in, found.stale), (token.id, None, true));
    let caller = found.token.caller();
    assert_eq!((caller.name.as_str(), caller.token, caller.administrator), ("ann", Some(token.id), false));
    assert_eq!(caller.patterns, ["digits-*"]);
    // The right prefix with another proof, and a prefix that nobody has.
    let flipped = if secret.reveal().ends_with('a') { 'b' } else { 'a' };
    assert_eq!(code(&registry, &format!("{}{flipped}", &secret.reveal()[..55])).await, "token_invalid");
    assert_eq!(code(&registry, &format!("wsm_00000000{}", &secret.reveal()[12..])).await, "token_invalid");
    for garbage in ["", "x", "wsm_", "wsm_00000000_"] {
        assert_eq!(code(&registry, garbage).await, "token_invalid", "{garbage:?}");
    }
    // What is stored does not contain it.
    let row: String = sqlx::query_scalar("SELECT t::text FROM tokens t").fetch_one(&pool).await.unwrap();
    assert!(!row.contains(&secret.reveal()[13..]), "{row}");
    let trail: String = sqlx::query_scalar("SELECT a::text FROM audit a").fetch_one(&pool).await.unwrap();
    assert!(trail.contains("token.create") && !trail.contains(&secret.reveal()[13..]), "{trail}");
}

#[sqlx::test(migrations = "../migrations")]
async fn tokens_end(pool: PgPool) {
    let (registry, _folder) = registry(pool.clone());
    let hour = NewToken { expires_in: Some(Duration::from_secs(3600)), ..new("hour") };
    let (token, secret) = make(&registry, &hour).await;
    let left = tokens::authenticate(&registry, secret.reveal()).await.unwrap().expires_in.unwrap();
    assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
    // It is the database's clock that counts.
    let expire = sqlx::query("UPDATE tokens SET expires_at = now() - interval '1 microsecond' WHERE id = $1");
    expire.bind(token.id.as_uuid()).execute(&pool).await.unwrap();
    assert_eq!(code(&registry, secret.reveal()).await, "token_expired");

    let (token, secret) = make(&registry, &new("revoked")).await;
    let revoke = async |name: &str| {
        let mut write = registry.write(&Caller::system(name)).await.unwrap();
        let revoked = tokens::revoke(&mut write, token.id).await.unwrap();
        write.commit().await.unwrap();
        revoked.revoked_at.unwrap()
    };
    let at = revoke("bob").await;
    assert_eq!(code(&registry, secret.reveal()).await, "token_revoked");
    assert_eq!(revoke("eve").await, at, "the second time changes nothing");
    let filter = AuditFilter { action: Some("token.revoke".into()), ..AuditFilter::default() };
    let entries = audit::list(&registry, &Caller::system("t"), &filter, &ListRequest::default()).await.unwrap().items;
    assert_eq!(entries.iter().map(|entry| entry.actor.as_str()).collect::<Vec<_>>(), ["bob"]);
    let (before, after) = (entries[0].before.as_ref().unwrap(), entries[0].after.as_ref().unwrap());
    assert!(before["revoked_at"].is_null() && after["revoked_at"].is_string());
}

#[sqlx::test(migrations = "../migrations")]
async fn the_last_use_is_noted_to_the_minute(pool: PgPool) {
    let (registry, _folder) = registry(pool.clone());
    let (token, secret) = make(&registry, &new("used")).await;
    assert_eq!(tokens::get(&registry, token.id).await.unwrap().last_used_at, None);
    tokens::touch(&registry, token.id).await.unwrap();
    let first = tokens::get(&registry, token.id).await.unwrap().last_used_at.unwrap();
    assert!(!tokens::authenticate(&registry, secret.reveal()).await.unwrap().stale);
    tokens::touch(&registry, token.id).await.unwrap();
    assert_eq!(tokens::get(&registry, token.id).await.unwrap().last_used_at, Some(first));
    sqlx::query("UPDATE tokens SET last_used_at = now() - interval '61 s'").execute(&pool).await.unwrap();
    assert!(tokens::authenticate(&registry, secret.reveal()).await.unwrap().stale);
    tokens::touch(&registry, token.id).await.unwrap();
    assert!(tokens::get(&registry, token.id).await.unwrap().last_used_at.unwrap() >= first);
}

#[sqlx::test(migrations = "../migrations")]
async fn impossible_tokens_are_refused(pool: PgPool) {
    let (registry, _folder) = registry(pool);
    let administer = vec![Scope::Administer];
    let globs = |pattern: &str| vec![pattern.to_owned()];
    let cases = [
        ("name", NewToken { name: String::new(), ..new("x") }),
        ("name", new("a\nb")),
        ("name", new("a\0b")),
        ("owner", NewToken { owner: "a b".into(), ..new("x") }),
        ("scopes", NewToken { scopes: vec![], ..new("x") }),
        ("patterns", NewToken { patterns: globs("A*"), ..new("x") }),
        ("patterns", NewToken { patterns: vec!["a".into(); 51], ..new("x") }),
        ("patterns", NewToken { patterns: globs("a*"), scopes: administer, ..new("x") }),
        ("samples_per_day", NewToken { samples_per_day: Some(-1), ..new("x") }),
        ("compute_seconds_per_day", NewToken { compute_seconds_per_day: Some(f64::NAN), ..new("x") }),
        ("compute_seconds_per_day", NewToken { compute_seconds_per_day: Some(-0.5), ..new("x") }),
        ("expires_in", NewToken { expires_in: Some(Duration::ZERO), ..new("x") }),
        ("expires_in", NewToken { expires_in: Some(Duration::MAX), ..new("x") }),
    ];
    for (field, bad) in cases {
        let mut write = registry.write(&Caller::system("test")).await.unwrap();
        match tokens::create(&mut write, &bad).await.unwrap_err() {
            registry::Error::InvalidValue { field: found, .. } => assert_eq!(found, field),
            other => panic!("{field}: {other}"),
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_first_token_is_made_once(pool: PgPool) {
    let (registry, _folder) = registry(pool);
    let tries = futures::future::join_all((0..8).map(|_| tokens::create_first(&registry))).await;
    let made: Vec<_> = tries.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(made.len(), 1);
    assert!(tokens::authenticate(&registry, made[0].1.reveal()).await.unwrap().token.caller().administrator);
    assert!(tokens::create_first(&registry).await.unwrap().is_none());
}

#[sqlx::test(migrations = "../migrations")]
async fn tokens_are_listed(pool: PgPool) {
    let (registry, _folder) = registry(pool);
    let system = Caller::system("test");
    let mut made = Vec::new();
    for name in ["one", "two", "three"] {
        made.push(make(&registry, &NewToken { owner: name.into(), ..new(name) }).await.0);
    }
    let mut write = registry.write(&system).await.unwrap();
    tokens::revoke(&mut write, made[1].id).await.unwrap();
    write.commit().await.unwrap();
    let names = async |active, owner: Option<&str>, request: ListRequest| {
        let filter = TokenFilter { active, owner: owner.map(str::to_owned) };
        let page = tokens::list(&registry, &system, &filter, &request).await.unwrap();
        (page.items.into_iter().map(|token| token.name).collect::<Vec<_>>(), page.next_cursor)
    };
    assert_eq!(names(Some(true), None, ListRequest::default()).await.0, ["three", "one"]);
    assert_eq!(names(Some(false), None, ListRequest::default()).await.0, ["two"]);
    assert_eq!(names(None, Some("one"), ListRequest::default()).await.0, ["one"]);
    let (first, cursor) = names(None, None, ListRequest { limit: 2, ..ListRequest::default() }).await;
    let (rest, end) = names(None, None, ListRequest { cursor, ..ListRequest::default() }).await;
    assert_eq!((first, rest, end), (vec!["three".into(), "two".into()], vec!["one".into()], None));
    let found = tokens::by_prefix(&registry, &made[0].prefix).await.unwrap();
    assert_eq!(found.id, made[0].id);
    assert_eq!(tokens::by_prefix(&registry, "none").await.unwrap_err().code(), "not_found");
}
