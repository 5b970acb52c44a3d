//! Entity tags, HEAD, ranges, compression, CORS and metrics.

use api::Settings;
use axum::body::Body;
use axum::http::{Method, Request, header};
use serde_json::json;
use sqlx::PgPool;

use crate::support::App;

#[sqlx::test(migrations = "../migrations")]
async fn json_has_a_strong_entity_tag(pool: PgPool) {
    let app = App::new(pool);
    let dataset = app.digits().await;
    for path in ["/v1/datasets", &format!("/v1/datasets/{}", dataset.id), "/openapi.json", "/v1/generators"] {
        let reply = app.get(path).await;
        let etag = reply.header("etag").to_owned();
        assert!(etag.starts_with('"') && etag.len() == 34, "{path}: {etag}");
        assert_eq!(app.get(path).await.header("etag"), etag, "{path}: the same as before");
        for tags in [etag.clone(), format!("\"x\", {etag}"), format!("W/{etag}"), "*".into()] {
            let none = app.ask(Method::GET, path, &[("if-none-match", &tags)]).await;
            assert_eq!(
                (none.status.as_u16(), none.bytes.len(), none.header("etag")),
                (304, 0, etag.as_str()),
                "{path}"
            );
            assert_eq!(none.header("content-type"), "");
        }
        let other = app.ask(Method::GET, path, &[("if-none-match", "\"x\"")]).await;
        assert_eq!((other.status.as_u16(), &other.bytes), (200, &reply.bytes));
        let head = app.ask(Method::HEAD, path, &[]).await;
        assert_eq!((head.status.as_u16(), head.bytes.len(), head.header("etag")), (200, 0, etag.as_str()), "{path}");
        assert_eq!(head.header("content-length"), reply.bytes.len().to_string(), "{path}");
        assert_eq!(app.ask(Method::HEAD, path, &[("if-none-match", &etag)]).await.status, 304, "{path}");
    }
    let before = app.get("/v1/datasets").await.header("etag").to_owned();
    let body =
        json!({"name": "two", "npz": crate::support::npz(&crate::support::digits().select_classes(&[1, 2]).unwrap())});
    assert_eq!(app.post("/v1/datasets", &body).await.status, 201);
    assert_ne!(app.get("/v1/datasets").await.header("etag"), before, "another body, another tag");
    let missing = app.get("/v1/generators/none").await;
    assert_eq!((missing.status.as_u16(), missing.header("etag")), (404, ""));
}

#[sqlx::test(migrations = "../migrations")]
async fn json_is_compressed_and_files_are_not(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let plain = app.get("/openapi.json").await;
    for encoding in ["gzip", "zstd"] {
        let reply = app.ask(Method::GET, "/openapi.json", &[("accept-encoding", encoding)]).await;
        assert_eq!(reply.header("content-encoding"), encoding);
        assert!(reply.header("vary").to_lowercase().contains("accept-encoding"));
        assert!(reply.bytes.len() < plain.bytes.len() / 4);
        // Another representation has another tag, and either is known.
        let etag = reply.header("etag");
        assert_eq!(etag, format!("{}-{encoding}\"", plain.header("etag").trim_end_matches('"')));
        let none =
            app.ask(Method::GET, "/openapi.json", &[("accept-encoding", encoding), ("if-none-match", etag)]).await;
        assert_eq!(none.status, 304);
    }
    assert_eq!(
        app.ask(Method::GET, "/health/live", &[("accept-encoding", "gzip")]).await.header("content-encoding"),
        ""
    );
    let bundle = "/v1/generators/digits/versions/1/bundle";
    let file = app.ask(Method::GET, bundle, &[("accept-encoding", "gzip, zstd")]).await;
    assert_eq!((file.status.as_u16(), file.header("content-encoding")), (200, ""));
    assert_eq!(file.header("content-length"), file.bytes.len().to_string());
    assert_eq!(file.header("accept-ranges"), "bytes");
}

#[sqlx::test(migrations = "../migrations")]
async fn files_and_ranges(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let path = "/v1/generators/digits/versions/1/bundle";
    let all = app.get(path).await;
    let (size, etag) = (all.bytes.len(), all.header("etag").to_owned());
    let disposition = all.header("content-disposition").to_owned();
    assert_eq!(disposition, "attachment; filename=\"digits-1.tar\"; filename*=UTF-8''digits-1.tar");
    let ask = async |headers: &[(&str, &str)]| app.ask(Method::GET, path, headers).await;
    let part = ask(&[("range", "bytes=5-9")]).await;
    assert_eq!((part.status.as_u16(), &part.bytes[..]), (206, &all.bytes[5..10]));
    assert_eq!(part.header("content-range"), format!("bytes 5-9/{size}"));
    assert_eq!((part.header("content-length"), part.header("etag")), ("5", etag.as_str()));
    // If-Range: the part of what the client has, or all of what there is now.
    assert_eq!(ask(&[("range", "bytes=5-9"), ("if-range", &etag)]).await.status, 206);
    for stale in ["\"other\"", &format!("W/{etag}"), "Tue, 01 Jan 2030 00:00:00 GMT"] {
        let reply = ask(&[("range", "bytes=5-9"), ("if-range", stale)]).await;
        assert_eq!((reply.status.as_u16(), reply.bytes.len()), (200, size), "{stale}");
    }
    // Several ranges are answered with everything.
    let reply = ask(&[("range", "bytes=0-1,5-6")]).await;
    assert_eq!((reply.status.as_u16(), reply.bytes.len()), (200, size));
    let beyond = ask(&[("range", &format!("bytes={size}-"))]).await;
    beyond.problem(416, "range_not_satisfiable");
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    // A range is for GET: HEAD says what all of it would be.
    let head = app.ask(Method::HEAD, path, &[("range", "bytes=5-9")]).await;
    assert_eq!((head.status.as_u16(), head.bytes.len(), head.header("content-range")), (200, 0, ""));
    for name in ["content-length", "etag", "accept-ranges", "content-type", "content-disposition"] {
        assert_eq!(head.header(name), all.header(name), "{name}");
    }
    assert_eq!(app.ask(Method::HEAD, path, &[("if-none-match", &etag)]).await.status, 304);
    assert_eq!(ask(&[("range", "bytes=5-9"), ("if-none-match", &etag)]).await.status, 304, "304 goes first");
}

