//! Archives of checkpoints, imported by workers: described, sent again, damaged, killed in the middle.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use serde_json::{Value, json};

use crate::site::Site;
use crate::support::data::safetensors;
use crate::support::{files_in, run, text, wait_until, weightsmith};

/// A file of one tensor `w` of two values, as `torch.save({"state_dict": {"w": …}})` writes it.
fn torch(values: [f32; 2]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    let text = |pickle: &mut Vec<u8>, text: &str| {
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
    };
    text(&mut pickle, "state_dict");
    pickle.extend(b"ccollections\nOrderedDict\n)R(");
    text(&mut pickle, "w");
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(&mut pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    text(&mut pickle, "0");
    text(&mut pickle, "cpu");
    pickle.extend(b"K\x02tQK\x00(K\x02t(K\x01t\x89ccollections\nOrderedDict\n)RtRuu.");
    let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let entries: [(&str, &[u8]); 4] = [
        ("archive/data.pkl", &pickle),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &values),
        ("archive/version", b"3\n"),
    ];
    zipped(entries.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())))
}

fn zipped(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    // PyTorch's own files are not compressed.
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in files {
        let bomb = bytes.len() > 1 << 20;
        let method = if bomb { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
        zip.start_file(name, options.compression_method(method)).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn tarred(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Ten safetensors files, ten of PyTorch and a CSV, in a folder.
fn models() -> BTreeMap<String, Vec<u8>> {
    let mut csv = "path,accuracy,loss,dataset,run,epoch,tags\n".to_owned();
    let mut files = BTreeMap::from([("models/README.md".to_owned(), b"about them".to_vec())]);
    for index in 0..20u8 {
        let values = [f32::from(index), 0.5];
        let (name, bytes) = match index % 2 {
            0 => (format!("m{index:02}.safetensors"), safetensors(values)),
            _ => (format!("deep/m{index:02}.pt"), torch(values)),
        };
        csv += &format!("{name},0.{index:02},1.5,cifar10,run-{},{index},odd-{}\n", index / 5, index % 2);
        files.insert(format!("models/{name}"), bytes);
    }
    files.insert("models/checkpoints.csv".into(), csv.into_bytes());
    files
}

impl Site {
    fn empty_zoo(&self, name: &str) -> String {
        let made = self.server.api.post("/v1/zoos", &json!({ "name": name }));
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()["id"].as_str().unwrap().to_owned()
    }

    fn import(&self, zoo: &str, query: &str, archive: Vec<u8>) -> String {
        let reply = self.server.api.post_bytes(&format!("/v1/zoos/{zoo}/imports?{query}"), &[], archive);
        assert_eq!((reply.status, reply.json()["kind"].as_str()), (202, Some("import")), "{}", reply.text());
        reply.header("location").to_owned()
    }

    fn imported(&self, result: &Value) -> Vec<Value> {
        let url = result["url"].as_str().unwrap();
        let (path, zoo) = url.split_once("?zoo=").unwrap();
        let mut all = self.server.api.all(path);
        all.retain(|row| row["zoo_id"] == zoo);
        all
    }

    fn gc(&self) -> Value {
        let args = ["gc", "--json", "--grace", "0s", "--data-dir", text(&self.server.data)];
        let said = run(weightsmith(args).args(["--database-url", self.url()]));
        assert_eq!(said.code, Some(0), "{said:?}");
        serde_json::from_str(&said.out).unwrap()
    }
}

fn counts(result: &Value) -> [u64; 4] {
    ["files", "imported", "already_there", "failed"].map(|name| result["detail"][name].as_u64().unwrap())
}

#[test]
fn an_archive_becomes_checkpoints() {
    let site = Site::open();
    let zoo = site.empty_zoo("outside");
    let job = site.import(&zoo, "key=state_dict", tarred(models()));
    assert_eq!(site.gc()["artifacts"]["count"], 0, "the archive of a job that waits stays");
    let worker = site.worker(&["--queues", "import"]);
    let result = site.result(&job);
    assert_eq!((counts(&result), result["kind"].as_str()), ([20, 20, 0, 0], Some("import")));
    let done = site.job(&job);
    assert_eq!((&done["request"]["key"], &done["request"]["zoo"]), (&json!("state_dict"), &json!(zoo)), "{done}");

    let all = site.imported(&result);
    assert_eq!(all.len(), 20);
    for row in &all {
        let name = row["source"]["name"].as_str().unwrap();
        let index = row["epoch"].as_u64().unwrap();
        let number = format!("m{index:02}.");
        assert!(name.starts_with("models/") && name.contains(&number), "{row}");
        assert_eq!(
            (row["run"].as_str(), row["dataset"].as_str()),
            (Some(&*format!("run-{}", index / 5)), Some("cifar10"))
        );
        assert!((row["accuracy"].as_f64().unwrap() - index as f64 / 100.0).abs() < 1e-6, "{row}");
        assert_eq!((&row["loss"], &row["tags"]), (&json!(1.5), &json!([format!("odd-{}", index % 2)])));
        assert_eq!(row["source"]["key"], "state_dict");
    }
    assert_eq!(site.server.api.all(&format!("/v1/zoos/{zoo}/runs")).len(), 4);
    // One of PyTorch's came out with its values.
    let odd = all.iter().find(|row| row["epoch"] == 7).unwrap();
    let bytes = site.server.api.get(&format!("/v1/checkpoints/{}/file", odd["id"].as_str().unwrap())).bytes;
    assert!(bytes.ends_with(&[7f32.to_le_bytes(), 0.5f32.to_le_bytes()].concat()));

    // The same files in another kind of archive.
    let again = site.import(&zoo, "key=state_dict", zipped(models()));
    assert_eq!(counts(&site.result(&again)), [20, 0, 20, 0]);
    assert_eq!(site.imported(&result).len(), 20);
    drop(worker);
    assert!(site.gc()["artifacts"]["count"].as_u64().unwrap() >= 2, "the archives of jobs that have ended go");
    assert_eq!(files_in(&site.server.data.join("uploads")), [], "nothing is left of the work");
    let fsck = ["fsck", "--deep", "--data-dir", text(&site.server.data)];
    assert_eq!(run(weightsmith(fsck).args(["--database-url", site.url()])).code, Some(0));
}

#[test]
fn bad_files_are_named() {
    let site = Site::open();
    let _worker = site.worker(&[]);
    let mut files: BTreeMap<String, Vec<u8>> =
        (0..5).map(|index| (format!("m{index}.safetensors"), safetensors([index as f32, 1.0]))).collect();
    files.insert("m2-nan.safetensors".into(), safetensors([f32::NAN, 1.0]));
    files.insert("m3-garbage.pt".into(), b"not a checkpoint".to_vec());
    let zoo = site.empty_zoo("strict");
    let job = site.import(&zoo, "", zipped(files.clone()));
    let failed = site.until(&job, "failed", |job| job["finished_at"].is_string());
    assert_eq!((failed["state"].as_str(), failed["attempts"].as_i64()), (Some("failed"), Some(1)), "{failed}");
    let detail = failed["error"]["detail"].as_str().unwrap();
    assert_eq!(failed["error"]["code"], "non_finite", "{failed}");
    assert!(detail.starts_with("m2-nan.safetensors: ") && detail.contains("tensor w"), "{detail}");
    assert!(site.server.api.all("/v1/checkpoints").is_empty(), "a batch is whole or not at all");

    let job = site.import(&zoo, "keep_going=true", zipped(files.clone()));
    let result = site.result(&job);
    assert_eq!(counts(&result), [7, 5, 0, 2]);
    let failures = result["detail"]["failures"].as_array().unwrap();
    let named: Vec<&str> = failures.iter().map(|one| one["file"].as_str().unwrap()).collect();
    assert_eq!(named, ["m2-nan.safetensors", "m3-garbage.pt"]);
    assert!(failures[0]["code"] == "non_finite" && failures[0]["detail"].as_str().unwrap().contains("tensor w"));

    // What only the registry refuses: two files of one epoch of one run.
    files.retain(|name, _| !name.contains('-'));
    files.insert("checkpoints.csv".into(), b"path,run,epoch\nm0.safetensors,a,1\nm1.safetensors,a,1\n".to_vec());
    let zoo = site.empty_zoo("epochs");
    let job = site.import(&zoo, "keep_going=true&defaults=true", tarred(files.clone()));
    let result = site.result(&job);
    assert_eq!(counts(&result), [5, 4, 0, 1], "{result}");
    let one = &result["detail"]["failures"][0];
    assert_eq!((one["file"].as_str(), one["code"].as_str()), (Some("m1.safetensors"), Some("already_exists")));

    for (csv, code, part) in [
        ("path,acuracy\nm0.safetensors,1\n", "csv_invalid", "acuracy"),
        ("path\nm0.safetensors\n", "csv_invalid", "m1.safetensors has no row"),
        ("path\n/etc/passwd\n", "csv_invalid", "/etc/passwd, which is not in the archive"),
        ("path,accuracy\nm0.safetensors,1.5\n", "invalid_value", "row 2"),
    ] {
        files.insert("checkpoints.csv".into(), csv.into());
        let job = site.import(&zoo, "", zipped(files.clone()));
        let failed = site.until(&job, "failed", |job| job["finished_at"].is_string());
        assert_eq!(failed["error"]["code"], code, "{failed}");
        assert!(failed["error"]["detail"].as_str().unwrap().contains(part), "{failed}");
    }
}

#[test]
fn what_is_no_good_archive_is_refused() {
    let site = Site::open();
    let _worker = site.worker(&["--queues", "import", "--unpacked-limit", "4000000"]);
    let zoo = site.empty_zoo("none");
    let send = |query: &str, bytes: Vec<u8>| {
        site.server.api.post_bytes(&format!("/v1/zoos/{zoo}/imports?{query}"), &[], bytes)
    };
    let one = || zipped([("a.safetensors".to_owned(), safetensors([1.0, 2.0]))]);
    for bytes in [Vec::new(), b"garbage".repeat(500), zipped([]), vec![0; 1024], safetensors([1.0, 2.0])] {
        send("", bytes).problem(422, "archive_invalid");
    }
    for (query, status, code) in [
        ("accuracy=2", 422, "invalid_value"),
        ("epoch=-1", 422, "invalid_value"),
        ("run=", 422, "invalid_value"),
        ("dataset=0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", 404, "not_found"),
        ("webhook_url=https://example.org/", 422, "invalid_value"),
        ("deadline=2020-01-01T00:00:00Z", 422, "invalid_value"),
        ("max_attempts=0", 422, "invalid_value"),
        ("acuracy=1", 400, "query_invalid"),
    ] {
        send(query, one()).problem(status, code);
    }
    let nowhere = "/v1/zoos/0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e/imports";
    site.server.api.post_bytes(nowhere, &[], one()).problem(404, "not_found");
    assert!(site.server.api.all("/v1/jobs").is_empty(), "nothing waits");

    let secret = "a secret that nobody sees";
    let headers = [("webhook-secret", secret), ("prefer", "respond-async"), ("idempotency-key", "once")];
    let query = "webhook_url=http://127.0.0.1:9/hook&queue=elsewhere&max_attempts=2&deadline=2100-01-01T00:00:00Z";
    let path = format!("/v1/zoos/{zoo}/imports?{query}");
    let first = site.server.api.post_bytes(&path, &headers, one());
    assert_eq!((first.status, first.header("preference-applied")), (202, "respond-async"), "{}", first.text());
    let job = site.job(first.header("location"));
    let told = (job["webhook_url"].as_str(), job["queue"].as_str(), job["max_attempts"].as_i64());
    assert_eq!(told, (Some("http://127.0.0.1:9/hook"), Some("elsewhere"), Some(2)));
    assert!(job["deadline"].is_string() && !job.to_string().contains(secret), "{job}");
    let again = site.server.api.post_bytes(&path, &headers, one());
    assert_eq!((again.header("location"), again.header("idempotency-replayed")), (first.header("location"), "true"));

    let named = |name: &str, bytes: Vec<u8>| zipped([(name.to_owned(), bytes)]);
    for (archive, code) in [
        (named("a.safetensors", vec![0; 8 << 20]), "limit_exceeded"),
        (named("../a.safetensors", safetensors([1.0, 2.0])), "zip_unsafe_path"),
        (named("README.md", b"nothing".to_vec()), "nothing_to_import"),
        (tarred([("a.pt".to_owned(), vec![7; 5000])])[..2000].to_vec(), "tar_invalid"),
    ] {
        let job = site.import(&zoo, "", archive);
        let failed = site.until(&job, "failed", |job| job["finished_at"].is_string());
        assert_eq!((failed["error"]["code"].as_str(), failed["attempts"].as_i64()), (Some(code), Some(1)), "{failed}");
    }
    assert!(site.server.api.all("/v1/checkpoints").is_empty());
}

#[test]
fn another_worker_goes_on_with_an_import() {
    const FILES: usize = 3000;
    let site = Site::open();
    let zoo = site.empty_zoo("many");
    let files = (0..FILES).map(|index| (format!("m{index:05}.safetensors"), safetensors([index as f32, 1.0])));
    let job = site.import(&zoo, "", tarred(files));
    let mut worker = site.worker(&[]);
    site.until(&job, "in the middle", |job| {
        job["progress"]["stage"] == "import" && job["progress"]["step"].as_u64() > Some(100)
    });
    assert!(worker.kill(), "it was at work");
    let before = site.server.api.all("/v1/checkpoints").len();
    assert!((64..FILES).contains(&before), "killed in the middle: {before}");
    let uploads = site.server.data.join("uploads");
    assert!(!files_in(&uploads).is_empty(), "a killed worker leaves its files");
    let worker = site.worker(&[]);
    let result = site.result(&job);
    assert_eq!(counts(&result), [FILES as u64, FILES as u64, 0, 0], "each counts once, whoever added it");
    let all = site.imported(&result);
    let mut runs: Vec<&str> = all.iter().map(|row| row["run"].as_str().unwrap()).collect();
    runs.sort_unstable();
    let wanted: Vec<String> = (0..FILES).map(|index| format!("m{index:05}")).collect();
    assert_eq!(runs, wanted, "each file once");
    wait_until("its files are gone", crate::site::PATIENCE, || files_in(&uploads).is_empty());

    // An import that is cancelled ends between two batches, and keeps what it has.
    let zoo = site.empty_zoo("cancelled");
    let files = (0..FILES).map(|index| (format!("c{index:05}.safetensors"), safetensors([index as f32, 2.0])));
    let job = site.import(&zoo, "", zipped(files));
    site.until(&job, "at work", |job| job["progress"]["stage"] == "import");
    assert_eq!(site.cancel(&job), 202);
    let ended = site.until(&job, "ended", |job| job["finished_at"].is_string());
    assert_eq!(ended["state"], "cancelled", "{ended}");
    let kept = site.server.api.json(&format!("/v1/zoos/{zoo}"))["checkpoints"].as_u64().unwrap();
    assert!(kept < FILES as u64 && kept.is_multiple_of(64), "{kept}");
    drop(worker);
}
