//! Many checkpoints from outside, as one archive, into a zoo: a job.

use std::fs::File;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use datasets::ArchiveKind;
use registry::jobs::{JobKind, JobOptions, NewJob, Webhook};
use registry::{Caller, imports as rows};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::extract::{Path, Query};
use crate::files::Binary;
use crate::generations::{applied, prefers_async};
use crate::idempotency::IdempotencyKey;
use crate::imports::ARCHIVE;
use crate::jobs::{self, Job};
use crate::limits;
use crate::problem::CreateProblems;
use crate::state::AppState;
use crate::upload::receive;

/// Header with the secret of the webhook: addresses are logged along the way, headers are not.
const SECRET: &str = "Webhook-Secret";

/// What all files have in common, as the job keeps it.
#[derive(Deserialize, Serialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ArchiveQuery {
    /// Where the tensors are in PyTorch files, as in `model.state_dict`; at the top when it is left out.
    #[param(example = "state_dict", max_length = 1000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// What to take off the beginning of the tensors' names.
    #[param(example = "module.", max_length = 1000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    strip_prefix: Option<String>,
    /// Test accuracy of all files, 0 to 1.
    #[param(example = 0.92, minimum = 0.0, maximum = 1.0)]
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f32>,
    /// Test loss of all files.
    #[param(example = 0.3)]
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f32>,
    /// The dataset they were trained on: the id of a registered one, or a name.
    #[param(example = "cifar10", max_length = 200)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset: Option<String>,
    /// Name of their run; without it each file is a run of its own, by its name.
    #[param(example = "resnet20", max_length = 200)]
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// Epochs trained.
    #[param(example = 200, minimum = 0)]
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<i32>,
    /// Go on after a file that cannot be imported; the result names all of them.
    #[serde(default)]
    keep_going: bool,
    /// Take files without a row of `checkpoints.csv` too, with the values given here.
    #[serde(default)]
    defaults: bool,
    /// The queue it waits in; `import` by default.
    #[param(example = "import", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    #[serde(skip_serializing)]
    queue: Option<String>,
    /// When it fails unless it has ended.
    #[param(example = "2036-01-01T00:00:00Z")]
    #[serde(skip_serializing)]
    deadline: Option<DateTime<Utc>>,
    /// Attempts before it fails; 5 by default.
    #[param(minimum = 1, maximum = 100, example = 5)]
    #[serde(skip_serializing)]
    max_attempts: Option<i32>,
    /// What is told when it ends; the secret comes in the header `Webhook-Secret`.
    #[param(example = "https://example.org/hook", max_length = 2048)]
    #[serde(skip_serializing)]
    webhook_url: Option<String>,
}

impl ArchiveQuery {
    fn check(&self) -> Result<()> {
        rows::check_values(self.accuracy, self.loss, self.epoch)?;
        for (field, value, least, most) in
            [("key", &self.key, 0, 1000), ("strip_prefix", &self.strip_prefix, 0, 1000), ("run", &self.run, 1, 200)]
        {
            let length = value.as_ref().map_or(least, |text| text.chars().count());
            if !(least..=most).contains(&length) || value.as_ref().is_some_and(|text| text.contains('\0')) {
                let rule = format!("{field} must be {least} to {most} characters, without U+0000");
                return Err(Error::ValueInvalid(rule).in_field(field));
            }
        }
        Ok(())
    }

    fn options(&mut self, headers: &HeaderMap) -> Result<JobOptions> {
        let secret = headers.get(SECRET).map(|value| value.to_str().map(str::to_owned)).transpose();
        let secret = secret
            .map_err(|_| Error::HeaderInvalid { name: SECRET, rule: "send 8 to 2048 visible ASCII characters" })?;
        let webhook = match (self.webhook_url.take(), secret) {
            (Some(url), Some(secret)) => Some(Webhook { url, secret }),
            (None, None) => None,
            _ => {
                let rule = "give webhook_url and the header Webhook-Secret together, or neither";
                return Err(Error::ValueInvalid(rule.into()).in_field("webhook_url"));
            }
        };
        Ok(JobOptions { queue: self.queue.take(), max_attempts: self.max_attempts, deadline: self.deadline, webhook })
    }
}

/// Add many checkpoints from outside to a zoo
///
/// The body is an archive (tar, tar.gz or zip, told by its content) of safetensors files and of files that `torch.save`
/// wrote: .safetensors, .pt, .pth, .th and .bin; no code of a file is run. A `checkpoints.csv` in it gives each file its
/// own values: the column path (from the CSV's folder) and any of accuracy, loss, dataset, run, epoch, tags (between
/// semicolons) and description. They are added 64 at a time, each 64 whole or not at all, and what the zoo has already
/// is passed over. The job's result counts them, and names those that failed.
#[utoipa::path(
    post, path = "/v1/zoos/{id}/imports", operation_id = "importArchive", tag = "zoos",
    params(("id" = Uuid, Path, description = "The zoo's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           ("Webhook-Secret" = Option<String>, Header, description = "The key of the webhook's signature.",
            example = "correct horse battery staple"),
           ArchiveQuery),
    request_body(content = Binary, content_type = "application/octet-stream", description = "The archive."),
    security(("token" = ["train"])),
    responses((status = 202, description = "The job.", body = Job,
               headers(("Location" = String, description = "The job's address."))), CreateProblems)
)]
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Path(id): Path<Uuid>,
    Query(mut query): Query<ArchiveQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let registry = state.registry();
    let zoo = rows::own_zoo(registry, &caller, id.into()).await?;
    query.check()?;
    if let Some(text) = &query.dataset {
        rows::origin(registry, &caller, text).await.map_err(|error| Error::from(error).in_field("dataset"))?;
    }
    let options = query.options(&headers)?;
    let file = receive(&state, &headers, body).await?;
    let path = file.path();
    let kind = limits::blocking(move || {
        let file = File::open(&path).map_err(|e| Error::Internal(format!("an upload cannot be read: {e}")))?;
        Ok(ArchiveKind::of(file)?)
    })
    .await?;
    let media_type = match kind {
        ArchiveKind::Zip => "application/zip",
        ArchiveKind::Tar => "application/x-tar",
    };
    let artifact = registry.artifacts().put_file(&file.path(), media_type).await?;
    let as_json = |error| Error::Internal(format!("a request cannot be kept: {error}"));
    let mut request = serde_json::to_value(&query).map_err(as_json)?;
    if let Value::Object(request) = &mut request {
        request.insert("zoo".into(), json!(zoo.id));
        request.insert("archive".into(), json!({ "digest": artifact.digest, "bytes": artifact.size }));
    }
    let new = NewJob { kind: JobKind::Import, request, options, files: vec![(ARCHIVE, artifact.digest)] };
    jobs::accept_new(&state, &caller, &key, &new, &applied(prefers_async(&headers)), 0).await
}
