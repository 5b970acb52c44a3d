//! Starting, stopping and configuring the real server, and clients that behave badly.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use datasets::{Data, Dataset};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use support::data::npz;
use support::http::{Api, Server};
use support::{PATIENCE, Running, folder, refused, required, run, succeed, text, weightsmith};

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.api.base.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Runs a statement on the tests' own PostgreSQL.
fn execute(url: &str, sql: String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    });
}

#[test]
fn configuration_is_printed_without_secrets() {
    let mut command = weightsmith(["serve", "--print-config", "--queue", "3"]);
    command.env("DATABASE_URL", "postgres://ann:hunter2@db/x").env("WEIGHTSMITH_MAX_COUNT", "9");
    let said = run(&mut command);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(!said.out.contains("hunter2") && said.out.contains("postgres://ann:***@db/x"), "{}", said.out);
    for line in ["queue = 3  # --queue", "max_count = 9  # WEIGHTSMITH_MAX_COUNT", "timeout = \"5m\"  # default"] {
        assert!(said.out.contains(line), "{line}: {}", said.out);
    }
}

#[test]
fn unknown_variables_and_bad_values_are_refused() {
    let line = refused(weightsmith(["openapi"]).env("WEIGHTSMITH_QUEU", "1"));
    assert!(line.contains("WEIGHTSMITH_QUEU:") && line.contains("use WEIGHTSMITH_QUEUE "), "{line}");
    assert!(line.ends_with("[unknown_variable]"), "{line}");
    #[cfg(not(feature = "otel"))]
    {
        let line = refused(weightsmith(["openapi"]).env("WEIGHTSMITH_OTLP_ENDPOINT", "http://localhost:4318"));
        assert!(line.contains("--features otel") && line.ends_with("[otlp_unsupported]"), "{line}");
    }
    for args in [["--timeout", "soon"], ["--cors-origin", "app.example"], ["--queue", "-1"], ["--log-format", "xml"]] {
        refused(weightsmith(["serve"]).args(args));
    }
}

#[test]
fn the_schema_is_looked_at_and_migrated() {
    let data = folder();
    let db = |args: &[&str]| run(weightsmith(["db"]).args(args).args(["--data-dir", text(data.path())]));
    let said = db(&["status"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.out.contains("no schema; missing: 0001 initial"), "{said:?}");
    let refused =
        run(&mut weightsmith(["serve", "--bind", "127.0.0.1:0", "--no-migrate", "--data-dir", text(data.path())]));
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.err.contains("weightsmith db migrate") && refused.err.contains("[schema_behind]"), "{refused:?}");
    let said = db(&["migrate"]);
    assert!(said.code == Some(0) && said.out.starts_with("from no schema to version"), "{said:?}");
    let said = db(&["status", "--json"]);
    let status: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.code, &status["found"], &status["pending"]), (Some(0), &status["known"], &json!([])));
    let server = Server::start(data.path(), &["--no-migrate"]);
    assert_eq!(server.api.get("/health/ready").status, 200);
}

#[test]
fn live_at_once_and_ready_with_reasons() {
    let data = folder();
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = probe.local_addr().unwrap().to_string();
    drop(probe);
    let running = Running::start(weightsmith(["serve", "--bind", &address, "--data-dir", text(data.path())]));
    let api = Api::new(format!("http://{address}"));
    let begin = Instant::now();
    while TcpStream::connect(&address).is_err() {
        assert!(begin.elapsed() < PATIENCE, "{}", running.errors());
        std::thread::sleep(Duration::from_millis(1));
    }
    // A new private PostgreSQL takes a while: the server answers meanwhile.
    let (live, ready, other) = (api.get("/health/live"), api.get("/health/ready"), api.get("/v1/generators"));
    assert_eq!(live.status, 200);
    let sentence = ready.problem(503, "not_ready");
    assert!(sentence.contains("starting") || sentence.contains("migrates"), "{sentence}");
    assert_eq!((&ready.json()["checks"][0]["ok"], ready.header("retry-after")), (&Value::Bool(false), "1"));
    other.problem(503, "starting");
    while api.get("/health/ready").status != 200 {
        assert!(begin.elapsed() < PATIENCE, "{}", running.errors());
        std::thread::sleep(Duration::from_millis(20));
    }
    // The artifact store goes away: the reason is in the body.
    let artifacts = data.path().join("artifacts");
    std::fs::remove_dir_all(&artifacts).unwrap();
    std::fs::write(&artifacts, "in the way").unwrap();
    let begin = Instant::now();
    let reply = loop {
        let reply = api.get("/health/ready");
        if reply.status == 503 {
            break reply;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "still ready");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(reply.problem(503, "not_ready").contains("artifacts:"), "{}", reply.text());
    assert_eq!(api.get("/health/live").status, 200);
}

#[test]
fn slow_clients_are_ended_and_hold_up_nobody() {
    let data = folder();
    let server = Server::start(data.path(), &["--header-timeout", "1s", "--body-timeout", "1s"]);
    // A head that never ends.
    let mut head = connect(&server);
    head.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    // A body that stops coming.
    let mut body = connect(&server);
    body.write_all(
        b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    )
    .unwrap();
    assert_eq!(server.api.get("/health/live").status, 200);
    let begin = Instant::now();
    let answer = rest(body);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_stalled"), "{answer}");
    rest(head);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // A body in many small pieces, with pauses below the limit, is slow and not stalled.
    let mut slow = connect(&server);
    slow.write_all(b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n")
        .unwrap();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        slow.write_all(b"{ ").unwrap();
    }
    let answer = rest(slow);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("json_malformed"), "{answer}");
}

