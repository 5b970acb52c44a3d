//! `weightsmith worker`: does the work of jobs.

mod import;
mod scratch;
mod search;
mod store;
mod training;
mod webhook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::training::Error as TrainingError;
use api::{AppState, Settings};
use futures::FutureExt;
use futures::future::BoxFuture;
use registry::jobs::{self, Attempt, DispatchOptions, Due, Ended, Handler, JobKind};
use registry::{Registry, quotas};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tracing::Instrument;

use crate::context::{ModelArgs, RegistryArgs, RuntimeArgs, say, tokio_runtime};
use crate::error::{Error, Result};
use crate::serve::stop_signal;

/// How long an attempt may take to stop when the worker does; it stops at its next step.
const GRACE: Duration = Duration::from_secs(30);

/// Work on jobs: zoo builds, trainings, imports, evaluations, generations, searches.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith worker --queues train,import --concurrency 1")]
pub struct Args {
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Which jobs a worker takes, and how many.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Jobs")]
pub struct WorkArgs {
    /// Queues to take jobs from, such as `train`, `import`, `generate`; all when left out.
    #[arg(long, env = "WEIGHTSMITH_QUEUES", value_delimiter = ',')]
    pub queues: Vec<String>,
    /// Jobs at a time.
    #[arg(long, env = "WEIGHTSMITH_CONCURRENCY", default_value_t = 1, value_parser = at_least_one)]
    pub concurrency: usize,
    /// Seconds between two snapshots of a training, from which another worker goes on.
    #[arg(long, env = "WEIGHTSMITH_SNAPSHOT_EVERY", value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub snapshot_every: Duration,
    /// Most bytes that an archive of an import unpacks to, in the data folder's uploads.
    #[arg(long, env = "WEIGHTSMITH_UNPACKED_LIMIT", value_name = "BYTES", default_value_t = 16 << 30)]
    pub unpacked_limit: u64,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "give a number of seconds from 0".into())
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| (1..=64).contains(n)).ok_or_else(|| "give a number from 1 to 64".into())
}

impl WorkArgs {
    /// Refuses queues that no job can be in.
    pub fn check(&self) -> Result<()> {
        Ok(self.queues.iter().try_for_each(|queue| registry::check_name(queue))?)
    }

    /// Works on jobs until `stopping` becomes true.
    pub async fn run(&self, state: AppState, stopping: watch::Receiver<bool>) -> Result<()> {
        let options = DispatchOptions {
            name: format!("{}:{}", host(), std::process::id()),
            queues: self.queues.clone(),
            concurrency: self.concurrency,
            grace: GRACE,
        };
        let registry = state.registry().clone();
        scratch::sweep(&import::folder(&state));
        let (snapshot_every, unpacked_limit) = (self.snapshot_every, self.unpacked_limit);
        let worker = Worker { state, client: webhook::client()?, snapshot_every, unpacked_limit };
        Ok(jobs::run(&registry, &options, Arc::new(worker), stopping).await?)
    }
}

/// The name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "worker".into() } else { name.into() }
}

/// Runs the command until SIGINT or SIGTERM.
pub fn run(args: Args) -> Result<()> {
    args.work.check()?;
    tokio_runtime()?.block_on(async {
        let runtime = args.runtime.open()?;
        args.runtime.train_there_or_here();
        let open = args.registry.open().await?;
        let (upload_dir, models) = (Some(args.registry.upload_dir()?), args.models.open()?);
        let settings = Settings { upload_dir, models, ..Settings::default() };
        let state = AppState::new(open.registry.clone(), runtime, settings);
        let (stop, stopping) = watch::channel(false);
        let queues = if args.work.queues.is_empty() { "all queues".into() } else { args.work.queues.join(", ") };
        say(&format!("weightsmith works on {queues}, {} at a time", args.work.concurrency));
        let signal = async move {
            stop_signal().await;
            // The dispatcher listens as long as it runs.
            let _ = stop.send(true);
            std::future::pending::<()>().await;
        };
        let worked = tokio::select! {
            worked = args.work.run(state, stopping) => worked,
            () = signal => Ok(()),
        };
        open.close().await;
        worked
    })
}

