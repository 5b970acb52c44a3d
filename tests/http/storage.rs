//! Artifacts and the database under a running server: joining it, collecting, comparing, backing up, and faults.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{GENERATOR, register, registry, samples};
use crate::support::http::Server;
use crate::support::moto::S3;
use crate::support::{files_in, folder, postgres, run, succeed, text, wait_until, weightsmith};

/// A command on a data folder that reports as JSON.
fn report(command: &[&str], data: &Path) -> Value {
    let args = [command, &["--json", "--data-dir", text(data)]].concat();
    serde_json::from_str(&succeed(&args)).unwrap()
}

fn make(server: &Server) -> Value {
    let id = register(server, "digits", 0, 20);
    let dataset = json!({"id": id, "classes": ["5", "0", "9"]});
    server.api.generate(&json!({"generator": GENERATOR, "dataset": dataset, "count": 2, "seed": 2}))
}

fn download(server: &Server, made: &Value) -> Vec<Vec<u8>> {
    let get = |sample: &Value| {
        let file = server.api.get(sample["url"].as_str().unwrap());
        assert_eq!(weights::digest::sha256(&file.bytes), sample["digest"].as_str().unwrap());
        file.bytes
    };
    samples(made).iter().map(get).collect()
}

#[test]
fn commands_join_a_running_server() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let made = make(&server);
    let clean = report(&["fsck", "--deep"], data.path());
    assert_eq!((&clean["problem_count"], &clean["artifacts"]), (&json!(0), &json!(5)), "{clean}");
    let listed = succeed(&["generator", "list", "--data-dir", text(data.path())]);
    assert!(listed.contains(GENERATOR), "{listed}");

    // What nothing refers to, and what is damaged.
    let artifacts = data.path().join("artifacts");
    let orphan = weights::digest::sha256(b"orphan");
    let path = |digest: &str| artifacts.join("sha256").join(&digest[7..9]).join(&digest[9..]);
    std::fs::create_dir_all(path(&orphan).parent().unwrap()).unwrap();
    std::fs::write(path(&orphan), b"orphan").unwrap();
    let dry = report(&["gc", "--dry-run", "--grace", "0"], data.path());
    assert_eq!(dry["orphans"], json!({"count": 1, "bytes": 6}), "{dry}");
    let young = report(&["gc"], data.path());
    assert_eq!(young["orphans"]["count"], 0, "younger than 24 hours: {young}");
    let said = succeed(&["gc", "--grace", "0", "--data-dir", text(data.path())]);
    assert!(said.contains("removed 1 files without a row (6 bytes)"), "{said}");
    assert!(!path(&orphan).exists());
    download(&server, &made);

    let digest = samples(&made)[0]["digest"].as_str().unwrap();
    let good = std::fs::read(path(digest)).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(path(digest), &bad).unwrap();
    let said = run(&mut weightsmith(["fsck", "--deep", "--data-dir", text(data.path())]));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains(&format!("content_differs: {digest}")) && said.err.ends_with("[damaged]\n"), "{said:?}");
    std::fs::write(path(digest), &good).unwrap();
    assert_eq!(server.api.get("/health/ready").status, 200, "the server has not noticed anybody");
}

#[test]
fn a_backup_is_restored_to_equal_bytes() {
    let (data, safe, new) = (registry(), folder(), folder());
    let server = Server::start(data.path(), &[]);
    let made = make(&server);
    let before = download(&server, &made);
    let backup = safe.path().join("monday");
    // While the server runs.
    let said = succeed(&["backup", text(&backup), "--data-dir", text(data.path())]);
    assert!(said.starts_with("backed up 5 artifacts"), "{said}");
    drop(server);
    drop(data);

    let restored = new.path().join("data");
    let report_of = report(&["restore", text(&backup)], &restored);
    assert_eq!(report_of["artifacts"], 5, "{report_of}");
    assert_eq!(report(&["fsck", "--deep"], &restored)["problem_count"], 0);
    let server = Server::start(&restored, &[]);
    let path = format!("/v1/generations/{}", made["id"].as_str().unwrap());
    assert_eq!(server.api.json(&path), made);
    assert!(download(&server, &made) == before, "the same bytes");
    let again = run(&mut weightsmith(["restore", text(&backup), "--data-dir", text(&restored)]));
    assert!(again.code == Some(2) && again.err.contains("[data_directory_busy]"), "{again:?}");
    drop(server);
    let again = run(&mut weightsmith(["restore", text(&backup), "--data-dir", text(&restored)]));
    assert!(again.code == Some(2) && again.err.contains("tables already"), "{again:?}");
}

