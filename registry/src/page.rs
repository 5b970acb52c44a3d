//! Keyset pages: a cursor is the sort key of the last item, so rows added meanwhile neither repeat nor hide others.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::{Error, Result};

/// The most items a page may have.
pub const MAX_LIMIT: u32 = 200;

/// Which page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Most items to return, 1 to [`MAX_LIMIT`].
    pub limit: u32,
    /// `next_cursor` of the page before; `None` for the first page.
    pub cursor: Option<String>,
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { limit: 50, cursor: None }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Where the next page begins; `None` on the last page.
    pub next_cursor: Option<String>,
}

const BY_TIME: u8 = b't';
const BY_NAME: u8 = b'n';

impl PageRequest {
    /// Rows to fetch: one more than the limit, which tells whether there is a next page.
    pub(crate) fn rows(&self) -> Result<i64> {
        if self.limit == 0 || self.limit > MAX_LIMIT {
            return Err(Error::invalid("limit", format!("ask for 1 to {MAX_LIMIT} items, not {}", self.limit)));
        }
        Ok(i64::from(self.limit) + 1)
    }

    /// The key after which a list by (created_at, id) goes on.
    pub(crate) fn after_time(&self) -> Result<(Option<DateTime<Utc>>, Option<Uuid>)> {
        let Some(key) = self.decode(BY_TIME)? else {
            return Ok((None, None));
        };
        let (micros, id) = key.split_first_chunk::<8>().ok_or(Error::InvalidCursor)?;
        let time = DateTime::from_timestamp_micros(i64::from_be_bytes(*micros)).ok_or(Error::InvalidCursor)?;
        let id = Uuid::from_slice(id).map_err(|_| Error::InvalidCursor)?;
        Ok((Some(time), Some(id)))
    }

    /// The name after which a list by name goes on.
    pub(crate) fn after_name(&self) -> Result<Option<String>> {
        let Some(key) = self.decode(BY_NAME)? else {
            return Ok(None);
        };
        let name = String::from_utf8(key).map_err(|_| Error::InvalidCursor)?;
        crate::names::check(&name).map_err(|_| Error::InvalidCursor)?;
        Ok(Some(name))
    }

    fn decode(&self, tag: u8) -> Result<Option<Vec<u8>>> {
        let Some(cursor) = &self.cursor else {
            return Ok(None);
        };
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| Error::InvalidCursor)?;
        match bytes.split_first() {
            Some((first, key)) if *first == tag => Ok(Some(key.to_vec())),
            _ => Err(Error::InvalidCursor),
        }
    }

    pub(crate) fn page_by_time<T>(&self, rows: Vec<T>, key: impl Fn(&T) -> (DateTime<Utc>, Uuid)) -> Page<T> {
        self.page(rows, |item| {
            let (time, id) = key(item);
            let mut bytes = vec![BY_TIME];
            bytes.extend(time.timestamp_micros().to_be_bytes());
            bytes.extend(id.as_bytes());
            bytes
        })
    }

    pub(crate) fn page_by_name<T>(&self, rows: Vec<T>, name: impl Fn(&T) -> &str) -> Page<T> {
        self.page(rows, |item| {
            let mut bytes = vec![BY_NAME];
            bytes.extend(name(item).as_bytes());
            bytes
        })
    }

    fn page<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> Vec<u8>) -> Page<T> {
        let limit = self.limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|item| URL_SAFE_NO_PAD.encode(key(item)));
        Page { items, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cursor: &str) -> PageRequest {
        PageRequest { limit: 2, cursor: Some(cursor.into()) }
    }

    #[test]
    fn cursors_round_trip() {
        let (time, id) = (DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(), Uuid::now_v7());
        let page = request("").page_by_time(vec![0, 1, 2], |_| (time, id));
        assert_eq!(page.items, [0, 1]);
        let next = request(&page.next_cursor.unwrap());
        assert_eq!(next.after_time().unwrap(), (Some(time), Some(id)));
        assert!(matches!(next.after_name(), Err(Error::InvalidCursor)), "a cursor of another kind of list");

        let page = request("").page_by_name(vec!["a", "b", "c"], |name| name);
        assert_eq!(request(&page.next_cursor.unwrap()).after_name().unwrap().as_deref(), Some("b"));
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        assert_eq!(request("").page_by_name(vec!["a", "b"], |name| name).next_cursor, None);
    }

    #[test]
    fn nonsense_is_refused() {
        for cursor in ["", "!", "dGVzdA", "dA", "bg", "b//_"] {
            assert!(matches!(request(cursor).after_time(), Err(Error::InvalidCursor)), "{cursor}");
            assert!(matches!(request(cursor).after_name(), Err(Error::InvalidCursor)), "{cursor}");
        }
        for limit in [0, 201] {
            let refused = PageRequest { limit, cursor: None }.rows().unwrap_err();
            assert_eq!(refused.code(), "invalid_value");
        }
    }
}
