//! Weights for a dataset: a trained generator on ONNX Runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Settings;
use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use weights::Bundle;
use weights::manifest::Modality;

use crate::support::{App, CLASSES, IMAGES, digits, npz, png, trained, zip};

async fn counts(pool: &PgPool) -> (i64, i64) {
    let count = "SELECT (SELECT count(*) FROM generations), (SELECT count(*) FROM samples)";
    sqlx::query_as(count).fetch_one(pool).await.unwrap()
}

fn some_classes() -> Value {
    json!(["3", "1", "4"])
}

#[sqlx::test(migrations = "../migrations")]
async fn weights_for_a_registered_dataset(pool: PgPool) {
    let app = App::new(pool.clone());
    let (version, dataset) = (app.publish("digits").await, app.digits().await);
    let body = json!({
        "generator": "digits", "dataset": {"id": dataset.id, "classes": some_classes()},
        "count": 3, "seed": 7, "steps": 5, "evaluate": true});
    let reply = app.post("/v1/generations", &body).await;
    let made = reply.json();
    assert_eq!(reply.status, 201, "{made}");
    let path = format!("/v1/generations/{}", made["id"].as_str().unwrap());
    assert_eq!(reply.header("location"), path);
    assert_eq!(made["generator"], json!({"name": "digits", "version": 1, "digest": version.digest}));
    assert_eq!(
        made["dataset"],
        json!({"id": dataset.id, "digest": dataset.digest, "classes": some_classes(), "seed": 0})
    );
    for (member, value) in [("count", json!(3)), ("sampler", json!("ddim")), ("seed", json!(7)), ("steps", json!(5))] {
        assert_eq!(made[member], value, "{member}");
    }
    assert_eq!((&made["eta"], &made["guidance"], &made["provider"]), (&json!(0.0), &json!(1.0), &json!("cpu")));
    let timings: BTreeMap<String, f64> = serde_json::from_value(made["timings"].clone()).unwrap();
    assert!(timings.iter().all(|(_, ms)| *ms > 0.0) && timings.len() == 7, "{timings:?}");
    let stages: f64 = timings.iter().filter(|(name, _)| *name != "total_ms").map(|(_, ms)| ms).sum();
    assert!(stages <= timings["total_ms"] + 0.01, "{timings:?}");
    assert_eq!(app.json(&path).await, made, "what is recorded is what was answered");
    check_samples(&app, &made, 3).await;
    assert_eq!(counts(&pool).await, (1, 3));

    let again = app.post("/v1/generations", &body).await.json();
    let digests =
        |made: &Value| made["samples"].as_array().unwrap().iter().map(|s| s["digest"].clone()).collect::<Vec<_>>();
    assert_eq!(digests(&again), digests(&made), "the same seed gives the same weights");
    assert_ne!(digests(&made)[0], digests(&made)[1]);
    let listed = app.json("/v1/generations?generator=digits@latest").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert!(listed["items"][0].get("samples").is_none());
    assert_eq!(app.json("/v1/generations?generator=other").await["items"], json!([]));
    assert_eq!(app.json(&format!("/v1/generations?dataset={}", dataset.id)).await["items"], listed["items"]);
}

