//! What is near a dataset, by the embeddings of a generator version.

use axum::Json;
use axum::extract::State;
use inference::Generator;
use registry::embeddings::{self, NewEmbedding, SubjectKind};
use registry::generators::{self, GeneratorVersion};
use registry::nearest::{self, Scan, Search};
use registry::{Caller, datasets as rows};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::upload::between_commas;
use crate::error::{Error, Result};
use crate::extract::{Path, Query};
use crate::inline::labels;
use crate::limits;
use crate::problem::ViewProblems;
use crate::state::AppState;

/// Support sets that an embedding is the mean of, as for runs.
const DRAWS: u64 = 4;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct NearestQuery {
    /// The generator whose dataset encoder decides: `name`, `name@version` or `name@alias`.
    #[param(example = "digits@1")]
    generator: String,
    /// `datasets`, or `runs` of zoos with their last checkpoints.
    #[param(example = "datasets", pattern = "^(datasets|runs)$")]
    kind: Option<String>,
    /// The task: class names in order, between commas, as many as the generator takes. Without it the dataset's
    /// classes in groups of that number.
    #[param(example = "3,1,4")]
    classes: Option<String>,
    /// Most neighbours.
    #[param(example = 10, minimum = 1, maximum = 200, default = 10)]
    limit: Option<u32>,
}

/// What is near, nearest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Neighbours {
    /// The neighbours.
    items: Vec<Neighbour>,
    /// `exact`: all embeddings were compared; `hnsw`: an index was searched, which may miss one.
    #[schema(example = "exact", pattern = "^(exact|hnsw)$")]
    scan: &'static str,
    /// The generator version that was asked.
    #[schema(example = "digits@1")]
    generator: String,
}

/// A dataset or run nearby.
#[derive(Serialize, ToSchema)]
struct Neighbour {
    /// Cosine distance of the embeddings, 0 to 2.
    #[schema(example = 0.013)]
    distance: f64,
    /// The dataset; of a run the one it was trained on.
    dataset_id: Uuid,
    /// Name of the dataset, or of the run's zoo.
    #[schema(example = "digits")]
    name: String,
    /// The task: labels of the dataset, in order.
    #[schema(example = json!([3, 1, 4]))]
    classes: Vec<i32>,
    /// The run, when runs were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<Uuid>,
    /// The run's zoo.
    #[serde(skip_serializing_if = "Option::is_none")]
    zoo_id: Option<Uuid>,
    /// The run's last checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_id: Option<Uuid>,
    /// Test accuracy of that checkpoint, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f32>,
}

/// Find what is near a dataset
///
/// Datasets or runs whose embeddings, by the dataset encoder of a generator version, point the same way. The dataset's
/// own embedding is made when it is first needed, and kept. Only datasets that have been embedded are found.
#[utoipa::path(
    get, path = "/v1/datasets/{id}/nearest", operation_id = "findNearest", tag = "datasets",
    params(("id" = Uuid, Path, description = "Its id.", example = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e"), NearestQuery),
    security(("token" = ["read"])),
    responses((status = 200, description = "The neighbours.", body = Neighbours), ViewProblems)
)]
pub(super) async fn nearest(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(query): Query<NearestQuery>,
) -> Result<Json<Neighbours>> {
    let kind = match query.kind.as_deref() {
        None | Some("datasets") => SubjectKind::Dataset,
        Some("runs") => SubjectKind::Run,
        Some(_) => return Err(Error::ValueInvalid("kind must be datasets or runs".into()).in_field("kind")),
    };
    let registry = state.registry();
    let row = rows::get(registry, &caller, id.into()).await?;
    let version = generators::resolve(registry, &caller, &query.generator).await?;
    let classes = query.classes.as_deref().map(between_commas);
    let embedding = embedding(&state, &caller, &row, &version, classes).await?;
    let except = (kind == SubjectKind::Dataset).then_some(id);
    let search = Search { version: version.id, kind, query: &embedding, except, limit: query.limit.unwrap_or(10) };
    let found = nearest::search(registry, &caller, &search).await?;
    if found.scan == Scan::Exact && found.embedded.is_some_and(|n| n >= nearest::INDEX_FROM) {
        index_soon(&state, &version, kind);
    }
    let items = found.neighbours.into_iter().map(|near| neighbour(near, kind)).collect();
    let scan = match found.scan {
        Scan::Exact => "exact",
        Scan::Hnsw => "hnsw",
    };
    Ok(Json(Neighbours { items, scan, generator: format!("{}@{}", version.generator, version.version) }))
}

