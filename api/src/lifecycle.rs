//! Change what is said about a resource, delete, restore and purge it: the same four operations for every resource.

use serde::Deserialize;
use utoipa::ToSchema;

/// A change of what is said about a resource; what is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Patch {
    /// The new description, at most 10,000 characters.
    #[schema(example = "Handwritten digits, 8×8", max_length = 10000)]
    description: Option<String>,
    /// All its new tags.
    #[schema(example = json!(["vision"]), max_items = 50)]
    tags: Option<Vec<String>>,
    /// `public` or `private`; what belongs to a zoo or generator is as visible as that.
    #[schema(example = "private", pattern = "^(public|private)$")]
    visibility: Option<String>,
    /// The new owner; for administrators.
    #[schema(example = "ann")]
    owner: Option<String>,
}

impl From<Patch> for registry::lifecycle::Patch {
    fn from(patch: Patch) -> Self {
        let Patch { description, tags, visibility, owner } = patch;
        Self { description, tags, visibility, owner }
    }
}

/// A module with the four operations of a resource and their routes. `key` is a `String` as it is in the path, and
/// `read` gives the resource after a change.
macro_rules! lifecycle {
    (
        $module:ident: $resource:ident, $noun:literal, tag $tag:literal, scope $scope:literal,
        $path:literal, $restore:literal, $purge:literal, ids ($update_id:literal, $delete_id:literal, $restore_id:literal, $purge_id:literal),
        key ($param:literal, $type:ty, $example:literal), $body:ty, $read:path
    ) => {
        mod $module {
            use axum::extract::State;
            use axum::http::StatusCode;
            use axum::response::Response;
            use registry::Caller;
            use registry::lifecycle::{self, Resource};
            use utoipa_axum::router::OpenApiRouter;
            use utoipa_axum::routes;

            use crate::answer::Answer;
            use crate::error::Result;
            use crate::extract::{Json, Path};
            use crate::idempotency::IdempotencyKey;
            use crate::lifecycle::Patch;
            use crate::problem::ChangeProblems;
            use crate::state::AppState;
            #[allow(unused_imports)]
            use super::*;

            pub(super) fn routes() -> OpenApiRouter<AppState> {
                OpenApiRouter::new().routes(routes!(update, delete)).routes(routes!(restore)).routes(routes!(purge))
            }

            #[utoipa::path(
                patch, path = $path, operation_id = $update_id, tag = $tag,
                summary = concat!("Change what is said about ", $noun), description = "What is left out stays.",
                params(($param = $type, Path, description = "Which one.", example = $example)),
                request_body(content = Patch, description = "The changes."),
                responses((status = 200, description = "As it is now.", body = $body), ChangeProblems),
                security(("token" = [$scope]))
            )]
            async fn update(
                State(state): State<AppState>,
                caller: Caller,
                Path(key): Path<$type>,
                Json(patch): Json<Patch>,
            ) -> Result<axum::Json<$body>> {
                let mut write = state.registry().write(&caller).await?;
                lifecycle::update(&mut write, Resource::$resource, &key.to_string(), &patch.into()).await?;
                write.commit().await?;
                Ok(axum::Json($read(&state, &caller, key).await?))
            }

            #[utoipa::path(
                delete, path = $path, operation_id = $delete_id, tag = $tag,
                summary = concat!("Delete ", $noun),
                description = "It is hidden and can be restored until it is purged. What was made from it stays.",
                params(($param = $type, Path, description = "Which one.", example = $example)),
                responses((status = 204, description = "Deleted, or was already."), ChangeProblems),
                security(("token" = [$scope]))
            )]
            async fn delete(State(state): State<AppState>, caller: Caller, Path(key): Path<$type>) -> Result<StatusCode> {
                let mut write = state.registry().write(&caller).await?;
                lifecycle::delete(&mut write, Resource::$resource, &key.to_string()).await?;
                write.commit().await?;
                Ok(StatusCode::NO_CONTENT)
            }

            #[utoipa::path(
                post, path = $restore, operation_id = $restore_id, tag = $tag,
                summary = concat!("Restore ", $noun), description = "Takes a deletion back.",
                params(($param = $type, Path, description = "Which one.", example = $example)),
                responses((status = 204, description = "Restored, or was not deleted."), ChangeProblems),
                security(("token" = [$scope]))
            )]
            async fn restore(
                State(state): State<AppState>,
                caller: Caller,
                idempotency: IdempotencyKey,
                Path(key): Path<$type>,
            ) -> Result<Response> {
                let mut write = state.registry().write(&caller).await?;
                lifecycle::restore(&mut write, Resource::$resource, &key.to_string()).await?;
                Answer::no_content().commit(write, &idempotency).await
            }

            #[utoipa::path(
                post, path = $purge, operation_id = $purge_id, tag = $tag,
                summary = concat!("Purge ", $noun),
                description = "Removes a deleted one for good, unless something still refers to it. Its files go with \
                               the next `gc`.",
                params(($param = $type, Path, description = "Which one.", example = $example)),
                responses((status = 204, description = "Gone."), ChangeProblems),
                security(("token" = ["administer"]))
            )]
            async fn purge(
                State(state): State<AppState>,
                caller: Caller,
                idempotency: IdempotencyKey,
                Path(key): Path<$type>,
            ) -> Result<Response> {
                let mut write = state.registry().write(&caller).await?;
                lifecycle::purge(&mut write, Resource::$resource, &key.to_string()).await?;
                Answer::no_content().commit(write, &idempotency).await
            }
        }
    };
}
pub(crate) use lifecycle;
