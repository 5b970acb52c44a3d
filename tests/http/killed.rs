//! A server that is killed, and one that is told to stop.

use std::time::Duration;

use serde_json::{Value, json};

use super::{GENERATOR, register, registry, samples};
use crate::support::http::Server;
use crate::support::{postgres, wait_until};

fn downloads_work(server: &Server, generation: &Value) {
    for sample in samples(generation) {
        let file = server.api.get(sample["url"].as_str().unwrap());
        assert_eq!((file.status, file.bytes.len() as u64), (200, sample["size"].as_u64().unwrap()));
        assert_eq!(weights::digest::sha256(&file.bytes), sample["digest"].as_str().unwrap());
    }
}

#[test]
fn a_killed_server_leaves_no_postgres_and_loses_nothing() {
    let data = registry();
    let mut server = Server::start(data.path(), &[]);
    assert!(!postgres(data.path()).is_empty(), "a private PostgreSQL runs in the data folder");
    let id = register(&server, "digits", 0, 20);
    let body =
        json!({"generator": GENERATOR, "dataset": {"id": id, "classes": ["5", "0", "9"]}, "count": 3, "seed": 2});
    let made = server.api.generate(&body);
    let alias = format!("/v1/generators/{GENERATOR}/versions");
    let (stored, versions) = (server.stored(), server.api.all(&alias));
    assert_eq!(stored.counts()[..3], [1, 1, 1]);

    server.running.signal("KILL");
    assert_eq!(server.running.end().code(), None, "killed");
    wait_until("PostgreSQL ends with the server", Duration::from_secs(5), || postgres(data.path()).is_empty());
    drop(server);

    let mut server = Server::start(data.path(), &[]);
    assert_eq!((server.stored(), server.api.all(&alias)), (stored, versions));
    let path = format!("/v1/generations/{}", made["id"].as_str().unwrap());
    assert_eq!(server.api.json(&path), made, "what was answered is what is there");
    downloads_work(&server, &made);
    // And it goes on: the same request gives the same weights.
    let again = server.api.generate(&body);
    let digests = |made: &Value| samples(made).iter().map(|s| s["digest"].clone()).collect::<Vec<_>>();
    assert_eq!(digests(&again), digests(&made));

    server.running.signal("TERM");
    let status = server.running.end();
    assert_eq!(status.code(), Some(0), "{}", server.running.errors());
    assert_eq!(postgres(data.path()), Vec::<u32>::new(), "stopped: PostgreSQL too, when the server has ended");
}

#[test]
fn a_server_killed_at_work_stores_all_or_nothing() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let id = register(&server, "digits", 0, 150);
    let dataset = json!({"id": id, "classes": ["5", "0", "9"]});
    let body = json!({"generator": GENERATOR, "dataset": dataset, "count": 64, "sampler": "ddpm", "evaluate": true});
    let committed = server.api.generate(&body);
    // Killed while requests are under way, at another moment of their work each time.
    let mut server = server;
    for wait in [20, 60, 140, 300] {
        let (url, text) = (format!("{}/v1/generations", server.api.base), body.to_string());
        let client = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = reqwest::Client::builder().no_proxy().build().unwrap();
                while client
                    .post(&url)
                    .header("content-type", "application/json")
                    .body(text.clone())
                    .send()
                    .await
                    .is_ok()
                {}
            });
        });
        std::thread::sleep(Duration::from_millis(wait));
        server.running.signal("KILL");
        client.join().unwrap();
        wait_until("PostgreSQL ends with the server", Duration::from_secs(5), || postgres(data.path()).is_empty());
        server = Server::start(data.path(), &[]);
    }
    let all = server.api.all("/v1/generations");
    assert!(!all.is_empty() && all.iter().any(|made| made["id"] == committed["id"]), "{all:?}");
    for generation in all {
        let made = server.api.json(&format!("/v1/generations/{}", generation["id"].as_str().unwrap()));
        assert_eq!(samples(&made).len(), 64, "all samples or none");
        downloads_work(&server, &made);
    }
}
