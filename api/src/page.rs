//! Lists: pages of items with a cursor, in an order, of chosen fields.

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use registry::Page;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{OpenApi, RefOr};

use crate::error::{Error, Result};

/// Media type of a page whose items have only the fields asked for.
pub(crate) const SELECTED: &str = "application/vnd.weightsmith.fields+json";

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

impl<T: Serialize + ToSchema> Listing<T> {
    /// The page, with all fields or with those of `fields` (names between commas).
    pub(crate) fn select<R>(page: Page<R>, fields: Option<&str>, view: impl FnMut(R) -> T) -> Result<Response> {
        let listing = Self::of(page, view);
        let Some(fields) = fields else {
            return Ok(listing.into_response());
        };
        let known = field_names::<T>();
        let chosen: Vec<&str> = fields.split(',').map(str::trim).collect();
        if let Some(unknown) = chosen.iter().find(|field| !known.iter().any(|name| name == *field)) {
            let error = Error::ValueInvalid(format!("there is no field {unknown:?}; use some of {}", known.join(",")));
            return Err(error.in_field("fields"));
        }
        let as_json = |error| Error::Internal(format!("a page cannot be written as JSON: {error}"));
        let mut page = serde_json::to_value(&listing.0).map_err(as_json)?;
        for item in page["items"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            item.retain(|name, _| chosen.contains(&name.as_str()));
        }
        Ok(([(CONTENT_TYPE, SELECTED)], page.to_string()).into_response())
    }
}

/// Names of the fields of a type, those of flattened parts too.
fn field_names<T: ToSchema>() -> Vec<String> {
    let mut parts = Vec::new();
    T::schemas(&mut parts);
    let mut names = Vec::new();
    collect(&T::schema(), &parts, &mut names);
    names
}

fn collect(schema: &RefOr<Schema>, parts: &[(String, RefOr<Schema>)], names: &mut Vec<String>) {
    match schema {
        RefOr::T(Schema::Object(object)) => names.extend(object.properties.keys().cloned()),
        RefOr::T(Schema::AllOf(all)) => all.items.iter().for_each(|part| collect(part, parts, names)),
        RefOr::Ref(reference) => {
            let name = reference.ref_location.rsplit('/').next().unwrap_or_default();
            if let Some((_, part)) = parts.iter().find(|(known, _)| known == name) {
                collect(part, parts, names);
            }
        }
        RefOr::T(_) => {}
    }
}

/// Describes the answer to lists with `fields`: a page of the same shape whose items are any objects.
pub(crate) fn describe_selection(document: &mut OpenApi) {
    use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type};
    let item = ObjectBuilder::new().description(Some("The fields asked for."));
    let cursor = SchemaType::Array(vec![Type::String, Type::Null]);
    let page = ObjectBuilder::new()
        .property("items", ArrayBuilder::new().items(item))
        .required("items")
        .property("next_cursor", ObjectBuilder::new().schema_type(cursor))
        .required("next_cursor");
    let content = utoipa::openapi::ContentBuilder::new().schema(Some(page)).build();
    for operation in document.paths.paths.values_mut().filter_map(|item| item.get.as_mut()) {
        let selects = operation
            .parameters
            .iter()
            .flatten()
            .any(|parameter| matches!(parameter, RefOr::T(parameter) if parameter.name == "fields"));
        if selects && let Some(RefOr::T(response)) = operation.responses.responses.get_mut("200") {
            response.content.insert(SELECTED.into(), RefOr::T(content.clone()));
        }
    }
}

/// The query of a list whose items have a name for everything: page, order, search, tags, owner, deleted ones, fields,
/// and the list's own filters.
macro_rules! list_query {
    ($name:ident { $($(#[$meta:meta])* $field:ident : $type:ty,)* }) => {
        #[derive(serde::Deserialize, utoipa::IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        struct $name {
            /// Most items of the page, 1 to 200.
            #[param(example = 50, minimum = 1, maximum = 200, default = 50)]
            limit: Option<u32>,
            /// `next_cursor` of the page before, with the same order.
            cursor: Option<String>,
            /// The field to order by, with `-` before it for descending; the answer to an unknown one names those
            /// there are.
            #[param(example = "-created_at")]
            order: Option<String>,
            /// Words that name, tags or description have to contain; each may be the beginning of a word.
            #[param(max_length = 200)]
            q: Option<String>,
            /// Tags that items have to have, between commas: all of them.
            #[param(example = "vision,small")]
            tags: Option<String>,
            /// Only those of this owner.
            owner: Option<String>,
            /// The deleted ones instead of the others.
            deleted: Option<bool>,
            /// Fields that items of the answer have, between commas; all when it is left out.
            #[param(example = "created_at")]
            fields: Option<String>,
            $($(#[$meta])* $field: $type,)*
        }

        impl $name {
            fn request(&self) -> registry::ListRequest {
                let tags = self.tags.iter().flat_map(|tags| tags.split(','));
                registry::ListRequest {
                    limit: self.limit.unwrap_or(50),
                    cursor: self.cursor.clone(),
                    order: self.order.clone(),
                    search: self.q.clone(),
                    tags: tags.map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect(),
                    owner: self.owner.clone(),
                    deleted: self.deleted.unwrap_or(false),
                }
            }
        }
    };
}
pub(crate) use list_query;

/// The query of a list that is only paged and ordered.
#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Most items of the page, 1 to 200.
    #[param(example = 50, minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, with the same order.
    cursor: Option<String>,
    /// The field to order by, with `-` before it for descending; the answer to an unknown one names those there are.
    order: Option<String>,
}

impl PageQuery {
    pub(crate) fn request(self) -> registry::ListRequest {
        let Self { limit, cursor, order } = self;
        registry::ListRequest { limit: limit.unwrap_or(50), cursor, order, ..registry::ListRequest::default() }
    }
}