/// Killed while a request's body comes in, at another moment each time.
#[test]
fn a_server_killed_in_an_upload_leaves_no_row() {
    let data = registry();
    let mut server = Server::start(data.path(), &[]);
    let before = server.api.all("/v1/datasets");
    let zip = crate::support::data::zip(&crate::support::data::some_digits(&[1, 2, 3], 0, 100));
    for wait in [0, 30, 150] {
        let client = begin_upload(&server, zip.len() * 3);
        (&client).write_all(&zip).unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        server.running.signal("KILL");
        server.running.end();
        wait_until("PostgreSQL ends with the server", Duration::from_secs(20), || postgres(data.path()).is_empty());
        // As an upload that was being written to the store leaves it.
        let incoming = data.path().join("artifacts/incoming");
        std::fs::create_dir_all(&incoming).unwrap();
        std::fs::write(incoming.join(format!("{wait}#1")), b"cut off").unwrap();
        server = Server::start(data.path(), &[]);
    }
    assert_eq!(server.api.all("/v1/datasets"), before);
    assert_eq!(files_in(&data.path().join("uploads")), [], "what came in went with the process");
    let swept = report(&["gc", "--grace", "0"], data.path());
    assert_eq!(swept["incoming"], json!({"count": 3, "bytes": 21}), "{swept}");
    assert_eq!(report(&["fsck", "--deep"], data.path())["problem_count"], 0);
    assert_eq!(files_in(&data.path().join("artifacts/incoming")), []);
}

/// The head of an upload of a zip.
fn begin_upload(server: &Server, length: usize) -> TcpStream {
    let address = server.api.base.trim_start_matches("http://").to_owned();
    let mut client = TcpStream::connect(&address).unwrap();
    let head = format!(
        "POST /v1/datasets/upload?name=cut&format=zip HTTP/1.1\r\nhost: {address}\r\n\
         content-type: application/octet-stream\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes()).unwrap();
    client
}

/// The kernel answers to a write beyond a file's largest size as to one on a full disk.
#[test]
fn a_full_disk_in_an_upload_is_told_and_leaves_nothing() {
    let data = registry();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f $((48 * 2048)); exec \"$0\" \"$@\""]);
    let server = Server::start_by(command, data.path(), &[]);
    let before = server.api.all("/v1/datasets");
    let mut client = begin_upload(&server, 64 << 20);
    let megabyte = vec![7; 1 << 20];
    // The server answers before it has read all.
    while client.write_all(&megabyte).is_ok() {}
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client, &mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 507 ") && answer.contains("storage_full"), "{answer:?}");
    assert_eq!(server.api.all("/v1/datasets"), before);
    assert_eq!(files_in(&data.path().join("uploads")), []);
    make(&server);
    assert_eq!(report(&["fsck", "--deep"], data.path())["problem_count"], 0, "it goes on");
}

/// Artifacts in a bucket, with all settings from the environment; no artifact touches the disk.
#[test]
fn a_registry_in_a_bucket() {
    let (data, s3) = (folder(), S3::start("models"));
    let endpoint = format!("http://{}", s3.address);
    let bundle = data.path().join("bundle.tar");
    std::fs::write(&bundle, &super::trained().tar).unwrap();
    let set = |mut command: Command| {
        command.env("WEIGHTSMITH_ARTIFACTS", "s3://models/team").env("WEIGHTSMITH_S3_ENDPOINT", &endpoint);
        command.env("WEIGHTSMITH_S3_ALLOW_HTTP", "true").env("AWS_ACCESS_KEY_ID", "key");
        command.env("AWS_SECRET_ACCESS_KEY", "a secret");
        command
    };
    let command = |args: &[&str]| set(weightsmith([args, &["--data-dir", text(data.path())]].concat()));
    let imported = run(&mut command(&["generator", "import", text(&bundle)]));
    assert_eq!(imported.code, Some(0), "{imported:?}");
    let server = Server::start_with(command(&["serve", "--open", "--bind", "127.0.0.1:0"]), data.path(), &[]);
    let made = make(&server);
    let url = samples(&made)[1]["url"].as_str().unwrap();
    let part = server.api.ask(reqwest::Method::GET, url, &[("range", "bytes=10-99")]);
    assert_eq!((part.status, &part.bytes[..]), (206, &download(&server, &made)[1][10..100]));
    let checked = run(&mut command(&["fsck", "--deep"]));
    assert!(checked.code == Some(0) && checked.out.contains("5 artifacts"), "{checked:?}");
    let swept = run(&mut command(&["gc", "--grace", "0"]));
    assert!(swept.out.contains("0 bytes in all"), "{swept:?}");
    assert!(!data.path().join("artifacts").exists());
    let shown = run(&mut command(&["serve", "--print-config"]));
    assert!(shown.out.contains("s3://models/team") && !shown.out.contains("a secret"), "{shown:?}");
    let refused = run(command(&["fsck"]).env("WEIGHTSMITH_S3_ALLOW_HTTP", "false"));
    assert!(refused.code == Some(2) && refused.err.contains("--s3-allow-http"), "{refused:?}");
    let refused = run(command(&["fsck"]).env("WEIGHTSMITH_ARTIFACTS", "gs://models"));
    assert!(refused.code == Some(2) && refused.err.contains("s3://bucket"), "{refused:?}");
}

