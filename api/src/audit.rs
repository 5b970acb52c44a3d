//! The audit trail, for administrators.

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use registry::audit as rows;
use registry::{Caller, ListRequest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::Result;
use crate::extract::Query;
use crate::page::Listing;
use crate::problem::ListProblems;
use crate::state::AppState;

/// The routes of this resource.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// One change.
#[derive(Serialize, ToSchema)]
pub(crate) struct Entry {
    /// Its id.
    id: Uuid,
    /// When.
    at: DateTime<Utc>,
    /// Who did it.
    #[schema(example = "ann")]
    actor: String,
    /// The token that was shown; null when the program itself did it, and in open mode.
    #[schema(required)]
    token_id: Option<Uuid>,
    /// What was done.
    #[schema(example = "alias.move")]
    action: String,
    /// Kind of resource.
    #[schema(example = "alias")]
    resource: String,
    /// The resource's id or name.
    #[schema(example = "digits@champion")]
    resource_id: String,
    /// The state before; null when it was made.
    #[schema(required)]
    before: Option<Value>,
    /// The state after; null when it is gone.
    #[schema(required)]
    after: Option<Value>,
    /// Id of the request.
    #[schema(required)]
    request_id: Option<String>,
    /// Address of the client.
    #[schema(required, value_type = Option<String>, example = "192.0.2.1")]
    address: Option<IpAddr>,
}

impl From<rows::Entry> for Entry {
    fn from(row: rows::Entry) -> Self {
        Self {
            id: row.id,
            at: row.at,
            actor: row.actor,
            token_id: row.token_id.map(registry::TokenId::as_uuid),
            action: row.action,
            resource: row.resource,
            resource_id: row.resource_id,
            before: row.before,
            after: row.after,
            request_id: row.request_id,
            address: row.address.and_then(|address| address.parse().ok()),
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Most items of the page, 1 to 200.
    #[param(example = 50, minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// `at` or `-at`, which is newest first and the default.
    #[param(example = "-at")]
    order: Option<String>,
    /// Only what this principal did.
    #[param(example = "ann")]
    actor: Option<String>,
    /// Only this action.
    #[param(example = "alias.move")]
    action: Option<String>,
    /// Only changes of this kind of resource.
    #[param(example = "alias")]
    resource: Option<String>,
    /// Only changes of the resource with this id or name.
    resource_id: Option<String>,
    /// Only changes at this time or later.
    since: Option<DateTime<Utc>>,
    /// Only changes before this time.
    until: Option<DateTime<Utc>>,
}

/// List the audit trail
///
/// Who did what to which resource, with the state before and after; newest first.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "listAudit", tag = "audit", params(ListQuery),
    security(("token" = ["administer"])),
    responses((status = 200, description = "A page of changes.", body = Listing<Entry>, example = json!({
        "items": [{
            "id": "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e", "at": "2026-01-01T00:00:00Z", "actor": "ann",
            "token_id": "0199a1f6-3c5e-7d0a-9a53-000000000003", "action": "token.create", "resource": "token",
            "resource_id": "0199a1f6-3c5e-7d0a-9a53-000000000004", "before": null, "after": {"name": "ci"},
            "request_id": "0199a1f6-3c5e-7d0a-9a53-000000000005", "address": "192.0.2.1"}],
        "next_cursor": null})), ListProblems)
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Listing<Entry>>> {
    let mut request = ListRequest { cursor: query.cursor, order: query.order, ..ListRequest::default() };
    request.limit = query.limit.unwrap_or(request.limit);
    let filter = rows::AuditFilter {
        actor: query.actor,
        action: query.action,
        resource: query.resource,
        resource_id: query.resource_id,
        since: query.since,
        until: query.until,
    };
    let page = rows::list(state.registry(), &caller, &filter, &request).await?;
    Ok(Listing::of(page, Entry::from))
}
