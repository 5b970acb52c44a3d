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

/// Asks for a generation under a key; the status, the body, and whether it was answered before. `None` when the
/// connection broke off.
fn ask_with_key(url: &str, key: &str, body: &Value) -> Option<(u16, Value, bool)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(url).header("idempotency-key", key).json(body);
        let response = request.send().await.ok()?;
        let (status, replayed) = (response.status().as_u16(), response.headers().contains_key("idempotency-replayed"));
        Some((status, response.json().await.ok()?, replayed))
    })
}

#[test]
fn a_key_outlives_the_server_that_was_killed_at_its_request() {
    let data = registry();
    let mut server = Server::start(data.path(), &[]);
    let id = register(&server, "digits", 0, 20);
    let dataset = json!({"id": id, "classes": ["5", "0", "9"]});
    let body = |seed: usize| json!({"generator": GENERATOR, "dataset": dataset, "count": 32, "seed": seed});
    // Before the work, in the middle of it, about its end, and after the answer.
    let waits = [5, 60, 150, 300, 3000];
    let (mut known, mut broken) = (Vec::new(), 0);
    for (seed, wait) in waits.into_iter().enumerate() {
        let (url, key, body_) = (format!("{}/v1/generations", server.api.base), format!("key-{seed}"), body(seed));
        let client = std::thread::spawn(move || ask_with_key(&url, &key, &body_));
        std::thread::sleep(Duration::from_millis(wait));
        server.running.signal("KILL");
        let first = client.join().unwrap();
        broken += usize::from(first.is_none());
        wait_until("PostgreSQL ends with the server", Duration::from_secs(5), || postgres(data.path()).is_empty());
        drop(server);
        server = Server::start(data.path(), &[]);
        known.push(first);
    }
    assert!(broken > 0, "no request was under way at a kill");
    // The claim of a dead server frees itself when its lease of a minute ends; until then it is told to come again.
    let url = format!("{}/v1/generations", server.api.base);
    let deadline = std::time::Instant::now() + Duration::from_secs(90);
    for (seed, first) in known.iter().enumerate() {
        let (status, made, replayed) = loop {
            let answer = ask_with_key(&url, &format!("key-{seed}"), &body(seed)).unwrap();
            match answer.0 {
                409 => assert_eq!(answer.1["code"], "idempotency_in_flight"),
                _ => break answer,
            }
            assert!(std::time::Instant::now() < deadline, "{}", answer.1);
            std::thread::sleep(Duration::from_millis(500));
        };
        assert_eq!(status, 201, "{made}");
        if let Some((status, first, _)) = first {
            assert_eq!((*status, first, replayed), (201, &made, true), "what was answered is answered again");
        }
    }
    let all = server.api.all("/v1/generations");
    let mut seeds: Vec<u64> = all.iter().map(|made| made["seed"].as_u64().unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [0, 1, 2, 3, 4], "one generation for each key");
}
