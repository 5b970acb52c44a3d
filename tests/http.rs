//! The API of the real server over HTTP, with a generator that was really trained.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "http/batched.rs"]
mod batched;
#[path = "http/counted.rs"]
mod counted;
#[path = "http/killed.rs"]
mod killed;
#[path = "http/refusals.rs"]
mod refusals;
#[path = "http/storage.rs"]
mod storage;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use reqwest::Method;
use serde_json::{Value, json};
use support::data::{images, npz, some_digits, zip};
use support::http::Server;
use support::{config, folder, last_digest, repository, required, run, succeed, text, train, weightsmith};
use tempfile::TempDir;
use weights::{Architecture, Bundle, tensors};

/// The generator of all tests here, and the support images a class that it takes.
const GENERATOR: &str = "small-digits";
const IMAGES: usize = 4;

struct Trained {
    tar: Vec<u8>,
    digest: String,
}

fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        required("WEIGHTSMITH_ORT");
        let folder = folder();
        let (tar, digest) = train(GENERATOR, folder.path());
        Trained { tar: std::fs::read(tar).unwrap(), digest }
    })
}

/// A data folder with the generator in its registry.
fn registry() -> TempDir {
    let data = folder();
    import(data.path(), &trained().tar);
    data
}

fn import(data: &Path, tar: &[u8]) -> String {
    let file = data.join("bundle.tar");
    std::fs::write(&file, tar).unwrap();
    let said = succeed(&["generator", "import", text(&file), "--data-dir", text(data)]);
    std::fs::remove_file(file).unwrap();
    last_digest(&said)
}

/// Registers the digits from the `from`th to before the `to`th of all ten; gives the dataset's id.
fn register(server: &Server, name: &str, from: usize, to: usize) -> Value {
    let all: Vec<u32> = (0..10).collect();
    let reply = server.api.post("/v1/datasets", &json!({"name": name, "npz": npz(&some_digits(&all, from, to))}));
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.json()["id"].clone()
}

/// The weights of a sample as a vector, and the file's metadata.
fn download(server: &Server, sample: &Value) -> (Vec<f32>, BTreeMap<String, String>) {
    let file = server.api.get(sample["url"].as_str().unwrap()).bytes;
    assert_eq!(weights::digest::sha256(&file), sample["digest"].as_str().unwrap());
    let metadata = tensors::metadata(&file).unwrap();
    let architecture: Architecture = serde_json::from_str(&metadata["architecture_config"]).unwrap();
    (tensors::from_safetensors(&file, &architecture.layout()).unwrap(), metadata)
}

fn samples(made: &Value) -> &[Value] {
    made["samples"].as_array().unwrap()
}

fn accuracy(sample: &Value) -> f64 {
    sample["accuracy"].as_f64().unwrap_or_else(|| panic!("not evaluated: {sample}"))
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let difference = a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference < 1e-4, "they differ by {difference}");
}