/// An answer's body, read by `step` bytes with pauses: how long it took, and the bytes.
fn trickle(address: &str, path: &str, step: usize, pause: Duration) -> (Duration, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let (begin, mut answer, mut piece) = (Instant::now(), Vec::new(), vec![0; step]);
    loop {
        let read = stream.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
        std::thread::sleep(pause);
    }
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let text = String::from_utf8_lossy(&answer[..head]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    (begin.elapsed(), answer.split_off(head + 4))
}

#[test]
fn a_download_in_a_trickle_comes_whole_and_holds_up_nobody() {
    let data = folder();
    // More than the sockets' buffers take, and nothing that can be compressed.
    let (examples, side) = (2000usize, 100usize);
    let mut state = 1u64;
    let pixels = (0..examples * side * side).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let labels = (0..examples as u32).map(|at| at % 2).collect();
    let names = vec!["a".to_owned(), "b".to_owned()];
    let noise = Dataset::new("noise", vec![1, side, side], names, Data::U8(pixels.collect()), labels).unwrap();
    // Made before the limits are there: they are for the downloads, and a busy machine needs longer for this.
    let made = {
        let server = Server::start(data.path(), &["--body-limit", "200000000"]);
        server.api.post("/v1/datasets", &json!({"name": "noise", "npz": npz(&noise)}))
    };
    assert_eq!(made.status, 201, "{}", made.text());
    let path = format!("/v1/datasets/{}/file", made.json()["id"].as_str().unwrap());
    let server = Server::start(data.path(), &["--timeout", "1s", "--header-timeout", "1s", "--body-timeout", "1s"]);
    let whole = server.api.get(&path);
    assert!(whole.status == 200 && whole.bytes.len() > 19_000_000, "{} {}", whole.status, whole.bytes.len());

    let address = server.api.base.trim_start_matches("http://");
    let longest = std::thread::scope(|scope| {
        // Many at a time: none takes a thread or a place of the others.
        let slow: Vec<_> =
            (0..8).map(|_| scope.spawn(|| trickle(address, &path, 200_000, Duration::from_millis(60)))).collect();
        let mut longest = Duration::ZERO;
        while slow.iter().any(|reader| !reader.is_finished()) {
            let begin = Instant::now();
            assert_eq!(server.api.get("/v1/datasets").status, 200);
            longest = longest.max(begin.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        for reader in slow {
            let (lasted, bytes) = reader.join().unwrap();
            assert!(lasted > Duration::from_secs(4), "slower than every limit: {lasted:?}");
            assert!(bytes == whole.bytes, "{} of {} bytes", bytes.len(), whole.bytes.len());
        }
        longest
    });
    assert!(longest < Duration::from_secs(2), "another request took {longest:?}");
}

#[test]
fn what_is_under_way_is_finished_at_the_end() {
    let data = folder();
    let mut server = Server::start(data.path(), &["--grace", "20s"]);
    // A request whose body is still coming when the signal comes.
    let mut stream = connect(&server);
    stream
        .write_all(
            b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n",
        )
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    server.running.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    let address = server.api.base.trim_start_matches("http://").to_owned();
    assert!(TcpStream::connect(address).is_err(), "no new connections");
    stream.write_all(b"{}").unwrap();
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("json_invalid"), "{answer}");
    assert!(server.running.end().success());
}

#[test]
fn metrics_on_an_address_of_their_own() {
    let data = folder();
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = probe.local_addr().unwrap().to_string();
    drop(probe);
    let server = Server::start(data.path(), &["--metrics-bind", &address]);
    server.api.get("/metrics").problem(404, "unknown_route");
    let metrics = Api::new(format!("http://{address}"));
    let reply = metrics.get("/metrics");
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("weightsmith_http_requests_total{"), "{}", reply.text());
    metrics.get("/v1/generators").problem(404, "unknown_route");
}

#[test]
fn two_servers_migrate_one_database_at_once() {
    let owner = folder();
    let url = required("DATABASE_URL").into_string().unwrap();
    let name = format!("two_servers_{}", std::process::id());
    execute(&url, format!("CREATE DATABASE {name}"));
    let options: PgConnectOptions = url.parse().unwrap();
    let own = options.database(&name).to_url_lossy().to_string();
    let serve = || {
        let mut command = weightsmith(["serve", "--bind", "127.0.0.1:0", "--data-dir", text(owner.path())]);
        command.env("DATABASE_URL", &own);
        Running::start(command)
    };
    let mut servers = [serve(), serve()];
    for server in &mut servers {
        server.lines_until("weightsmith serves http://", PATIENCE);
    }
    for server in &mut servers {
        server.signal("TERM");
        assert!(server.end().success(), "{}", server.errors());
    }
    let said = succeed(&["db", "status", "--database-url", &own]);
    assert!(said.contains("up to date"), "{said}");
    execute(&url, format!("DROP DATABASE {name}"));
}

/// The whole document, with what it allows and what it does not: no 5xx, and every answer matches its schema.
#[test]
fn every_operation_answers_as_described() {
    let data = folder();
    let server = Server::start(data.path(), &["--queue", "1000"]);
    let mut command = std::process::Command::new(required("WEIGHTSMITH_PYTHON"));
    command.env("PYTHONPATH", required("WEIGHTSMITH_SCHEMATHESIS")).current_dir(data.path()).args([
        "-c",
        "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())",
        "run",
        &format!("{}/openapi.json", server.api.base),
        "--checks=not_a_server_error,response_schema_conformance,content_type_conformance",
        "--phases=examples,coverage,fuzzing",
        "--max-examples=15",
        "--max-time=60",
        "--seed=1",
        "--no-color",
    ]);
    let said = run(&mut command);
    assert_eq!(said.code, Some(0), "{}\n{}\n{}", said.out, said.err, server.running.errors());
    assert!(said.out.contains("Operations:") && !said.out.contains("Selected: 0"), "{}", said.out);
}
