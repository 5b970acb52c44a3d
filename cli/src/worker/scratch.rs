//! Folders of work under way. One that a killed worker left goes when the next work begins there.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const PREFIX: &str = "import-";
/// How often a folder that another process took for an old one is made anew.
const TRIES: usize = 10;

/// A folder that goes away with this value. It is locked as long: a locked one is in use.
pub struct Scratch {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes a folder in `parent`, and removes those that nobody uses any more.
    pub fn make(parent: &Path) -> Result<Self> {
        sweep(parent);
        for _ in 0..TRIES {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent).map_err(Error::io(parent))?;
            let lock = File::open(folder.path());
            // Between the two lines above, another process may have taken it for an old one.
            if let Ok(lock) = lock
                && lock.try_lock().is_ok()
                && folder.path().is_dir()
            {
                return Ok(Self { folder, _lock: lock });
            }
        }
        Err(Error::Internal(format!("a folder in {} cannot be locked", parent.display())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes folders in `parent` that a process left when it was killed.
pub fn sweep(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let is_ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    for path in entries.map(|entry| entry.path()).filter(is_ours) {
        let Ok(lock) = File::open(&path) else { continue };
        match lock.try_lock() {
            Ok(()) => {
                if let Err(error) = std::fs::remove_dir_all(&path) {
                    tracing::warn!(%error, path = %path.display(), "what a killed import left cannot be removed");
                }
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays_and_what_was_left_goes() {
        let parent = tempfile::tempdir().unwrap();
        let (left, other) = (parent.path().join("import-left"), parent.path().join("other"));
        for folder in [&left, &other] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("file"), "x").unwrap();
        }
        let first = Scratch::make(parent.path()).unwrap();
        let second = Scratch::make(parent.path()).unwrap();
        assert!(!left.exists() && other.exists() && first.path().exists() && second.path().exists());
        drop(first);
        drop(second);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