#[test]
fn the_catalogue_has_what_was_trained() {
    let data = registry();
    let (zoo, out) = (data.path().join("zoo"), data.path().join("tiny.tar"));
    succeed(&["zoo", "build", "--config", &config("tiny"), "--out", text(&zoo)]);
    let train = ["train", "--config", &config("tiny"), "--zoo", text(&zoo), "--out", text(&out), "--register"];
    let said = succeed(&[&train[..], &["--data-dir", text(data.path())]].concat());
    assert!(said.contains("registered as tiny@1"), "{said}");
    let server = Server::start(data.path(), &[]);
    let api = &server.api;

    assert_eq!(api.get("/health/live").status, 200);
    assert_eq!(api.get("/health/ready").status, 200);
    let names = |path: &str| -> Vec<Value> { api.all(path).iter().map(|item| item["name"].clone()).collect() };
    let mut generators = names("/v1/generators");
    generators.sort_by_key(Value::to_string);
    assert_eq!(generators, [json!(GENERATOR), json!("tiny")]);
    let mut architectures = names("/v1/architectures");
    architectures.sort_by_key(Value::to_string);
    assert_eq!(architectures, [json!("mlp-64-12-3"), json!("mlp-64-8-3")]);
    let architecture = api.json("/v1/architectures/mlp-64-8-3");
    assert_eq!(architecture["parameters"], 64 * 8 + 8 + 8 * 3 + 3);
    let zoos = api.all("/v1/zoos");
    assert_eq!(zoos.len(), 1, "{zoos:?}");
    let runs = api.all(&format!("/v1/zoos/{}/runs", zoos[0]["id"].as_str().unwrap()));
    assert_eq!(runs.len(), 40, "20 class sets in 2 orders");
    let checkpoints = api.all("/v1/checkpoints");
    assert_eq!(checkpoints.len(), 40);
    let file = api.get(checkpoints[7]["url"].as_str().unwrap());
    let layout = Architecture::Mlp { inputs: 64, hidden: vec![8], classes: 3, activation: Default::default() }.layout();
    assert_eq!(tensors::from_safetensors(&file.bytes, &layout).unwrap().len(), layout.parameters());

    let versions = api.all(&format!("/v1/generators/{GENERATOR}/versions"));
    assert_eq!((versions.len(), &versions[0]["digest"]), (1, &json!(trained().digest)), "{versions:?}");
    let bundle = api.get(&format!("/v1/generators/{GENERATOR}/versions/1/bundle"));
    assert_eq!(bundle.bytes, trained().tar);
    assert_eq!(Bundle::read_tar(bundle.bytes.as_slice()).unwrap().digest(), trained().digest);
    api.get("/v1/generators/nobody").problem(404, "not_found");
    api.get("/v1/nothing").problem(404, "unknown_route");
}

#[test]
fn the_api_is_described() {
    let data = folder();
    let server = Server::start(data.path(), &[]);
    let served = server.api.get("/openapi.json");
    let committed = std::fs::read_to_string(repository("openapi/openapi.json")).unwrap();
    assert_eq!(served.text().trim_end(), committed.trim_end(), "run `make openapi` and commit openapi/openapi.json");
    assert_eq!(served.json()["openapi"], "3.1.0");
    assert_eq!(succeed(&["openapi"]).trim_end(), committed.trim_end());
    for path in ["/docs", "/docs/"] {
        let page = server.api.get(path);
        assert_eq!((page.status, page.header("content-type").starts_with("text/html")), (200, true), "{path}");
        assert!(page.text().contains("<html"), "{path}");
    }
}

#[test]
fn weights_for_data_in_every_form() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let classes = json!(["7", "2", "4"]);
    let (support, rest) = (some_digits(&[7, 2, 4], 0, IMAGES), some_digits(&[7, 2, 4], IMAGES, 150));
    let id = register(&server, "support", 0, IMAGES);
    let forms = [
        json!({"id": id, "classes": classes}),
        json!({"images": images(&support)}),
        json!({"npz": npz(&support)}),
        json!({"zip": support::data::base64(&zip(&support)), "classes": classes}),
    ];
    let mut all = Vec::new();
    for dataset in forms {
        let body = json!({"generator": GENERATOR, "dataset": dataset, "seed": 5, "evaluation": {"npz": npz(&rest)}});
        let made = server.api.generate(&body);
        assert_eq!((&made["dataset"]["classes"], &made["provider"]), (&classes, &json!("cpu")), "{made}");
        assert_eq!(made["generator"], json!({"name": GENERATOR, "version": 1, "digest": trained().digest}));
        let sample = &samples(&made)[0];
        assert_eq!(sample["evaluated_on"], rest.len());
        assert!(accuracy(sample) > 0.8, "{sample}");
        let (theta, metadata) = download(&server, sample);
        for (name, value) in [("generator", trained().digest.as_str()), ("seed", "5"), ("sampler", "ddim")] {
            assert_eq!(metadata[name], value, "{metadata:?}");
        }
        let served = server.api.json(&sample["url"].as_str().unwrap().replace("/file", "/metadata"));
        assert_eq!(served["metadata"], json!(metadata));
        all.push(theta);
    }
    // The same images, in whatever form they come, give the same weights.
    all.iter().skip(1).for_each(|theta| assert_close(theta, &all[0]));

    // With `evaluate` alone, the examples that the encoder has not seen are measured on.
    let id = register(&server, "digits", 0, 100);
    let body = json!({"generator": GENERATOR, "dataset": {"id": id, "classes": classes}, "evaluate": true, "seed": 1});
    let made = server.api.generate(&body);
    let sample = &samples(&made)[0];
    let seen = 300 - sample["evaluated_on"].as_u64().unwrap();
    assert!((1..=3 * IMAGES as u64 + 3).contains(&seen) && accuracy(sample) > 0.8, "{sample}");
}

