//! How jobs end: cancelled, late, told to a webhook, watched to the last event; and generations that are jobs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::site::{Site, config, watch};

/// A request that a webhook got.
struct Told {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Told {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// Answers one request with each status, in order.
fn webhook(listener: TcpListener, statuses: Vec<u16>) -> std::thread::JoinHandle<Vec<Told>> {
    std::thread::spawn(move || statuses.into_iter().map(|status| answer(&listener, status)).collect())
}

fn answer(listener: &TcpListener, status: u16) -> Told {
    let (mut stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    assert!(lines[0].starts_with("POST /hook "), "{lines:?}");
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let told = Told { headers, body: Vec::new() };
    let mut body = vec![0; told.header("content-length").parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    Told { body, ..told }
}

#[test]
fn cancelled_late_and_told() {
    let site = Site::open();
    let zoo = site.zoo();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let told = webhook(listener, vec![500, 204]);
    let secret = "a secret that nobody sees";
    let path = "/v1/generators/long/versions";
    let body = json!({ "zoo": zoo, "config": config(5000), "job": { "webhook": { "url": url, "secret": secret } } });
    let job = site.ask(path, &body);
    let _worker = site.worker(&[]);
    site.until(&job, "at work", |job| job["progress"]["step"].as_u64() > Some(5));
    let watched = {
        let url = format!("{}{job}/events", site.server.api.base);
        std::thread::spawn(move || watch(&url, None, usize::MAX))
    };
    let asked = Instant::now();
    assert_eq!(site.cancel(&job), 202);
    let ended = site.until(&job, "cancelled", |job| job["finished_at"].is_string());
    assert_eq!(ended["state"], "cancelled");
    assert!(asked.elapsed() < Duration::from_secs(2), "cancelled after {:?}", asked.elapsed());
    assert_eq!(site.cancel(&job), 409, "there is nothing left to cancel");
    assert!(site.server.api.get("/v1/generators/long").status == 404, "nothing was published");

    // The stream ended by itself, with the last event; whoever was cut off anywhere gets the rest.
    let all = watched.join().unwrap();
    assert_eq!(all.last().unwrap().data["state"], "cancelled");
    let seen = all.len().to_string();
    let over = site.server.api.ask(reqwest::Method::GET, &format!("{job}/events"), &[("last-event-id", &seen)]);
    assert_eq!((over.status, over.bytes.len()), (204, 0), "there is no use in coming back");
    for cut in [0, 1, all.len() - 1] {
        let rest = site.watch(&job, Some(cut as u64), usize::MAX);
        assert_eq!(rest, all[cut..], "after {cut}");
    }
    let first = site.watch(&job, None, 2);
    assert_eq!(first, all[..2]);
    let refused = site.server.api.ask(reqwest::Method::GET, &format!("{job}/events"), &[("last-event-id", "x")]);
    refused.problem(400, "header_invalid");

    let told = told.join().unwrap();
    for told in &told {
        let signature = told.header("weightsmith-signature");
        let timestamp = signature.strip_prefix("t=").and_then(|rest| rest.split(',').next()).unwrap().parse().unwrap();
        assert_eq!(signature, registry::jobs::sign(secret, timestamp, &told.body));
        let body: Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!((body["type"].as_str(), body["job"]["state"].as_str()), (Some("job.cancelled"), Some("cancelled")));
    }
    let done = site.until(&job, "delivered", |job| job["deliveries"].as_array().map(Vec::len) == Some(2));
    assert_eq!(
        (done["deliveries"][0]["status"].as_i64(), done["deliveries"][1]["status"].as_i64()),
        (Some(500), Some(204))
    );
    assert!(!done.to_string().contains(secret), "{done}");

    let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(2);
    let late = site.ask(path, &json!({ "zoo": zoo, "config": config(5000), "job": { "deadline": soon } }));
    let late = site.until(&late, "late", |job| job["finished_at"].is_string());
    assert_eq!((late["state"].as_str(), late["error"]["code"].as_str()), (Some("failed"), Some("deadline_exceeded")));
    assert!(late["attempts"] == 1 && late["started_at"].is_string(), "it had begun: {late}");
}

#[test]
fn what_cannot_be_done_is_said_before_it_waits() {
    let site = Site::open();
    let post = |path: &str, body: &Value| site.server.api.post(path, body);
    let mut bad = config(1);
    bad["data"]["sources"][0]["from"] = json!("folder:/etc");
    assert!(post("/v1/zoos", &json!({ "build": bad })).problem(422, "invalid_value").contains("registered:"));
    bad["data"]["sources"][0]["from"] = json!("digits");
    bad["vae"]["steps"] = json!(0);
    assert!(post("/v1/zoos", &json!({ "build": bad })).problem(422, "invalid_value").contains("vae.steps"));
    post("/v1/zoos", &json!({ "build": config(1), "job": { "max_attempts": 0 } })).problem(422, "invalid_value");
    let past = json!({ "build": config(1), "job": { "deadline": "2020-01-01T00:00:00Z" } });
    post("/v1/zoos", &past).problem(422, "invalid_value");
    let hook = json!({ "url": "file:///etc/passwd", "secret": "long enough" });
    post("/v1/zoos", &json!({ "build": config(1), "job": { "webhook": hook } })).problem(422, "invalid_value");
    post("/v1/generators/x/versions", &json!({ "zoo": "none", "config": config(1) })).problem(404, "not_found");
    assert!(site.server.api.all("/v1/jobs").is_empty(), "nothing waits");

    // A dataset that is not there is found out by the worker, at once and for good.
    let mut absent = config(1);
    absent["data"]["sources"][0]["from"] = json!("registered:none");
    let job = site.ask("/v1/zoos", &json!({ "build": absent }));
    let _worker = site.worker(&[]);
    let failed = site.until(&job, "failed", |job| job["finished_at"].is_string());
    assert_eq!((failed["state"].as_str(), failed["attempts"].as_i64()), (Some("failed"), Some(1)));
    assert_eq!(failed["error"]["code"], "not_found");
}

#[test]
fn generations_and_evaluations_are_jobs() {
    let site = Site::open();
    let zoo = site.zoo();
    let trained = site.train("tiny", &zoo, 1);
    let _worker = site.worker(&["--concurrency", "2"]);
    site.result(&trained);
    let digits = site.server.api.all("/v1/datasets")[0]["id"].clone();
    let dataset = json!({ "id": digits, "classes": ["3", "1", "4"] });
    let body = json!({ "generator": "tiny", "dataset": dataset, "count": 3, "seed": 5 });
    let now = site.server.api.generate(&body);

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let request = client
        .post(format!("{}/v1/generations", site.server.api.base))
        .header("content-type", "application/json")
        .header("prefer", "respond-async, wait=10")
        .body(body.to_string());
    let reply = runtime.block_on(request.send()).unwrap();
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()["preference-applied"]),
        (202, &"respond-async".parse().unwrap())
    );
    let job = reply.headers()["location"].to_str().unwrap().to_owned();
    let result = site.result(&job);
    let later = site.server.api.json(result["url"].as_str().unwrap());
    let digests = |made: &Value| -> Vec<Value> {
        made["samples"].as_array().unwrap().iter().map(|sample| sample["digest"].clone()).collect()
    };
    assert_eq!(digests(&later), digests(&now), "a job makes what an answer at once makes");

    let first = now;
    let mut ranked = json!({ "generator": "tiny", "dataset": dataset, "count": 12, "seed": 5,
        "candidates": ["retrieved", "generated"] });
    let now = site.server.api.generate(&ranked);
    ranked["job"] = json!({});
    let job = site.ask("/v1/generations", &ranked);
    let later = site.server.api.json(site.result(&job)["url"].as_str().unwrap());
    let ranks = |made: &Value| -> Vec<Value> {
        let of = |sample: &Value| json!([sample["digest"], sample["origin"], sample["scores"]]);
        made["samples"].as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!((ranks(&later), &later["distance"]), (ranks(&now), &now["distance"]), "the same candidates win");
    assert!(now["distance"].is_number() && now["rank_by"] == "leave_one_out", "{now}");

    let path = format!("/v1/generations/{}/evaluations", first["id"].as_str().unwrap());
    let job = site.ask(&path, &json!({ "dataset": { "id": digits } }));
    let result = site.result(&job);
    let evaluation = site.server.api.json(result["url"].as_str().unwrap());
    assert_eq!(evaluation["samples"].as_array().unwrap().len(), 3);
    assert_eq!(evaluation["classes"], json!(["3", "1", "4"]));
    let with_evaluation = json!({ "generator": "tiny", "dataset": dataset, "count": 3, "seed": 5,
        "evaluation": { "id": digits, "classes": ["3", "1", "4"] } });
    let expected = site.server.api.generate(&with_evaluation);
    for (measured, sample) in
        evaluation["samples"].as_array().unwrap().iter().zip(expected["samples"].as_array().unwrap())
    {
        let (a, b) = (measured["accuracy"].as_f64().unwrap(), sample["accuracy"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-6, "{measured} {sample}");
    }
    assert_eq!(site.server.api.all(&path).len(), 1);
}
