//! Bodies that are streamed to a file on disk.

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use futures::StreamExt;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use crate::error::{Error, Result};
use crate::extract::drain;
use crate::state::AppState;

/// Writes a body of at most `upload_limit` bytes to a temporary file, which goes away with the value.
pub(crate) async fn receive(state: &AppState, headers: &HeaderMap, body: Body) -> Result<NamedTempFile> {
    let limit = state.settings().upload_limit;
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let mut chunks = body.into_data_stream();
    if announced.is_some_and(|length| length > limit) {
        // A client that asks first has not begun to send.
        if !headers.contains_key(EXPECT) {
            drain(chunks, usize::try_from(limit).unwrap_or(usize::MAX)).await;
        }
        return Err(Error::UploadTooLarge(limit));
    }
    let failed = |error: std::io::Error| Error::Internal(format!("an upload cannot be kept on disk: {error}"));
    let file = match &state.settings().upload_dir {
        Some(folder) => NamedTempFile::new_in(folder),
        None => NamedTempFile::new(),
    }
    .map_err(failed)?;
    let mut writer = tokio::fs::File::from_std(file.reopen().map_err(failed)?);
    let mut size = 0u64;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Error::BodyIncomplete)?;
        size += chunk.len() as u64;
        if size > limit {
            drain(chunks, usize::try_from(limit).unwrap_or(usize::MAX)).await;
            return Err(Error::UploadTooLarge(limit));
        }
        writer.write_all(&chunk).await.map_err(failed)?;
    }
    writer.flush().await.map_err(failed)?;
    Ok(file)
}
