//! Bringing jobs to a worker: graphile_worker fetches, this module claims, keeps the claim alive, and ends the attempt.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use graphile_worker::{IntoTaskHandlerResult, TaskHandler, WorkerContext, WorkerOptions, WorkerRecoveryConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::webhooks::{self, Due};
use super::work::{self, Claim, Claimed, Wish};
use super::{DELIVER, Job, Progress, RUN, SCHEMA, sweep};
use crate::{Caller, Error, JobId, Registry, Result};

/// How often a running job says that it lives and asks whether to go on.
const BEAT: Duration = Duration::from_millis(500);
/// Progress becomes an event at most this often.
const PROGRESS: Duration = Duration::from_secs(1);
/// How often a worker looks after jobs that nobody looks after.
const SWEEP: Duration = Duration::from_secs(2);
/// A worker that was not heard of for this long is taken for dead.
const WORKER_STALE: Duration = Duration::from_secs(8);
/// Deliveries of webhooks under way at a time.
const DELIVERIES: usize = 4;
/// How often, and how long apart, the end of an attempt is told to a database that does not answer.
const END_TRIES: u32 = 30;
const END_WAIT: Duration = Duration::from_secs(1);

/// What a worker takes on.
#[derive(Clone, Debug)]
pub struct DispatchOptions {
    /// Its name, for people.
    pub name: String,
    /// The queues it takes jobs from; empty for all.
    pub queues: Vec<String>,
    /// Jobs at a time, 1 or more.
    pub concurrency: usize,
    /// How long an attempt may take to stop when the worker does.
    pub grace: Duration,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a result, which [`work::succeed`] has committed.
    Succeeded,
    /// It would fail again.
    Failed {
        /// Stable code.
        code: String,
        /// What was wrong.
        detail: String,
    },
    /// It may go better another time.
    Retry {
        /// Stable code.
        code: String,
        /// What was wrong.
        detail: String,
    },
    /// It stopped because it was told to.
    Interrupted,
}

/// One attempt at a job.
#[derive(Clone)]
pub struct Attempt {
    /// The job.
    pub job: Job,
    /// The hold on it.
    pub claim: Claim,
    /// In whose name it acts.
    pub caller: Caller,
    /// Becomes true when the attempt is to stop.
    pub stop: Arc<AtomicBool>,
    progress: Arc<Mutex<Option<Progress>>>,
}

impl Attempt {
    /// Says how far the job is; cheap, told to others about once a second.
    pub fn report(&self, progress: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }
}

/// Does the work of jobs.
pub trait Handler: Send + Sync + 'static {
    /// Makes an attempt. Work that blocks goes to a thread of its own.
    fn run(&self, attempt: Attempt) -> BoxFuture<'_, Ended>;

    /// Posts to a webhook; the HTTP status of the answer, or why there was none.
    fn deliver(&self, due: Due) -> BoxFuture<'_, std::result::Result<u16, String>>;
}

