//! What every resource has in common: its owner, who may see it, and what is said about it.

use chrono::{DateTime, Utc};
use serde::Serialize;

/// Owner, visibility, tags and description of a resource.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct About {
    /// Name of the principal it belongs to.
    pub owner: String,
    /// `public`: everyone sees it; `private`: its owner and administrators do.
    pub visibility: String,
    /// Tags, at most 50.
    pub tags: Vec<String>,
    /// What it is, at most 10,000 characters.
    pub description: String,
    /// When any of this last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted; it can be restored until it is purged.
    pub deleted_at: Option<DateTime<Utc>>,
}

/// What is said about a resource when it is made; its owner is who makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewAbout {
    /// What it is.
    pub description: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether only the owner and administrators see it.
    pub private: bool,
}

impl NewAbout {
    pub(crate) fn visibility(&self) -> &'static str {
        if self.private { "private" } else { "public" }
    }
}
