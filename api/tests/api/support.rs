//! A server without a socket, and a small generator that was really trained.

#[path = "../../../inference/tests/support/onnx.rs"]
#[allow(dead_code)]
pub mod onnx;

use std::io::Write;
use std::sync::OnceLock;

use api::{AppState, AuthSettings, Settings};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use inference::{Device, Runtime, locate_library};
use registry::tokens::{self, NewToken, Scope, Token};
use registry::{ArtifactStore, Caller, NewAbout, Registry, datasets as dataset_rows, generators};
use serde_json::Value;
use sqlx::PgPool;
use tower::ServiceExt;
use weights::Bundle;

/// Examples a class that the generator's encoder takes.
pub const IMAGES: usize = 2;
/// Classes of the generator.
pub const CLASSES: usize = 3;

pub struct App {
    pub registry: Registry,
    router: Router,
    folder: tempfile::TempDir,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl App {
    pub fn new(pool: PgPool) -> Self {
        Self::with(pool, Settings::default())
    }

    /// In open mode.
    pub fn with(pool: PgPool, settings: Settings) -> Self {
        let auth = AuthSettings { open: true, ..settings.auth.clone() };
        Self::closed(pool, Settings { auth, ..settings })
    }

    /// Where everyone needs a token, unless the settings say otherwise.
    pub fn closed(pool: PgPool, settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactStore::local(folder.path(), pool.clone()).unwrap();
        let registry = Registry::new(pool, artifacts);
        let router = api::router(AppState::new(registry.clone(), runtime(), settings));
        Self { registry, router, folder }
    }

    /// A token to make for a principal.
    pub fn new_token(owner: &str, scopes: &[Scope]) -> NewToken {
        NewToken { name: "test".into(), owner: owner.into(), scopes: scopes.to_vec(), ..NewToken::default() }
    }

    /// Makes a token; gives it and its secret.
    pub async fn make_token(&self, new: &NewToken) -> (Token, String) {
        let mut write = self.registry.write(&Caller::system("test")).await.unwrap();
        let (token, secret) = tokens::create(&mut write, new).await.unwrap();
        write.commit().await.unwrap();
        (token, secret.reveal().to_owned())
    }

    /// A token of a principal with these scopes; gives it and its secret.
    pub async fn token(&self, owner: &str, scopes: &[Scope]) -> (Token, String) {
        self.make_token(&Self::new_token(owner, scopes)).await
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 30).await.unwrap().to_vec();
        Reply { status: parts.status, headers: parts.headers, bytes }
    }

    pub async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.ask(Method::GET, path, &[]).await
    }

    pub async fn json(&self, path: &str) -> Value {
        let reply = self.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.bytes));
        reply.json()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.body(Method::POST, path, "application/json", body.to_string()).await
    }

    pub async fn body(&self, method: Method, path: &str, kind: &str, body: impl Into<Body>) -> Reply {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
        self.send(request.body(body.into()).unwrap()).await
    }

    /// Files in the artifact directory.
    pub fn stored_files(&self) -> usize {
        fn count(folder: &std::path::Path) -> usize {
            let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(self.folder.path())
    }

    /// Publishes the trained generator under a name; returns its version.
    pub async fn publish(&self, name: &str) -> generators::GeneratorVersion {
        self.publish_bundle(name, trained()).await
    }

    pub async fn publish_bundle(&self, name: &str, bundle: &Bundle) -> generators::GeneratorVersion {
        let mut tar = Vec::new();
        bundle.write_tar(&mut tar).unwrap();
        let artifact = self.registry.artifacts().put_bytes(tar, "application/x-tar").await.unwrap();
        let new = generators::NewVersion {
            name: name.into(),
            about: NewAbout { description: "A test".into(), ..NewAbout::default() },
            digest: bundle.digest(),
            modality: bundle.manifest().modality.to_string(),
            manifest: serde_json::to_value(bundle.manifest()).unwrap(),
            artifact_digest: artifact.digest,
            zoo_id: None,
        };
        let mut write = self.registry.write(&Caller::system("test")).await.unwrap();
        let version = generators::publish(&mut write, &new).await.unwrap();
        write.commit().await.unwrap();
        version
    }

    /// A request that works for seconds, for it measures its many samples on the digits many times over.
    pub async fn long_request(&self, dataset: registry::DatasetId) -> Value {
        let classes = [3, 1, 4];
        let mut task = digits().select_classes(&classes).unwrap();
        for _ in 0..6 {
            task = task.concat(&task).unwrap();
        }
        let reply = self.post("/v1/datasets", &serde_json::json!({"name": "many", "npz": npz(&task)})).await.json();
        serde_json::json!({
            "generator": "digits", "dataset": {"id": dataset, "classes": ["3", "1", "4"]}, "steps": 1, "count": 256,
            "evaluation": {"id": reply["id"]}})
    }

    /// Registers the digits.
    pub async fn digits(&self) -> dataset_rows::Dataset {
        let reply = self.post("/v1/datasets", &serde_json::json!({"name": "digits", "npz": npz(digits())})).await;
        assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.bytes));
        dataset_rows::by_digest(&self.registry, &Caller::system("test"), &digits().digest()).await.unwrap()
    }
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that the answer is a problem of this status and code, and gives it.
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.json();
        assert_eq!((self.status.as_u16(), problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:problem-type:weightsmith:{code}"));
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        for member in ["title", "detail", "instance"] {
            assert!(!problem[member].as_str().unwrap().is_empty(), "{problem}");
        }
        problem
    }
}

