//! Zoos that are trained here, as jobs.

use registry::Caller;
use registry::jobs::JobKind;
use serde_json::{Value, json};
use training::Config;

use axum::response::Response;

use crate::error::{Error, Result};
use crate::idempotency::IdempotencyKey;
use crate::jobs::{self, JobOptions};
use crate::state::AppState;

/// Enqueues the build of a zoo from a training configuration.
pub(crate) async fn build(
    state: &AppState,
    caller: &Caller,
    key: &IdempotencyKey,
    config: Value,
    options: Option<JobOptions>,
) -> Result<Response> {
    check(&config, "build")?;
    let request = json!({ "build": config });
    jobs::accept(state, caller, key, JobKind::ZooBuild, request, options.unwrap_or_default(), &[], 0).await
}

/// Checks a training configuration of a job before it waits: values, sources, names.
pub(crate) fn check(config: &Value, field: &'static str) -> Result<Config> {
    let wrong = |error: training::Error| Error::ValueInvalid(error.to_string()).in_field(field);
    let config = Config::from_json(config).map_err(wrong)?;
    config.check_sources_of_job().map_err(wrong)?;
    let sources = config.data.sources.iter().map(|source| &source.name);
    for name in std::iter::once(&config.name).chain(sources) {
        // Also the longest name that is derived from it.
        registry::check_name(name)
            .and_then(|()| registry::check_name(&format!("{name}-validation")))
            .map_err(|error| Error::from(error).in_field(field))?;
    }
    Ok(config)
}
