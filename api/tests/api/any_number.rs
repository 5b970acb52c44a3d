//! A generator of heads of any number of classes: the request's number decides, and everything after it is of that head.

use inference::Generator;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::candidates::{Heads, make, publish_as};
use crate::support::{App, runtime};
use crate::train::{FEATURES, any};

fn heads() -> Heads {
    let any = any(&runtime());
    let bundle = any.trained.bundle.clone();
    let generator = Generator::load(&runtime(), bundle.clone()).unwrap();
    let features = any.zoo.runs.iter().zip(0..).map(|(run, seed)| {
        let features = generator.features(&any.digits, &run.task.classes, seed);
        features.unwrap()
    });
    let embeddings = generator.embed_many(&features.collect::<Vec<_>>()).unwrap();
    Heads { bundle, zoo: any.zoo.clone(), embeddings: embeddings.into_iter().map(|e| e.dataset).collect() }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_request_chooses_the_number_of_classes(pool: PgPool) {
    let app = App::new(pool);
    let bundle = tokio::task::spawn_blocking(|| any(&runtime()).trained.bundle.clone()).await.unwrap();
    app.publish_bundle("any", &bundle).await;
    let dataset = app.digits().await;
    let body = |classes: &[&str], more: Value| {
        let mut body = json!({"generator": "any", "seed": 3, "count": 2, "evaluate": true,
            "dataset": {"id": dataset.id, "classes": classes}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let all = ["7", "1", "4", "0", "6"];
    // 4 classes: no head of the zoo has so many.
    for k in 2..=5 {
        let reply = app.post("/v1/generations", &body(&all[..k], json!({}))).await;
        let made = reply.json();
        assert_eq!(reply.status, 201, "{made}");
        assert_eq!(app.json(reply.header("location")).await, made);
        assert_eq!(
            (&made["architecture"], &made["rank_by"]),
            (&json!(format!("head-16-{k}")), &json!("leave_one_out"))
        );
        assert_eq!(made["dataset"]["classes"], json!(&all[..k]));
        assert!(made["samples"][0]["accuracy"].as_f64().unwrap() > 1.0 / k as f64, "{made}");
        let file = app.get(&format!("/v1/generations/{}/samples/0/file", made["id"].as_str().unwrap())).await;
        let header = header(&file.bytes);
        assert_eq!(header["weight"]["shape"], json!([k, FEATURES]));
        assert_eq!(header["bias"]["shape"], json!([k]));
        let told = &header["__metadata__"];
        assert_eq!(told["architecture"], json!(format!("head-16-{k}")));
        assert_eq!(told["classes"], json!(serde_json::to_string(&all[..k]).unwrap()));
        // All kinds of candidates are heads of that number.
        let closed = app.post("/v1/generations", &body(&all[..k], json!({"candidates": ["closed_form"]}))).await;
        assert_eq!(closed.json()["architecture"], json!(format!("head-16-{k}")), "{}", closed.json());
        let generated = body(&all[..k], json!({"candidates": ["generated"], "refine": {"steps": 1}}));
        assert_eq!(app.post("/v1/generations", &generated).await.status, 201);
    }
    let six = ["7", "1", "4", "0", "6", "2"];
    let problem = app.post("/v1/generations", &body(&six, json!({}))).await.problem(422, "classes_mismatch");
    assert!(problem["detail"].as_str().unwrap().contains("any number from 2 to 5"), "{problem}");
    assert_eq!(problem["field"], "dataset", "{problem}");
    app.post("/v1/generations", &body(&six[..1], json!({}))).await.problem(422, "too_few_classes");
    // A head that is named is of its own number.
    let named = json!({"architecture": "head-16-3"});
    let reply = app.post("/v1/generations", &body(&all[..3], named.clone())).await;
    assert_eq!(reply.json()["architecture"], "head-16-3");
    let problem = app.post("/v1/generations", &body(&all[..4], named)).await.problem(422, "classes_mismatch");
    assert!(problem["detail"].as_str().unwrap().contains("needs exactly 3"), "{problem}");

    // What is near a dataset is asked for with any number of classes too.
    for path in ["?generator=any", "?generator=any&classes=3,1", "?generator=any&classes=3,1,4,0"] {
        let found = app.json(&format!("/v1/datasets/{}/nearest{path}", dataset.id)).await;
        assert_eq!(found["generator"], "any@1", "{found}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn heads_of_the_same_number_of_classes_are_retrieved(pool: PgPool) {
    let app = App::new(pool);
    let heads = tokio::task::spawn_blocking(heads).await.unwrap();
    let (_, dataset) = publish_as(&app, "any", &heads).await;
    let ask = |classes: &[&str], origin: &str| {
        json!({"generator": "any", "seed": 1, "count": 8, "evaluate": true, "candidates": [origin],
            "rank_by": "leave_one_out", "dataset": {"id": dataset, "classes": classes}})
    };
    for classes in [&["3", "1"][..], &["8", "0", "2"]] {
        let made = make(&app, &ask(classes, "retrieved")).await;
        assert!(made["distance"].as_f64().is_some(), "{made}");
        let samples = made["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 8, "{made}");
        for sample in samples {
            let id = sample["checkpoint_id"].as_str().unwrap();
            let checkpoint = app.json(&format!("/v1/checkpoints/{id}")).await;
            assert_eq!(checkpoint["classes"].as_array().unwrap().len(), classes.len(), "{checkpoint}");
        }
    }
    // The zoo has no head of 4 classes; without `candidates` the others are there.
    let four = ["3", "1", "5", "9"];
    let problem = app.post("/v1/generations", &ask(&four, "retrieved")).await.problem(422, "invalid_value");
    assert_eq!(problem["field"], "candidates", "{problem}");
    let body = json!({"generator": "any", "seed": 1, "count": 4, "dataset": {"id": dataset, "classes": four}});
    let made = make(&app, &body).await;
    assert!(made["distance"].as_f64().is_some() && made["architecture"] == "head-16-4", "{made}");
}

/// The header of a safetensors file.
fn header(bytes: &[u8]) -> Value {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    serde_json::from_slice(&bytes[8..8 + length]).unwrap()
}
