//! Lists that stay fast: filter, full-text search, any declared order, keyset cursors.
//!
//! A resource declares its list once ([`Listed`]); a page is then `start` (sight, deletion, tags, search), the
//! resource's own conditions, and `page` (cursor, order, limit). A cursor holds the order it belongs to, the sort key of
//! the last row and its id.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use crate::{Caller, Error, MAX_LIMIT, Page, Registry, Result};

/// Longest text that is searched for.
const MAX_SEARCH: usize = 200;

/// Which rows of a list, in which order, and which page of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Most items to return, 1 to [`MAX_LIMIT`].
    pub limit: u32,
    /// `next_cursor` of the page before; `None` for the first page.
    pub cursor: Option<String>,
    /// A field of the resource's orders, with `-` before it for descending; `None` for the resource's own order.
    pub order: Option<String>,
    /// Words that name, tags or description have to contain; the last may be the beginning of a word.
    pub search: Option<String>,
    /// Tags that rows have to have, all of them.
    pub tags: Vec<String>,
    /// Only those of this owner.
    pub owner: Option<String>,
    /// The deleted ones instead of those that are not.
    pub deleted: bool,
}

impl Default for ListRequest {
    fn default() -> Self {
        Self { limit: 50, cursor: None, order: None, search: None, tags: Vec::new(), owner: None, deleted: false }
    }
}

/// What a field is sorted as; none may be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Time,
    Text,
    Integer,
    Real,
}

/// A field that a list can be ordered by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// The field's name in a request.
    pub(crate) field: &'static str,
    /// The SQL expression, never null; an index on (expression, id) should exist.
    pub(crate) column: &'static str,
    pub(crate) kind: Kind,
}

/// How a resource is listed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed {
    /// The selected columns, those of the row type.
    pub(crate) columns: &'static str,
    /// `FROM …`, with the resource's table under `alias`.
    pub(crate) from: &'static str,
    pub(crate) alias: &'static str,
    /// Joins that only the columns need, one row each: made for the rows of the page alone.
    pub(crate) late: &'static str,
    /// Which sight applies: see [`Sight`].
    pub(crate) sight: Sight,
    /// Whether there is `alias.deleted_at`.
    pub(crate) deletable: bool,
    /// Whether there are `alias.tags` and `alias.search`.
    pub(crate) described: bool,
    pub(crate) orders: &'static [Order],
    /// The order when none is asked for, as in a request.
    pub(crate) default_order: &'static str,
}

/// Where a list finds who may see a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Columns owner, visibility and name of a table alias (often the parent's).
    Named(&'static str),
    /// Columns owner and visibility of a table alias.
    Unnamed(&'static str),
    /// Checked before, on what the rows belong to.
    Checked,
}

tokio::task_local! {
    /// Where plans are gathered instead of rows, inside [`plans`].
    static PLANS: std::cell::RefCell<Vec<String>>;
}

/// The plans of the lists that `work` asks for, as EXPLAIN tells them; the lists are empty meanwhile. For tests.
#[doc(hidden)]
pub async fn plans(work: impl Future<Output = ()>) -> Vec<String> {
    PLANS
        .scope(std::cell::RefCell::default(), async {
            work.await;
            PLANS.with(std::cell::RefCell::take)
        })
        .await
}

/// A page's query under construction.
pub(crate) struct Query<'a> {
    listed: &'a Listed,
    request: &'a ListRequest,
    order: Order,
    descending: bool,
    /// Whether the plan depends on values: see [`Query::in_order`].
    planned: bool,
    /// Add conditions as ` AND …`.
    pub(crate) sql: QueryBuilder<Postgres>,
}