/// PostgreSQL is killed, and then shut down, while clients register datasets and read: every answer is a success or a clean 503,
/// the server goes on by itself, and what was answered with 201 is there.
#[test]
fn postgres_killed_under_load_comes_back() {
    let data = registry();
    let server = Server::start(data.path(), &[]);
    let base = server.api.base.clone();
    let began = Instant::now();
    let clients: Vec<_> = (0..3)
        .map(|client| {
            let base = base.clone();
            std::thread::spawn(move || load(&base, client, began))
        })
        .collect();
    for signal in ["-9", "-INT"] {
        std::thread::sleep(Duration::from_secs(2));
        kill_postgres(data.path(), signal);
        std::thread::sleep(Duration::from_secs(4));
    }
    let (mut created, mut unavailable) = (Vec::new(), 0);
    for client in clients {
        let (made, refused) = client.join().unwrap();
        created.extend(made);
        unavailable += refused;
    }
    println!("{} made, {unavailable} unavailable", created.len());
    assert!(created.len() > 5 && unavailable > 0, "{} made, {unavailable} unavailable", created.len());
    wait_until("the server recovers", Duration::from_secs(60), || server.api.get("/health/ready").status == 200);
    let there: Vec<Value> = server.api.all("/v1/datasets").iter().map(|dataset| dataset["id"].clone()).collect();
    for id in &created {
        assert!(there.contains(id), "{id} was answered with 201");
    }
    // Bytes whose row could not be written are garbage, and the only trace.
    report(&["gc", "--grace", "0"], data.path());
    assert_eq!(report(&["fsck", "--deep"], data.path())["problem_count"], 0);
}

/// Ends the postmaster, as the out-of-memory killer or an administrator may.
fn kill_postgres(data: &Path, signal: &str) {
    let elsewhere = std::fs::read_to_string(data.join("postgres/location"));
    let server = elsewhere.map_or_else(|_| data.join("postgres/server"), |path| path.trim().into());
    let pid = std::fs::read_to_string(server.join("cluster/postmaster.pid")).unwrap();
    assert!(Command::new("kill").args([signal, pid.lines().next().unwrap()]).status().unwrap().success());
}

fn load(base: &str, client: usize, began: Instant) -> (Vec<Value>, usize) {
    let api = crate::support::http::Api::new(base.to_owned());
    let (mut created, mut unavailable, mut number) = (Vec::new(), 0, 0);
    while began.elapsed() < Duration::from_secs(14) {
        number += 1;
        let some =
            crate::support::data::some_digits(&[client as u32, 5, 9], number % 80, number % 80 + 2 + number / 80);
        let body = json!({"name": format!("load-{client}-{number}"), "npz": crate::support::data::npz(&some)});
        let reply = api.post("/v1/datasets", &body);
        match reply.status {
            // 200: it was committed although its answer, a 503, could not say so.
            200 | 201 => created.push(reply.json()["id"].clone()),
            503 => {
                assert_eq!(reply.json()["code"], "database_unavailable", "{}", reply.text());
                unavailable += 1;
            }
            other => panic!("{other}: {}", reply.text()),
        }
        let list = api.get("/v1/generators");
        assert!([200, 503].contains(&list.status), "{}", list.text());
    }
    (created, unavailable)
}
