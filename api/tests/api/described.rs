//! Adapters for a described task: a real text encoder, adapters that were really trained, and what a client gets.

use std::path::PathBuf;
use std::sync::OnceLock;

use language::described::{DescribedConfig, drawn, learn};
use language::lora::{Adapted, accuracy};
use language::text::TextEncoder;
use registry::generators::GeneratorVersion;
use serde_json::{Value, json};
use sqlx::PgPool;
use training::progress::Progress;
use weights::Bundle;

use crate::support::{App, digits, npz};

fn encoder() -> PathBuf {
    let dir = std::env::var_os("WEIGHTSMITH_TEXT_ENCODER");
    dir.map(PathBuf::from).expect("run the tests with `make test`, which sets WEIGHTSMITH_TEXT_ENCODER")
}

const OPINION: &str = "Decide whether a sentence is an opinion for or against something.";
const SETTING: &str = "Decide whether a sentence is set indoors or outdoors.";

fn config() -> DescribedConfig {
    let task = |name: &str, descriptions: [&str; 2]| json!({"name": name, "from": format!("phrases:{name}"), "descriptions": descriptions});
    let config = json!({
        "name": "phrases", "base": "sentence-transformers/all-MiniLM-L6-v2", "train_examples": 128, "test_examples": 60,
        "length": 20, "runs": 2,
        "lora": {"rank": 2, "alpha": 4, "targets": ["query", "value"], "blocks": 1},
        "fit": {"epochs": 4, "batch": 16, "lr": 4e-3, "keep": 2},
        "generator": {"hidden": 0, "latent": 8, "beta": 1e-4, "kl_from": 0.5, "vae_steps": 300, "width": 64, "blocks": 2,
            "diffusion_steps": 400, "batch": 16, "lr": 3e-3, "sampling_steps": 10},
        "tasks": [
            task("opinion", [OPINION, "Sentiment of short sentences: favourable or not."]),
            task("setting", [SETTING, "Place of short sentences: inside a building or in the open."])],
    });
    serde_json::from_value(config).unwrap()
}

fn bundle() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let learned = learn(&config(), &encoder(), None, &Progress::silent()).unwrap();
        for task in &learned.measured {
            assert!(task.zoo > 0.8 && task.generated > task.zoo - 0.05, "{task:?}");
        }
        learned.bundle
    })
}

async fn publish(app: &App) -> GeneratorVersion {
    app.publish_bundle("phrases", bundle()).await
}

fn unpacked(tar: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = tar::Archive::new(tar);
    archive.unpack(folder.path()).unwrap();
    folder
}

