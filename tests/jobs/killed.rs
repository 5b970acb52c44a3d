//! Workers that are killed, and workers that are told to stop.

use std::time::{Duration, Instant};

use crate::site::{Site, config};
use crate::support::wait_until;

fn stage(job: &serde_json::Value) -> (&str, u64, u64) {
    let progress = &job["progress"];
    let number = |name: &str| progress[name].as_u64().unwrap_or_default();
    (progress["stage"].as_str().unwrap_or_default(), number("step"), number("steps"))
}

#[test]
fn another_worker_goes_on_where_a_killed_one_was() {
    // So long that each stage is seen while it runs.
    const TIMES: usize = 160;
    let site = Site::open();
    let zoo = site.zoo();
    let calm = site.train("calm", &zoo, TIMES);
    let worker = site.worker(&["--queues", "train"]);
    let calm = site.result(&calm);
    assert_eq!(calm["url"], "/v1/generators/calm/versions/1");
    drop(worker);

    let rough = site.train("rough", &zoo, TIMES);
    for wanted in ["vae", "encoder", "denoiser"] {
        let mut worker = site.worker(&["--queues", "train"]);
        site.until(&rough, wanted, |job| {
            let (stage, step, steps) = stage(job);
            job["state"] == "running" && stage == wanted && step > steps / 5
        });
        assert!(worker.kill(), "it was at work");
    }
    let killed = Instant::now();
    let worker = site.worker(&["--queues", "train"]);
    site.until(&rough, "taken over", |job| job["attempts"] == 4);
    assert!(killed.elapsed() < Duration::from_secs(20), "noticed after {:?}", killed.elapsed());
    let result = site.result(&rough);
    assert_eq!(result["detail"]["digest"], calm["detail"]["digest"], "as if nothing had happened");
    assert_eq!(site.versions("rough").len(), 1);

    // The loss curve is part of the bundle, so that has no step twice and none missing. The last attempt made no step
    // of a stage that an earlier one had ended.
    let events = site.watch(&rough, None, usize::MAX);
    let ids: Vec<u64> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids, (1..=events.len() as u64).collect::<Vec<_>>());
    let last = events.iter().rposition(|event| event.data["state"] == "running").unwrap();
    assert_eq!(events[last].data["recovered"], true);
    let again = events[last..].iter().find(|event| {
        let ended = event.data["stage"] == "vae" || event.data["stage"] == "encoder";
        event.kind == "progress" && ended && event.data["step"] != event.data["steps"]
    });
    assert_eq!(again, None);
    drop(worker);
}

#[test]
fn a_worker_killed_at_the_end_publishes_once() {
    let site = Site::open();
    let zoo = site.zoo();
    for (round, wait) in [0u64, 30, 80, 150, 300].into_iter().enumerate() {
        let name = format!("last-{round}");
        let job = site.train(&name, &zoo, 2);
        let mut worker = site.worker(&[]);
        site.until(&job, "nearly done", |job| {
            let (stage, step, steps) = stage(job);
            job["state"] == "succeeded" || (stage == "denoiser" && step * 10 >= steps)
        });
        std::thread::sleep(Duration::from_millis(wait));
        worker.kill();
        let _worker = site.worker(&[]);
        let result = site.result(&job);
        let versions = site.versions(&name);
        assert_eq!(versions.len(), 1, "{versions:?}");
        assert_eq!(versions[0]["digest"], result["detail"]["digest"]);
    }
}

#[test]
fn a_worker_that_stops_puts_its_job_back() {
    let site = Site::open();
    let zoo = site.zoo();
    let job = site.train("stopped", &zoo, 200);
    let mut worker = site.worker(&[]);
    site.until(&job, "at work", |job| stage(job).1 > 20);
    worker.signal("TERM");
    let status = worker.end();
    assert_eq!(status.code(), Some(0), "{}", worker.errors());
    let back = site.job(&job);
    assert_eq!((back["state"].as_str(), back["attempts"].as_i64()), (Some("queued"), Some(0)), "{back}");
    let _worker = site.worker(&[]);
    let again = site.until(&job, "at work again", |job| job["state"] == "running");
    assert_eq!(again["attempts"], 1, "no attempt was lost");
    assert_eq!(site.cancel(&job), 202);
    site.until(&job, "cancelled", |job| job["state"] == "cancelled");
}

#[test]
fn a_database_that_goes_away_costs_time_alone() {
    let mut site = Site::open();
    let zoo = site.zoo();
    let _worker = site.worker(&[]);
    let calm = site.train("calm", &zoo, 40);
    let calm = site.result(&calm);
    let job = site.train("rough", &zoo, 40);
    site.until(&job, "at work", |job| stage(job).1 > 20);
    site.interrupt_database(Duration::from_secs(3));
    wait_until("the server answers again", Duration::from_secs(60), || site.server.api.get(&job).status == 200);
    let result = site.result(&job);
    assert_eq!(result["detail"]["digest"], calm["detail"]["digest"]);
    assert_eq!(site.versions("rough").len(), 1);
}

#[test]
fn the_clocks_of_workers_do_not_matter() {
    const DAY: i64 = 24 * 3600;
    let site = Site::open();
    let zoo = site.zoo();
    let soon = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    let body = serde_json::json!({ "zoo": zoo, "config": config(40), "job": { "deadline": soon } });
    let job = site.ask("/v1/generators/clocks/versions", &body);
    let mut ahead = site.worker_with_clock(DAY);
    site.until(&job, "at work", |job| stage(job).1 > 20);
    // Its log shows that its clock is wrong.
    let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::seconds(DAY)).format("%Y-%m-%dT").to_string();
    assert!(ahead.errors().contains(&tomorrow), "{}", ahead.errors());
    assert!(ahead.kill());
    let killed = Instant::now();
    let _behind = site.worker_with_clock(-DAY);
    site.until(&job, "taken over", |job| job["attempts"] == 2);
    assert!(killed.elapsed() < Duration::from_secs(20), "noticed after {:?}", killed.elapsed());
    site.result(&job);
    let job = site.job(&job);
    let time = |name: &str| job[name].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert!(time("created_at") <= time("started_at") && time("started_at") <= time("finished_at"), "{job}");
    assert!(time("finished_at") - time("created_at") < chrono::TimeDelta::minutes(10), "{job}");
}