#[derive(Clone)]
struct Context {
    registry: Registry,
    handler: Arc<dyn Handler>,
    name: Arc<str>,
    stopping: watch::Receiver<bool>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Works on jobs until `stopping` becomes true; attempts under way are then told to stop and put back.
///
/// # Errors
/// `dispatch` when the dispatcher cannot begin.
pub async fn run(
    registry: &Registry,
    options: &DispatchOptions,
    handler: Arc<dyn Handler>,
    stopping: watch::Receiver<bool>,
) -> Result<()> {
    let context =
        Context { registry: registry.clone(), handler, name: options.name.as_str().into(), stopping: stopping.clone() };
    let sweeping = sweep_until(registry, stopping);
    let jobs = keep_running(&context, || {
        let mut worker = worker(&context, options.concurrency.max(1), options.grace).define_job::<RunJob>();
        worker = worker.add_forbidden_flag(webhooks::FLAG);
        options.queues.iter().fold(worker, |worker, queue| worker.add_accepted_flag(queue))
    });
    let webhooks = keep_running(&context, || {
        // Half a second is soon enough, and listening would hold a connection.
        let worker = worker(&context, DELIVERIES, options.grace).use_notification_delivery(false);
        worker.define_job::<Deliver>().add_accepted_flag(webhooks::FLAG)
    });
    let (jobs, webhooks, ()) = tokio::join!(jobs, webhooks, sweeping);
    jobs.and(webhooks)
}

fn worker(context: &Context, concurrency: usize, grace: Duration) -> WorkerOptions {
    let mut stopping = context.stopping.clone();
    let recovery = WorkerRecoveryConfig::default()
        .heartbeat_interval(BEAT)
        .sweep_interval(SWEEP)
        .sweep_threshold(WORKER_STALE)
        .recovery_delay(Duration::ZERO);
    WorkerOptions::default()
        .schema(SCHEMA)
        .pg_pool(context.registry.pool().clone())
        .concurrency(concurrency)
        .poll_interval(BEAT)
        .worker_recovery(recovery)
        .listen_os_shutdown_signals(false)
        .shutdown_signal(async move {
            // The sender is gone only when the process ends.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        })
        .shutdown_grace_period(grace)
        .shutdown_interrupted_job_retry_delay(Duration::ZERO)
        .add_extension(context.clone())
}

/// Runs a dispatcher, and begins it anew when the database was away.
async fn keep_running(context: &Context, options: impl Fn() -> WorkerOptions) -> Result<()> {
    let dispatch = |error: Box<dyn std::error::Error + Send + Sync>| Error::Dispatch(error);
    let mut worker = options().init().await.map_err(|error| dispatch(Box::new(error)))?;
    loop {
        if let Err(error) = worker.run().await {
            tracing::warn!(%error, "the dispatcher of jobs stopped; it begins anew");
        }
        loop {
            if *context.stopping.borrow() {
                return Ok(());
            }
            tokio::time::sleep(END_WAIT).await;
            match options().init().await {
                Ok(again) => {
                    worker = again;
                    break;
                }
                Err(error) => tracing::warn!(%error, "the dispatcher of jobs cannot begin"),
            }
        }
    }
}

async fn sweep_until(registry: &Registry, mut stopping: watch::Receiver<bool>) {
    loop {
        match sweep::sweep(registry).await {
            Ok(swept) if swept != sweep::Swept::default() => tracing::info!(?swept, "looked after jobs"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "jobs cannot be looked after"),
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

/// The dispatcher's payload: a job's id.
#[derive(Deserialize, Serialize)]
struct RunJob {
    job: JobId,
}

impl TaskHandler for RunJob {
    const IDENTIFIER: &'static str = RUN;

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let Some(context) = context.get_ext::<Context>() else {
            return Err("the worker has no context".to_owned());
        };
        match work::claim(&context.registry, self.job, &context.name).await {
            Ok(Some(claimed)) => attempt(context, claimed).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The dispatcher's payload of a delivery: a job's id.
#[derive(Deserialize, Serialize)]
struct Deliver {
    job: JobId,
}

impl TaskHandler for Deliver {
    const IDENTIFIER: &'static str = DELIVER;

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let Some(context) = context.get_ext::<Context>() else {
            return Err("the worker has no context".to_owned());
        };
        deliver(context, self.job).await.map_err(|error| error.to_string())
    }
}

async fn deliver(context: &Context, id: JobId) -> Result<()> {
    let Some(due) = webhooks::due(&context.registry, id).await? else {
        return Ok(());
    };
    let attempt = due.attempt;
    let outcome = context.handler.deliver(due).await;
    if let Err(error) = &outcome {
        tracing::info!(job = %id, attempt, %error, "a webhook did not answer");
    }
    webhooks::record(&context.registry, id, attempt, outcome).await
}

/// Why an attempt was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Cancel,
    Expire,
    Shutdown,
    Lost,
}

/// Tells blocking work to stop also when the attempt itself is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn attempt(context: &Context, claimed: Claimed) -> std::result::Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    let _guard = StopOnDrop(stop.clone());
    let claim = claimed.claim;
    let progress = Arc::new(Mutex::new(None));
    let attempt =
        Attempt { job: claimed.job, claim, caller: claimed.caller, stop: stop.clone(), progress: progress.clone() };
    tracing::info!(job = %claim.job, kind = attempt.job.kind.name(), attempt = attempt.job.attempts, "a job begins");
    let running = AssertUnwindSafe(context.handler.run(attempt)).catch_unwind();
    tokio::pin!(running);
    let mut reason = None;
    // The heartbeat goes before the end is written: one under way may have the job's row locked.
    let ended = {
        let watching = keep_alive(context, claim, &progress, &stop);
        tokio::pin!(watching);
        loop {
            tokio::select! {
                biased;
                ended = &mut running => break ended,
                why = &mut watching => {
                    stop.store(true, Ordering::Relaxed);
                    reason.get_or_insert(why);
                    // An attempt that is stopping still has the job.
                    watching.set(keep_alive(context, claim, &progress, &stop));
                }
            }
        }
    };
    let ended = ended.unwrap_or_else(|_| Ended::Failed {
        code: "internal".into(),
        detail: "the job met an internal error: the worker's log says more".into(),
    });
    tracing::info!(job = %claim.job, ?ended, ?reason, "an attempt ended");
    settle(context, claim, ended, reason).await
}

/// Keeps the claim alive and passes progress on; ends with the reason to stop.
async fn keep_alive(context: &Context, claim: Claim, progress: &Mutex<Option<Progress>>, stop: &AtomicBool) -> Reason {
    let mut stopping = context.stopping.clone();
    let mut told: Option<Instant> = None;
    if stop.load(Ordering::Relaxed) {
        tokio::time::sleep(BEAT).await;
    }
    loop {
        let news = match told {
            Some(at) if at.elapsed() < PROGRESS => None,
            _ => progress.lock().unwrap_or_else(PoisonError::into_inner).take(),
        };
        match work::heartbeat(&context.registry, claim, news.as_ref()).await {
            Ok(Wish::Continue) => {}
            Ok(Wish::Cancel) => return Reason::Cancel,
            Ok(Wish::Expire) => return Reason::Expire,
            Err(Error::JobLost(_)) => return Reason::Lost,
            // The database may come back; meanwhile the claim protects the job.
            Err(error) => tracing::warn!(job = %claim.job, %error, "a job cannot say that it lives"),
        }
        if news.is_some() {
            told = Some(Instant::now());
        }
        if stop.load(Ordering::Relaxed) {
            tokio::time::sleep(BEAT).await;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(BEAT) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return Reason::Shutdown,
        }
    }
}

/// Writes down how the attempt ended, however long the database takes to come back within reason.
async fn settle(
    context: &Context,
    claim: Claim,
    ended: Ended,
    reason: Option<Reason>,
) -> std::result::Result<(), String> {
    for tries in 1.. {
        match write_end(context, claim, &ended, reason).await {
            Ok(()) => break,
            // What this attempt did is not the job's any more, or the job has ended: nothing is left to do.
            Err(Error::JobLost(_)) => break,
            Err(error) if tries >= END_TRIES => return Err(error.to_string()),
            Err(error) => tracing::warn!(job = %claim.job, %error, "the end of an attempt cannot be written yet"),
        }
        tokio::time::sleep(END_WAIT).await;
    }
    Ok(())
}

async fn write_end(context: &Context, claim: Claim, ended: &Ended, reason: Option<Reason>) -> Result<()> {
    let registry = &context.registry;
    match (ended, reason) {
        (Ended::Succeeded, _) | (Ended::Interrupted, Some(Reason::Lost)) => Ok(()),
        (Ended::Failed { code, detail }, _) => work::fail(registry, claim, code, detail).await,
        (Ended::Interrupted, Some(Reason::Cancel)) => work::cancelled(registry, claim).await,
        (Ended::Interrupted, Some(Reason::Expire)) => work::expire(registry, claim).await,
        (Ended::Interrupted, Some(Reason::Shutdown)) => work::put_back(registry, claim).await,
        (Ended::Interrupted, None) => work::retry(registry, claim, "interrupted", "the attempt was interrupted").await,
        (Ended::Retry { code, detail }, _) => work::retry(registry, claim, code, detail).await,
    }
}
