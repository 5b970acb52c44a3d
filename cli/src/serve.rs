//! `weightsmith serve`.

use std::cell::Cell;
use std::net::SocketAddr;

use api::{AppState, Settings};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::auth::{AuthArgs, first_token};
use crate::config::{LimitArgs, ServerArgs};
use crate::context::{ModelArgs, RegistryArgs, RuntimeArgs, say, tokio_runtime};
use crate::error::{Error, Result};
use crate::worker::WorkArgs;

/// Serve the API over HTTP.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith serve --data-dir .weightsmith/demo --bind 127.0.0.1:8080")]
pub struct Args {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    auth: AuthArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Refuse to start on a schema that lacks migrations, instead of running them.
    #[arg(long, env = "WEIGHTSMITH_NO_MIGRATE", help_heading = "Database")]
    no_migrate: bool,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    models: ModelArgs,
    /// Leave jobs to workers: without it the server works on them too.
    #[arg(long, env = "WEIGHTSMITH_NO_WORKER", help_heading = "Jobs")]
    no_worker: bool,
    /// Print the effective configuration, and where each value comes from, and do nothing else.
    #[arg(long, help_heading = "Other")]
    pub print_config: bool,
}

impl Args {
    fn settings(&self) -> Settings {
        let settings = Settings { auth: self.auth.settings(), ..Settings::default() };
        self.limits.apply(self.server.apply(settings))
    }
}

/// Runs the command until SIGINT or SIGTERM.
pub fn run(args: Args) -> Result<()> {
    args.work.check()?;
    let settings = args.settings();
    settings.auth.check(settings.bind)?;
    let settings = Settings { models: args.models.open()?, ..settings };
    tokio_runtime()?.block_on(serve(&args, settings))
}

async fn serve(args: &Args, settings: Settings) -> Result<()> {
    let listener = bind(settings.bind).await?;
    let address = listener.local_addr().map_err(|e| Error::Internal(e.to_string()))?;
    let metrics = match args.server.metrics_bind {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let provider = Cell::new(None);
    let mut opened = None;
    let (stop, mut worker) = (watch::Sender::new(false), None);
    let start = async {
        let runtime = args.runtime.open()?;
        args.runtime.train_there_or_here();
        let open =
            if args.no_migrate { args.registry.open_current().await? } else { args.registry.open_alone().await? };
        provider.set(Some(runtime.provider()));
        if !args.auth.open {
            first_token(&open.registry).await?;
        }
        let upload_dir = Some(args.registry.upload_dir()?);
        let state = AppState::new(open.registry.clone(), runtime, Settings { upload_dir, ..settings.clone() });
        opened = Some(open);
        state.warm_up().await;
        if let Some(listener) = metrics {
            tokio::spawn(api::serve_metrics(listener, state.clone()));
        }
        if !args.no_worker {
            let (work, state, stopping) = (args.work.clone(), state.clone(), stop.subscribe());
            worker = Some(tokio::spawn(async move { work.run(state, stopping).await }));
        }
        Ok(state)
    };
    let ready = || {
        let provider = provider.get().map(|provider| format!(" ({provider})")).unwrap_or_default();
        say(&format!("weightsmith serves http://{address}{provider}; the API is described at http://{address}/docs"));
    };
    // Jobs stop beside the requests, not after them.
    let signal = stop.clone();
    let signal = async move {
        stop_signal().await;
        signal.send_replace(true);
    };
    let served = api::serve_when_ready(listener, settings.clone(), start, ready, signal).await;
    // Also when the server ended by itself.
    stop.send_replace(true);
    if let Some(worker) = worker {
        finish(worker).await;
    }
    if let Some(open) = opened {
        open.close().await;
    }
    served
}

/// Waits for a worker that was told to stop.
async fn finish(worker: tokio::task::JoinHandle<Result<()>>) {
    match worker.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the worker of this server did not work"),
        Err(error) => tracing::error!(%error, "the worker of this server stopped"),
    }
}

/// Binds, with a sentence when it fails.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::input("address_unavailable", format!("cannot listen on {address} ({e}); choose another with --bind"))
    })
}

/// Ends at SIGINT or SIGTERM.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}