#[test]
fn seeds_decide() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let dataset = json!({"id": register(&server, "digits", 0, 20), "classes": ["3", "1", "8"]});
    let ask = |more: Value| {
        let mut body = json!({"generator": GENERATOR, "dataset": dataset, "seed": 7});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.api.generate(&body)
    };
    let digests = |made: &Value| samples(made).iter().map(|s| s["digest"].clone()).collect::<Vec<_>>();
    let three = ask(json!({"count": 3}));
    assert_eq!(digests(&three).len(), 3);
    assert_eq!(digests(&ask(json!({"count": 3}))), digests(&three));
    for sampler in ["ddim", "ddpm"] {
        let options = json!({"sampler": sampler, "steps": 30, "eta": if sampler == "ddim" { 1.0 } else { 0.0 }});
        assert_eq!(digests(&ask(options.clone())), digests(&ask(options)), "{sampler}");
    }
    // Each sample has a stream of its own: what it is does not depend on how many there are.
    let many: Vec<_> = samples(&three).iter().map(|sample| download(&server, sample)).collect();
    let (one, metadata) = download(&server, &samples(&ask(json!({"count": 1})))[0]);
    assert_close(&one, &many[0].0);
    assert_eq!(metadata, many[0].1);
    let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3);
    assert!(differ(&many[0].0, &many[1].0) && differ(&many[1].0, &many[2].0));
    let other = download(&server, &samples(&ask(json!({"seed": 8})))[0]).0;
    assert!(differ(&one, &other));
    for (name, value) in [("steps", json!(7)), ("guidance", json!(2.0)), ("sampler", json!("ddpm"))] {
        let other = ask(json!({name: value}));
        assert_eq!(other[name], value);
        assert!(differ(&one, &download(&server, &samples(&other)[0]).0), "{name} changes nothing");
    }
    // Without a seed one is drawn, told, and gives the same weights again.
    let drawn = ask(json!({"seed": null}));
    assert_ne!(digests(&drawn)[0], digests(&three)[0]);
    assert_eq!(digests(&ask(json!({"seed": drawn["seed"]}))), digests(&drawn));
}

#[test]
fn rows_follow_the_classes() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let id = register(&server, "digits", 0, 120);
    // On data of its own, each order of the classes asked for is the order of the rows.
    let (orders, mut files) = ([["3", "0", "6"], ["6", "3", "0"]], Vec::new());
    for (n, order) in orders.iter().enumerate() {
        let dataset = json!({"id": id, "classes": order});
        let body = json!({"generator": GENERATOR, "dataset": dataset, "evaluate": true, "seed": 3});
        let made = server.api.generate(&body);
        let sample = &samples(&made)[0];
        assert!(accuracy(sample) > 0.8, "{order:?}: {sample}");
        let file = data.path().join(format!("{n}.safetensors"));
        std::fs::write(&file, server.api.get(sample["url"].as_str().unwrap()).bytes).unwrap();
        files.push(file);
    }
    // Each network, measured by the command: well in its own order, which its file names, badly in the other.
    for (file, own) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut args = vec!["evaluate", text(&files[file]), "--data", "digits", "--json"];
        let order = orders[own].join(",");
        if file != own {
            args.extend(["--classes", &order]);
        }
        let result: Value = serde_json::from_str(&succeed(&args)).unwrap();
        let accuracy = result["accuracy"].as_f64().unwrap();
        assert!(if file == own { accuracy > 0.8 } else { accuracy < 0.3 }, "{args:?}: {result}");
    }
}