impl<'a> Query<'a> {
    /// Begins the query of a page: the rows the caller sees, with the conditions that all lists share.
    pub(crate) fn start(listed: &'a Listed, request: &'a ListRequest, caller: &Caller) -> Result<Self> {
        check_limit(request.limit)?;
        let (order, descending) = order_of(listed, request.order.as_deref())?;
        let key = match order.kind {
            Kind::Time => format!("(extract(epoch FROM {}) * 1000000)::bigint::text", order.column),
            _ => format!("({})::text", order.column),
        };
        let Listed { columns, from, alias, late, .. } = listed;
        let explain = if PLANS.try_with(|_| ()).is_ok() { "EXPLAIN " } else { "" };
        let mut sql = QueryBuilder::new(match late.is_empty() {
            true => format!("{explain}SELECT {columns}, {key} AS _key, {alias}.id AS _id {from} WHERE true"),
            false => format!(
                "{explain}SELECT {columns}, _key, {alias}.id AS _id
                 FROM (SELECT {alias}.*, {key} AS _key {from} WHERE true"
            ),
        });
        match listed.sight {
            Sight::Named(alias) => caller.push_sight(&mut sql, alias, true),
            Sight::Unnamed(alias) => caller.push_sight(&mut sql, alias, false),
            Sight::Checked => {}
        }
        let mut query = Self { listed, request, order, descending, planned: false, sql };
        query.shared_conditions()?;
        Ok(query)
    }

    fn shared_conditions(&mut self) -> Result<()> {
        let (alias, request) = (self.listed.alias, self.request);
        if self.listed.deletable {
            self.sql.push(format_args!(" AND {alias}.deleted_at IS {}NULL", if request.deleted { "NOT " } else { "" }));
        }
        if let (Some(owner), Sight::Named(of) | Sight::Unnamed(of)) = (&request.owner, self.listed.sight) {
            self.planned = true;
            self.sql.push(format_args!(" AND {of}.owner = ")).push_bind(owner.clone());
        }
        if !self.listed.described {
            return Ok(());
        }
        self.planned |= !request.tags.is_empty() || request.search.is_some();
        if !request.tags.is_empty() {
            // The index is on the plain array: the domain has no operators of its own.
            self.sql.push(format_args!(" AND {alias}.tags::text[] @> ")).push_bind(request.tags.clone());
            self.sql.push("::text[]");
        }
        if let Some(words) = &request.search {
            self.sql.push(format_args!(" AND {alias}.search @@ ")).push_bind(prefix_query(words)?);
            self.sql.push("::tsquery");
        }
        Ok(())
    }

    /// Adds ` AND column = value` when there is a value; an index has the column before the order, so that the plan is
    /// the same for all values and need not be made anew for each.
    pub(crate) fn in_order<V>(&mut self, column: &str, value: Option<&V>)
    where
        V: Clone + for<'q> sqlx::Encode<'q, Postgres> + sqlx::Type<Postgres> + Send + 'static,
    {
        if let Some(value) = value {
            self.sql.push(format_args!(" AND {column} = ")).push_bind(value.clone());
        }
    }

    /// Adds ` AND column = value` when there is a value; how many rows have it decides the plan.
    pub(crate) fn equal<V>(&mut self, column: &str, value: Option<&V>)
    where
        V: Clone + for<'q> sqlx::Encode<'q, Postgres> + sqlx::Type<Postgres> + Send + 'static,
    {
        self.planned |= value.is_some();
        self.in_order(column, value);
    }

    /// Adds ` AND column IN (select = value)` when there is a value, as [`Query::equal`].
    pub(crate) fn equal_in<V>(&mut self, column: &str, select: &str, value: Option<&V>)
    where
        V: Clone + for<'q> sqlx::Encode<'q, Postgres> + sqlx::Type<Postgres> + Send + 'static,
    {
        if let Some(value) = value {
            self.planned = true;
            self.sql.push(format_args!(" AND {column} IN ({select} = ")).push_bind(value.clone()).push(")");
        }
    }

    /// A range of a field: its values decide the plan, unless the page is in the order of the field.
    pub(crate) fn in_range(&mut self, field: &str) {
        self.planned |= self.order.field != field;
    }

    /// Ends the query with cursor, order and limit, and fetches the page.
    pub(crate) async fn page<T>(mut self, registry: &Registry) -> Result<Page<T>>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        self.push_cursor()?;
        let (column, alias) = (self.order.column, self.listed.alias);
        let direction = if self.descending { "DESC" } else { "ASC" };
        self.sql.push(format_args!(" ORDER BY {column} {direction}, {alias}.id {direction} LIMIT "));
        let rows = self.request.limit + 1;
        match self.planned {
            // PostgreSQL plans for the values each time where it takes a parameter as the limit, ...
            true => self.sql.push_bind(i64::from(rows)),
            // ... and once for all values where it has the number: half of a page's time was its plan.
            false => self.sql.push(rows),
        };
        if !self.listed.late.is_empty() {
            let late = self.listed.late;
            self.sql.push(format_args!(") {alias} {late} ORDER BY {column} {direction}, {alias}.id {direction}"));
        }
        let mut rows = self.sql.build().fetch_all(registry.pool()).await?;
        if PLANS.try_with(|_| ()).is_ok() {
            let lines = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<Vec<String>>>()?;
            PLANS.with(|plans| plans.borrow_mut().push(lines.join("\n")));
            return Ok(Page { items: Vec::new(), next_cursor: None });
        }
        let limit = self.request.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = match rows.last().filter(|_| more) {
            Some(last) => Some(self.cursor(last.try_get("_key")?, last.try_get("_id")?)),
            None => None,
        };
        let items = rows.iter().map(T::from_row).collect::<sqlx::Result<Vec<T>>>()?;
        Ok(Page { items, next_cursor })
    }

