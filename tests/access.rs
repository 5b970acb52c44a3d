//! Tokens of the real server: the first one, those of the command line, and a server without any.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use serde_json::json;
use support::http::{Api, Server};
use support::{PATIENCE, Running, files_in, folder, refused, succeed, text, wait_until, weightsmith};

/// What a server says until it serves, and a client of it.
fn serve(data: &std::path::Path) -> (Running, Vec<String>, Api) {
    let mut running = Running::start(weightsmith(["serve", "--bind", "127.0.0.1:0", "--data-dir", text(data)]));
    let said = running.lines_until("weightsmith serves http://", PATIENCE);
    let address = said.last().unwrap().split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
    (running, said, Api::new(address))
}

fn secrets(said: &[String]) -> Vec<&str> {
    said.iter().flat_map(|line| line.split_whitespace()).filter(|word| word.starts_with("wsm_")).collect()
}

#[test]
fn the_first_start_shows_a_token_once() {
    let data = folder();
    let (mut running, said, mut api) = serve(data.path());
    let [secret] = secrets(&said)[..] else { panic!("{said:?}") };
    api.get("/v1/datasets").problem(401, "token_missing");
    api.token = Some(secret.to_owned());
    let myself = api.json("/v1/tokens/self");
    assert_eq!((&myself["scopes"], &myself["principal"]), (&json!(["administer"]), &json!("administrator")));
    let reply = api.get("/v1/datasets");
    assert!(reply.header("ratelimit-policy").starts_with("\"requests\";q=1000;"), "{:?}", reply.headers);
    running.signal("TERM");
    assert!(running.end().success(), "{}", running.errors());
    assert!(!running.errors().contains(&secret[13..]), "the log does not have it");

    let (mut running, said, mut api) = serve(data.path());
    assert_eq!(secrets(&said), Vec::<&str>::new(), "{said:?}");
    api.token = Some(secret.to_owned());
    assert_eq!(api.get("/v1/tokens").status, 200);
    let entry = api.json("/v1/audit?action=token.create")["items"][0].clone();
    assert_eq!((&entry["actor"], &entry["address"]), (&json!("serve"), &json!(null)));
    let made = api.post("/v1/tokens", &json!({"name": "by hand", "scopes": ["read"]}));
    assert_eq!(made.status, 201, "{}", made.text());
    let entry = api.json("/v1/audit?action=token.create")["items"][0].clone();
    assert_eq!((&entry["actor"], &entry["address"]), (&json!("administrator"), &json!("127.0.0.1")));
    running.signal("TERM");
    assert!(running.end().success(), "{}", running.errors());
}

#[test]
fn tokens_on_the_command_line() {
    let data = folder();
    let token = |args: &[&str]| succeed(&[&["token"], args, &["--data-dir", text(data.path())]].concat());
    let made = token(&[
        "create",
        "--name",
        "ci",
        "--owner",
        "ann",
        "--scope",
        "read,generate",
        "--pattern",
        "digits-*",
        "--expires",
        "30d",
        "--samples-per-day",
        "10",
    ]);
    let secret = made.trim();
    assert!(secret.starts_with("wsm_") && secret.len() == 56, "{made}");
    let listed = token(&["list"]);
    let line = listed.lines().find(|line| line.starts_with(&secret[..12])).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("ann") && line.contains("read,generate") && !listed.contains(&secret[13..]), "{listed}");

    // Beside a running server, which still makes its administrator: nobody administers yet.
    let mut server = Server::closed(data.path(), &[]);
    server.api.token = Some(secret.to_owned());
    let myself = server.api.json("/v1/tokens/self");
    assert_eq!((&myself["patterns"], &myself["quotas"]["samples_left"]), (&json!(["digits-*"]), &json!(10)));
    server.api.get("/v1/tokens").problem(403, "scope_missing");
    assert!(token(&["revoke", &secret[..12]]).contains("revoked"));
    wait_until("the server notices", Duration::from_secs(8), || server.api.get("/v1/datasets").status == 401);
    server.api.get("/v1/datasets").problem(401, "token_revoked");
    assert!(!token(&["list"]).contains(&secret[..12]));
    assert!(token(&["list", "--all"]).contains("revoked"));

    let refuse = |args: &[&str], code: &str| {
        let line = refused(&mut weightsmith([&["token"], args, &["--data-dir", text(data.path())]].concat()));
        assert!(line.ends_with(&format!("[{code}]")) && !line.contains(&secret[13..]), "{line}");
    };
    refuse(&["create", "--name", "x", "--owner", "a b", "--scope", "read"], "invalid_value");
    refuse(&["create", "--name", "x", "--owner", "ann", "--scope", "write"], "usage");
    refuse(&["create", "--name", "x", "--owner", "ann", "--scope", "read", "--expires", "soon"], "usage");
    refuse(&["revoke", "wsm_00000000"], "not_found");
    refuse(&["revoke", &format!("wsm_00000000_{}", &secret[13..])], "not_found");
}

#[test]
fn open_mode_is_refused_where_others_reach_it() {
    let data = folder();
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let line = refused(&mut weightsmith(["serve", "--open", "--bind", bind, "--data-dir", text(data.path())]));
        assert!(line.ends_with("[open_needs_loopback]") && line.contains("127.0.0.1"), "{line}");
    }
    assert_eq!(files_in(data.path()), [], "nothing was begun");
    let mut server = Server::start(data.path(), &[]);
    assert_eq!(server.api.json("/v1/tokens/self")["principal"], "local");
    // Nobody's secret is made where none is needed.
    server.api.token = Some("wsm_nonsense".into());
    assert_eq!(server.api.json("/v1/tokens")["items"], json!([]));
}