/// Does what jobs ask for.
struct Worker {
    state: AppState,
    client: reqwest::Client,
    snapshot_every: Duration,
    unpacked_limit: u64,
}

impl Handler for Worker {
    fn run(&self, attempt: Attempt) -> BoxFuture<'_, Ended> {
        let job = attempt.job.id;
        let span = tracing::info_span!("job", id = %job, kind = ?attempt.job.kind);
        async move {
            // What a token has left for today is asked before, what the job takes is noted after.
            let reserved = match quotas::reserve(self.state.registry(), &attempt.caller, 0).await {
                Ok(reserved) => reserved,
                Err(error) => return ended(&error.into()),
            };
            let begun = Instant::now();
            let done = match attempt.job.kind {
                JobKind::ZooBuild => training::zoo_build(&self.state, attempt, self.snapshot_every).await,
                JobKind::Train => training::train(&self.state, attempt, self.snapshot_every).await,
                JobKind::Generate => api::jobs::generate(&self.state, attempt).await.map_err(Error::from),
                JobKind::Evaluate => api::jobs::evaluate(&self.state, attempt).await.map_err(Error::from),
                JobKind::Import => import::import(&self.state, attempt, self.unpacked_limit).await,
                JobKind::Search => search::search(&self.state, attempt).await,
            };
            if let Some(reserved) = reserved {
                let seconds = begun.elapsed().as_secs_f64();
                if let Err(error) = quotas::consume(self.state.registry(), &reserved, seconds).await {
                    tracing::warn!(%job, %error, "what a token used was not noted");
                }
            }
            match done {
                Ok(()) => Ended::Succeeded,
                Err(error) => {
                    tracing::info!(%job, %error, code = error.code(), "an attempt did not succeed");
                    ended(&error)
                }
            }
        }
        .instrument(span)
        .boxed()
    }

    fn deliver(&self, due: Due) -> BoxFuture<'_, std::result::Result<u16, String>> {
        webhook::deliver(&self.client, due).boxed()
    }
}

/// What an error means for its job.
fn ended(error: &Error) -> Ended {
    let (code, detail) = (error.code().to_owned(), detail(error));
    match error {
        Error::Training(TrainingError::Interrupted) => return Ended::Interrupted,
        Error::Api(api::Error::Cancelled) => return Ended::Interrupted,
        _ => {}
    }
    match code.as_str() {
        "cancelled" | "interrupted" | "job_lost" => Ended::Interrupted,
        // The database, the store or the machine may be better another time, and another worker may have models.
        "database" | "database_unavailable" | "storage" | "snapshots_unavailable" | "io" | "busy" | "models_unset" => {
            Ended::Retry { code, detail }
        }
        _ => Ended::Failed { code, detail },
    }
}

/// The sentence for whoever asked: nothing of the machine's inside.
fn detail(error: &Error) -> String {
    match error {
        Error::Api(error) => error.detail(),
        Error::Internal(_)
        | Error::Io { .. }
        | Error::Data(datasets::Error::Io { .. })
        | Error::Training(TrainingError::Io { .. }) => "the worker could not complete the job: its log says why".into(),
        other => other.to_string(),
    }
}

/// What a job is asked for, in the form of its kind.
fn parse<'a, T: Deserialize<'a>>(request: &'a Value) -> Result<T> {
    T::deserialize(request).map_err(|error| Error::input("request_invalid", format!("the request: {error}")))
}

/// The registry of a state, for the modules of this one.
fn registry(state: &AppState) -> &Registry {
    state.registry()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_decide_what_becomes_of_a_job() {
        assert_eq!(ended(&TrainingError::Interrupted.into()), Ended::Interrupted);
        assert_eq!(ended(&Error::Api(api::Error::Cancelled)), Ended::Interrupted);
        let lost = registry::Error::ArtifactMissing { digest: "x".into() };
        assert!(matches!(ended(&lost.into()), Ended::Failed { code, .. } if code == "artifact_missing"));
        assert!(matches!(ended(&TrainingError::Snapshots("x".into()).into()), Ended::Retry { .. }));
        let Ended::Failed { detail, .. } = ended(&Error::Internal("secret".into())) else { panic!("it failed") };
        assert!(!detail.contains("secret"), "{detail}");
    }
}
