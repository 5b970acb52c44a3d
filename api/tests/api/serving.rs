//! Serving over a real socket: what `oneshot` cannot show.

use std::time::{Duration, Instant};

use api::{AppState, AuthSettings, Settings};
use registry::{ArtifactStore, Registry};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{App, runtime};

struct Server {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<api::Result<()>>,
    _folder: tempfile::TempDir,
}

async fn start(pool: PgPool, settings: Settings) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = ArtifactStore::local(folder.path(), pool.clone()).unwrap();
    let state = AppState::new(Registry::new(pool, artifacts), runtime(), settings);
    let listener = TcpListener::bind(state.settings().bind).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(api::serve(listener, state, async {
        let _ = stopped.await;
    }));
    Server { address, stop, task, _folder: folder }
}

fn settings() -> Settings {
    let auth = AuthSettings { open: true, ..AuthSettings::default() };
    Settings { bind: "127.0.0.1:0".parse().unwrap(), auth, ..Settings::default() }
}

/// Sends a request that asks to close the connection; gives status and body.
async fn exchange(server: &Server, head: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("{head}Host: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap_or_default())
}

#[sqlx::test(migrations = "../migrations")]
async fn a_client_that_sends_too_much_gets_to_read_the_answer(pool: PgPool) {
    let server = start(pool, Settings { body_limit: 1 << 20, ..settings() }).await;
    let body = vec![b' '; 6 << 20];
    let head = "POST /v1/generations HTTP/1.1\r\nContent-Type: application/json\r\n";
    let (status, problem) = exchange(&server, head, &body).await;
    assert_eq!((status, problem["code"].as_str()), (413, Some("body_too_large")), "{problem}");
}

#[sqlx::test(migrations = "../migrations")]
async fn it_stops_when_told_and_with_a_connection_open(pool: PgPool) {
    let server = start(pool, Settings { grace: Duration::from_millis(200), ..settings() }).await;
    let (status, live) = exchange(&server, "GET /health/live HTTP/1.1\r\n", b"").await;
    assert_eq!((status, &live["status"]), (200, &json!("live")));
    // A request that never ends.
    let mut stuck = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    stuck.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let start = Instant::now();
    server.stop.send(()).unwrap();
    server.task.await.unwrap().unwrap();
    assert!((Duration::from_millis(150)..Duration::from_secs(5)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[sqlx::test(migrations = "../migrations")]
async fn a_closed_connection_stops_the_work(pool: PgPool) {
    let app = App::new(pool.clone());
    app.publish("digits").await;
    let dataset = app.digits().await;
    let artifacts = app.registry.clone();
    let one = Settings { workers: 1, queue: 0, ..settings() };
    let listener = TcpListener::bind(one.bind).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(api::serve(listener, AppState::new(artifacts, runtime(), one), std::future::pending()));
    let server = Server { address, stop: oneshot::channel().0, task, _folder: tempfile::tempdir().unwrap() };
    let head = "POST /v1/generations HTTP/1.1\r\nContent-Type: application/json\r\n";
    let body = json!({"generator": "digits", "dataset": {"id": dataset.id, "classes": ["3", "1", "4"]}, "steps": 1});
    let quick = body.to_string();
    assert_eq!(exchange(&server, head, quick.as_bytes()).await.0, 201);
    let long = app.long_request(dataset.id).await.to_string();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head_long = format!("{head}Host: localhost\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    stream.write_all(head_long.as_bytes()).await.unwrap();
    // It needs a moment to take the only place.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(exchange(&server, head, quick.as_bytes()).await.0, 429);
    drop(stream);
    let freed = async {
        while exchange(&server, head, quick.as_bytes()).await.0 == 429 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the place comes back");
    let most: i64 =
        sqlx::query_scalar("SELECT max(n) FROM (SELECT count(*) AS n FROM samples GROUP BY generation_id) s")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(most, 1, "nothing is stored for a client that is gone");
    server.task.abort();
}
