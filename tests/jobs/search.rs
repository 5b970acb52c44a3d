//! Algorithm 1 as a job: a language model of the server's folder, and a better one beside it.

use std::path::Path;

use serde_json::{Value, json};

use crate::site::Site;
use crate::support::{corpus, folder, succeed, text};

/// A small Llama in `models/base`.
fn trained(models: &Path) {
    let lines = models.join("lines.txt");
    std::fs::write(&lines, corpus()).unwrap();
    let base = models.join("base");
    let sizes = ["--width", "32", "--layers", "2", "--heads", "2", "--vocabulary", "280", "--length", "24"];
    let steps = ["--steps", "60", "--batch", "8", "--lr", "0.01"];
    let train = ["language", "train", "--text", text(&lines), "--out", text(&base)];
    succeed(&[&train[..], &sizes, &steps].concat());
}

fn search(out: &str, candidates: usize) -> Value {
    let layers = json!({"chunk": 512, "latent": 24, "hidden": 0, "vae_steps": 100, "diffusion_steps": 100, "width": 32, "blocks": 1});
    let lines: Vec<String> = corpus().lines().take(12).map(str::to_owned).collect();
    json!({"out": out, "text": lines.join("\n"), "length": 24, "top": 0.5, "layers": layers, "candidates": candidates, "seed": 3})
}

#[test]
fn a_killed_search_goes_on_and_ends_as_an_undisturbed_one() {
    let models = folder();
    trained(models.path());
    let given = ["--models", text(models.path())];
    let site = Site::with(&given);
    let listed = site.server.api.json("/v1/models");
    assert_eq!(
        (listed["items"].as_array().unwrap().len(), &listed["items"][0]["family"]),
        (1, &json!("llama")),
        "{listed}"
    );
    let before = std::fs::read(models.path().join("base/model.safetensors")).unwrap();

    let calm = site.ask("/v1/models/base/searches", &search("calm", 300));
    let worker = site.worker(&given);
    let calm = site.result(&calm);
    drop(worker);
    let detail = &calm["detail"];
    let (from, to) = (detail["before"].as_f64().unwrap(), detail["after"].as_f64().unwrap());
    let steps = detail["steps"].as_array().unwrap();
    assert!(to >= from && steps.len() == 7, "{detail}");
    assert!(steps.iter().all(|step| step["tried"].as_array().unwrap().len() == 300), "{detail}");

    let rough = site.ask("/v1/models/base/searches", &search("rough", 300));
    let mut worker = site.worker(&given);
    site.until(&rough, "searching", |job| {
        assert_ne!(job["state"], "succeeded", "too fast to be killed: {job}");
        models.path().join(".searches").join(job["id"].as_str().unwrap()).join("course.json").exists()
    });
    assert!(worker.kill(), "it was at work");
    let job = rough;
    let reply = site.server.api.post("/v1/models/base/searches", &search("rough", 1));
    assert_eq!(reply.status, 422, "another one is to write it: {}", reply.text());
    let _worker = site.worker(&given);
    let rough = site.result(&job);
    assert_eq!(site.job(&job)["attempts"], 2);
    assert_eq!(rough["detail"]["steps"], detail["steps"], "as if nothing had happened");
    let file = |name: &str| std::fs::read(models.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(file("rough"), file("calm"));
    assert_eq!(file("base"), before, "the model itself is not changed");
    assert!(!models.path().join(".searches").read_dir().unwrap().any(|_| true), "nothing is left behind");
    let names: Vec<Value> =
        site.server.api.json("/v1/models")["items"].as_array().unwrap().iter().map(|m| m["name"].clone()).collect();
    assert_eq!(names, ["base", "calm", "rough"]);

    // What is wrong is said before anything waits.
    let refused = |path: &str, body: &Value, status: u16, code: &str, said: &str| {
        let reply = site.server.api.post(path, body);
        let problem = reply.json();
        assert_eq!((reply.status, &problem["code"]), (status, &json!(code)), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{problem}");
    };
    let path = "/v1/models/base/searches";
    refused("/v1/models/other/searches", &search("new", 1), 404, "not_found", "lists those there are");
    refused(path, &search("calm", 1), 422, "invalid_value", "already");
    refused(path, &search("../escaped", 1), 422, "invalid_name", "name");
    let mut short = search("new", 1);
    short["text"] = json!("the cat");
    refused(path, &short, 422, "invalid_value", "a smaller `length`");
    let with = |field: &str, value: Value| {
        let mut body = search("new", 1);
        body[field] = value;
        body
    };
    for (field, value, said) in [
        ("candidates", json!(0), "1 to 1000"),
        ("text", json!(" \n"), "empty"),
        ("top", json!(0.0), "share"),
        ("shares", json!([1.5]), "at most 1"),
        ("layers", json!({"chunk": 0}), "chunk"),
        ("layers", json!({"chunk": 1_u64 << 40}), "chunk"),
        ("layers", json!({"width": 1_u64 << 40}), "width"),
    ] {
        refused(path, &with(field, value), 422, "invalid_value", said);
    }
    refused(
        path,
        &with("questions", json!([{"context": "a", "choices": ["b", "c"], "answer": 0}])),
        422,
        "invalid_value",
        "not both",
    );
    let mut named = search("new", 1);
    named.as_object_mut().unwrap().remove("top");
    named["matrices"] = json!(["lm_head.weight"]);
    refused(path, &named, 422, "invalid_value", "no matrix of a block");
    assert_eq!(site.server.api.json("/v1/jobs?kind=search")["items"].as_array().unwrap().len(), 2);
}

#[test]
fn questions_decide_and_a_server_without_models_says_so() {
    let models = folder();
    trained(models.path());
    let given = ["--models", text(models.path())];
    let site = Site::with(&given);
    let question = |colour: &str| json!({"context": format!("the {colour} cat sees the sad"), "choices": [" dog", " cat"], "answer": 0});
    let mut body = search("asked", 2);
    body.as_object_mut().unwrap().remove("text");
    body["questions"] = json!([question("red"), question("old")]);
    body["proposal"] = json!("noise");
    let job = site.ask("/v1/models/base/searches", &body);
    let _worker = site.worker(&given);
    let result = site.result(&job);
    assert!(result["detail"]["evaluator"].as_str().unwrap().contains("questions"), "{result}");
    drop(site);

    let site = Site::open();
    assert_eq!(site.server.api.json("/v1/models"), json!({"items": []}));
    let reply = site.server.api.post("/v1/models/base/searches", &search("new", 1));
    assert_eq!((reply.status, &reply.json()["code"]), (404, &json!("models_unset")));
    assert!(reply.text().contains("--models"));
}
