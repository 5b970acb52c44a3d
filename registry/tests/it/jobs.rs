//! Jobs over a real dispatcher: what workers, watchers and the impatient may do to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use registry::jobs::{
    self, Attempt, DispatchOptions, Due, Ended, Handler, Job, JobFilter, JobKind, JobOptions, JobState, NewJob,
    Progress, Watch, Webhook, work,
};
use registry::{Caller, JobId, ListRequest, Registry};
use serde_json::json;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::fixtures;

async fn open(pool: &PgPool) -> (Registry, TempDir) {
    registry::migrate(pool).await.unwrap();
    fixtures::registry(pool.clone())
}

fn ann() -> Caller {
    Caller { administrator: false, ..Caller::system("ann") }
}

fn new(request: serde_json::Value) -> NewJob {
    NewJob { kind: JobKind::Train, request, options: JobOptions::default(), files: Vec::new() }
}

async fn enqueue(registry: &Registry, new: &NewJob) -> Job {
    let mut write = registry.write(&ann()).await.unwrap();
    let job = jobs::enqueue(&mut write, new).await.unwrap();
    write.commit().await.unwrap();
    job
}

async fn get(registry: &Registry, id: JobId) -> Job {
    jobs::get(registry, &ann(), id).await.unwrap()
}

async fn cancel(registry: &Registry, id: JobId) -> registry::Result<Job> {
    let mut write = registry.write(&ann()).await?;
    let job = jobs::cancel(&mut write, id).await?;
    write.commit().await?;
    Ok(job)
}