#[test]
fn downloads() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let dataset = json!({"id": register(&server, "digits", 0, 20), "classes": ["1", "2", "3"]});
    let made = server.api.generate(&json!({"generator": GENERATOR, "dataset": dataset, "count": 2, "seed": 1}));
    let sample = &samples(&made)[1];
    let (path, size) = (sample["url"].as_str().unwrap(), sample["size"].as_u64().unwrap());
    let ask = |method: Method, headers: &[(&str, &str)]| server.api.ask(method, path, headers);
    let whole = ask(Method::GET, &[]);
    let etag = format!("\"{}\"", sample["digest"].as_str().unwrap());
    assert_eq!((whole.status, whole.bytes.len() as u64), (200, size));
    assert_eq!(weights::digest::sha256(&whole.bytes), sample["digest"].as_str().unwrap());
    assert_eq!((whole.header("etag"), whole.header("accept-ranges")), (etag.as_str(), "bytes"));

    let head = ask(Method::HEAD, &[]);
    assert_eq!((head.status, head.bytes.len()), (200, 0));
    for name in ["etag", "content-length", "content-type", "accept-ranges", "content-disposition"] {
        assert!(!head.header(name).is_empty() && head.header(name) == whole.header(name), "{name}");
    }
    let last = size - 1;
    for (range, from, to) in [
        ("bytes=0-99".to_owned(), 0, 99),
        (format!("bytes={}-", size - 10), size - 10, last),
        ("bytes=-8".to_owned(), size - 8, last),
        (format!("bytes=100-{}", 10 * size), 100, last),
    ] {
        let part = ask(Method::GET, &[("range", &range)]);
        let expected = (206, format!("bytes {from}-{to}/{size}"));
        assert_eq!((part.status, part.header("content-range").to_owned()), expected, "{range}");
        assert_eq!(part.bytes, whole.bytes[from as usize..=to as usize], "{range}");
    }
    let beyond = ask(Method::GET, &[("range", &format!("bytes={size}-"))]);
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    assert!(beyond.problem(416, "range_not_satisfiable").contains(&size.to_string()));
    for method in [Method::GET, Method::HEAD] {
        let known = ask(method, &[("if-none-match", &etag)]);
        assert_eq!((known.status, known.bytes.len(), known.header("etag")), (304, 0, etag.as_str()));
    }
    assert_eq!(ask(Method::GET, &[("if-none-match", "\"sha256:00\"")]).status, 200);
    assert_eq!(ask(Method::GET, &[("range", "bytes=0-9"), ("if-range", &etag)]).status, 206);
    assert_eq!(ask(Method::GET, &[("range", "bytes=0-9"), ("if-range", "\"other\"")]).status, 200);
    server.api.get(&path.replace("/1/file", "/2/file")).problem(404, "not_found");
}

#[test]
fn a_second_server_is_kept_out() {
    let data = folder();
    let server = Server::start(data.path(), &[]);
    let said = run(&mut weightsmith(["serve", "--bind", "127.0.0.1:0", "--data-dir", text(data.path())]));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("[data_directory_busy]"), "{said:?}");
    let taken = server.api.base.trim_start_matches("http://").to_owned();
    let other = folder();
    let said = run(&mut weightsmith(["serve", "--bind", &taken, "--data-dir", text(other.path())]));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("--bind") && said.err.contains("[address_unavailable]"), "{said:?}");
    assert_eq!(server.api.get("/health/ready").status, 200);
}
