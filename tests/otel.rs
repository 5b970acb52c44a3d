//! Traces of the real server, at a collector: `cargo test --workspace --features cli/otel --test otel`.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use support::http::Server;
use support::{config, folder, refused, run, text, weightsmith};

/// A collector: the heads and bodies of what it gets, for as long as somebody listens.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, exports) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            std::thread::spawn(move || take(stream, &sender));
        }
    });
    (url, exports)
}

/// Answers the requests of a connection.
fn take(mut stream: TcpStream, sender: &Sender<(String, Vec<u8>)>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
        let mut body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        sender.send((head, body)).ok()?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
            .ok()?;
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The spans of exports: protobuf messages (ExportTraceServiceRequest 1: ResourceSpans 2: ScopeSpans 2: Span).
fn spans(exports: &[(String, Vec<u8>)]) -> Vec<Vec<u8>> {
    let inside = |all: Vec<Vec<u8>>, field: u64| all.iter().flat_map(|bytes| fields(bytes, field)).collect::<Vec<_>>();
    let resources = inside(exports.iter().map(|(_, body)| body.clone()).collect(), 1);
    inside(inside(resources, 2), 2)
}

/// The contents of a message's fields of this number that have a length.
fn fields(mut bytes: &[u8], number: u64) -> Vec<Vec<u8>> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                varint(&mut bytes);
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)).unwrap(),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (content, rest) = bytes.split_at(length);
        if key >> 3 == number && key & 7 == 2 {
            found.push(content.to_vec());
        }
        bytes = rest;
    }
    found
}

/// The first field of this number, of a span.
fn first(span: &[u8], number: u64) -> Vec<u8> {
    fields(span, number).into_iter().next().unwrap_or_default()
}

const TRACE_ID: u64 = 1;
const PARENT: u64 = 4;
const NAME: u64 = 5;

#[test]
fn requests_and_jobs_reach_the_collector_at_the_latest_at_the_end() {
    let (url, exports) = collector();
    let data = folder();
    let mut command = weightsmith(["serve", "--open", "--bind", "127.0.0.1:0", "--data-dir", text(data.path())]);
    // Nothing is sent before the end: what comes was flushed. What is logged has nothing to do with it.
    command.env("OTEL_BSP_SCHEDULE_DELAY", "3600000").env("WEIGHTSMITH_OTLP_ENDPOINT", &url).env("NO_PROXY", "*");
    command.env("WEIGHTSMITH_LOG", "error");
    let mut server = Server::start_with(command, data.path(), &[]);
    let trace = [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
    let parent = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let from = format!("00-{}-{}-01", hex(&trace), hex(&parent));
    let headers = [("traceparent", from.as_str()), ("x-request-id", "asked-once")];
    server.api.ask(Method::GET, "/v1/generators/nothing", &headers).problem(404, "not_found");
    // Not understood: a trace of its own.
    let nonsense = [("traceparent", "nonsense"), ("x-request-id", "asked-twice")];
    assert_eq!(server.api.ask(Method::GET, "/v1/datasets", &nonsense).status, 200);

    let settings: Value = toml::from_str(&std::fs::read_to_string(config("tiny")).unwrap()).unwrap();
    let reply = server.api.post("/v1/zoos", &json!({"build": settings}));
    assert_eq!(reply.status, 202, "{}", reply.text());
    let job = reply.header("location").to_owned();
    let begin = Instant::now();
    while server.api.json(&job)["finished_at"].is_null() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{}", server.running.errors());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(exports.try_recv().is_err(), "nothing is due yet");
    server.running.signal("TERM");
    assert!(server.running.end().success(), "{}", server.running.errors());
    assert_eq!(server.running.errors(), "");

    let exports: Vec<(String, Vec<u8>)> = exports.try_iter().collect();
    assert!(exports.iter().all(|(head, _)| head.starts_with("post /v1/traces ")), "{exports:?}");
    assert!(exports.iter().all(|(_, body)| contains(body, b"weightsmith")), "the service's name");
    let spans = spans(&exports);
    let with =
        |part: &str| spans.iter().find(|span| contains(span, part.as_bytes())).unwrap_or_else(|| panic!("{part}"));
    let asked = with("asked-once");
    assert_eq!((first(asked, TRACE_ID), first(asked, PARENT)), (trace.to_vec(), parent.to_vec()));
    assert_eq!(String::from_utf8(first(asked, NAME)).unwrap(), "GET /v1/generators/{name}");
    for part in ["http.route", "/v1/generators/{name}", "http.request.method", "http.response.status_code"] {
        assert!(contains(asked, part.as_bytes()), "{part}");
    }
    // AnyValue 3: the integer 404.
    assert!(contains(asked, b"http.response.status_code\x12\x03\x18\x94\x03"));
    let own = with("asked-twice");
    assert!(first(own, TRACE_ID) != trace && first(own, TRACE_ID).len() == 16 && first(own, PARENT).is_empty());
    let id = job.rsplit('/').next().unwrap();
    let job = spans.iter().find(|span| first(span, NAME) == b"job").expect("the job's span");
    assert!(contains(job, id.as_bytes()) && contains(job, b"ZooBuild"));
}

#[test]
fn a_collector_that_is_away_holds_up_nothing() {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", probe.local_addr().unwrap());
    drop(probe);
    let data = folder();
    let mut server = Server::start(data.path(), &["--otlp-endpoint", &url]);
    assert_eq!(server.api.get("/v1/datasets").status, 200);
    let begin = Instant::now();
    server.running.signal("TERM");
    assert!(server.running.end().success(), "{}", server.running.errors());
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert!(server.running.errors().contains("Export"), "it is said: {}", server.running.errors());
}

#[test]
fn an_endpoint_is_a_url_of_http() {
    let line = refused(&mut weightsmith(["openapi", "--otlp-endpoint", "localhost:4317"]));
    assert!(line.contains("http://localhost:4318") && line.ends_with("[otlp_endpoint_invalid]"), "{line}");
    let shown =
        run(&mut weightsmith(["serve", "--print-config", "--otlp-endpoint", "http://ann:secret@collector:4318"]));
    assert!(shown.out.contains("otlp_endpoint = \"http://ann:***@collector:4318\""), "{}", shown.out);
}