pub fn runtime() -> Runtime {
    let library = locate_library(None).expect("run the tests with `make test`, which sets WEIGHTSMITH_ORT");
    Runtime::new(&library, Device::Cpu, 2).unwrap()
}

pub fn digits() -> &'static datasets::Dataset {
    static DIGITS: OnceLock<datasets::Dataset> = OnceLock::new();
    DIGITS.get_or_init(|| datasets::load_source("digits").unwrap())
}

/// A dataset as npz in base64.
pub fn npz(dataset: &datasets::Dataset) -> String {
    STANDARD.encode(datasets::npz::to_npz(dataset).unwrap())
}

/// A grey PNG of one value, in base64.
pub fn png(side: u32, value: u8) -> String {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_pixel(side, side, image::Luma([value]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    STANDARD.encode(bytes.into_inner())
}

/// A zip of `CLASS/N.png` in base64; cut off after a part of its bytes.
pub fn zip(classes: &[&str], share: f64) -> String {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (index, class) in classes.iter().enumerate() {
        zip.start_file(format!("{class}/0.png"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&STANDARD.decode(png(8, index as u8 * 20)).unwrap()).unwrap();
    }
    let bytes = zip.finish().unwrap().into_inner();
    STANDARD.encode(&bytes[..(bytes.len() as f64 * share) as usize])
}

/// A generator of 3-way MLPs on the digits, trained for a moment.
pub fn trained() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let config = training::Config::parse(CONFIG).unwrap();
        let sources = training::Sources::load(&config).unwrap();
        let (folder, silent) = (tempfile::tempdir().unwrap(), training::progress::Progress::silent());
        let zoo =
            training::stages::zoo::build(&config, &sources, folder.path(), &silent, training::Keep::nothing()).unwrap();
        let device = candle_core::Device::Cpu;
        training::stages::generator::train(&config, &zoo, &sources, &device, &silent, training::Keep::nothing())
            .unwrap()
            .bundle
    })
}

pub const CONFIG: &str = r#"
    name = "tiny"
    [data]
    sources = [{ name = "digits", from = "digits" }]
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 6
    orders = 2
    [architecture]
    kind = "mlp"
    hidden = [6]
    [zoo]
    epochs = 2
    [vae]
    hidden = [16]
    latent = [8]
    steps = 5
    batch = 8
    [encoder]
    images = 2
    width = 8
    heads = 2
    token_dim = 4
    embedding_dim = 6
    steps = 2
    batch = 8
    [denoiser]
    kind = "mlp"
    width = 16
    blocks = 2
    [diffusion]
    steps = 2
    batch = 8
    timesteps = 50
"#;
