//! A large file there and back: memory while it comes, and speed beside a plain file server.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use super::child::Server;
use super::figures::median;
use crate::context::say;
use crate::error::{Error, Result};

/// Bytes of a piece of the file on its way to the server.
const PIECE: usize = 1 << 20;
/// Downloads of each server; they take turns.
const ROUNDS: usize = 5;

/// A file that was sent.
pub struct Sent {
    /// Where to fetch it.
    pub url: String,
    /// Its digest.
    pub digest: String,
    /// The most memory the server held meanwhile, in bytes.
    pub peak: u64,
    /// Speed of the upload.
    pub mib_per_second: f64,
}

/// Sends a safetensors file of about `size` bytes, one tensor, as a checkpoint of a zoo made for it.
pub async fn upload(server: &Server, size: u64) -> Result<Sent> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let name = format!("bench-upload-{}", std::process::id());
    let values = size / 4;
    let layout = json!({"params": [{"name": "weight", "dtype": "F32", "shape": [values]}]});
    let url = &server.url;
    post(&http, &format!("{url}/v1/architectures"), &json!({"name": name, "layout": layout})).await?;
    let zoo = post(&http, &format!("{url}/v1/zoos"), &json!({"name": name, "architecture": name})).await?;
    let zoo = zoo["id"].as_str().unwrap_or_default().to_owned();
    let began = Instant::now();
    let (peak, answer) = server
        .peak_during(async {
            let body = reqwest::Body::wrap_stream(content(values));
            let address = format!("{url}/v1/zoos/{zoo}/checkpoints?run=0&epoch=0");
            let sent = http.post(address).header("content-type", "application/octet-stream").body(body).send().await?;
            read(sent).await
        })
        .await;
    let checkpoint = answer?;
    let text = |field: &str| checkpoint[field].as_str().unwrap_or_default().to_owned();
    let mib_per_second = size as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64();
    Ok(Sent { url: format!("{url}{}", text("url")), digest: text("digest"), peak, mib_per_second })
}

async fn post(http: &reqwest::Client, url: &str, body: &Value) -> Result<Value> {
    read(http.post(url).json(body).send().await?).await
}

async fn read(answer: reqwest::Response) -> Result<Value> {
    let status = answer.status();
    let body: Value = answer.json().await?;
    if status.is_success() { Ok(body) } else { Err(Error::Http(format!("the server answered {status}: {body}"))) }
}

/// The file: a header and `values` finite numbers, in pieces that are made as they are sent.
fn content(values: u64) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    let bytes = values * 4;
    let header = json!({"weight": {"dtype": "F32", "shape": [values], "data_offsets": [0, bytes]}}).to_string();
    let padded = header.len().next_multiple_of(8);
    let mut first = (padded as u64).to_le_bytes().to_vec();
    first.extend_from_slice(header.as_bytes());
    first.resize(8 + padded, b' ');
    let piece: Vec<u8> = (0..PIECE / 4).flat_map(|i| (i as f32 * 1e-3).to_le_bytes()).collect();
    let piece = Bytes::from(piece);
    let pieces = (0..bytes.div_ceil(PIECE as u64)).map(move |at| {
        let left = bytes - at * PIECE as u64;
        Ok(piece.slice(..usize::try_from(left).unwrap_or(PIECE).min(PIECE)))
    });
    futures::stream::iter(std::iter::once(Ok(Bytes::from(first))).chain(pieces))
}

/// Speed of our downloads over that of nginx, both of the same file, in turns; `None` when there is no nginx.
pub async fn download_ratio(server: &Server, sent: &Sent, stored: &Path) -> Result<Option<f64>> {
    let hex = sent.digest.trim_start_matches("sha256:");
    let Some((folder, rest)) = hex.split_at_checked(2) else { return Ok(None) };
    let Some(nginx) = Nginx::start(&stored.join("sha256").join(folder))? else { return Ok(None) };
    let theirs = format!("{}/{rest}", nginx.url);
    let http = reqwest::Client::builder().no_proxy().build()?;
    let (mut ours_took, mut theirs_took) = (Vec::new(), Vec::new());
    let _ = fetch(&http, &theirs).await?;
    for _ in 0..ROUNDS {
        ours_took.push(fetch(&http, &sent.url).await?);
        theirs_took.push(fetch(&http, &theirs).await?);
    }
    let (ours, theirs) = (median(ours_took), median(theirs_took));
    say(&format!(
        "download: {:.0} ms, nginx {:.0} ms; serve holds {} MiB",
        ours * 1e3,
        theirs * 1e3,
        server.memory() >> 20
    ));
    Ok(Some(theirs / ours))
}

async fn fetch(http: &reqwest::Client, url: &str) -> Result<f64> {
    let began = Instant::now();
    let answer = http.get(url).send().await?.error_for_status()?;
    let expected = answer.content_length();
    let mut pieces = answer.bytes_stream();
    let mut received = 0;
    while let Some(piece) = pieces.next().await {
        received += piece?.len() as u64;
    }
    if expected.is_some_and(|expected| expected != received) {
        return Err(Error::Http(format!("{url} gave {received} bytes of {expected:?}")));
    }
    Ok(began.elapsed().as_secs_f64())
}

/// A running nginx that serves a folder on loopback.
struct Nginx {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// Starts one, when it is installed.
    fn start(root: &Path) -> Result<Option<Self>> {
        let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
        let root = root.canonicalize().map_err(Error::io(root))?;
        let port = free_port()?;
        let path = folder.path().join("nginx.conf");
        let mut file = std::fs::File::create(&path).map_err(Error::io(&path))?;
        file.write_all(configuration(folder.path(), &root, port).as_bytes()).map_err(Error::io(&path))?;
        let spawned = Command::new("nginx")
            .args(["-p".as_ref(), folder.path(), "-c".as_ref(), path.as_path()])
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(PathBuf::from("nginx"))(error)),
        };
        let nginx = Self { child, url: format!("http://127.0.0.1:{port}"), _folder: folder };
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(Some(nginx));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(Error::Internal("nginx did not begin to serve within 5 seconds".into()))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    let address = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    Ok(address.map_err(Error::io("127.0.0.1"))?.port())
}

/// What a plain file server does best: sendfile, no log. One process, so that it ends with its parent.
fn configuration(folder: &Path, root: &Path, port: u16) -> String {
    let (folder, root) = (folder.display(), root.display());
    format!(
        "daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on;\n\
         client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;\n\
         uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }} }}\n"
    )
}