/// Downloads every sample, and compares the measured accuracy with one measured here.
async fn check_samples(app: &App, made: &Value, count: usize) {
    let generator = inference::Generator::load(&crate::support::runtime(), trained().clone()).unwrap();
    let layout = &trained().manifest().architectures[0].layout;
    let task = digits().select_classes(&[3, 1, 4]).unwrap();
    let samples = made["samples"].as_array().unwrap();
    assert_eq!(samples.len(), count);
    for (index, sample) in samples.iter().enumerate() {
        let url = sample["url"].as_str().unwrap();
        let file = app.get(url).await;
        assert_eq!(registry::digest_of(&file.bytes), sample["digest"].as_str().unwrap());
        assert_eq!((&sample["index"], &sample["size"]), (&json!(index), &json!(file.bytes.len())));
        let theta = weights::tensors::from_safetensors(&file.bytes, layout).unwrap();
        // The accuracy on all but the few examples that the encoder took is close to that on all.
        let whole = generator.evaluate(&theta, &task).unwrap();
        let left = task.len() - sample["evaluated_on"].as_u64().unwrap() as usize;
        assert!((1..=CLASSES * IMAGES + 3).contains(&left), "{left} were left out");
        let accuracy = sample["accuracy"].as_f64().unwrap();
        assert!((accuracy - whole.accuracy).abs() < 0.02, "{accuracy} {}", whole.accuracy);
        assert!((sample["loss"].as_f64().unwrap() - whole.loss).abs() < 0.1);

        let metadata = app.json(&url.replace("/file", "/metadata")).await;
        let header = weights::tensors::metadata(&file.bytes).unwrap();
        assert_eq!(metadata["metadata"], json!(header));
        assert_eq!(metadata["metadata"]["index"], index.to_string());
        assert_eq!(metadata["tensors"].as_object().unwrap().len(), layout.params.len());
        let head = app.ask(Method::HEAD, url, &[]).await;
        assert_eq!(head.header("etag"), format!("\"{}\"", sample["digest"].as_str().unwrap()));
    }
    let beyond = samples[0]["url"].as_str().unwrap().replace("/0/", &format!("/{count}/"));
    app.get(&beyond).await.problem(404, "not_found");
}