    fn push_cursor(&mut self) -> Result<()> {
        let Some(cursor) = &self.request.cursor else {
            return Ok(());
        };
        let (key, id) = self.decode(cursor)?;
        let (column, alias) = (self.order.column, self.listed.alias);
        let after = if self.descending { "<" } else { ">" };
        self.sql.push(format_args!(" AND ({column}, {alias}.id) {after} ("));
        let wrong = |_| Error::InvalidCursor;
        match self.order.kind {
            Kind::Time => {
                let micros = key.parse().map_err(wrong)?;
                self.sql.push_bind(DateTime::from_timestamp_micros(micros).ok_or(Error::InvalidCursor)?);
            }
            Kind::Integer => {
                self.sql.push_bind(key.parse::<i64>().map_err(wrong)?);
            }
            Kind::Real => {
                let number = key.parse::<f32>().ok().filter(|x| !x.is_nan()).ok_or(Error::InvalidCursor)?;
                self.sql.push_bind(number);
            }
            Kind::Text => {
                // Postgres has no text with a zero in it.
                if key.contains('\0') {
                    return Err(Error::InvalidCursor);
                }
                self.sql.push_bind(key);
            }
        }
        self.sql.push(", ").push_bind(id);
        self.sql.push(")");
        Ok(())
    }

    fn cursor(&self, key: String, id: Uuid) -> String {
        let direction = if self.descending { "-" } else { "" };
        URL_SAFE_NO_PAD.encode(format!("{direction}{}:{}:{key}", self.order.field, id.simple()))
    }

    fn decode(&self, cursor: &str) -> Result<(String, Uuid)> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| Error::InvalidCursor)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::InvalidCursor)?;
        let mut parts = text.splitn(3, ':');
        let (Some(order), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::InvalidCursor);
        };
        let direction = if self.descending { "-" } else { "" };
        if order != format!("{direction}{}", self.order.field) {
            return Err(Error::InvalidCursor);
        }
        Ok((key.to_owned(), id.parse().map_err(|_| Error::InvalidCursor)?))
    }
}

fn check_limit(limit: u32) -> Result<()> {
    match limit {
        1..=MAX_LIMIT => Ok(()),
        _ => Err(Error::invalid("limit", format!("ask for 1 to {MAX_LIMIT} items, not {limit}"))),
    }
}

fn order_of(listed: &Listed, asked: Option<&str>) -> Result<(Order, bool)> {
    let text = asked.unwrap_or(listed.default_order);
    let (field, descending) = text.strip_prefix('-').map_or((text, false), |field| (field, true));
    let found = listed.orders.iter().find(|order| order.field == field);
    found.map(|order| (*order, descending)).ok_or_else(|| {
        let known: Vec<&str> = listed.orders.iter().map(|order| order.field).collect();
        Error::invalid("order", format!("use one of {}, with - before it for descending", known.join(", ")))
    })
}

