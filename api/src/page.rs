//! Lists: pages of items with a cursor.

use registry::{Page, PageRequest};
use serde::Serialize;
use utoipa::ToSchema;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Listing<T> {
    /// The items, in the list's order.
    pub(crate) items: Vec<T>,
    /// Pass it as `cursor` to get the next page; null on the last page.
    #[schema(required)]
    pub(crate) next_cursor: Option<String>,
}

impl<T> Listing<T> {
    /// The page of the registry in the form of the API.
    pub(crate) fn of<R>(page: Page<R>, view: impl FnMut(R) -> T) -> axum::Json<Self> {
        axum::Json(Self { items: page.items.into_iter().map(view).collect(), next_cursor: page.next_cursor })
    }
}

/// The registry's form of `limit` and `cursor`.
pub(crate) fn request(limit: Option<u32>, cursor: Option<String>) -> PageRequest {
    PageRequest { limit: limit.unwrap_or(PageRequest::default().limit), cursor }
}