#[sqlx::test(migrations = "../migrations")]
async fn weights_for_data_in_the_request(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let image = |class: &str, value| json!({"class": class, "data": png(8, value)});
    let images: Vec<Value> = [("b", 10), ("a", 100), ("b", 20), ("c", 250), ("a", 90)].map(|(c, v)| image(c, v)).into();
    for (dataset, classes) in [
        (json!({"images": images}), json!(["b", "a", "c"])),
        (json!({"images": images, "classes": ["c", "a", "b"]}), json!(["c", "a", "b"])),
        (json!({"npz": npz(digits()), "classes": ["9", "0", "5"], "seed": 3}), json!(["9", "0", "5"])),
        (json!({"zip": zip(&["x", "y", "z"], 1.0), "classes": ["z", "x", "y"]}), json!(["z", "x", "y"])),
    ] {
        let reply = app.post("/v1/generations", &json!({"generator": "digits@1", "dataset": dataset})).await;
        let made = reply.json();
        assert_eq!(reply.status, 201, "{made}");
        assert_eq!(made["dataset"]["classes"], classes);
        assert!(made["dataset"].get("id").is_none() && made["samples"][0].get("accuracy").is_none());
        assert!(made["seed"].as_u64().unwrap() < 1 << 53);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn samples_are_measured_on_the_data_given(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let dataset = app.digits().await;
    let image = |class: &str| json!({"class": class, "data": png(8, 50)});
    let mut body = json!({
        "generator": "digits", "dataset": {"id": dataset.id, "classes": some_classes()}, "count": 2, "steps": 3,
        "evaluation": {"images": [image("1"), image("3"), image("4"), image("1")]}});
    let made = app.post("/v1/generations", &body).await.json();
    for sample in made["samples"].as_array().unwrap() {
        assert_eq!(sample["evaluated_on"], 4, "{made}");
        // Four equal images: whatever class the network says, one or two of them are right.
        assert!([0.25, 0.5].contains(&sample["accuracy"].as_f64().unwrap()), "{sample}");
    }
    body["evaluation"] = json!({"id": dataset.id});
    let made = app.post("/v1/generations", &body).await.json();
    let expected = digits().select_classes(&[3, 1, 4]).unwrap().len();
    assert_eq!(made["samples"][0]["evaluated_on"], expected, "{made}");
}

/// A bundle for features instead of images; its digest is another one.
fn of_features() -> Bundle {
    let mut manifest = trained().manifest().clone();
    manifest.modality = Modality::Features;
    manifest.encoder.input_shape = vec![64];
    let files = trained().entries().filter(|(name, _)| *name != "manifest.json");
    Bundle::new(manifest, files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect()).unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn refusals_store_nothing(pool: PgPool) {
    let app = App::new(pool.clone());
    app.publish("digits").await;
    app.publish_bundle("features", &of_features()).await;
    let dataset = app.digits().await;
    let stored = app.stored_files();
    let good = json!({"generator": "digits", "dataset": {"id": dataset.id, "classes": some_classes()}});
    let with = |pointer: &str, value: Value| {
        let mut body = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[key] = value;
        body
    };
    let image = |class: &str, side| json!({"class": class, "data": png(side, 5)});
    let three = |side| json!({"images": [image("a", side), image("b", side), image("c", side)]});
    let unknown = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e";
    for (body, status, code, field, part) in [
        (with("/count", json!(0)), 422, "option_invalid", "count", "from 1 to 256"),
        (with("/count", json!(10_000)), 422, "option_invalid", "count", "from 1 to 256"),
        (with("/steps", json!(0)), 422, "option_invalid", "steps", "from 1 to"),
        (with("/steps", json!(51)), 422, "option_invalid", "steps", "from 1 to 50"),
        (with("/eta", json!(1.5)), 422, "option_invalid", "eta", "from 0 to 1"),
        (with("/guidance", json!(-1)), 422, "option_invalid", "guidance", "from 0 to 20"),
        (with("/guidance", json!("1")), 422, "json_invalid", "guidance", "expected f32"),
        (with("/sampler", json!("euler")), 422, "json_invalid", "sampler", "`dpm_solver_pp`"),
        (with("/stepz", json!(1)), 422, "json_invalid", "stepz", "unknown field"),
        (with("/generator", json!("nobody")), 404, "not_found", "generator", "nobody"),
        (with("/generator", json!("digits@2")), 404, "not_found", "generator", "digits@2"),
        (with("/generator", json!("digits@best")), 404, "not_found", "generator", "digits@best"),
        (with("/generator", json!("a@b@c")), 422, "invalid_reference", "generator", "name@alias"),
        (with("/generator", json!("features")), 422, "modality_mismatch", "dataset", "takes features"),
        (with("/dataset", json!({})), 422, "json_invalid", "dataset", "exactly one of"),
        (with("/dataset", json!({"id": unknown})), 404, "not_found", "dataset.id", unknown),
        (with("/dataset", json!({"id": "x"})), 422, "json_invalid", "dataset.id", "UUID"),
        (with("/dataset/classes", json!(["3", "1", "x"])), 422, "unknown_class", "dataset.classes", "0, 1, 2"),
        (with("/dataset/classes", json!(["3", "1", "1"])), 422, "duplicate_class", "dataset.classes", "twice"),
        (with("/dataset/classes", json!(["3"])), 422, "too_few_classes", "dataset.classes", "at least two"),
        (with("/dataset/classes", json!(["3", "1"])), 422, "classes_mismatch", "dataset", "exactly 3"),
        (with("/dataset/class", json!(["3"])), 422, "json_invalid", "dataset.class", "unknown field"),
        (with("/dataset", three(9)), 422, "shape_mismatch", "dataset", "[1, 8, 8]"),
        (with("/dataset", json!({"npz": "AA"})), 422, "base64_invalid", "dataset.npz", "standard base64"),
        (with("/dataset", json!({"zip": zip(&["a", "b", "c"], 0.7)})), 422, "zip_invalid", "dataset.zip", ""),
        (with("/evaluation", three(9)), 422, "unknown_class", "evaluation.images", "3"),
        (with("/evaluation", json!({"npz": "AAAA"})), 422, "zip_invalid", "evaluation.npz", ""),
        (
            json!({"generator": "digits", "dataset": three(8), "evaluate": true}),
            422,
            "evaluation_missing",
            "evaluate",
            "has 1",
        ),
    ] {
        let problem = app.post("/v1/generations", &body).await.problem(status, code);
        assert_eq!(problem["field"].as_str(), Some(field), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{part}: {problem}");
    }
    assert_eq!((counts(&pool).await, app.stored_files()), ((0, 0), stored));
}

#[sqlx::test(migrations = "../migrations")]
async fn features_that_are_not_finite(pool: PgPool) {
    let app = App::new(pool);
    app.publish_bundle("features", &of_features()).await;
    let (rows, dim) = (3, 64);
    let names = ["a", "b", "c"].map(str::to_owned).to_vec();
    let values = datasets::Data::F32(vec![0.5; rows * dim]);
    let data = datasets::Dataset::new("f", vec![dim], names, values, vec![0, 1, 2]).unwrap();
    let body = |bytes: &[u8]| {
        use base64::Engine;
        let npz = base64::engine::general_purpose::STANDARD.encode(bytes);
        json!({"generator": "features", "dataset": {"npz": npz}})
    };
    let good = datasets::npz::to_npz(&data).unwrap();
    let reply = app.post("/v1/generations", &body(&good)).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
    app.post("/v1/generations", &body(&with_nan(&good))).await.problem(422, "non_finite");
}

/// The archive with a NaN for the first 0.5: rewritten, for an archive has checksums.
fn with_nan(npz: &[u8]) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(npz)).unwrap();
    let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if let Some(at) = bytes.windows(4).position(|w| w == 0.5f32.to_le_bytes()) {
            bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        out.start_file(entry.name().unwrap(), zip::write::SimpleFileOptions::default()).unwrap();
        out.write_all(&bytes).unwrap();
    }
    out.finish().unwrap().into_inner()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_full_queue_says_when_to_come_back(pool: PgPool) {
    let app = Arc::new(App::with(pool, Settings { workers: 1, queue: 1, ..Settings::default() }));
    app.publish("digits").await;
    let dataset = app.digits().await;
    let body = json!({"generator": "digits", "dataset": {"id": dataset.id, "classes": some_classes()},
                      "count": 200, "sampler": "ddpm"});
    let replies = futures::future::join_all((0..8).map(|_| app.post("/v1/generations", &body))).await;
    let busy: Vec<_> = replies.iter().filter(|reply| reply.status == 429).collect();
    let done = replies.iter().filter(|reply| reply.status == 201).count();
    assert!(busy.len() + done == 8 && !busy.is_empty() && done >= 2, "{} busy, {done} done", busy.len());
    for reply in busy {
        reply.problem(429, "busy");
        assert_eq!(reply.header("retry-after"), "1");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn an_abandoned_request_stops_and_stores_nothing(pool: PgPool) {
    let app = Arc::new(App::with(pool.clone(), Settings { workers: 1, queue: 0, ..Settings::default() }));
    app.publish("digits").await;
    let dataset = app.digits().await;
    let path = "/v1/generations";
    let quick = json!({"generator": "digits", "dataset": {"id": dataset.id, "classes": some_classes()}, "steps": 1});
    assert_eq!(app.post(path, &quick).await.status, 201);
    let long = app.long_request(dataset.id).await;
    let task = tokio::spawn({
        let app = app.clone();
        async move { app.post(path, &long).await.status }
    });
    // It needs a moment to take the only place.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(app.post(path, &quick).await.status, 429);
    assert!(!task.is_finished());
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let freed = async {
        while app.post(path, &quick).await.status == 429 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the place comes back");
    let most: i64 =
        sqlx::query_scalar("SELECT max(n) FROM (SELECT count(*) AS n FROM samples GROUP BY generation_id) s")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(most, 1, "the abandoned generation left no rows");
}

#[sqlx::test(migrations = "../migrations")]
async fn two_hundred_at_once_are_made_or_refused_and_never_both(pool: PgPool) {
    let app = App::with(pool.clone(), Settings { workers: 1, queue: 10, ..Settings::default() });
    app.publish("digits").await;
    let dataset = app.digits().await;
    let requests = (0..200).map(|seed| {
        let body = json!({"generator": "digits", "dataset": {"id": dataset.id, "classes": ["3", "1", "4"]}, "steps": 1,
            "seed": seed});
        let app = &app;
        async move { app.post("/v1/generations", &body).await }
    });
    let replies = futures::future::join_all(requests).await;
    let mut made = std::collections::BTreeSet::new();
    for reply in &replies {
        if reply.status == 201 {
            let id = reply.json()["id"].as_str().unwrap().to_owned();
            assert!(made.insert(id), "each answer is of a generation of its own");
        } else {
            reply.problem(429, "busy");
            assert_eq!(reply.header("retry-after"), "1");
        }
    }
    assert!(made.len() >= 11 && made.len() < 200, "{}", made.len());
    let rows: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM generations").fetch_all(&pool).await.unwrap();
    assert_eq!(rows.iter().map(ToString::to_string).collect::<std::collections::BTreeSet<_>>(), made);
    let samples: i64 = sqlx::query_scalar("SELECT count(*) FROM samples").fetch_one(&pool).await.unwrap();
    assert_eq!(samples, made.len() as i64, "none lost, none double");
}
