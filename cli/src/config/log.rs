//! What is logged, and how.

use tracing_subscriber::{EnvFilter, fmt};

use crate::error::{Error, Result};

/// Logs of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Observability")]
pub struct LogArgs {
    /// What to log, as in `info` or `weightsmith=debug,sqlx=warn`.
    #[arg(long, global = true, env = "WEIGHTSMITH_LOG", default_value = "warn")]
    log: String,
    /// How log lines look: text for people, or one JSON object a line.
    #[arg(long, global = true, env = "WEIGHTSMITH_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Log as JSON lines; the same as `--log-format json`.
    #[arg(long, global = true, env = "WEIGHTSMITH_LOG_JSON")]
    log_json: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogArgs {
    /// Begins to log to standard error.
    ///
    /// # Errors
    /// `log_filter_invalid`.
    pub fn init(&self) -> Result<()> {
        let filter = EnvFilter::try_new(&self.log)
            .map_err(|e| Error::input("log_filter_invalid", format!("--log {}: {e}", self.log)))?;
        let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
        if self.log_json || self.log_format == LogFormat::Json {
            builder.json().init();
        } else {
            builder.init();
        }
        Ok(())
    }
}
