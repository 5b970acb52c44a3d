//! What every resource has in common: owner, visibility, tags, description.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Owner, visibility, tags and description of a resource.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct About {
    /// Name of the principal it belongs to.
    #[schema(example = "ann")]
    owner: String,
    /// `public`: everyone sees it; `private`: its owner and administrators do.
    #[schema(example = "public", pattern = "^(public|private)$")]
    visibility: String,
    /// Its tags.
    #[schema(example = json!(["vision"]))]
    tags: Vec<String>,
    /// What it is.
    #[schema(example = "Handwritten digits, 8×8")]
    description: String,
    /// When any of this last changed.
    updated_at: DateTime<Utc>,
    /// When it was deleted, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<DateTime<Utc>>,
}

impl From<registry::About> for About {
    fn from(row: registry::About) -> Self {
        let registry::About { owner, visibility, tags, description, updated_at, deleted_at } = row;
        Self { owner, visibility, tags, description, updated_at, deleted_at }
    }
}

/// What is said about a resource that is made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewAbout {
    /// What it is, at most 10,000 characters.
    #[serde(default)]
    #[schema(example = "Handwritten digits, 8×8", max_length = 10000)]
    description: String,
    /// At most 50 tags: lowercase letters, digits and - _ . : /.
    #[serde(default)]
    #[schema(example = json!(["vision"]), max_items = 50)]
    tags: Vec<String>,
    /// Who sees it: `public` by default, generations `private`.
    visibility: Option<Visibility>,
}

/// Who sees a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Visibility {
    /// Everyone whose token allows its name.
    Public,
    /// Its owner and administrators.
    Private,
}

impl NewAbout {
    /// From the parameters of a query.
    pub(crate) fn new(description: String, tags: Vec<String>, private: Option<bool>) -> Self {
        let visibility = private.map(|private| if private { Visibility::Private } else { Visibility::Public });
        Self { description, tags, visibility }
    }

    /// The registry's form; `private` is what it is by default.
    pub(crate) fn or(self, private: bool) -> registry::NewAbout {
        let private = self.visibility.map_or(private, |asked| asked == Visibility::Private);
        registry::NewAbout { description: self.description, tags: self.tags, private }
    }
}
