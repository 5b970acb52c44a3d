//! Bodies that are streamed to a file on disk.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use crate::error::{Error, Result};
use crate::extract::drain;
use crate::state::AppState;

/// A file without a name: it goes away with the value, and with the process when that is killed.
pub(crate) struct Spooled(File);

impl Spooled {
    /// A path that opens the file anew, in this process and while the value is there.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Writes a body of at most `upload_limit` bytes to a file on disk.
pub(crate) async fn receive(state: &AppState, headers: &HeaderMap, body: Body) -> Result<Spooled> {
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
    let file = match &state.settings().upload_dir {
        Some(folder) => tempfile::tempfile_in(folder),
        None => tempfile::tempfile(),
    }
    .map_err(failed)?;
    let mut writer = tokio::fs::File::from_std(file.try_clone().map_err(failed)?);
    let mut size = 0u64;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Error::BodyIncomplete)?;
        size += chunk.len() as u64;
        if size > limit {
            drain(chunks, usize::try_from(limit).unwrap_or(usize::MAX)).await;
            return Err(Error::UploadTooLarge(limit));
        }
        if let Err(error) = writer.write_all(&chunk).await {
            drain(chunks, usize::try_from(limit).unwrap_or(usize::MAX)).await;
            return Err(failed(error));
        }
    }
    writer.flush().await.map_err(failed)?;
    Ok(Spooled(file))
}

fn failed(error: std::io::Error) -> Error {
    use std::io::ErrorKind;

    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            registry::Error::StorageFull(Box::new(error)).into()
        }
        _ => Error::Internal(format!("an upload cannot be kept on disk: {error}")),
    }
}
