//! Upload of a dataset as a file: streamed to disk, then read within limits.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use datasets::{Format, ReadOptions};
use registry::Caller;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Dataset, Stored, chosen, store};
use crate::about::NewAbout;
use crate::error::{Error, Result};
use crate::extract::Query;
use crate::files::Binary;
use crate::idempotency::IdempotencyKey;
use crate::limits::{self, check_name};
use crate::problem::CreateProblems;
use crate::state::AppState;
use crate::upload::receive;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadQuery {
    /// Its name.
    #[param(example = "digits", pattern = "^[a-z0-9][a-z0-9_-]{0,99}$")]
    name: String,
    /// `zip` or `tar.gz` (also `tar`) of `CLASS/image.png`, or of images and a `labels.csv` (columns path and label);
    /// `idx`: an IDX file of images followed by one of labels, both plain or both gzip; `npz`.
    #[param(example = "zip", pattern = "^(zip|tar|tgz|tar\\.gz|idx|npz)$")]
    format: String,
    /// The classes to take, in label order, between commas; all when it is left out.
    #[param(example = "cat,dog")]
    classes: Option<String>,
    /// 1 (grey) or 3 (RGB) channels; as the images are when it is left out.
    #[param(example = 3, minimum = 1, maximum = 3)]
    channels: Option<usize>,
    /// Height that images are resized to, together with `width`.
    #[param(example = 32, minimum = 1, maximum = 65535)]
    height: Option<usize>,
    /// Width that images are resized to.
    #[param(example = 32, minimum = 1, maximum = 65535)]
    width: Option<usize>,
    /// What it is.
    #[param(max_length = 10000)]
    description: Option<String>,
    /// Its tags, between commas.
    #[param(example = "vision")]
    tags: Option<String>,
    /// Whether only its owner and administrators see it.
    private: Option<bool>,
}

impl UploadQuery {
    fn options(&self) -> Result<ReadOptions> {
        let size = match (self.height, self.width) {
            (Some(height), Some(width)) => Some([height, width]),
            (None, None) => None,
            _ => return Err(Error::ValueInvalid("give height and width together, or neither".into())),
        };
        Ok(ReadOptions { channels: self.channels, size, labels: None })
    }
}

/// The parts between commas.
pub(crate) fn between_commas(text: &str) -> Vec<String> {
    text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// Upload a dataset
///
/// The body is the file; it is not held in memory. Idempotent by content: data that is registered already answers 200
/// with the dataset there is.
#[utoipa::path(
    post, path = "/v1/datasets/upload", operation_id = "uploadDataset", tag = "datasets", params(UploadQuery),
    request_body(content = Binary, content_type = "application/octet-stream", description = "The file."),
    security(("token" = ["train"])),
    responses(
        (status = 201, description = "Registered.", body = Dataset,
         headers(("Location" = String, description = "The dataset's address."))),
        (status = 200, description = "The same content was registered before.", body = Dataset,
         headers(("Location" = String, description = "The dataset's address."))),
        CreateProblems)
)]
pub(super) async fn upload(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    check_name(&query.name)?;
    let format: Format = query.format.parse().map_err(|error| Error::from(error).in_field("format"))?;
    let options = query.options()?;
    let max_compressed_bytes = state.settings().upload_limit;
    let limits = datasets::Limits { max_compressed_bytes, ..state.settings().datasets.clone() };
    options.check(&limits)?;
    let file = receive(&state, &headers, body).await?;
    let place = state.work().place().await?;
    let classes = query.classes.as_deref().map(between_commas);
    let (data, npz) = limits::run(place, move |_| {
        let data = datasets::read_file(&file.path(), format, &options, &limits)?;
        chosen(data, classes.as_deref())
    })
    .await?;
    let tags = query.tags.as_deref().map(between_commas).unwrap_or_default();
    let about = NewAbout::new(query.description.unwrap_or_default(), tags, query.private);
    store(&state, &caller, &key, query.name, about, Stored::labelled(&data, npz)?).await
}
