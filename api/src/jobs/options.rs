//! How a job is to be done, as clients say it.

use chrono::{DateTime, Utc};
use registry::jobs as rows;
use serde::Deserialize;
use utoipa::ToSchema;

/// How a job is to be done.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobOptions {
    /// The queue it waits in; workers take jobs from the queues they are started with. The kind's own by default.
    #[schema(example = "train", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    queue: Option<String>,
    /// When it fails unless it has ended.
    #[schema(example = "2036-01-01T00:00:00Z")]
    deadline: Option<DateTime<Utc>>,
    /// Attempts before it fails; 5 by default.
    #[schema(minimum = 1, maximum = 100, example = 5)]
    max_attempts: Option<i32>,
    /// What is told when it ends.
    webhook: Option<Webhook>,
}

/// What is told when a job ends: a POST of the job as JSON, with `Weightsmith-Signature: t=SECONDS,v1=HEX`, where HEX
/// is the HMAC-SHA256 of `SECONDS.BODY` under the secret.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Webhook {
    /// An http or https URL.
    #[schema(example = "https://example.org/hook", max_length = 2048)]
    url: String,
    /// The key of the signature; never shown again.
    #[schema(example = "correct horse battery staple", min_length = 8, max_length = 2048)]
    secret: Secret,
}

/// Text that is not shown.
#[derive(Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub(crate) struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

impl From<JobOptions> for rows::JobOptions {
    fn from(options: JobOptions) -> Self {
        let JobOptions { queue, deadline, max_attempts, webhook } = options;
        let webhook = webhook.map(|Webhook { url, secret }| rows::Webhook { url, secret: secret.0 });
        Self { queue, max_attempts, deadline, webhook }
    }
}
