//! A database that outlives everyone, a server without a worker, workers that come and go.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use registry::embedded::{self, EmbeddedPostgres};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::http::Server;
use crate::support::{Running, folder, required, text, weightsmith};

/// How long a small training may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub struct Site {
    // Dropped in this order: whoever uses the database before the database.
    pub server: Server,
    url: String,
    data: PathBuf,
    postgres: Option<EmbeddedPostgres>,
    installed: PathBuf,
    database: PathBuf,
    _folder: TempDir,
}

/// An event of a job, as it was streamed.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub id: u64,
    pub kind: String,
    pub data: Value,
}

impl Site {
    pub fn open() -> Self {
        Self::with(&[])
    }

    /// With further arguments of the server.
    pub fn with(args: &[&str]) -> Self {
        let folder = folder();
        let installed = embedded::locate(Some(required("WEIGHTSMITH_POSTGRES").into())).unwrap();
        let (database, data) = (folder.path().join("database"), folder.path().join("data"));
        std::fs::create_dir(&database).unwrap();
        let postgres = EmbeddedPostgres::start(&installed, &database).unwrap();
        let url = postgres.url();
        let own = ["--no-worker", "--database-url", url.as_str()];
        let server = Server::start(&data, &[&own[..], args].concat());
        Self { server, url, data, postgres: Some(postgres), installed, database, _folder: folder }
    }

    /// The database's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops the database for a while.
    pub fn interrupt_database(&mut self, pause: Duration) {
        self.postgres = None;
        std::thread::sleep(pause);
        let postgres = EmbeddedPostgres::start(&self.installed, &self.database).unwrap();
        assert_eq!(postgres.url(), self.url);
        self.postgres = Some(postgres);
    }

    /// A worker that is ready.
    pub fn worker(&self, args: &[&str]) -> Running {
        self.worker_with(args, &[])
    }

    /// A worker whose clock is wrong by this many seconds.
    pub fn worker_with_clock(&self, seconds: i64) -> Running {
        let (source, library) =
            (self.data.join(format!("clock{seconds}.c")), self.data.join(format!("clock{seconds}.so")));
        let code = format!(
            "#define _GNU_SOURCE\n#include <time.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
             int clock_gettime(clockid_t clock, struct timespec *time) {{\n\
             int failed = syscall(SYS_clock_gettime, clock, time);\n\
             if (!failed && clock == CLOCK_REALTIME) time->tv_sec += {seconds};\n\
             return failed;\n}}\n"
        );
        std::fs::write(&source, code).unwrap();
        let mut cc = std::process::Command::new("cc");
        let made = cc.args(["-shared", "-fPIC", "-o", text(&library), text(&source)]).status().unwrap();
        assert!(made.success());
        self.worker_with(&[], &[("LD_PRELOAD", text(&library))])
    }

    fn worker_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Running {
        let mut command = weightsmith(["worker", "--data-dir", text(&self.data), "--database-url", &self.url]);
        command.args(["--snapshot-every", "0.1"]).args(args);
        command.env("WEIGHTSMITH_LOG", "info,sqlx=warn").envs(environment.iter().copied());
        let mut running = Running::start(command);
        running.lines_until("weightsmith works on", PATIENCE);
        running
    }

    /// Asks for a job; gives its address.
    pub fn ask(&self, path: &str, body: &Value) -> String {
        let reply = self.server.api.post(path, body);
        assert_eq!(reply.status, 202, "{}", reply.text());
        let job = reply.json();
        assert_eq!(job["state"], "queued", "{job}");
        let location = reply.header("location").to_owned();
        assert_eq!(location, format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
        location
    }

    pub fn job(&self, location: &str) -> Value {
        self.server.api.json(location)
    }

    /// Waits until a job is as wanted.
    pub fn until(&self, location: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let job = self.job(location);
            if wanted(&job) {
                return job;
            }
            assert!(start.elapsed() < PATIENCE, "not {what}: {job}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a job has succeeded; gives its result.
    pub fn result(&self, location: &str) -> Value {
        let job = self.until(location, "ended", |job| job["finished_at"].is_string());
        assert_eq!(job["state"], "succeeded", "{job}");
        job["result"].clone()
    }

    pub fn cancel(&self, location: &str) -> u16 {
        self.server.api.ask(Method::POST, &format!("{location}/cancel"), &[]).status
    }

    /// Streams events of a job after a number: `most` of them, or all until the stream ends.
    pub fn watch(&self, location: &str, after: Option<u64>, most: usize) -> Vec<Event> {
        watch(&format!("{}{location}/events", self.server.api.base), after, most)
    }

    /// The zoo that the trainings of these tests are on.
    pub fn zoo(&self) -> String {
        let job = self.ask("/v1/zoos", &json!({ "build": config(1) }));
        let _worker = self.worker(&["--queues", "train"]);
        let result = self.result(&job);
        assert_eq!(result["kind"], "zoo");
        let zoo = self.server.api.json(result["url"].as_str().unwrap());
        assert_eq!((zoo["runs"].as_i64(), zoo["checkpoints"].as_i64()), (Some(40), Some(40)));
        result["detail"]["id"].as_str().unwrap().to_owned()
    }

    /// Asks for a training.
    pub fn train(&self, name: &str, zoo: &str, times: usize) -> String {
        let path = format!("/v1/generators/{name}/versions");
        self.ask(&path, &json!({ "zoo": zoo, "config": config(times) }))
    }

    pub fn versions(&self, name: &str) -> Vec<Value> {
        self.server.api.all(&format!("/v1/generators/{name}/versions"))
    }
}

/// The configuration tests/configs/tiny.toml, with this many times the steps.
pub fn config(times: usize) -> Value {
    json!({
        "name": "tiny", "seed": 3,
        "data": { "sources": [{ "name": "digits", "from": "digits" }] },
        "tasks": { "kind": "class_sets", "classes": 3, "seen": 20, "orders": 2 },
        "architecture": { "kind": "mlp", "hidden": [8] },
        "zoo": { "epochs": 10, "batch": 60, "lr": 1e-2, "group": 5 },
        "vae": { "hidden": [32], "latent": [8], "steps": 40 * times, "batch": 16 },
        "encoder": { "images": 2, "width": 16, "heads": 2, "token_dim": 4, "embedding_dim": 8, "steps": 20 * times,
            "batch": 16 },
        "denoiser": { "kind": "mlp", "width": 32, "blocks": 1 },
        "diffusion": { "timesteps": 50, "steps": 40 * times, "batch": 16 },
        "evaluation": { "steps": 5 }
    })
}

pub fn watch(url: &str, after: Option<u64>, most: usize) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let mut request = client.get(url);
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        let mut response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (mut text, mut events) = (String::new(), Vec::new());
        while events.len() < most
            && let Some(chunk) = response.chunk().await.unwrap()
        {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
            while let Some(end) = text.find("\n\n") {
                let block: String = text.drain(..end + 2).collect();
                events.extend(event(&block));
            }
        }
        events.truncate(most);
        events
    })
}

/// `None` for a comment.
fn event(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let data = serde_json::from_str(field("data:")?).unwrap();
    Some(Event { id: field("id:").unwrap().parse().unwrap(), kind: field("event:").unwrap().into(), data })
}
