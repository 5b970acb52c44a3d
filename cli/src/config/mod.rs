//! Configuration: one struct of flags for each concern, which a command flattens.
//!
//! A setting is a field with `#[arg(long, env = "WEIGHTSMITH_…")]` and a default, in a struct with
//! `#[command(next_help_heading = "Concern")]`. Nothing else is needed: `--print-config` and the refusal of unknown
//! variables read clap's definitions. A secret has `hide_env_values = true`, and is then not printed.

mod duration;
mod environment;
mod log;
mod print;
mod storage;
mod traces;

use std::net::SocketAddr;

use api::{Origin, Settings};

pub use duration::Span;
pub use environment::check as check_environment;
pub use log::LogArgs;
pub use print::print;
pub use storage::StorageArgs;
pub use traces::TraceArgs;
#[cfg(feature = "otel")]
pub use traces::Traces;

/// The HTTP server.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address to listen on.
    #[arg(long, env = "WEIGHTSMITH_BIND", default_value_t = Settings::default().bind)]
    pub bind: SocketAddr,
    /// Longest time to answer a request, such as `90s` or `5m`; a download under way is not cut off.
    #[arg(long, env = "WEIGHTSMITH_TIMEOUT", default_value_t = Span(Settings::default().timeout))]
    pub timeout: Span,
    /// How long requests under way may go on after the signal to stop.
    #[arg(long, env = "WEIGHTSMITH_GRACE", default_value_t = Span(Settings::default().grace))]
    pub grace: Span,
    /// Longest time for a request's head, counted from the connection's beginning or the answer before.
    #[arg(long, env = "WEIGHTSMITH_HEADER_TIMEOUT", default_value_t = Span(Settings::default().header_timeout))]
    pub header_timeout: Span,
    /// Longest pause in a request's body; then 408.
    #[arg(long, env = "WEIGHTSMITH_BODY_TIMEOUT", default_value_t = Span(Settings::default().body_timeout))]
    pub body_timeout: Span,
    /// An origin whose pages may use the API from a browser, such as https://app.example, or * for all; several with
    /// commas or by repetition.
    #[arg(long, env = "WEIGHTSMITH_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origin: Vec<Origin>,
    /// Serve /metrics on this address alone, instead of beside the API.
    #[arg(long, env = "WEIGHTSMITH_METRICS_BIND", value_name = "ADDRESS")]
    pub metrics_bind: Option<SocketAddr>,
}

/// What one request may ask for, and how much is done at a time.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Largest JSON body in bytes.
    #[arg(long, env = "WEIGHTSMITH_BODY_LIMIT", default_value_t = Settings::default().body_limit)]
    pub body_limit: usize,
    /// Largest uploaded file in bytes.
    #[arg(long, env = "WEIGHTSMITH_UPLOAD_LIMIT", default_value_t = Settings::default().upload_limit)]
    pub upload_limit: u64,
    /// Folder that uploads are kept in while they are read; without it the system's.
    #[arg(long, env = "WEIGHTSMITH_UPLOAD_DIR")]
    pub upload_dir: Option<std::path::PathBuf>,
    /// Most samples of one generation.
    #[arg(long, env = "WEIGHTSMITH_MAX_COUNT", default_value_t = Settings::default().max_count)]
    pub max_count: usize,
    /// Generations of more samples than this are jobs.
    #[arg(long, env = "WEIGHTSMITH_ASYNC_ABOVE", default_value_t = Settings::default().async_above)]
    pub async_above: usize,
    /// Most sampling steps of one generation.
    #[arg(long, env = "WEIGHTSMITH_MAX_STEPS", default_value_t = Settings::default().max_steps)]
    pub max_steps: usize,
    /// Requests that may wait for a place to work; more get 429.
    #[arg(long, env = "WEIGHTSMITH_QUEUE", default_value_t = Settings::default().queue)]
    pub queue: usize,
    /// Requests that work at a time; 0 for as many as share a run of the denoiser (64).
    #[arg(long, env = "WEIGHTSMITH_WORKERS", default_value_t = Settings::default().workers)]
    pub workers: usize,
    /// Most generators kept loaded; those that were used last stay.
    #[arg(long, env = "WEIGHTSMITH_GENERATORS_CACHED", default_value_t = Settings::default().generators_cached)]
    pub generators_cached: usize,
    /// Memory of the generators kept loaded, in bytes; one is kept also when it alone needs more.
    #[arg(long, env = "WEIGHTSMITH_GENERATORS_MEMORY", default_value_t = Settings::default().generators_memory)]
    pub generators_memory: u64,
    /// Registered datasets kept in memory.
    #[arg(long, env = "WEIGHTSMITH_DATASETS_CACHED", default_value_t = Settings::default().datasets_cached)]
    pub datasets_cached: usize,
}

impl ServerArgs {
    /// Puts these into the settings.
    pub fn apply(&self, settings: Settings) -> Settings {
        Settings {
            bind: self.bind,
            timeout: self.timeout.0,
            grace: self.grace.0,
            header_timeout: self.header_timeout.0,
            body_timeout: self.body_timeout.0,
            cors_origins: self.cors_origin.clone(),
            metrics_elsewhere: self.metrics_bind.is_some(),
            ..settings
        }
    }
}

impl LimitArgs {
    /// Puts these into the settings.
    pub fn apply(&self, settings: Settings) -> Settings {
        Settings {
            body_limit: self.body_limit,
            upload_limit: self.upload_limit,
            upload_dir: self.upload_dir.clone(),
            max_count: self.max_count,
            async_above: self.async_above,
            max_steps: self.max_steps,
            queue: self.queue,
            workers: self.workers,
            generators_cached: self.generators_cached,
            generators_memory: self.generators_memory,
            datasets_cached: self.datasets_cached,
            ..settings
        }
    }
}
