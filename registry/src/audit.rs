//! The audit trail: who did what to which resource, with the state before and after.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::listing::{Kind, Listed, Order, Query, Sight};
use crate::{Caller, ListRequest, Page, Registry, Result, TokenId};

/// An entry of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Entry {
    /// Its id.
    pub id: Uuid,
    /// When.
    pub at: DateTime<Utc>,
    /// Name of whoever did it.
    pub actor: String,
    /// The token that was shown, when there was one.
    pub token_id: Option<TokenId>,
    /// What was done, such as `alias.move`.
    pub action: String,
    /// Kind of resource, such as `dataset`.
    pub resource: String,
    /// Its id or name.
    pub resource_id: String,
    /// The state before.
    pub before: Option<Value>,
    /// The state after.
    pub after: Option<Value>,
    /// Id of the request.
    pub request_id: Option<String>,
    /// Address of the client.
    pub address: Option<String>,
}

/// Which entries to list.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only those of this actor.
    pub actor: Option<String>,
    /// Only those with this action.
    pub action: Option<String>,
    /// Only those about this kind of resource.
    pub resource: Option<String>,
    /// Only those about this id or name.
    pub resource_id: Option<String>,
    /// Only those at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Only those before this time.
    pub until: Option<DateTime<Utc>>,
}

const LISTED: Listed = Listed {
    columns: "a.id, a.at, a.actor, a.token_id, a.action, a.resource, a.resource_id, a.before, a.after, a.request_id, a.address",
    from: "FROM audit a",
    late: "",
    alias: "a",
    sight: Sight::Checked,
    deletable: false,
    described: false,
    orders: &[Order { field: "at", column: "a.at", kind: Kind::Time }],
    default_order: "-at",
};

/// Entries, newest first. For administrators: whoever calls checks that.
///
/// # Errors
/// `invalid_cursor`, `invalid_value`.
pub async fn list(
    registry: &Registry,
    caller: &Caller,
    filter: &AuditFilter,
    request: &ListRequest,
) -> Result<Page<Entry>> {
    let mut query = Query::start(&LISTED, request, caller)?;
    let equal = [
        ("actor", &filter.actor),
        ("action", &filter.action),
        ("resource", &filter.resource),
        ("resource_id", &filter.resource_id),
    ];
    for (column, value) in equal {
        query.equal(&format!("a.{column}"), value.as_ref());
    }
    if let Some(since) = filter.since {
        query.sql.push(" AND a.at >= ").push_bind(since);
    }
    if let Some(until) = filter.until {
        query.sql.push(" AND a.at < ").push_bind(until);
    }
    query.page(registry).await
}
