//! Snapshots as files of a folder.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::Snapshots;
use crate::error::{Error, Result};

const LOCK: &str = "lock";

/// A folder of snapshots, made with the first one. Files are whole or absent, also when the power fails.
#[derive(Debug, Clone)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// The folder `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder and holds it for this process, until the file is dropped.
    ///
    /// # Errors
    /// [`Error::Snapshots`] when another process holds it; [`Error::Io`].
    pub fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let path = self.dir.join(LOCK);
        let file = File::create(&path).map_err(Error::io(&path))?;
        file.try_lock().map_err(|_| {
            let dir = self.dir.display();
            Error::Snapshots(format!("another process uses {dir}; wait for it, or choose another folder"))
        })?;
        self.sweep();
        Ok(file)
    }

    /// Removes the folder once nothing but its lock is in it.
    pub fn remove_empty(&self) {
        let others = std::fs::read_dir(&self.dir).map(|all| all.flatten().filter(|e| e.file_name() != LOCK).count());
        if matches!(others, Ok(0)) {
            // It stays where that fails, and does no harm.
            let _ = std::fs::remove_file(self.dir.join(LOCK));
            let _ = std::fs::remove_dir(&self.dir);
        }
    }

    /// Removes what killed processes left half-written.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(".part") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn write(&self, part: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let mut file = File::create(part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(part, path)?;
        // The name is durable once its folder is.
        File::open(&self.dir)?.sync_all()
    }
}

impl Snapshots for Folder {
    fn save(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let part = self.dir.join(format!(".{name}.{}.part", std::process::id()));
        let written = self.write(&part, &path, bytes);
        if written.is_err() {
            // What is left of it is of no use; the first error is the one to tell.
            let _ = std::fs::remove_file(&part);
        }
        written.map_err(Error::io(path))
    }

    fn load(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path)(e)),
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path)(e)),
            _ => Ok(()),
        }
    }

    fn place(&self) -> PathBuf {
        self.dir.clone()
    }

    fn has(&self, name: &str) -> Result<bool> {
        let path = self.dir.join(name);
        path.try_exists().map_err(Error::io(path))
    }
}
