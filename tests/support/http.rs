//! A server, and a client of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{PATIENCE, Running, files_in, postgres, text, weightsmith};

/// `weightsmith serve` on a port of its own.
pub struct Server {
    pub running: Running,
    pub api: Api,
    pub data: PathBuf,
}

/// A client of the API.
pub struct Api {
    pub base: String,
    /// Shown with every request.
    pub token: Option<String>,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

/// What a server has stored: generations, datasets and generators by its lists, and the files of its artifacts.
#[derive(Debug, PartialEq)]
pub struct Stored {
    lists: Vec<(&'static str, Vec<Value>)>,
    files: Vec<(PathBuf, u64)>,
}

impl Server {
    /// Serves a data folder in open mode, with further arguments.
    pub fn start(data: &Path, args: &[&str]) -> Self {
        Self::closed(data, &[&["--open"], args].concat())
    }

    /// Serves a data folder to those who have a token, with further arguments.
    pub fn closed(data: &Path, args: &[&str]) -> Self {
        Self::start_with(weightsmith(["serve", "--bind", "127.0.0.1:0", "--data-dir", text(data)]), data, args)
    }

    /// As [`Server::start`], as the command of another, such as a shell that sets limits.
    pub fn start_by(mut command: std::process::Command, data: &Path, args: &[&str]) -> Self {
        let server = weightsmith(["serve", "--open", "--bind", "127.0.0.1:0", "--data-dir", text(data)]);
        command.arg(server.get_program()).args(server.get_args());
        for (name, value) in server.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Self::start_with(command, data, args)
    }

    /// As [`Server::start`], by a command that is made already.
    pub fn start_with(mut command: std::process::Command, data: &Path, args: &[&str]) -> Self {
        command.args(args);
        let mut running = Running::start(command);
        let line = running.lines_until("weightsmith serves http://", PATIENCE).pop().unwrap_or_default();
        let address = line.split_whitespace().find(|word| word.starts_with("http://"));
        let base = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Self { running, api: Api::new(base), data: data.to_owned() }
    }

    pub fn stored(&self) -> Stored {
        let lists = ["/v1/generations", "/v1/datasets", "/v1/generators"];
        Stored {
            lists: lists.iter().map(|path| (*path, self.api.all(path))).collect(),
            files: files_in(&self.data.join("artifacts")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let killed = self.running.kill();
        // Its PostgreSQL still writes while it ends, and the folder is about to be removed.
        let deadline = Instant::now() + PATIENCE;
        while killed && !postgres(&self.data).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Stored {
    /// Numbers of generations, datasets, generators and files.
    pub fn counts(&self) -> [usize; 4] {
        [self.lists[0].1.len(), self.lists[1].1.len(), self.lists[2].1.len(), self.files.len()]
    }
}

impl Api {
    pub fn new(base: String) -> Self {
        // What the environment says of proxies is not for loopback.
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { base, token: None, client, runtime }
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        self.runtime.block_on(async {
            let response = request.send().await.unwrap();
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Reply { status, headers, bytes: response.bytes().await.unwrap().to_vec() }
        })
    }

    pub fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let request = self.client.request(method, url);
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask(Method::GET, path, &[])
    }

    /// The JSON of a GET that must succeed.
    pub fn json(&self, path: &str) -> Value {
        let reply = self.get(path);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, body.to_string())
    }

    pub fn post_text(&self, path: &str, body: String) -> Reply {
        let request = self.client.post(format!("{}{path}", self.base)).header("content-type", "application/json");
        self.send(request.body(body))
    }

    pub fn post_bytes(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Reply {
        let request = self.client.post(format!("{}{path}", self.base)).body(body);
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    }

    /// A generation that must succeed.
    pub fn generate(&self, body: &Value) -> Value {
        let reply = self.post("/v1/generations", body);
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }

    /// All items of a list.
    pub fn all(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut query = "limit=200".to_owned();
        loop {
            let page = self.json(&format!("{path}?{query}"));
            items.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(cursor) => query = format!("limit=200&cursor={cursor}"),
                None => return items,
            }
        }
    }
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that this is a problem of the status and code with a sentence for its reader; gives the sentence.
    pub fn problem(&self, status: u16, code: &str) -> String {
        let problem = self.json();
        assert_eq!((self.status, problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        let detail = problem["detail"].as_str().unwrap_or_default().to_owned();
        let is_sentence = detail.split_whitespace().count() >= 4 && !detail.contains('\n');
        assert!(is_sentence && !problem["title"].as_str().unwrap_or_default().is_empty(), "{problem}");
        detail
    }
}
