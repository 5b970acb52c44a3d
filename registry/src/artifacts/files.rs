//! The files of the store, whatever they are: for `gc` and `fsck`.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};

use super::{ArtifactStore, Backend};
use crate::{Error, Result};

/// Files that the walk through a folder may be ahead.
const AHEAD: usize = 1024;

/// A file of the store.
#[derive(Clone, Debug)]
pub(crate) struct StoredFile {
    /// Its key: the path below the store's place.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Last written.
    pub modified: DateTime<Utc>,
    /// What it is, by its name.
    pub kind: FileKind,
}

/// What a file is, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// The bytes of this digest.
    Artifact(String),
    /// Part of an upload.
    Incoming,
    /// Nothing that this program writes.
    Unknown,
}

impl FileKind {
    fn of(key: &str) -> Self {
        let staged = key.rsplit_once('#').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let final_key = key.split('#').next().unwrap_or(key);
        match digest_of_key(final_key) {
            Some(_) if staged => Self::Incoming,
            Some(digest) if final_key == key => Self::Artifact(digest),
            _ if is_temporary(key) => Self::Incoming,
            _ => Self::Unknown,
        }
    }
}

/// Whether a key is of an upload, or of a probe of the store.
fn is_temporary(key: &str) -> bool {
    key.split_once('/').is_some_and(|(folder, rest)| ["incoming", "probe"].contains(&folder) && !rest.contains('/'))
}

fn digest_of_key(key: &str) -> Option<String> {
    let (folder, rest) = key.strip_prefix("sha256/")?.split_once('/')?;
    let digest = format!("sha256:{folder}{rest}");
    super::digest::key(&digest).ok().filter(|expected| expected.as_ref() == key)?;
    Some(digest)
}

impl ArtifactStore {
    /// All files, in no particular order.
    pub(crate) fn files(&self) -> BoxStream<'static, Result<StoredFile>> {
        if let Backend::Folder(folder) = &self.backend {
            return walk(folder.clone());
        }
        let listed = self.store.list(None).map_err(Error::from);
        listed
            .map_ok(|found| StoredFile {
                kind: FileKind::of(found.location.as_ref()),
                key: found.location.into(),
                size: found.size,
                modified: found.last_modified,
            })
            .boxed()
    }

    /// Removes a file; one that is gone already is as good.
    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        if let Backend::Folder(folder) = &self.backend {
            // Not by the store: it does not see the files of uploads that were cut off.
            let path = folder.join(key);
            return match tokio::fs::remove_file(&path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(error)),
                _ => Ok(()),
            };
        }
        match self.store.delete(&Key::parse(key).map_err(object_store::Error::from)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The size of the file of a digest; none when there is no file.
    pub(crate) async fn size_of_file(&self, digest: &str) -> Result<Option<u64>> {
        match self.store.head(&super::digest::key(digest)?).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Drops the parts of an upload that was cut off; an upload that is gone already is as good.
    pub(crate) async fn abort_upload(&self, key: &str, id: &String) -> Result<()> {
        let Backend::Bucket(store) = &self.backend else { return Ok(()) };
        let store: &dyn MultipartStore = &**store;
        match store.abort_multipart(&Key::parse(key).map_err(object_store::Error::from)?, id).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Walks a folder on a thread of its own.
fn walk(folder: PathBuf) -> BoxStream<'static, Result<StoredFile>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut open = vec![folder.clone()];
        while let Some(directory) = open.pop() {
            let found = entries(&folder, &directory, &mut open);
            for file in found.unwrap_or_else(|error| vec![Err(error)]) {
                if sender.blocking_send(file).is_err() {
                    return;
                }
            }
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
}

fn entries(root: &Path, directory: &Path, open: &mut Vec<PathBuf>) -> Result<Vec<Result<StoredFile>>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io(directory))? {
        let entry = entry.map_err(Error::io(directory))?;
        let path = entry.path();
        let found = match entry.metadata() {
            Ok(found) => found,
            // Removed since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(path)(error)),
        };
        if found.is_dir() {
            open.push(path);
            continue;
        }
        let key = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        let modified = found.modified().map_err(Error::io(&path))?.into();
        files.push(Ok(StoredFile { kind: FileKind::of(&key), key, size: found.len(), modified }));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_name() {
        let digest = super::super::digest_of(b"x");
        let key = super::super::digest::key(&digest).unwrap().to_string();
        assert_eq!(FileKind::of(&key), FileKind::Artifact(digest));
        for incoming in [format!("{key}#1"), "incoming/0199".into(), "incoming/0199#12".into(), "probe/0199".into()] {
            assert_eq!(FileKind::of(&incoming), FileKind::Incoming, "{incoming}");
        }
        let upper = key.to_uppercase();
        for unknown in ["a", "incoming/a/b", "sha256/zz/00", "sha256/aa", &format!("{key}x"), &upper, &key[7..]] {
            assert_eq!(FileKind::of(unknown), FileKind::Unknown, "{unknown}");
        }
    }
}
