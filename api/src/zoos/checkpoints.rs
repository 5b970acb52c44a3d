//! A checkpoint from outside, into a zoo.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use registry::imports::{Added, NewImport, Source, origin};
use registry::{Caller, architectures, checkpoints as rows, zoos};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;
use weights::checkpoint::Options;

use crate::answer::Answer;
use crate::checkpoints::Checkpoint;
use crate::datasets::between_commas;
use crate::error::{Error, Result};
use crate::extract::{Path, Query};
use crate::files::Binary;
use crate::idempotency::IdempotencyKey;
use crate::problem::CreateProblems;
use crate::state::AppState;
use crate::upload::receive;
use crate::{imports, limits};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportQuery {
    /// Name of the run it comes from; the file's name, or `run`, when it is left out.
    #[param(example = "resnet20-12fca82f", max_length = 200)]
    run: Option<String>,
    /// Epochs trained.
    #[param(example = 200, minimum = 0)]
    epoch: Option<i32>,
    /// Test accuracy, 0 to 1.
    #[param(example = 0.92, minimum = 0.0, maximum = 1.0)]
    accuracy: Option<f32>,
    /// Test loss.
    #[param(example = 0.3)]
    loss: Option<f32>,
    /// The dataset it was trained on: the id of a registered one, or a name.
    #[param(example = "cifar10", max_length = 200)]
    dataset: Option<String>,
    /// Name of the file.
    #[param(example = "resnet20-12fca82f.th", max_length = 1000)]
    file: Option<String>,
    /// Where the tensors are in a PyTorch file, as in `model.state_dict`; at the top when it is left out.
    #[param(example = "state_dict", max_length = 1000)]
    key: Option<String>,
    /// What to take off the beginning of the tensors' names.
    #[param(example = "module.", max_length = 1000)]
    strip_prefix: Option<String>,
    /// Its tags, between commas.
    #[param(example = "vision")]
    tags: Option<String>,
    /// What is said about it.
    #[param(max_length = 10000)]
    description: Option<String>,
}

/// Add a checkpoint from outside to a zoo
///
/// The body is a safetensors file, or one that `torch.save` wrote; no code of it is run, and it is not held in memory.
/// It is stored as safetensors in one canonical form, so that the same tensors have the same digest. A zoo without an
/// architecture gets the layout of its first checkpoint; later ones have to have it. Weights that the zoo has already
/// answer 200 with the checkpoint there is.
#[utoipa::path(
    post, path = "/v1/zoos/{id}/checkpoints", operation_id = "importCheckpoint", tag = "zoos",
    params(("id" = Uuid, Path, description = "The zoo's id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"),
           ImportQuery),
    request_body(content = Binary, content_type = "application/octet-stream", description = "The file."),
    security(("token" = ["train"])),
    responses(
        (status = 201, description = "Added.", body = Checkpoint,
         headers(("Location" = String, description = "The checkpoint's address."))),
        (status = 200, description = "The zoo has the same weights already.", body = Checkpoint,
         headers(("Location" = String, description = "The checkpoint's address."))),
        CreateProblems)
)]
pub(super) async fn import(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Path(id): Path<Uuid>,
    Query(query): Query<ImportQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let registry = state.registry();
    let zoo = zoos::by_id(registry, &caller, id.into()).await?;
    let expected = match zoo.architecture_id {
        Some(id) => Some(imports::layout_of(&architectures::by_id(registry, &caller, id).await?)?),
        None => None,
    };
    let dataset = match &query.dataset {
        Some(text) => origin(registry, &caller, text).await?,
        None => registry::imports::Origin::default(),
    };
    let options = Options { key: query.key.clone(), strip_prefix: query.strip_prefix.clone() };
    let file = receive(&state, &headers, body).await?;
    let place = state.work().place().await?;
    let folder = state.settings().folder();
    let taken = limits::run(place, move |_| imports::take(&file.path(), &options, expected.as_ref(), &folder)).await?;
    let new = described(query, &taken.source_digest, dataset);
    let mut write = registry.write(&caller).await?;
    let added = imports::add(registry, &mut write, &zoo, &[(taken, new)]).await?;
    let added = *added.first().ok_or_else(|| Error::Internal("an import gave no checkpoint".into()))?;
    let row = Checkpoint::from(rows::in_work(&mut write, added.id()).await?);
    let location = format!("/v1/checkpoints/{}", added.id());
    let status = if matches!(added, Added::New(_)) { StatusCode::CREATED } else { StatusCode::OK };
    Answer::json(status, &row)?.header(LOCATION, &location)?.commit(write, &key).await
}

fn described(query: ImportQuery, source_digest: &str, dataset: registry::imports::Origin) -> NewImport {
    let name = query.file.filter(|name| !name.is_empty()).unwrap_or_else(|| "upload".into());
    let stem = std::path::Path::new(&name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    NewImport {
        run: query.run.or(stem).unwrap_or_else(|| "run".into()),
        dataset,
        epoch: query.epoch,
        accuracy: query.accuracy,
        loss: query.loss,
        artifact_digest: String::new(),
        source: Source {
            name,
            digest: source_digest.into(),
            key: query.key.unwrap_or_default(),
            strip_prefix: query.strip_prefix.unwrap_or_default(),
        },
        tags: query.tags.as_deref().map(between_commas).unwrap_or_default(),
        description: query.description.unwrap_or_default(),
    }
}
