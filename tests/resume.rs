//! Training that is killed goes on where it was, and ends as if nothing had happened.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::{Running, config, files_in, folder, last_digest, run, succeed, text, wait_until, weightsmith};
use tempfile::TempDir;

/// The tests' smallest configuration, with stages of some seconds: there is a middle to be killed in.
fn long(place: &TempDir) -> PathBuf {
    let settings = std::fs::read_to_string(config("tiny")).unwrap();
    let mut settings = settings.replace("epochs = 10", "epochs = 300").replace("group = 5", "group = 40");
    // VAE, encoder, diffusion.
    for (short, long) in [("steps = 40", "steps = 600"), ("steps = 20", "steps = 300"), ("steps = 40", "steps = 600")] {
        assert!(settings.contains(short));
        settings = settings.replacen(short, long, 1);
    }
    let file = place.path().join("long.toml");
    std::fs::write(&file, settings).unwrap();
    file
}

fn snapshots(folder: &Path) -> Vec<PathBuf> {
    let files = files_in(folder).into_iter().map(|(path, _)| path);
    files.filter(|path| text(path).ends_with(".snapshot")).collect()
}

/// Runs a command that is killed again and again, each time after a random part of `whole`, until it ends by itself.
/// Gives the digest that it said, and the moments with what it told.
fn killed(command: &dyn Fn() -> std::process::Command, whole: Duration, kills: u32) -> (String, String) {
    let mut told = String::new();
    for kill in 0..=kills {
        let mut running = Running::start(command());
        if kill < kills {
            let share = RandomState::new().hash_one(kill) % 100;
            let moment = whole.mul_f64(0.05 + 0.3 * share as f64 / 100.0);
            told = format!("{told}\nkilled after {moment:?}: ");
            std::thread::sleep(moment);
            if running.kill() {
                told += &running.errors();
                continue;
            }
        }
        let status = running.end();
        told += &running.errors();
        assert!(status.success(), "{told}");
        return (last_digest(&running.rest().join("\n")), told);
    }
    unreachable!("the last run is not killed");
}

#[test]
fn a_killed_training_ends_with_the_same_generator() {
    let place = folder();
    let (file, zoo) = (long(&place), place.path().join("zoo"));
    succeed(&["zoo", "build", "--config", text(&file), "--out", text(&zoo)]);
    let train = |out: &Path| {
        let args = ["train", "--config", text(&file), "--zoo", text(&zoo), "--out", text(out)];
        weightsmith([&args[..], &["--snapshot-every", "0.1"]].concat())
    };
    let (whole, out) = (place.path().join("whole.tar"), place.path().join("killed.tar"));
    let start = Instant::now();
    let said = run(&mut train(&whole));
    let lasted = start.elapsed();
    assert_eq!(said.code, Some(0), "{said:?}");
    let beside = place.path().join("killed.tar.snapshots");

    // Once for sure in the middle of a stage, then anywhere.
    let mut first = Running::start(train(&out));
    wait_until("there is a snapshot", Duration::from_secs(60), || !snapshots(&beside).is_empty());
    // One folder is one process's.
    let second = run(&mut train(&out));
    assert_eq!(second.code, Some(2));
    assert!(second.err.contains("another process") && second.err.contains("[snapshots_unavailable]"), "{second:?}");
    assert!(first.kill(), "it was finished before it could be killed");
    assert!(!out.exists());
    let (digest, told) = killed(&|| train(&out), lasted, 4);
    assert_eq!(digest, last_digest(&said.out), "{told}");
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&whole).unwrap());
    assert!(told.contains("continues after step"), "{told}");
    assert!(!beside.exists(), "snapshots of a finished training go: {:?}", files_in(&beside));
}

#[test]
fn an_interrupted_training_goes_on_at_its_very_step() {
    let place = folder();
    let (file, zoo, dir) = (long(&place), place.path().join("zoo"), place.path().join("elsewhere/deep"));
    succeed(&["zoo", "build", "--config", text(&file), "--out", text(&zoo)]);
    let out = place.path().join("out.tar");
    let args = ["train", "--config", text(&file), "--zoo", text(&zoo), "--out", text(&out), "--snapshots", text(&dir)];
    // Ctrl-C, then what an init system sends. No snapshot comes by itself in this time.
    let mut kept = Vec::new();
    for (signal, begun) in [("INT", "vae: 600 steps"), ("TERM", "continues after step")] {
        let mut running = Running::start(weightsmith(args));
        wait_until("it trains", Duration::from_secs(60), || running.errors().contains(begun));
        std::thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        running.signal(signal);
        assert_eq!(running.end().code(), Some(130), "{signal}: {}", running.errors());
        assert!(start.elapsed() < Duration::from_secs(2), "{signal}: {:?}", start.elapsed());
        assert!(running.errors().trim_end().ends_with("[interrupted]"), "{signal}: {}", running.errors());
        let found: Vec<Vec<u8>> = snapshots(&dir).iter().map(|file| std::fs::read(file).unwrap()).collect();
        assert!(!found.is_empty() && found != kept, "{signal}: there is a new snapshot");
        kept = found;
    }
    let again = run(&mut weightsmith(args));
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.err.contains("continues after step"), "{again:?}");
    assert!(!dir.exists() && out.exists());
}

#[test]
fn a_zoo_killed_inside_a_group_ends_the_same() {
    let place = folder();
    let file = long(&place);
    let build = |zoo: &Path| {
        let args = ["zoo", "build", "--config", text(&file), "--out", text(zoo), "--snapshot-every", "0.1"];
        weightsmith(args)
    };
    let (whole, zoo) = (place.path().join("whole"), place.path().join("killed"));
    let start = Instant::now();
    let said = run(&mut build(&whole));
    let lasted = start.elapsed();
    let beside = place.path().join("killed.snapshots");
    let mut first = Running::start(build(&zoo));
    wait_until("there is a snapshot", Duration::from_secs(60), || !snapshots(&beside).is_empty());
    assert!(first.kill(), "it was finished before it could be killed");
    let (digest, told) = killed(&|| build(&zoo), lasted, 3);
    assert_eq!(digest, last_digest(&said.out), "{told}");
    assert!(told.contains("group-0000: continues after step"), "{told}");
    assert!(!beside.exists());
}