#[sqlx::test(migrations = "../migrations")]
async fn a_description_gives_adapters_that_do_its_task(pool: PgPool) {
    let app = App::new(pool);
    publish(&app).await;
    // Other words than those that were learned from.
    let body = json!({"generator": "phrases", "dataset": {"text": "Is the opinion in a sentence favourable or not?"}, "count": 3, "seed": 4});
    let reply = app.post("/v1/generations", &body).await;
    let made = reply.json();
    assert_eq!(reply.status, 201, "{made}");
    assert_eq!(made["dataset"]["classes"], json!(["against", "for"]));
    assert!(made["distance"].as_f64().is_some_and(|d| d > 0.0 && d <= 2.0), "{made}");
    assert!(
        made["warnings"].is_null() && made["architecture"].as_str().unwrap().starts_with("lora-r2-a4-2-"),
        "{made}"
    );

    let sample = format!("/v1/generations/{}/samples/0", made["id"].as_str().unwrap());
    let adapter = app.get(&format!("{sample}/adapter")).await;
    assert_eq!((adapter.status.as_u16(), adapter.header("content-type")), (200, "application/x-tar"));
    let folder = unpacked(&adapter.bytes);
    let settings: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&settings["peft_type"], &settings["r"]), (&json!("LORA"), &json!(2)), "{settings}");
    assert_eq!(settings["base_model_name_or_path"], "sentence-transformers/all-MiniLM-L6-v2");
    assert_eq!(settings["layers_to_transform"], json!([5]));
    assert_eq!(
        std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap(),
        app.get(&format!("{sample}/file")).await.bytes
    );
    let metadata = app.json(&format!("{sample}/metadata")).await;
    assert_eq!(
        (&metadata["metadata"]["format"], &metadata["metadata"]["generator_name"]),
        (&json!("pt"), &json!("phrases@1"))
    );

    // It does the task that was described.
    let config = config();
    let encoder = TextEncoder::open(&encoder()).unwrap();
    let adapted = Adapted::new(encoder.bert(), "", &config.lora, 2).unwrap();
    let test = drawn(&config.tasks[0].read(&config).unwrap().split.test, 0, "test");
    let data = adapted.encode(&encoder, &test, config.length).unwrap();
    let right =
        |dir: &std::path::Path| accuracy(&adapted.predict(&adapted.open(dir).unwrap(), &data).unwrap(), data.labels());
    let own = right(folder.path());
    assert!(own > 0.8, "{own}");

    // The same request gives the same adapters, another seed others.
    let again = app.post("/v1/generations", &body).await.json();
    assert_eq!(again["samples"][1]["digest"], made["samples"][1]["digest"]);
    assert_ne!(made["samples"][0]["digest"], made["samples"][1]["digest"]);
    let etag = adapter.header("etag").to_owned();
    let kept = app.ask(axum::http::Method::GET, &format!("{sample}/adapter"), &[("if-none-match", &etag)]).await;
    assert_eq!((kept.status.as_u16(), kept.bytes.len()), (304, 0));

    // What is far from the zoo says so, and claims no classes.
    let far = json!({"generator": "phrases", "dataset": {"text": "Segment the lungs in an X-ray image of the chest."}});
    let far = app.post("/v1/generations", &far).await.json();
    assert!(far["distance"].as_f64().unwrap() > 2.0 && far["dataset"]["classes"] == json!([]), "{far}");
    assert!(far["warnings"][0].as_str().unwrap().contains("far"), "{far}");
}

#[sqlx::test(migrations = "../migrations")]
async fn descriptions_are_datasets_with_neighbours(pool: PgPool) {
    let app = App::new(pool);
    publish(&app).await;
    let register = async |name: &str, text: &str| app.post("/v1/datasets", &json!({"name": name, "text": text})).await;
    let opinion = register("opinion", OPINION).await;
    assert_eq!(opinion.status, 201);
    let opinion = opinion.json();
    assert_eq!(
        (&opinion["modality"], &opinion["classes"], &opinion["examples"]),
        (&json!("text"), &json!([]), &json!(1))
    );
    // The same text, whatever blanks are around it.
    let again = register("another", &format!("  {OPINION}\n")).await;
    assert_eq!((again.status.as_u16(), &again.json()["id"]), (200, &opinion["id"]));
    let setting = register("setting", SETTING).await.json();
    let asked = register("asked", "Which sentences happen under a roof, and which in the open air?").await.json();
    let path = |row: &Value, what: &str| format!("/v1/datasets/{}/{what}", row["id"].as_str().unwrap());
    // Each has an embedding from the first search on.
    for row in [&opinion, &setting] {
        app.json(&path(row, "nearest?generator=phrases")).await;
    }
    let near = app.json(&path(&asked, "nearest?generator=phrases")).await;
    let names: Vec<&str> = near["items"].as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["setting", "opinion"], "{near}");

    let file = app.get(&path(&opinion, "file")).await;
    assert_eq!((file.header("content-type"), file.bytes.as_slice()), ("text/plain; charset=utf-8", OPINION.as_bytes()));
    let made = app
        .post("/v1/generations", &json!({"generator": "phrases", "dataset": {"id": opinion["id"]}, "seed": 1}))
        .await
        .json();
    assert_eq!((&made["dataset"]["id"], &made["dataset"]["digest"]), (&opinion["id"], &opinion["digest"]), "{made}");
    let listed = app.json("/v1/datasets?modality=text").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 3);
}

