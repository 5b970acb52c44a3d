//! A generator of several architectures: the request names one, and everything after it is of that one.

use std::sync::OnceLock;

use serde_json::{Value, json};
use sqlx::PgPool;
use training::Sources;
use weights::Bundle;

use crate::support::App;

const CONFIG: &str = r#"
    name = "mixed"
    architectures = [{ kind = "mlp", hidden = [6] }, { kind = "head" }]
    [data]
    sources = [{ name = "digits", from = "digits" }]
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 6
    orders = 2
    [zoo]
    epochs = 2
    [vae]
    hidden = [16]
    latent = [4]
    steps = 10
    batch = 8
    [encoder]
    images = 2
    width = 8
    heads = 2
    token_dim = 4
    embedding_dim = 6
    steps = 5
    batch = 8
    [denoiser]
    kind = "mlp"
    width = 16
    blocks = 1
    [diffusion]
    steps = 5
    batch = 8
    timesteps = 50
"#;

fn bundle() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let config = training::Config::parse(CONFIG).unwrap();
        let sources = Sources::load(&config).unwrap();
        let (folder, silent) = (tempfile::tempdir().unwrap(), training::progress::Progress::silent());
        let keep = training::Keep::nothing;
        let zoo = training::stages::zoo::build(&config, &sources, folder.path(), &silent, keep()).unwrap();
        let device = candle_core::Device::Cpu;
        training::stages::generator::train(&config, &zoo, &sources, &device, &silent, keep()).unwrap().bundle
    })
}

#[sqlx::test(migrations = "../migrations")]
async fn the_request_chooses_the_architecture(pool: PgPool) {
    let app = App::new(pool);
    app.publish_bundle("mixed", bundle()).await;
    let dataset = app.digits().await;
    let body = |architecture: Option<&str>| {
        let mut body = json!({"generator": "mixed", "seed": 3, "count": 2, "evaluate": true,
            "candidates": ["generated"], "dataset": {"id": dataset.id, "classes": ["4", "1", "7"]}});
        if let Some(name) = architecture {
            body["architecture"] = json!(name);
        }
        body
    };
    let make = async |architecture: Option<&str>| -> (Value, Vec<String>) {
        let reply = app.post("/v1/generations", &body(architecture)).await;
        let made = reply.json();
        assert_eq!(reply.status, 201, "{made}");
        assert_eq!(app.json(reply.header("location")).await, made);
        let id = made["id"].as_str().unwrap();
        let file = app.get(&format!("/v1/generations/{id}/samples/0/file")).await;
        let header = tensors(&file.bytes);
        (made, header)
    };
    let (first, names) = make(None).await;
    assert_eq!(first["architecture"], "mlp-64-6-3");
    assert_eq!(names, ["layers.0.bias", "layers.0.weight", "layers.1.bias", "layers.1.weight"]);
    let (named, _) = make(Some("mlp-64-6-3")).await;
    assert_eq!(named["samples"][0]["digest"], first["samples"][0]["digest"]);
    let (head, names) = make(Some("head-64-3")).await;
    assert_eq!((&head["architecture"], names), (&json!("head-64-3"), vec!["bias".to_owned(), "weight".to_owned()]));
    assert!(head["samples"][1]["accuracy"].as_f64().is_some(), "{head}");

    let problem = app.post("/v1/generations", &body(Some("head-9-9"))).await.problem(422, "unknown_architecture");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("mlp-64-6-3, head-64-3"), "{detail}");
    // Closed forms are for the architecture that is asked for, not for the generator's first.
    let mut closed = body(None);
    closed["candidates"] = json!(["generated", "closed_form"]);
    app.post("/v1/generations", &closed).await.problem(422, "invalid_value");
    closed["architecture"] = json!("head-64-3");
    let reply = app.post("/v1/generations", &closed).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
}

/// Names of the tensors of a safetensors file, in the order of the alphabet.
fn tensors(bytes: &[u8]) -> Vec<String> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut names: Vec<String> = header.keys().filter(|name| *name != "__metadata__").cloned().collect();
    names.sort();
    names
}
