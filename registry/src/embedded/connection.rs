//! The note that lets other processes join the running server.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{Error, Result};

const NAME: &str = "connection";

/// Writes the URL, for this user's eyes only.
pub(super) fn write(base: &Path, url: &str) -> Result<()> {
    let (path, partial) = (base.join(NAME), base.join("connection.part"));
    let open = || File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    open().and_then(|mut file| writeln!(file, "{url}")).map_err(Error::io(&partial))?;
    std::fs::rename(&partial, &path).map_err(Error::io(&path))
}

/// The URL, if it was written.
pub(super) fn read(base: &Path) -> Result<Option<String>> {
    let path = base.join(NAME);
    match std::fs::read_to_string(&path) {
        Ok(url) => Ok(Some(url.trim().to_owned()).filter(|url| !url.is_empty())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// Removes the note; one that stays is not believed without the lock, and is removed at the next start.
pub(super) fn remove(base: &Path) {
    let _ = std::fs::remove_file(base.join(NAME));
}
