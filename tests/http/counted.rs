//! What a server counts of its work.

use serde_json::{Value, json};

use super::{GENERATOR, registry};
use crate::support::data::{npz, some_digits};
use crate::support::http::Server;

/// The value of a metric with exactly these labels; 0 when it is not there.
pub fn metric(server: &Server, name: &str) -> f64 {
    let text = server.api.get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[test]
fn bytes_and_batches_are_counted_where_they_happen() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let received = |route: &str| {
        let name = format!("weightsmith_http_request_body_bytes_total{{method=\"POST\",route=\"{route}\"}}");
        metric(&server, &name)
    };
    let batches = |what: &str| metric(&server, &format!("weightsmith_generation_batch_{what}"));
    assert_eq!((received("/v1/datasets"), batches("samples_count")), (0.0, 0.0));
    let all: Vec<u32> = (0..10).collect();
    let body = json!({"name": "digits", "npz": npz(&some_digits(&all, 0, 20))});
    let id: Value = server.api.post("/v1/datasets", &body).json()["id"].clone();
    assert_eq!(received("/v1/datasets"), body.to_string().len() as f64);
    // What is refused came too.
    assert_eq!(server.api.post_text("/v1/datasets", "{".repeat(1000)).status, 400);
    assert_eq!(received("/v1/datasets"), (body.to_string().len() + 1000) as f64);

    // 5 steps of each sample, in runs of at most 64 of them.
    let body = json!({"generator": GENERATOR, "dataset": {"id": id, "classes": ["5", "0", "9"]}, "count": 70});
    server.api.generate(&body);
    assert_eq!(received("/v1/generations"), body.to_string().len() as f64);
    let runs = batches("samples_count");
    assert_eq!((batches("samples_sum"), batches("samples_bucket{le=\"64\"}")), (70.0 * 5.0, runs));
    assert!(runs >= 70.0 * 5.0 / 64.0);
    for (stage, count) in [("sample", runs), ("decode", 2.0)] {
        assert_eq!(batches(&format!("duration_seconds_count{{stage=\"{stage}\"}}")), count, "{stage}");
        assert!(batches(&format!("duration_seconds_sum{{stage=\"{stage}\"}}")) > 0.0, "{stage}");
    }
}
