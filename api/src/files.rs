//! Downloads: streamed artifacts with strong ETags and ranges (RFC 9110, sections 8.8, 13 and 14).

use std::ops::Range;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE,
    RANGE,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::response::Response;
use futures::TryStreamExt;
use registry::ArtifactStore;
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::error::{Error, Result};
use crate::metrics;

/// Media type of safetensors files.
pub(crate) const SAFETENSORS: &str = "application/vnd.safetensors";
/// Media type of bundles.
pub(crate) const TAR: &str = "application/x-tar";
/// Largest header of a safetensors file that is read.
const MAX_HEADER: u64 = 16 << 20;

/// Bytes in a body, for the description of the API.
pub(crate) struct Binary;

impl PartialSchema for Binary {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .into()
    }
}

impl ToSchema for Binary {}

/// A file to download.
pub(crate) struct File<'a> {
    /// Digest of its artifact.
    pub(crate) digest: &'a str,
    /// Name under which it is saved.
    pub(crate) name: String,
    /// Its media type.
    pub(crate) media_type: &'static str,
}

/// Answers a `GET` or `HEAD` for a file.
pub(crate) async fn answer(
    store: &ArtifactStore,
    method: &Method,
    headers: &HeaderMap,
    file: File<'_>,
) -> Result<Response> {
    let size = store.stat(file.digest).await?.size;
    let etag = format!("\"{}\"", file.digest);
    let response = Response::builder().header(ETAG, &etag).header(ACCEPT_RANGES, "bytes");
    if matches_none(headers, &etag) {
        return built(response.status(StatusCode::NOT_MODIFIED).body(Body::empty()));
    }
    let range = if *method == Method::GET { wanted_range(headers, &etag, size)? } else { None };
    let bytes = range.clone().unwrap_or(0..size);
    let mut response = response
        .header(CONTENT_TYPE, file.media_type)
        .header(CONTENT_DISPOSITION, disposition(&file.name))
        .header(CONTENT_LENGTH, bytes.end - bytes.start);
    if range.is_some() {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1));
    }
    let body = match *method {
        Method::GET => stream(store, file.digest, range).await?,
        _ => Body::empty(),
    };
    built(response.body(body))
}

/// A name to save as (RFC 6266): in ASCII for old clients, and exactly in UTF-8 for the others.
pub(crate) fn disposition(name: &str) -> String {
    let kept = |c: char| c.is_ascii_alphanumeric() || "!#$&+-.^_`|~".contains(c);
    let ascii: String = name.chars().map(|c| if kept(c) || " ()[]{},;=@'".contains(c) { c } else { '_' }).collect();
    let exact = name.chars().map(|c| match kept(c) {
        true => c.to_string(),
        false => c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("%{byte:02X}")).collect(),
    });
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", exact.collect::<String>())
}

async fn stream(store: &ArtifactStore, digest: &str, range: Option<Range<u64>>) -> Result<Body> {
    let chunks = store.open(digest, range).await?.stream;
    // The status is sent already: the client notices by the length, the operator by the log.
    let counted = chunks.inspect_ok(|chunk| metrics::sent(chunk.len()));
    let logged = counted.inspect_err(|error| tracing::error!(%error, "a download broke off"));
    Ok(Body::from_stream(logged))
}

fn built(response: std::result::Result<Response, axum::http::Error>) -> Result<Response> {
    response.map_err(|error| Error::Internal(format!("a response could not be built: {error}")))
}

/// All values of a header in one, as a list.
fn joined(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    if values.is_empty() { None } else { Some(values.join(",")) }
}

/// Whether `If-None-Match` names the entity; the comparison is weak.
pub(crate) fn matches_none(headers: &HeaderMap, etag: &str) -> bool {
    joined(headers, IF_NONE_MATCH)
        .is_some_and(|list| list.split(',').map(str::trim).any(|tag| tag == "*" || plain(tag) == plain(etag)))
}

/// The tag of the uncompressed representation: neither weak nor with the name of an encoding.
fn plain(tag: &str) -> &str {
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    let opaque = tag.strip_suffix('"').unwrap_or(tag);
    ["-gzip", "-zstd"].iter().find_map(|encoding| opaque.strip_suffix(encoding)).unwrap_or(opaque)
}

/// The range to send, or `None` for all of it: no range, one that is not understood, or an `If-Range` that no longer
/// holds.
fn wanted_range(headers: &HeaderMap, etag: &str, size: u64) -> Result<Option<Range<u64>>> {
    let Some(range) = headers.get(RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    if headers.get(IF_RANGE).is_some_and(|value| value.as_bytes() != etag.as_bytes()) {
        return Ok(None);
    }
    parse_range(range, size)
}

fn parse_range(text: &str, size: u64) -> Result<Option<Range<u64>>> {
    // Several ranges at a time are not offered; a server may answer those with everything.
    let Some((first, last)) = text
        .split_once('=')
        .filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"))
        .and_then(|(_, range)| range.split_once('-'))
        .map(|(first, last)| (first.trim(), last.trim()))
    else {
        return Ok(None);
    };
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        // More digits than fit are a number beyond any file.
        true => Some(text.parse::<u64>().unwrap_or(u64::MAX)),
        false => None,
    };
    let range = match (first, last, number(first), number(last)) {
        ("", _, _, Some(suffix)) => size.saturating_sub(suffix)..size,
        (_, "", Some(first), _) => first..size,
        (_, _, Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        _ => return Ok(None),
    };
    if range.start < range.end { Ok(Some(range)) } else { Err(Error::RangeNotSatisfiable { size }) }
}

/// The header of a safetensors file.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileMetadata {
    /// What the file says of itself: where generated weights came from, or the format.
    #[schema(value_type = Object)]
    metadata: serde_json::Value,
    /// Type, shape and place of each tensor.
    #[schema(value_type = Object)]
    tensors: serde_json::Value,
}