/// Words as a `tsquery`: all of them, each as the beginning of a word.
fn prefix_query(words: &str) -> Result<String> {
    if words.len() > MAX_SEARCH || words.contains('\0') {
        return Err(Error::invalid("q", format!("use at most {MAX_SEARCH} characters of text")));
    }
    let lower = words.to_lowercase();
    let quoted: Vec<String> = lower.split_whitespace().map(word_query).collect();
    if quoted.is_empty() {
        return Err(Error::invalid("q", "give at least one word, or leave it out"));
    }
    Ok(quoted.join(" & "))
}

/// A word as it stands (names and tags are kept whole too), or all its parts: text is cut at what is not a letter or
/// digit.
fn word_query(word: &str) -> String {
    let quoted = |part: &str| format!("'{}':*", part.replace('\\', "\\\\").replace('\'', "''"));
    let parts: Vec<String> =
        word.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).map(quoted).collect();
    if parts.is_empty() || parts == [quoted(word)] {
        return quoted(word);
    }
    format!("({} | {})", quoted(word), parts.join(" & "))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const LISTED: Listed = Listed {
        columns: "x.id",
        from: "FROM things x",
        alias: "x",
        late: "",
        sight: Sight::Named("x"),
        deletable: true,
        described: true,
        orders: &[
            Order { field: "created_at", column: "x.created_at", kind: Kind::Time },
            Order { field: "accuracy", column: "x.accuracy", kind: Kind::Real },
            Order { field: "name", column: "x.name", kind: Kind::Text },
            Order { field: "size", column: "x.size", kind: Kind::Integer },
        ],
        default_order: "-created_at",
    };

    fn query(request: &ListRequest) -> Result<String> {
        let mut query = Query::start(&LISTED, request, &Caller::system("t"))?;
        query.push_cursor()?;
        Ok(query.sql.sql().as_str().to_owned())
    }

    #[test]
    fn cursors_belong_to_their_order() {
        let request = ListRequest { order: Some("-accuracy".into()), ..ListRequest::default() };
        let started = Query::start(&LISTED, &request, &Caller::system("t")).unwrap();
        let cursor = started.cursor("0.5".into(), Uuid::now_v7());
        let again = ListRequest { cursor: Some(cursor.clone()), ..request };
        assert!(query(&again).unwrap().contains("(x.accuracy, x.id) < ("));
        for order in [None, Some("accuracy".to_owned()), Some("name".to_owned())] {
            let other = ListRequest { cursor: Some(cursor.clone()), order, ..ListRequest::default() };
            assert_eq!(query(&other).unwrap_err().code(), "invalid_cursor");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let id = Uuid::now_v7().simple();
        let texts = [
            "",
            "x",
            "-created_at:x:1",
            &format!("-created_at:{id}:x"),
            &format!("-created_at:{id}:99999999999999999999"),
        ];
        for text in texts {
            for cursor in [URL_SAFE_NO_PAD.encode(text), format!("{text}!")] {
                let request = ListRequest { cursor: Some(cursor), ..ListRequest::default() };
                assert_eq!(query(&request).unwrap_err().code(), "invalid_cursor", "{text}");
            }
        }
        let name = ListRequest {
            order: Some("name".into()),
            cursor: Some(URL_SAFE_NO_PAD.encode(format!("name:{id}:a\0"))),
            ..ListRequest::default()
        };
        assert_eq!(query(&name).unwrap_err().code(), "invalid_cursor");
        let wrong = ListRequest { order: Some("epoch".into()), ..ListRequest::default() };
        assert!(query(&wrong).unwrap_err().to_string().contains("created_at, accuracy, name, size"));
        let nothing = ListRequest { search: Some("  ".into()), ..ListRequest::default() };
        assert_eq!(query(&nothing).unwrap_err().code(), "invalid_value");
    }

    #[test]
    fn words_are_quoted() {
        assert_eq!(
            prefix_query(" Mnist  it's a\\b ").unwrap(),
            "'mnist':* & ('it''s':* | 'it':* & 's':*) & ('a\\\\b':* | 'a':* & 'b':*)"
        );
    }
}

#[cfg(test)]
#[path = "listing_cursors.rs"]
mod cursors;
