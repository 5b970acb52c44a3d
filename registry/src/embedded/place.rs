//! Where the server's files are: under the data directory, or, when its user cannot enter that, beside it all.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use uuid::Uuid;

use super::account::Account;
use crate::{Error, Result};

/// For clusters whose data directory the server's user cannot enter (a root's home).
const ELSEWHERE: &str = "/var/lib/weightsmith";

/// The server directory that was chosen before, if any.
pub(super) fn existing(base: &Path) -> Result<Option<PathBuf>> {
    let inside = base.join("server");
    if inside.is_dir() {
        return Ok(Some(inside));
    }
    let note = base.join("location");
    match std::fs::read_to_string(&note) {
        Ok(path) => {
            let path = PathBuf::from(path.trim());
            if path.is_dir() { Ok(Some(path)) } else { Err(lost(base, &note, &path)) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(note)(error)),
    }
}

fn lost(base: &Path, note: &Path, path: &Path) -> Error {
    let reason = format!(
        "{} says its files are in {}, which is gone: restore it, or remove {} to begin with an empty database",
        note.display(),
        path.display(),
        base.display()
    );
    Error::PostgresStart { directory: base.to_owned(), reason }
}

/// The server directory, made if there is none yet.
pub(super) fn choose(base: &Path, dist: &Path, account: &Account) -> Result<PathBuf> {
    require_runnable(dist, base, account)?;
    if let Some(server) = existing(base)? {
        return if can_enter(dist, &server, account)? { Ok(server) } else { Err(closed(&server)) };
    }
    if can_enter(dist, base, account)? {
        let server = base.join("server");
        account.make_private(&server)?;
        return Ok(server);
    }
    let server = make_elsewhere(account).map_err(|_| closed(base))?;
    tracing::info!(path = %server.display(), "the data directory is closed to Postgres' user: its files go elsewhere");
    note(base, &server)?;
    Ok(server)
}

fn closed(directory: &Path) -> Error {
    Error::PostgresStart {
        directory: directory.to_owned(),
        reason: "the user that runs Postgres cannot enter the directory: give a data directory whose parents every \
                 user may pass through, or set DATABASE_URL"
            .into(),
    }
}

fn make_elsewhere(account: &Account) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;

    let parent = Path::new(ELSEWHERE);
    if !parent.is_dir() {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        std::fs::set_permissions(parent, PermissionsExt::from_mode(0o711)).map_err(Error::io(parent))?;
    }
    // Not named after the data directory: a new one at the same path must not find the old one's database.
    let server = parent.join(Uuid::now_v7().to_string());
    account.make_private(&server)?;
    Ok(server)
}

fn note(base: &Path, server: &Path) -> Result<()> {
    let (path, partial) = (base.join("location"), base.join("location.part"));
    std::fs::write(&partial, format!("{}\n", server.display())).map_err(Error::io(&partial))?;
    std::fs::rename(&partial, &path).map_err(Error::io(&path))
}

/// Asks the kernel, as the server's user, whether it can run the programs.
fn require_runnable(dist: &Path, base: &Path, account: &Account) -> Result<()> {
    let program = dist.join("bin/postgres");
    let mut probe = Command::new(&program);
    account.apply(&mut probe);
    let reason = match probe.arg("--version").output() {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let reason = format!(
        "{} cannot be run by the user that runs Postgres ({reason}): make it and its parent directories readable and \
         executable for every user",
        program.display()
    );
    Err(Error::PostgresStart { directory: base.to_owned(), reason })
}

/// Asks the kernel, as the server's user, whether it can enter a directory. `dist` is known to be runnable.
fn can_enter(dist: &Path, directory: &Path, account: &Account) -> Result<bool> {
    let mut probe = Command::new(dist.join("bin/postgres"));
    account.apply(&mut probe);
    match probe.arg("--version").current_dir(directory).output() {
        Ok(output) => Ok(output.status.success()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(Error::io(directory)(error)),
    }
}
