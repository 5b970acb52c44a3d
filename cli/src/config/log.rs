//! What is logged, and how.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::TraceArgs;
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
    #[command(flatten)]
    traces: TraceArgs,
}

/// To be kept until the command has ended: what it holds is then sent.
pub struct Observed {
    #[cfg(feature = "otel")]
    _traces: Option<super::Traces>,
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
    /// Begins to log to standard error, and to send traces where that is asked for.
    ///
    /// # Errors
    /// `log_filter_invalid`, `otlp_unsupported`, `otlp_endpoint_invalid`.
    pub fn init(&self) -> Result<Observed> {
        let filter = EnvFilter::try_new(&self.log)
            .map_err(|e| Error::input("log_filter_invalid", format!("--log {}: {e}", self.log)))?;
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match self.log_json || self.log_format == LogFormat::Json {
            true => lines.json().boxed(),
            false => lines.boxed(),
        };
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
        #[cfg(feature = "otel")]
        {
            let traces = self.traces.open()?;
            let layer = traces.as_ref().map(super::Traces::layer).transpose()?;
            subscriber.with(layer).init();
            Ok(Observed { _traces: traces })
        }
        #[cfg(not(feature = "otel"))]
        {
            self.traces.check()?;
            subscriber.init();
            Ok(Observed {})
        }
    }
}