/// Waits until a job is as wanted.
async fn until(registry: &Registry, id: JobId, wanted: impl Fn(&Job) -> bool) -> Job {
    let start = Instant::now();
    loop {
        let job = get(registry, id).await;
        if wanted(&job) {
            return job;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "still {job:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All events, as (sequence, type, state or stage).
async fn told(registry: &Registry, id: JobId) -> Vec<(i64, String, String)> {
    let events = jobs::events(registry, id, 0, 1000).await.unwrap();
    let text = |data: &serde_json::Value| {
        let value = data.get("state").or(data.get("stage")).and_then(|v| v.as_str());
        value.unwrap_or_default().to_owned()
    };
    events.into_iter().map(|event| (event.sequence, event.kind, text(&event.data))).collect()
}

/// Does what the request says.
#[derive(Default)]
struct Puppet {
    registry: Option<Registry>,
    deliveries: AtomicUsize,
}

impl Handler for Puppet {
    fn run(&self, attempt: Attempt) -> BoxFuture<'_, Ended> {
        async move {
            let failed = |code: &str| (code.to_owned(), "as asked".to_owned());
            attempt.report(Progress { stage: "vae".into(), step: 1, steps: 2, ..Progress::default() });
            match attempt.job.request["do"].as_str().unwrap() {
                "succeed" => {
                    let mut write = self.registry.as_ref().unwrap().write(&attempt.caller).await.unwrap();
                    work::succeed(&mut write, attempt.claim, &json!({ "url": "/v1/x" })).await.unwrap();
                    write.commit().await.unwrap();
                    Ended::Succeeded
                }
                "fail" => {
                    let (code, detail) = failed("bad");
                    Ended::Failed { code, detail }
                }
                "retry" => {
                    let (code, detail) = failed("storage");
                    Ended::Retry { code, detail }
                }
                "panic" => panic!("as asked"),
                _ => {
                    while !attempt.stop.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Ended::Interrupted
                }
            }
        }
        .boxed()
    }

    fn deliver(&self, due: Due) -> BoxFuture<'_, Result<u16, String>> {
        assert_eq!(due.secret, "a long secret");
        async move {
            match self.deliveries.fetch_add(1, Ordering::SeqCst) {
                0 => Err("nobody there".into()),
                _ => Ok(204),
            }
        }
        .boxed()
    }
}

/// A worker that stops when the second value is sent true.
fn work_on(
    registry: &Registry,
    queues: &[&str],
) -> (tokio::task::JoinHandle<registry::Result<()>>, watch::Sender<bool>) {
    let (stop, stopping) = watch::channel(false);
    let options = DispatchOptions {
        name: "puppet".into(),
        queues: queues.iter().map(|&queue| queue.into()).collect(),
        concurrency: 2,
        grace: Duration::from_secs(10),
    };
    let (registry, handler) =
        (registry.clone(), Arc::new(Puppet { registry: Some(registry.clone()), ..Puppet::default() }));
    (tokio::spawn(async move { jobs::run(&registry, &options, handler, stopping).await }), stop)
}

#[sqlx::test(migrations = "../migrations")]
async fn from_the_queue_to_the_result(pool: PgPool) {
    let (registry, _directory) = open(&pool).await;
    let watch = Watch::start(&registry);
    let mut notices = watch.subscribe();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let job = enqueue(&registry, &new(json!({ "do": "succeed" }))).await;
    assert_eq!((job.state, job.queue.as_str(), job.attempts), (JobState::Queued, "train", 0));
    assert_eq!(notices.recv().await.unwrap(), job.id, "whoever watches is told");
    let (other, stop_other) = work_on(&registry, &["import"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&registry, job.id).await.state, JobState::Queued, "it waits in another queue");
    let (worker, stop) = work_on(&registry, &["import", "train"]);
    let job = until(&registry, job.id, |job| job.state.is_final()).await;
    assert_eq!((job.state, job.attempts, job.result), (JobState::Succeeded, 1, Some(json!({ "url": "/v1/x" }))));
    assert!(job.finished_at >= job.started_at && job.started_at >= Some(job.created_at));
    let events = told(&registry, job.id).await;
    let sequences: Vec<i64> = events.iter().map(|event| event.0).collect();
    assert_eq!(sequences, (1..=events.len() as i64).collect::<Vec<_>>());
    assert_eq!(events[0].2, "queued");
    assert_eq!(events.last().unwrap().2, "succeeded");
    assert!(jobs::events(&registry, job.id, job.last_event - 1, 10).await.unwrap()[0].is_final());
    for (failing, code) in [("fail", "bad"), ("panic", "internal")] {
        let failed = enqueue(&registry, &new(json!({ "do": failing }))).await;
        let failed = until(&registry, failed.id, |job| job.state.is_final()).await;
        assert_eq!((failed.state, failed.attempts), (JobState::Failed, 1));
        assert_eq!(failed.error.unwrap()["code"], code);
    }
    stop.send(true).unwrap();
    stop_other.send(true).unwrap();
    worker.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    assert_eq!(fixtures::count(&pool, "graphile_worker._private_jobs").await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn cancelling(pool: PgPool) {
    let (registry, _directory) = open(&pool).await;
    let waiting = enqueue(&registry, &new(json!({ "do": "wait" }))).await;
    let bob = Caller { name: "bob".into(), ..ann() };
    assert_eq!(jobs::get(&registry, &bob, waiting.id).await.unwrap_err().code(), "not_found");
    let mut write = registry.write(&bob).await.unwrap();
    assert_eq!(jobs::cancel(&mut write, waiting.id).await.unwrap_err().code(), "not_found");
    drop(write);
    assert_eq!(cancel(&registry, waiting.id).await.unwrap().state, JobState::Cancelled);
    assert_eq!(cancel(&registry, waiting.id).await.unwrap_err().code(), "job_finished");
    assert_eq!(fixtures::count(&pool, "graphile_worker._private_jobs").await, 0);

    let (worker, stop) = work_on(&registry, &[]);
    let running = enqueue(&registry, &new(json!({ "do": "wait" }))).await;
    until(&registry, running.id, |job| job.state == JobState::Running && job.progress.is_some()).await;
    let asked = Instant::now();
    assert!(cancel(&registry, running.id).await.unwrap().cancel_requested_at.is_some());
    until(&registry, running.id, |job| job.state == JobState::Cancelled).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    stop.send(true).unwrap();
    worker.await.unwrap().unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn only_the_latest_attempt_counts(pool: PgPool) {
    let (registry, _directory) = open(&pool).await;
    let job = enqueue(&registry, &new(json!({}))).await;
    let lost = work::claim(&registry, job.id, "a").await.unwrap().unwrap();
    jobs::save_snapshot(&registry, lost.claim, "vae", "1".into()).await.unwrap();
    let held = work::claim(&registry, job.id, "b").await.unwrap().unwrap();
    assert_eq!((held.job.attempts, held.caller), (2, ann()));

    let late = [
        work::heartbeat(&registry, lost.claim, None).await.map(|_| ()),
        work::put_back(&registry, lost.claim).await,
        work::fail(&registry, lost.claim, "c", "d").await,
        jobs::save_snapshot(&registry, lost.claim, "vae", "late".into()).await,
        jobs::remove_snapshot(&registry, lost.claim, "vae").await,
        work::succeed(&mut registry.write(&ann()).await.unwrap(), lost.claim, &json!({})).await,
    ];
    for refused in late {
        assert_eq!(refused.unwrap_err().code(), "job_lost");
    }
    assert_eq!(jobs::load_snapshot(&registry, job.id, "vae").await.unwrap().unwrap(), "1");
    jobs::save_snapshot(&registry, held.claim, "vae", "2".into()).await.unwrap();
    assert_eq!(jobs::load_snapshot(&registry, job.id, "vae").await.unwrap().unwrap(), "2");

    // A write that is not committed has not ended the job.
    let mut write = registry.write(&ann()).await.unwrap();
    work::succeed(&mut write, held.claim, &json!({})).await.unwrap();
    drop(write);
    assert_eq!(get(&registry, job.id).await.state, JobState::Running);
    work::put_back(&registry, held.claim).await.unwrap();
    let back = get(&registry, job.id).await;
    assert_eq!((back.state, back.attempts), (JobState::Queued, 1), "a shutdown costs no attempt");
    let held = work::claim(&registry, job.id, "b").await.unwrap().unwrap();
    let mut write = registry.write(&ann()).await.unwrap();
    work::succeed(&mut write, held.claim, &json!({})).await.unwrap();
    write.commit().await.unwrap();
    assert!(work::claim(&registry, job.id, "c").await.unwrap().is_none(), "what has ended is never run again");
    assert_eq!(jobs::load_snapshot(&registry, job.id, "vae").await.unwrap(), None);
}

#[sqlx::test(migrations = "../migrations")]
async fn attempts_have_an_end(pool: PgPool) {
    let (registry, _directory) = open(&pool).await;
    let twice = JobOptions { max_attempts: Some(2), ..JobOptions::default() };
    let crashing = enqueue(&registry, &NewJob { options: twice.clone(), ..new(json!({})) }).await;
    for _ in 0..2 {
        work::claim(&registry, crashing.id, "a").await.unwrap().unwrap();
    }
    assert!(work::claim(&registry, crashing.id, "a").await.unwrap().is_none());
    assert_eq!(get(&registry, crashing.id).await.error.unwrap()["code"], "worker_lost");

    let (worker, stop) = work_on(&registry, &[]);
    let retried = enqueue(&registry, &NewJob { options: twice, ..new(json!({ "do": "retry" })) }).await;
    let retried = until(&registry, retried.id, |job| job.state.is_final()).await;
    assert_eq!((retried.state, retried.attempts), (JobState::Failed, 2));
    assert_eq!(retried.error.unwrap()["code"], "storage");

    // A worker that stops puts back what it was at, and another one takes it.
    let waiting = enqueue(&registry, &new(json!({ "do": "wait" }))).await;
    until(&registry, waiting.id, |job| job.state == JobState::Running).await;
    stop.send(true).unwrap();
    worker.await.unwrap().unwrap();
    assert_eq!(get(&registry, waiting.id).await.state, JobState::Queued);
    let (worker, stop) = work_on(&registry, &[]);
    let again = until(&registry, waiting.id, |job| job.state == JobState::Running).await;
    assert_eq!(again.attempts, 1);
    stop.send(true).unwrap();
    worker.await.unwrap().unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn deadlines_and_lost_dispatches(pool: PgPool) {
    let (registry, _directory) = open(&pool).await;
    let with = |deadline| NewJob {
        options: JobOptions { deadline: Some(deadline), queue: Some("nobody".into()), ..JobOptions::default() },
        ..new(json!({ "do": "wait" }))
    };
    let mut write = registry.write(&ann()).await.unwrap();
    let past = jobs::enqueue(&mut write, &with(Utc::now() - TimeDelta::seconds(5))).await.unwrap_err();
    assert!(past.code() == "invalid_value" && past.to_string().contains("still to come"), "{past}");
    drop(write);
    let soon = Utc::now() + TimeDelta::milliseconds(1500);
    let waiting = enqueue(&registry, &with(soon)).await;
    let running = enqueue(
        &registry,
        &NewJob {
            options: JobOptions { deadline: Some(soon), ..JobOptions::default() },
            ..new(json!({ "do": "wait" }))
        },
    )
    .await;
    let forgotten = enqueue(&registry, &new(json!({ "do": "succeed" }))).await;
    sqlx::query("DELETE FROM graphile_worker._private_jobs WHERE key = $1")
        .bind(forgotten.id.to_string())
        .execute(&pool)
        .await
        .unwrap();
    let (worker, stop) = work_on(&registry, &["train"]);
    for id in [waiting.id, running.id] {
        let late = until(&registry, id, |job| job.state.is_final()).await;
        assert_eq!(late.error.unwrap()["code"], "deadline_exceeded");
    }
    until(&registry, forgotten.id, |job| job.state == JobState::Succeeded).await;
    stop.send(true).unwrap();
    worker.await.unwrap().unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn webhooks_are_told_until_they_listen(pool: PgPool) {
    let (registry, _directory) = open(&pool).await;
    let webhook = Webhook { url: "http://localhost:1/x".into(), secret: "a long secret".into() };
    let options = JobOptions { webhook: Some(webhook), ..JobOptions::default() };
    let job = enqueue(&registry, &NewJob { options, ..new(json!({ "do": "succeed" })) }).await;
    let shown = serde_json::to_string(&job).unwrap();
    assert!(shown.contains("localhost:1") && !shown.contains("a long secret"), "{shown}");
    let (worker, stop) = work_on(&registry, &["train"]);
    let start = Instant::now();
    let tries = loop {
        let tries = jobs::deliveries(&registry, job.id).await.unwrap();
        if tries.len() == 2 {
            break tries;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{tries:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(tries[0].error.as_deref(), Some("nobody there"));
    assert_eq!((tries[1].status, tries[1].attempt), (Some(204), 2));
    stop.send(true).unwrap();
    worker.await.unwrap().unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn lists(pool: PgPool) {
    let (registry, _directory) = open(&pool).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.insert(0, enqueue(&registry, &new(json!({}))).await.id);
    }
    cancel(&registry, ids[0]).await.unwrap();
    let list = async |caller: Caller, filter: JobFilter| {
        let page = jobs::list(&registry, &caller, &filter, &ListRequest::default()).await.unwrap();
        page.items.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(list(ann(), JobFilter::default()).await, ids);
    assert_eq!(list(Caller::system("root"), JobFilter::default()).await, ids);
    assert!(list(Caller { name: "bob".into(), ..ann() }, JobFilter::default()).await.is_empty());
    assert_eq!(list(ann(), JobFilter { state: Some(JobState::Queued), ..JobFilter::default() }).await, ids[1..]);
    assert!(list(ann(), JobFilter { kind: Some(JobKind::Import), ..JobFilter::default() }).await.is_empty());
    assert!(list(ann(), JobFilter { queue: Some("x".into()), ..JobFilter::default() }).await.is_empty());
    let request = ListRequest { limit: 2, ..ListRequest::default() };
    let first = jobs::list(&registry, &ann(), &JobFilter::default(), &request).await.unwrap();
    let request = ListRequest { cursor: first.next_cursor, ..request };
    let rest = jobs::list(&registry, &ann(), &JobFilter::default(), &request).await.unwrap();
    assert_eq!((rest.items.len(), rest.items[0].id, rest.next_cursor), (1, ids[2], None));
}