/// Makes the index behind this request's back: the next ones use it.
fn index_soon(state: &AppState, version: &GeneratorVersion, kind: SubjectKind) {
    let (registry, version) = (state.registry().clone(), version.id);
    tokio::spawn(async move {
        if let Err(error) = nearest::maintain(&registry, version, kind, nearest::INDEX_FROM).await {
            tracing::warn!(%error, %version, "the index of a generator version's embeddings could not be made");
        }
    });
}

fn neighbour(near: nearest::Near, kind: SubjectKind) -> Neighbour {
    Neighbour {
        distance: near.distance,
        dataset_id: near.dataset_id,
        name: near.name,
        classes: near.classes,
        run_id: (kind == SubjectKind::Run).then_some(near.subject_id),
        zoo_id: near.zoo_id,
        checkpoint_id: near.checkpoint_id,
        accuracy: near.accuracy,
    }
}

/// The dataset's embedding: the stored one, or else one that is made and stored now.
async fn embedding(
    state: &AppState,
    caller: &Caller,
    row: &rows::Dataset,
    version: &GeneratorVersion,
    classes: Option<Vec<String>>,
) -> Result<Vec<f32>> {
    let registry = state.registry();
    let named = match &classes {
        Some(names) => Some(numbers(&labels_of(row, names)?)),
        None => None,
    };
    let kind = SubjectKind::Dataset;
    if let Some(stored) = nearest::stored(registry, version.id, kind, row.id.as_uuid(), named.as_deref()).await? {
        return Ok(stored);
    }
    let (task, embedding) = match state.texts(version).await? {
        Some(encoder) => {
            let text = state.text(row).await?;
            let place = state.work().place().await?;
            (Vec::new(), limits::run(place, move |_| encoder.embed(&text).map_err(Error::Language)).await?)
        }
        None => {
            let (generator, data) = (state.generator(version).await?, state.dataset(row).await?);
            let asked = classes.map(|names| labels(&data, &names)).transpose();
            let asked = asked.map_err(|e| Error::from(e).in_field("classes"))?;
            let place = state.work().place().await?;
            limits::run(place, move |_| embed(&generator, &data, asked)).await?
        }
    };
    let new = NewEmbedding { subject_id: row.id.as_uuid(), classes: numbers(&task), embedding: embedding.clone() };
    // A read may keep this: it is derived from what the caller sees alone, the same whoever asks, and no one's resource,
    // so it needs no other scope and no entry in the audit trail.
    let mut write = registry.write(caller).await?;
    embeddings::insert_bulk(&mut write, version.id, kind, &[new]).await?;
    write.commit().await?;
    Ok(embedding)
}

fn numbers(labels: &[u32]) -> Vec<i32> {
    labels.iter().filter_map(|&label| i32::try_from(label).ok()).collect()
}

fn labels_of(row: &rows::Dataset, names: &[String]) -> Result<Vec<u32>> {
    let known = |name: &String| row.class_names.iter().position(|class| class == name);
    let found = names.iter().map(|name| {
        let label = known(name).and_then(|at| u32::try_from(at).ok());
        label.ok_or_else(|| {
            let known = row.class_names.iter().take(50).cloned().collect::<Vec<_>>().join(", ");
            Error::from(datasets::Error::UnknownClass { class: name.clone(), known }).in_field("classes")
        })
    });
    found.collect()
}

/// The mean z_D of some support sets of the task; without one, of the classes in groups as large as the generator
/// takes, the last reaching back into the one before.
fn embed(generator: &Generator, data: &datasets::Dataset, asked: Option<Vec<u32>>) -> Result<(Vec<u32>, Vec<f32>)> {
    let (size, all) = (generator.manifest().encoder.classes, data.classes());
    let task = asked.unwrap_or_else(|| (0..).take(all).collect());
    let groups: Vec<Vec<u32>> = match task.len() > size {
        true => {
            let start = |group: usize| (group * size).min(task.len() - size);
            (0..task.len().div_ceil(size)).map(|group| task[start(group)..start(group) + size].to_vec()).collect()
        }
        false => vec![task.clone()],
    };
    let mut features = Vec::new();
    for group in &groups {
        for seed in 0..DRAWS {
            features.push(generator.features(data, group, seed)?);
        }
    }
    let embeddings = generator.embed_many(&features)?;
    let mut mean = vec![0f32; generator.manifest().encoder.embedding_dim];
    for embedding in &embeddings {
        mean.iter_mut().zip(&embedding.dataset).for_each(|(sum, value)| *sum += value / embeddings.len() as f32);
    }
    Ok((task, mean))
}