#[sqlx::test(migrations = "../migrations")]
async fn texts_and_labelled_examples_are_told_apart(pool: PgPool) {
    let app = App::new(pool);
    publish(&app).await;
    app.publish("digits").await;
    let images = app.digits().await;
    let text = app.post("/v1/datasets", &json!({"name": "opinion", "text": OPINION})).await.json();
    let ask = async |body: Value, status: u16, code: &str, said: &str| {
        let reply = app.post("/v1/generations", &body).await;
        let problem = reply.problem(status, code);
        assert!(problem["detail"].as_str().unwrap().contains(said), "{problem}");
    };
    let inline = json!({"text": OPINION});
    ask(json!({"generator": "digits", "dataset": inline}), 422, "modality_mismatch", "holds text").await;
    ask(json!({"generator": "digits", "dataset": {"id": text["id"]}}), 422, "modality_mismatch", "holds text").await;
    ask(json!({"generator": "phrases", "dataset": {"id": images.id}}), 422, "modality_mismatch", "takes text").await;
    let two = json!({"npz": npz(digits())});
    ask(json!({"generator": "phrases", "dataset": two}), 422, "modality_mismatch", "takes text").await;
    ask(json!({"generator": "phrases", "dataset": {"text": "  "}}), 422, "invalid_value", "empty").await;
    ask(json!({"generator": "phrases", "dataset": {"text": "x".repeat(10_001)}}), 422, "invalid_value", "shorten")
        .await;
    ask(
        json!({"generator": "phrases", "dataset": {"text": "x", "classes": ["a", "b"]}}),
        422,
        "json_invalid",
        "no classes",
    )
    .await;
    for (field, value) in [
        ("evaluate", json!(true)),
        ("candidates", json!(["generated", "closed_form"])),
        ("refine", json!({"steps": 1})),
        ("recalibrate", json!(true)),
        ("rank_by", json!("leave_one_out")),
    ] {
        let mut body = json!({"generator": "phrases", "dataset": inline});
        body[field] = value;
        ask(body, 422, "invalid_value", field).await;
    }
    let ordered = json!({"generator": "phrases", "dataset": {"id": text["id"], "classes": ["for", "against"]}});
    ask(ordered, 422, "invalid_value", "no classes").await;
    assert_eq!(app.json("/v1/generations").await["items"], json!([]));
    let made = app.post("/v1/generations", &json!({"generator": "phrases", "dataset": inline})).await.json();
    let path = format!("/v1/generations/{}/evaluations", made["id"].as_str().unwrap());
    app.post(&path, &json!({"dataset": {"id": images.id}})).await.problem(422, "no_forward");

    let path = |what: &str| format!("/v1/datasets/{}/{what}", text["id"].as_str().unwrap());
    for what in ["thumbnail", "sample", "nearest?generator=digits"] {
        app.get(&path(what)).await.problem(422, "modality_mismatch");
    }
    app.get(&format!("/v1/datasets/{}/nearest?generator=phrases", images.id)).await.problem(422, "modality_mismatch");
    app.post("/v1/datasets", &json!({"name": "a", "text": ""})).await.problem(422, "invalid_value");
    app.post("/v1/datasets", &json!({"name": "a", "text": "b", "classes": ["x", "y"]}))
        .await
        .problem(422, "invalid_value");
    app.post("/v1/datasets", &json!({"name": "a", "text": "b", "zip": ""})).await.problem(422, "json_invalid");

    // Networks of images are no adapters.
    let body = json!({"generator": "digits", "dataset": {"id": images.id, "classes": ["3", "1", "4"]}});
    let made = app.post("/v1/generations", &body).await.json();
    let adapter = format!("/v1/generations/{}/samples/0/adapter", made["id"].as_str().unwrap());
    app.get(&adapter).await.problem(404, "no_adapter");
}