impl FileMetadata {
    /// What the file says of itself under a key.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.metadata.get(key)?.as_str().map(str::to_owned)
    }
}

/// The header of a stored safetensors file, in its two parts.
pub(crate) async fn metadata(store: &ArtifactStore, digest: &str) -> Result<FileMetadata> {
    let mut tensors = safetensors_header(store, digest).await?;
    let metadata = tensors.as_object_mut().and_then(|header| header.shift_remove("__metadata__"));
    Ok(FileMetadata { metadata: metadata.unwrap_or_else(|| serde_json::json!({})), tensors })
}

/// The header of a stored safetensors file as JSON: `__metadata__` and the tensors. Only the header is read.
async fn safetensors_header(store: &ArtifactStore, digest: &str) -> Result<serde_json::Value> {
    let damaged = |reason: &str| Error::Internal(format!("{digest} is not a safetensors file: {reason}"));
    let size = store.stat(digest).await?.size;
    if size < 8 {
        return Err(damaged("it is shorter than its length field"));
    }
    let length = store.get_range(digest, 0..8).await?;
    let length = <[u8; 8]>::try_from(&length[..]).map(u64::from_le_bytes).map_err(|_| damaged("it is cut off"))?;
    if length == 0 || length > MAX_HEADER.min(size - 8) {
        return Err(damaged("its header is longer than the file"));
    }
    let header = store.get_range(digest, 8..8 + length).await?;
    serde_json::from_slice(&header).map_err(|error| damaged(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn range(text: &str) -> Option<Option<Range<u64>>> {
        parse_range(text, 100).ok()
    }

    #[test]
    fn ranges() {
        assert_eq!(range("bytes=0-9"), Some(Some(0..10)));
        assert_eq!(range("bytes=90-"), Some(Some(90..100)));
        assert_eq!(range("bytes=-5"), Some(Some(95..100)));
        assert_eq!(range("bytes=-500"), Some(Some(0..100)));
        assert_eq!(range("Bytes= 3 - 99999999999999999999999 "), Some(Some(3..100)));
        for all in
            ["bytes=5-2", "bytes=a-2", "bytes=0-1,5-6", "lines=1-2", "bytes", "bytes=-", "bytes=--5", "bytes=+1-2"]
        {
            assert_eq!(range(all), Some(None), "{all}");
        }
        for outside in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(range(outside), None, "{outside}");
        }
        assert!(parse_range("bytes=0-", 0).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_range_is_inside_the_file(text in "(bytes|Bytes)?=?[ -~]{0,40}|bytes=[0-9]{0,25}-[0-9]{0,25}", size: u64) {
            if let Ok(Some(range)) = parse_range(&text, size) {
                assert!(range.start < range.end && range.end <= size, "{text} of {size}: {range:?}");
            }
        }

        #[test]
        fn any_name_is_a_header(name in ".{0,60}") {
            assert!(HeaderValue::try_from(disposition(&name)).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn names_to_save_as() {
        assert_eq!(disposition("a-1.tar"), "attachment; filename=\"a-1.tar\"; filename*=UTF-8''a-1.tar");
        assert_eq!(
            disposition("na\u{ef}ve \"x\"\r\n.bin"),
            "attachment; filename=\"na_ve _x___.bin\"; filename*=UTF-8''na%C3%AFve%20%22x%22%0D%0A.bin"
        );
    }

    #[test]
    fn if_none_match_is_a_list() {
        let check =
            |text| matches_none(&HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(text))]), "\"a\"");
        assert!(check("\"a\"") && check("W/\"a\"") && check("\"b\", \"a\"") && check("*"));
        assert!(!check("\"b\"") && !check("a"));
    }

    #[test]
    fn if_range_is_strong() {
        let wanted = |tag: &'static str| {
            let headers = HeaderMap::from_iter([
                (RANGE, HeaderValue::from_static("bytes=0-1")),
                (IF_RANGE, HeaderValue::from_static(tag)),
            ]);
            wanted_range(&headers, "\"a\"", 10).unwrap()
        };
        assert_eq!(wanted("\"a\""), Some(0..2));
        assert_eq!(wanted("W/\"a\""), None);
        assert_eq!(wanted("Tue, 01 Jan 2030 00:00:00 GMT"), None);
    }
}
