//! Evaluations: what the samples of a generation measured on labelled data, after they were made. They are seen by
//! whoever sees the generation.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{
    Caller, Change, DatasetId, Error, EvaluationId, GenerationId, ListRequest, Page, Registry, Result, Write,
    generations,
};

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Evaluation {
    /// Its id.
    pub id: EvaluationId,
    /// The generation.
    pub generation_id: GenerationId,
    /// The labelled data, when it is registered.
    pub dataset_id: Option<DatasetId>,
    /// Digest of the labelled data.
    pub dataset_digest: String,
    /// Names of the classes, in the order of the head's rows.
    pub classes: Vec<String>,
    /// One object a sample: `index`, `accuracy`, `loss`, `evaluated_on`.
    pub results: Value,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// An evaluation to record.
#[derive(Clone, Debug)]
pub struct NewEvaluation {
    /// The generation.
    pub generation_id: GenerationId,
    /// The labelled data, when it is registered.
    pub dataset_id: Option<DatasetId>,
    /// Digest of the labelled data.
    pub dataset_digest: String,
    /// Names of the classes, in the order of the head's rows.
    pub classes: Vec<String>,
    /// One object a sample.
    pub results: Value,
}

const COLUMNS: &str = "e.id, e.generation_id, e.dataset_id, e.dataset_digest, e.classes, e.results, e.created_at";

const LISTED: Listed = Listed {
    columns: COLUMNS,
    from: "FROM evaluations e",
    late: "",
    alias: "e",
    sight: Sight::Checked,
    deletable: false,
    described: false,
    orders: &[Order { field: "created_at", column: "e.created_at", kind: Kind::Time }],
    default_order: "-created_at",
};

/// Records an evaluation.
///
/// # Errors
/// `not_found` (generation, dataset), `invalid_value`.
pub async fn create(write: &mut Write, new: &NewEvaluation) -> Result<EvaluationId> {
    let id = EvaluationId::generate();
    sqlx::query(
        "INSERT INTO evaluations (id, generation_id, dataset_id, dataset_digest, classes, results)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id)
    .bind(new.generation_id)
    .bind(new.dataset_id)
    .bind(&new.dataset_digest)
    .bind(&new.classes)
    .bind(&new.results)
    .execute(write.connection())
    .await?;
    let after = json!({ "generation_id": new.generation_id, "dataset_digest": new.dataset_digest });
    let change = Change {
        action: "evaluation.create",
        resource: "evaluation",
        id: id.to_string(),
        before: None,
        after: Some(after),
    };
    write.audit(change).await?;
    Ok(id)
}

/// An evaluation of a generation.
///
/// # Errors
/// `not_found`.
pub async fn get(
    registry: &Registry,
    caller: &Caller,
    generation: GenerationId,
    id: EvaluationId,
) -> Result<Evaluation> {
    generations::get(registry, caller, generation).await?;
    let sql = format!("SELECT {COLUMNS} FROM evaluations e WHERE e.id = $1 AND e.generation_id = $2");
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(id)
        .bind(generation)
        .fetch_optional(registry.pool())
        .await?
        .ok_or_else(|| Error::not_found("evaluation", id))
}

/// Evaluations of a generation, newest first.
///
/// # Errors
/// `not_found`, `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    generation: GenerationId,
    request: &ListRequest,
) -> Result<Page<Evaluation>> {
    generations::get(registry, caller, generation).await?;
    let mut query = Query::start(&LISTED, request, caller)?;
    query.sql.push(" AND e.generation_id = ").push_bind(generation);
    query.page(registry).await
}
