//! The whole demo at a small size; that equal seeds give equal generators; that Ctrl-C leaves a zoo that continues.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use support::http::Api;
use support::{
    Running, config, files_in, folder, last_digest, postgres, refused, run, succeed, text, train, wait_until,
    weightsmith,
};

const ARMS: [&str; 7] = ["generated", "zoo", "retrieval", "scratch", "noise", "average", "shuffled"];
const EPOCHS: [&str; 3] = ["epoch_0", "epoch_1", "epoch_5"];

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("not an object: {value}"))
}

/// Checks that the numbers are all there and are such; gives mean accuracies by set, arm and epoch.
fn check_shape(report: &Value) {
    for set in ["seen", "unseen"] {
        let arms = object(&report[set]);
        assert_eq!(arms.keys().map(String::as_str).collect::<Vec<_>>(), ARMS, "{set}");
        for (arm, epochs) in arms {
            assert_eq!(object(epochs).keys().map(String::as_str).collect::<Vec<_>>(), EPOCHS, "{set} {arm}");
            for (epoch, numbers) in object(epochs) {
                let number = |key: &str| numbers[key].as_f64().unwrap_or_else(|| panic!("{set} {arm} {epoch} {key}"));
                let (mean, std) = (number("mean"), number("std"));
                assert!((0.0..=1.0).contains(&mean) && (0.0..=0.5).contains(&std), "{set} {arm} {epoch}: {mean} {std}");
            }
        }
    }
    for key in ["seconds", "peak_rss_mib", "generation_p50_ms"] {
        assert!(report[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {}", report[key]);
    }
    // A private server and libraries of tens of MiB are in it, a machine's memory is not.
    assert!((20.0..4096.0).contains(&report["peak_rss_mib"].as_f64().unwrap()), "{report}");
}

fn mean(report: &Value, set: &str, arm: &str, epoch: usize) -> f64 {
    report[set][arm][format!("epoch_{epoch}")]["mean"].as_f64().unwrap()
}

/// What the method claims, with room for the small size.
fn check_claims(report: &Value) {
    for set in ["seen", "unseen"] {
        let at = |arm: &str, epoch: usize| mean(report, set, arm, epoch);
        let all: Vec<String> = ARMS.iter().map(|arm| format!("{arm} {:.3}", at(arm, 0))).collect();
        let claim = |holds: bool, what: &str| assert!(holds, "{set}: {what}: {}", all.join(", "));
        claim(at("zoo", 0) > 0.95, "the zoo's models work");
        claim(at("generated", 0) > 0.85, "generated weights work at once");
        claim(at("scratch", 0) < 0.5, "untrained weights are near chance");
        claim(at("shuffled", 0) < 0.55, "weights for another task are near chance");
        claim(at("generated", 0) > at("scratch", 0) + 0.35, "generated is far above scratch");
        claim(at("generated", 0) > at("shuffled", 0) + 0.35, "generated is far above shuffled");
        claim(at("generated", 1) > at("scratch", 1) + 0.2, "generated is above scratch after an epoch");
        claim(at("generated", 5) > 0.9, "fine-tuned, generated weights are good");
        claim(at("scratch", 5) > at("scratch", 0) + 0.2, "fine-tuning trains");
    }
    assert!(
        mean(report, "unseen", "generated", 0) > mean(report, "unseen", "average", 0),
        "above the average of models"
    );
}

/// The address and the commands in what the demo says at its end.
fn last_words(lines: &[String]) -> (String, Vec<String>) {
    let mut words = lines.iter().flat_map(|line| line.split_whitespace());
    let address = words.find(|word| word.starts_with("http://")).unwrap().to_owned();
    let curls = lines.iter().filter(|line| line.trim_start().starts_with("curl ")).cloned().collect();
    (address, curls)
}

#[test]
fn the_whole_demo() {
    let place = folder();
    let (data, json) = (place.path().join("demo"), place.path().join("out/demo.json"));
    let args = ["demo", "--config", &config("small-digits"), "--data-dir", text(&data), "--json", text(&json)];
    let began = Instant::now();
    let mut demo = Running::start(weightsmith(args));
    wait_until("PostgreSQL runs in the demo's folder", Duration::from_secs(300), || !postgres(&data).is_empty());
    let mut lines = demo.lines_until("curl -s http", Duration::from_secs(300));
    let status = demo.end();
    let took = began.elapsed();
    assert_eq!(status.code(), Some(0), "{}", demo.errors());
    assert_eq!(postgres(&data), Vec::<u32>::new(), "all its processes ended with it");
    lines.extend(demo.rest());

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    check_shape(&report);
    check_claims(&report);
    let seconds = report["seconds"].as_f64().unwrap();
    assert!(seconds <= took.as_secs_f64() && seconds > 0.3 * took.as_secs_f64(), "{seconds} s of {took:?}");
    let files: Vec<_> = files_in(json.parent().unwrap()).into_iter().map(|(path, _)| path).collect();
    assert_eq!(files, [json], "nothing half-written beside it");

    // The table says the same.
    let table = lines.join("\n");
    for (set, arm) in ["seen", "unseen"].iter().flat_map(|set| ARMS.map(|arm| (*set, arm))) {
        let cell = format!("{:.1} ± ", 100.0 * mean(&report, set, arm, 0));
        let row = |line: &&String| line.starts_with(arm) && line.contains(&cell);
        assert!(lines.iter().any(|line| row(&line)), "{set} {arm} {cell}: {table}");
    }
    let (address, curls) = last_words(&lines);
    assert_eq!(curls.len(), 3, "{table}");
    assert!(curls.iter().all(|line| line.contains(&address)), "{address}: {curls:?}");
    let port = address.trim_start_matches("http://");
    assert!(std::net::TcpStream::connect(port).is_err(), "{address} still answers");

    // What it leaves serves on.
    let server = support::http::Server::start(&data, &[]);
    let generations = server.api.all("/v1/generations");
    assert!(generations.len() > 24, "the demo's requests are recorded: {}", generations.len());
    assert_eq!(server.api.json("/v1/generators/small-digits")["name"], "small-digits");
}

/// Runs a command that the demo prints. There may be no `curl` on the machine, so its meaning is taken, not the
/// program: `-d BODY` posts JSON, and the last word is the URL.
fn run_curl(api: &Api, line: &str) -> support::http::Reply {
    let url = line.split_whitespace().next_back().unwrap().trim_matches('\'');
    let path = url.strip_prefix(&api.base).unwrap_or_else(|| panic!("{url} is not at {}", api.base));
    match line.split_once("-d '") {
        Some((_, rest)) => api.post(path, &serde_json::from_str(rest.split_once('\'').unwrap().0).unwrap()),
        None => api.get(path),
    }
}

#[test]
fn a_served_demo_answers_its_own_commands() {
    let data = folder();
    let args = ["demo", "--config", &config("tiny"), "--data-dir", text(data.path()), "--serve"];
    // A proxy, as on many a machine; and an empty variable is one that is not set.
    let mut command = weightsmith(args);
    command.env("HTTP_PROXY", "http://127.0.0.1:1").env("http_proxy", "http://127.0.0.1:1").env("DATABASE_URL", "");
    let mut demo = Running::start(command);
    let lines = demo.lines_until("Serving until Ctrl-C", Duration::from_secs(300));
    let (address, curls) = last_words(&lines);
    let mut api = Api::new(address);
    assert_eq!(curls.len(), 3, "{curls:?}");
    api.get("/v1/generators").problem(401, "token_missing");
    let token = curls[0].split_once("authorization: Bearer ").unwrap().1.split_once('\'').unwrap().0;
    assert!(curls.iter().all(|line| line.contains(token)), "{curls:?}");
    api.token = Some(token.to_owned());
    let [generator, generation, file] = [0, 1, 2].map(|n| run_curl(&api, &curls[n]));
    assert_eq!((generator.status, &generator.json()["name"]), (200, &Value::from("tiny")), "{}", curls[0]);
    assert_eq!(generation.status, 201, "{}: {}", curls[1], generation.text());
    assert_eq!((file.status, file.header("content-type")), (200, "application/vnd.safetensors"), "{}", curls[2]);
    assert!(weights::tensors::metadata(&file.bytes).unwrap().contains_key("generator"));
    assert!(!postgres(data.path()).is_empty());
    demo.signal("INT");
    assert_eq!(demo.end().code(), Some(0), "{}", demo.errors());
    assert_eq!(postgres(data.path()), Vec::<u32>::new(), "all its processes ended with it");
}

#[test]
fn an_interrupted_demo_ends_with_all_its_processes() {
    let data = folder();
    let args = ["demo", "--config", &config("small-digits"), "--data-dir", text(data.path())];
    let mut demo = Running::start(weightsmith(args));
    let zoo = data.path().join("zoos");
    wait_until("the zoo is begun", Duration::from_secs(120), || !files_in(&zoo).is_empty());
    assert!(!postgres(data.path()).is_empty());
    demo.signal("INT");
    assert_eq!(demo.end().code(), Some(130), "{}", demo.errors());
    assert!(demo.errors().trim_end().ends_with("[interrupted]"), "{}", demo.errors());
    assert_eq!(postgres(data.path()), Vec::<u32>::new(), "all its processes ended with it");
}

#[test]
fn equal_seeds_give_equal_generators() {
    let (first, second) = (folder(), folder());
    let (a, digest_a) = train("tiny", first.path());
    let (b, digest_b) = train("tiny", second.path());
    assert_eq!(digest_a, digest_b);
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    // The digest is not that of the settings alone.
    let other = second.path().join("other.toml");
    let changed = std::fs::read_to_string(config("tiny")).unwrap().replace("seed = 3", "seed = 4");
    std::fs::write(&other, changed).unwrap();
    let zoo = second.path().join("other-zoo");
    let said = succeed(&["zoo", "build", "--config", text(&other), "--out", text(&zoo)]);
    let said_before = succeed(&["zoo", "build", "--config", &config("tiny"), "--out", text(&first.path().join("zoo"))]);
    assert_ne!(last_digest(&said), last_digest(&said_before));
}

#[test]
fn an_interrupted_zoo_continues() {
    let place = folder();
    // Many groups that take a moment each, so that there is a middle to interrupt.
    let settings = std::fs::read_to_string(config("tiny")).unwrap();
    let settings = settings.replace("epochs = 10", "epochs = 400").replace("group = 5", "group = 2");
    let file = place.path().join("long.toml");
    std::fs::write(&file, &settings).unwrap();
    let build = |zoo: &Path| weightsmith(["zoo", "build", "--config", text(&file), "--out", text(zoo)]);
    let groups = |zoo: &Path| files_in(zoo).iter().filter(|(path, _)| text(path).ends_with(".safetensors")).count();
    let whole = place.path().join("whole");
    let said = run(&mut build(&whole));
    assert_eq!((said.code, groups(&whole)), (Some(0), 20), "{said:?}");

    let zoo = place.path().join("interrupted");
    let mut running = Running::start(build(&zoo));
    wait_until("a group is finished", Duration::from_secs(60), || groups(&zoo) > 0);
    running.signal("INT");
    assert_eq!(running.end().code(), Some(130), "{}", running.errors());
    assert!(running.errors().trim_end().ends_with("[interrupted]"), "{}", running.errors());
    let finished = groups(&zoo);
    assert!((1..20).contains(&finished), "{finished} of 20 groups");
    assert!(files_in(&zoo).iter().all(|(path, _)| !text(path).ends_with(".part")), "{:?}", files_in(&zoo));
    let line = refused(&mut weightsmith([
        "train",
        "--config",
        text(&file),
        "--zoo",
        text(&zoo),
        "--out",
        text(&place.path().join("no.tar")),
    ]));
    assert!(line.contains("not finished"), "{line}");

    let mut kept = files_in(&zoo);
    kept.retain(|(path, _)| text(path).ends_with(".safetensors"));
    let modified = |path: &Path| path.metadata().unwrap().modified().unwrap();
    let times: Vec<_> = kept.iter().map(|(path, _)| modified(path)).collect();
    assert_eq!(times.len(), finished);
    let again = run(&mut build(&zoo));
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(last_digest(&again.out), last_digest(&said.out));
    assert_eq!(kept.iter().map(|(path, _)| modified(path)).collect::<Vec<_>>(), times, "what was finished stays");
    // And once more there is nothing to do.
    let before = Instant::now();
    assert_eq!(last_digest(&run(&mut build(&zoo)).out), last_digest(&said.out));
    assert!(before.elapsed() < Duration::from_secs(30));
}
