//! Datasets as files, what they look like, what is near them, and generators behind feature extractors.

use std::io::Write;

use api::Settings;
use axum::http::Method;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datasets::Dataset;
use inference::Extractor;
use serde_json::json;
use sqlx::PgPool;
use training::{Config, Extract, Keep, Sources};
use weights::manifest::ExtractorSpec;

use crate::support::onnx::Graph;
use crate::support::{App, CONFIG, digits, runtime};

const OCTETS: &str = "application/octet-stream";

fn npz(dataset: &Dataset) -> Vec<u8> {
    datasets::npz::to_npz(dataset).unwrap()
}

/// A zip of the first `n` digits of each class, as PNG.
fn zip_of_digits(n: usize) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for index in digits().sample(n, 0) {
        let name = format!("{}/{index:04}.png", digits().labels[index]);
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&datasets::example_png(digits(), index).unwrap()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_file_of_each_format_becomes_a_dataset(pool: PgPool) {
    let app = App::new(pool);
    // In the order in which an archive is read: by class and name.
    let mut indices = digits().sample(3, 0);
    indices.sort_by_key(|&index| (digits().labels[index], index));
    let few = digits().take(&indices);
    let idx = [
        datasets::idx::write_images(
            few.len(),
            &few.shape,
            match &few.data {
                datasets::Data::U8(pixels) => pixels,
                datasets::Data::F32(_) => panic!("digits are bytes"),
            },
        )
        .unwrap(),
        datasets::idx::write_labels(&few.labels.iter().map(|&l| l as u8).collect::<Vec<_>>()).unwrap(),
    ]
    .concat();
    let send = async |query: &str, body: Vec<u8>| {
        app.body(Method::POST, &format!("/v1/datasets/upload?{query}"), OCTETS, body).await
    };
    let first = send("name=zipped&format=zip&description=Some&tags=a,b", zip_of_digits(3)).await;
    assert_eq!(first.status, 201, "{}", String::from_utf8_lossy(&first.bytes));
    let made = first.json();
    assert_eq!((&made["examples"], &made["shape"]), (&json!(30), &json!([1, 8, 8])));
    assert_eq!((&made["tags"], &made["description"]), (&json!(["a", "b"]), &json!("Some")));
    assert_eq!(first.header("location"), format!("/v1/datasets/{}", made["id"].as_str().unwrap()));
    // The same examples in another file are the same dataset.
    for (query, body) in [("name=x&format=idx", idx), ("name=y&format=npz", npz(&few))] {
        let reply = send(query, body).await;
        assert_eq!((reply.status.as_u16(), reply.json()["id"].clone()), (200, made["id"].clone()), "{query}");
    }
    let other = send("name=z&format=zip&classes=3,1&channels=3&height=4&width=6", zip_of_digits(2)).await.json();
    assert_eq!((&other["shape"], &other["classes"]), (&json!([3, 4, 6]), &json!(["3", "1"])));
}

#[sqlx::test(migrations = "../migrations")]
async fn what_cannot_be_used_leaves_nothing(pool: PgPool) {
    let settings = Settings { upload_limit: 20_000, ..Settings::default() };
    let app = App::with(pool, settings);
    let send = async |query: &str, body: Vec<u8>| {
        app.body(Method::POST, &format!("/v1/datasets/upload?{query}"), OCTETS, body).await
    };
    send("name=a&format=rar", vec![]).await.problem(422, "unknown_format");
    send("name=A&format=zip", vec![]).await.problem(422, "invalid_name");
    send("name=a&format=zip&height=3", vec![]).await.problem(422, "invalid_value");
    send("name=a&format=zip&channels=2", vec![]).await.problem(422, "dataset_invalid");
    send("name=a", vec![]).await.problem(400, "query_invalid");
    send("name=a&format=zip", vec![0; 20_001]).await.problem(413, "body_too_large");
    send("name=a&format=zip", b"PK".to_vec()).await.problem(422, "zip_invalid");
    send("name=a&format=tar.gz", b"\x1f\x8bx".to_vec()).await.problem(422, "tar_invalid");
    send("name=a&format=zip&classes=3,77", zip_of_digits(1)).await.problem(422, "unknown_class");
    assert_eq!(app.stored_files(), 0);
    assert_eq!(app.json("/v1/datasets").await["items"], json!([]));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_dataset_can_be_looked_at(pool: PgPool) {
    let app = App::new(pool);
    let id = app.digits().await.id;
    let path = format!("/v1/datasets/{id}");
    let picture = app.get(&format!("{path}/thumbnail?size=64&per_class=4")).await;
    assert_eq!((picture.status.as_u16(), picture.header("content-type")), (200, "image/png"));
    let image = image::load_from_memory(&picture.bytes).unwrap();
    assert!(image.width() <= 64 && image.height() <= 64);
    let headers = [("if-none-match", picture.header("etag"))];
    let again = app.ask(Method::GET, &format!("{path}/thumbnail?size=64&per_class=4"), &headers).await;
    assert_eq!((again.status.as_u16(), again.bytes.len()), (304, 0));
    app.get(&format!("{path}/thumbnail?size=5")).await.problem(422, "sample_invalid");

    let sample = app.json(&format!("{path}/sample?per_class=2&seed=5")).await;
    assert_eq!(sample["examples"].as_array().unwrap().len(), 20);
    for example in sample["examples"].as_array().unwrap() {
        let index = example["index"].as_u64().unwrap() as usize;
        assert_eq!(example["class"], digits().class_names[digits().labels[index] as usize]);
        let png = STANDARD.decode(example["png"].as_str().unwrap()).unwrap();
        assert_eq!(png, datasets::example_png(digits(), index).unwrap());
    }
    let file = app.get(&format!("{path}/sample?per_class=2&seed=5&format=npz")).await;
    let read = datasets::npz::from_npz(&file.bytes, &datasets::Limits::default()).unwrap();
    assert_eq!(read.digest(), digits().take(&digits().sample(2, 5)).digest());
    app.get(&format!("{path}/sample?per_class=600")).await.problem(422, "invalid_value");

    let whole = app.get(&format!("{path}/file")).await;
    assert_eq!(whole.bytes, npz(digits()));
    let part = app.ask(Method::GET, &format!("{path}/file"), &[("range", "bytes=2-5")]).await;
    assert_eq!((part.status.as_u16(), part.bytes.as_slice()), (206, &whole.bytes[2..6]));
    app.get("/v1/datasets/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e/thumbnail").await.problem(404, "not_found");
}

#[sqlx::test(migrations = "../migrations")]
async fn the_nearest_dataset_is_the_likest(pool: PgPool) {
    let app = App::new(pool);
    app.publish("gen").await;
    let parts = [[3, 1, 4], [0, 7, 9]];
    let mut ids = Vec::new();
    for (part, classes) in parts.iter().enumerate() {
        for half in 0..2 {
            let task = digits().select_classes(classes).unwrap();
            let half = task.take(&(0..task.len()).filter(|i| i % 2 == half).collect::<Vec<_>>());
            let path = format!("/v1/datasets/upload?name=part-{part}&format=npz");
            ids.push(app.body(Method::POST, &path, OCTETS, npz(&half)).await.json()["id"].clone());
        }
    }
    let near = async |id: &serde_json::Value, query: &str| {
        app.json(&format!("/v1/datasets/{}/nearest?generator=gen@1{query}", id.as_str().unwrap())).await
    };
    assert_eq!(near(&ids[0], "").await["items"], json!([]), "nothing else has been embedded");
    for id in &ids {
        near(id, "").await;
    }
    let found = near(&ids[0], "&limit=2").await;
    assert_eq!((&found["scan"], &found["generator"]), (&json!("exact"), &json!("gen@1")));
    assert_eq!(found["items"].as_array().unwrap().len(), 2);
    assert!(found["items"].as_array().unwrap().iter().all(|item| item["dataset_id"] != ids[0]));
    let distances: Vec<f64> =
        near(&ids[0], "").await["items"].as_array().unwrap().iter().map(|i| i["distance"].as_f64().unwrap()).collect();
    assert!(distances.len() == 3 && distances.is_sorted() && distances[0] >= 0.0, "{distances:?}");
    assert_eq!(near(&ids[0], "&kind=runs").await["items"], json!([]));
    let path = format!("/v1/datasets/{}/nearest?generator=", ids[0].as_str().unwrap());
    app.get(&format!("{path}nothing")).await.problem(404, "not_found");
    app.get(&format!("{path}gen@1&kind=x")).await.problem(422, "invalid_value");
    app.get(&format!("{path}gen@1&classes=3,1")).await.problem(422, "classes_mismatch");
    app.get(&format!("{path}gen@1&classes=3,x,1")).await.problem(422, "unknown_class");
}

/// Average pooling of an 8×8 image to 4×4: `pixels [batch, 1, 8, 8]` → `pooled [batch, 16]`.
fn pooling() -> Vec<u8> {
    use crate::support::onnx::Attribute;
    let window = || Attribute::Ints(vec![2, 2]);
    Graph::new()
        .integers("flat", &[0, 16])
        .input("pixels", &[0, 1, 8, 8])
        .node_with("AveragePool", &["pixels"], "small", &[("kernel_shape", window()), ("strides", window())])
        .node("Reshape", &["small", "flat"], "pooled")
        .output("pooled", &[0, 16])
        .finish()
}

struct Pooling(Extractor, Vec<u8>);

impl Extract for Pooling {
    fn spec(&self) -> &ExtractorSpec {
        self.0.spec()
    }

    fn onnx(&self) -> &[u8] {
        &self.1
    }

    fn extract(&self, images: &Dataset) -> Result<Dataset, String> {
        self.0.extract(images).map_err(|error| error.to_string())
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn generators_work_behind_a_registered_extractor(pool: PgPool) {
    let app = App::new(pool);
    let path = "/v1/extractors?name=pooling&input=pixels&output=pooled&shape=1,8,8&mean=0.5&std=0.25";
    let made = app.body(Method::POST, path, OCTETS, pooling()).await;
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.bytes));
    assert_eq!((&made.json()["dim"], &made.json()["std"]), (&json!(16), &json!([0.25])));
    app.body(Method::POST, path, OCTETS, pooling()).await.problem(409, "already_exists");
    let wrong = path.replace("name=pooling", "name=other").replace("output=pooled", "output=logits");
    let refused = app.body(Method::POST, &wrong, OCTETS, pooling()).await.problem(422, "extractor_invalid");
    assert!(refused["detail"].as_str().unwrap().contains("pooled"), "{refused}");
    assert_eq!(app.json("/v1/extractors").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(app.get("/v1/extractors/pooling/file").await.bytes, pooling());

    let row = registry::extractors::get(&app.registry, &registry::Caller::system("t"), "pooling").await.unwrap();
    let spec: ExtractorSpec = serde_json::from_value(row.spec).unwrap();
    let dataset = app.digits().await.id;
    for (name, section, inputs) in [("networks", "[data]", 16), ("encoder", "[encoder]", 64)] {
        let text = CONFIG.replacen(section, &format!("{section}\nextractor = \"pooling\""), 1);
        let config = Config::parse(&text).unwrap();
        let bundle = train(&config, Pooling(Extractor::load(&runtime(), &spec, &pooling()).unwrap(), pooling()));
        let manifest = bundle.manifest();
        assert_eq!((manifest.encoder.feature_dim, manifest.encoder.input_shape.as_slice()), (16, &[1, 8, 8][..]));
        assert_eq!(manifest.architectures[0].config.input_dim(), inputs, "{name}");
        app.publish_bundle(name, &bundle).await;
        let request = json!({
            "generator": name, "dataset": {"id": dataset, "classes": ["3", "1", "4"]}, "steps": 2, "count": 2,
            "evaluate": true});
        let reply = app.post("/v1/generations", &request).await;
        assert_eq!(reply.status, 201, "{name}: {}", String::from_utf8_lossy(&reply.bytes));
        let samples = reply.json()["samples"].clone();
        assert!(samples[0]["accuracy"].as_f64().unwrap() > 0.0, "{samples}");
    }
}

fn train(config: &Config, extractor: Pooling) -> weights::Bundle {
    let plain = Sources::load(config).unwrap();
    let (folder, silent) = (tempfile::tempdir().unwrap(), training::progress::Progress::silent());
    let refused = training::stages::zoo::build(config, &plain, folder.path(), &silent, Keep::nothing());
    match config.data.extractor.is_some() || config.encoder.extractor.is_some() {
        true => assert!(refused.unwrap_err().to_string().contains("pooling")),
        false => panic!("the configuration names no extractor"),
    }
    let sources = plain.extracted(config, &extractor).unwrap();
    let zoo = training::stages::zoo::build(config, &sources, folder.path(), &silent, Keep::nothing()).unwrap();
    let device = candle_core::Device::Cpu;
    training::stages::generator::train(config, &zoo, &sources, &device, &silent, Keep::nothing()).unwrap().bundle
}

/// A safetensors file of one tensor `w` of two values.
fn tensors(values: [f32; 2]) -> Vec<u8> {
    let header = json!({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).to_string();
    let padded = header.len().next_multiple_of(8);
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(8 + padded, b' ');
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[sqlx::test(migrations = "../migrations")]
async fn checkpoints_come_from_outside(pool: PgPool) {
    let app = App::new(pool);
    let zoo = app.post("/v1/zoos", &json!({"name": "outside"})).await;
    assert_eq!(zoo.status, 201, "{}", String::from_utf8_lossy(&zoo.bytes));
    let zoo = zoo.json();
    assert_eq!(zoo["architecture_id"], serde_json::Value::Null);
    let path = format!("/v1/zoos/{}/checkpoints", zoo["id"].as_str().unwrap());
    let send = async |query: &str, bytes: Vec<u8>| {
        app.body(Method::POST, &format!("{path}{query}"), "application/octet-stream", bytes).await
    };
    let made = send("?file=a.safetensors&accuracy=0.5&dataset=cifar10&tags=x,y", tensors([1.5, 2.0])).await;
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.bytes));
    let made = made.json();
    assert_eq!((&made["run"], &made["dataset"], &made["accuracy"]), (&json!("a"), &json!("cifar10"), &json!(0.5)));
    assert_eq!((&made["epoch"], &made["tags"]), (&serde_json::Value::Null, &json!(["x", "y"])));
    let file = app.get(made["url"].as_str().unwrap()).await;
    assert_eq!(file.bytes[file.bytes.len() - 8..], [1.5f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());
    assert_eq!(registry::digest_of(&file.bytes), made["digest"].as_str().unwrap());
    let header = app.json(&made["url"].as_str().unwrap().replace("/file", "/metadata")).await;
    assert_eq!((&header["metadata"], &header["tensors"]["w"]["shape"]), (&json!({"format": "pt"}), &json!([2])));
    let again = send("?run=b", tensors([1.5, 2.0])).await;
    assert_eq!((again.status.as_u16(), &again.json()["id"]), (200, &made["id"]));

    let stored = app.stored_files();
    send("", tensors([f32::NAN, 2.0])).await.problem(422, "non_finite");
    let mut other = tensors([1.0, 2.0]);
    let name = other.iter().position(|byte| *byte == b'w').unwrap();
    other[name] = b'v';
    let detail = send("", other).await.problem(422, "tensor_missing")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains('w'), "{detail}");
    send("", b"PK nothing".to_vec()).await.problem(422, "checkpoint_invalid");
    send("?accuracy=2", tensors([3.0, 3.0])).await.problem(422, "invalid_value");
    send("?dataset=0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", tensors([3.0, 3.0])).await.problem(404, "not_found");
    assert!(app.stored_files() <= stored + 1, "only what was refused after it was stored, for gc");
    let checkpoints = app.json("/v1/checkpoints").await;
    assert_eq!(checkpoints["items"].as_array().unwrap().len(), 1);
    let architecture = app.json("/v1/architectures/outside").await;
    assert_eq!(architecture["layout"]["params"][0]["name"], "w");
    let body = json!({"name": "outside", "layout": {"params": [{"name": "x", "shape": [1]}]}});
    app.post("/v1/architectures", &body).await.problem(409, "already_exists");
    app.post("/v1/architectures", &json!({"name": "none", "layout": {"params": []}})).await.problem(422, "no_tensors");
    app.post("/v1/zoos", &json!({})).await.problem(422, "json_invalid");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_checkpoint_above_the_limit_is_refused(pool: PgPool) {
    let exact = tensors([1.0, 2.0]);
    let app = App::with(pool, Settings { upload_limit: exact.len() as u64, ..Settings::default() });
    let zoo = app.post("/v1/zoos", &json!({"name": "outside"})).await.json();
    let path = format!("/v1/zoos/{}/checkpoints", zoo["id"].as_str().unwrap());
    let longer = [exact.clone(), vec![0]].concat();
    app.body(Method::POST, &path, OCTETS, longer).await.problem(413, "body_too_large");
    assert_eq!((app.stored_files(), app.json("/v1/checkpoints").await["items"].clone()), (0, json!([])));
    assert_eq!(app.body(Method::POST, &path, OCTETS, exact).await.status, 201);
}