#[sqlx::test(migrations = "../migrations")]
async fn pages_of_known_origins_may_ask(pool: PgPool) {
    let preflight = |origin: &str| {
        Request::builder()
            .method(Method::OPTIONS)
            .uri("/v1/generations")
            .header(header::ORIGIN, origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,idempotency-key,content-type")
            .body(Body::empty())
            .unwrap()
    };
    let cors_origins = vec!["https://app.example".parse().unwrap()];
    let app = App::with(pool.clone(), Settings { cors_origins, ..Settings::default() });
    let reply = app.send(preflight("https://app.example")).await;
    assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (200, "https://app.example"));
    for name in ["authorization", "idempotency-key", "content-type"] {
        assert!(reply.header("access-control-allow-headers").contains(name), "{name}");
    }
    assert_eq!(app.send(preflight("https://other.example")).await.header("access-control-allow-origin"), "");
    // Errors too are for the page to read.
    let reply = app.ask(Method::GET, "/v1/generators/none", &[("origin", "https://app.example")]).await;
    assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (404, "https://app.example"));
    for name in ["etag", "location", "retry-after", "idempotency-replayed", "x-request-id"] {
        assert!(reply.header("access-control-expose-headers").contains(name), "{name}");
    }
    let closed = App::new(pool);
    let reply = closed.ask(Method::GET, "/health/live", &[("origin", "https://app.example")]).await;
    assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (200, ""));
}

/// One line of the exposition format: name, labels, value.
fn sample(line: &str) -> (&str, Vec<(&str, &str)>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
    let value = match value {
        "+Inf" => f64::INFINITY,
        text => text.parse().unwrap_or_else(|e| panic!("{line}: {e}")),
    };
    let Some((name, labels)) = series.split_once('{') else {
        return (series, Vec::new(), value);
    };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
    let pairs = labels.split("\",").map(|pair| {
        let (name, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        (name, value.trim_end_matches('"'))
    });
    (name, pairs.collect(), value)
}

#[sqlx::test(migrations = "../migrations")]
async fn metrics_are_valid_and_few(pool: PgPool) {
    let app = App::new(pool);
    app.publish("digits").await;
    let dataset = app.digits().await;
    let body = json!({"generator": "digits", "dataset": {"id": dataset.id, "classes": ["3", "1", "4"]}, "steps": 1});
    assert_eq!(app.post("/v1/generations", &body).await.status, 201);
    for n in 0..20 {
        app.get(&format!("/v1/generators/none-{n}")).await;
        app.get(&format!("/nowhere/{n}")).await;
        app.ask(Method::from_bytes(format!("MADEUP{n}").as_bytes()).unwrap(), "/v1/generators", &[]).await;
    }
    let reply = app.get("/metrics").await;
    assert!(reply.header("content-type").starts_with("text/plain; version=0.0.4"), "{}", reply.header("content-type"));
    let text = String::from_utf8(reply.bytes).unwrap();
    let mut types = std::collections::BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "declared twice: {line}");
        } else if !line.starts_with('#') {
            let (name, labels, value) = sample(line);
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(types.contains_key(name) || types.get(family).is_some_and(|t| t == "histogram"), "untyped: {line}");
            assert!(!value.is_nan(), "{line}");
            assert!(seen.insert((name.to_owned(), format!("{labels:?}"))), "twice: {line}");
        }
    }
    for name in [
        "weightsmith_http_requests_total",
        "weightsmith_http_request_duration_seconds",
        "weightsmith_queue_length",
        "weightsmith_queue_wait_seconds",
        "weightsmith_generation_stage_duration_seconds",
        "weightsmith_samples_total",
        "weightsmith_jobs",
        "weightsmith_job_lag_seconds",
        "weightsmith_database_connections",
        "weightsmith_process_resident_memory_bytes",
    ] {
        assert!(types.contains_key(name), "{name} is missing");
    }
    let routes: std::collections::BTreeSet<&str> = text
        .lines()
        .filter(|line| line.starts_with("weightsmith_http_requests_total"))
        .flat_map(|line| sample(line).1)
        .filter(|(name, _)| *name == "route")
        .map(|(_, value)| value)
        .collect();
    assert!(routes.contains("/v1/generators/{name}") && routes.contains("other"), "{routes:?}");
    assert!(!routes.iter().any(|route| route.contains("none-") || route.contains("nowhere")), "{routes:?}");
    assert!(!text.contains("MADEUP"));
    let rss = text.lines().find(|line| line.starts_with("weightsmith_process_resident_memory_bytes")).unwrap();
    assert!(sample(rss).2 > 1e6);
}
