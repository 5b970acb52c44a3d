//! The user Postgres runs as: it refuses root.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::{place, sys};
use crate::{Error, Result};

/// Users to run as when this process is root, best first.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// The user and group to become; `None`: stay who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    ids: Option<(u32, u32)>,
}

impl Account {
    /// The owner of the server directory if there is one, else the first candidate on this machine.
    pub(super) fn for_server(base: &Path) -> Result<Self> {
        if sys::effective_uid() != 0 {
            return Ok(Self { ids: None });
        }
        if let Some(server) = place::existing(base)? {
            let owner = std::fs::metadata(&server).map_err(Error::io(&server))?;
            if owner.uid() != 0 {
                return Ok(Self { ids: Some((owner.uid(), owner.gid())) });
            }
        }
        let passwd = std::fs::read_to_string("/etc/passwd").map_err(Error::io("/etc/passwd"))?;
        let ids = CANDIDATES.iter().find_map(|name| find(&passwd, name));
        match ids {
            Some(ids) => Ok(Self { ids: Some(ids) }),
            None => Err(Error::PostgresStart {
                directory: base.to_owned(),
                reason: "Postgres refuses to run as root, and there is neither a user postgres nor nobody: \
                         create one, run as an ordinary user, or set DATABASE_URL"
                    .into(),
            }),
        }
    }

    /// Makes the command run as this user, in a directory it can surely enter.
    pub(super) fn apply(&self, command: &mut Command) {
        command.current_dir("/");
        if let Some((uid, gid)) = self.ids {
            command.gid(gid).uid(uid);
        }
    }

    /// Makes a directory that only this user can enter.
    pub(super) fn make_private(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir(directory).map_err(Error::io(directory))?;
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700)).map_err(Error::io(directory))?;
        if let Some((uid, gid)) = self.ids {
            chown(directory, Some(uid), Some(gid)).map_err(Error::io(directory))?;
        }
        Ok(())
    }

    /// Whether a directory is one that [`Account::make_private`] could have made: nobody else can write there.
    pub(super) fn owns_private(&self, directory: &Path) -> bool {
        let uid = self.ids.map_or_else(sys::effective_uid, |(uid, _)| uid);
        std::fs::symlink_metadata(directory)
            .is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
    }
}

/// Uid and gid of a name in the text of /etc/passwd (`name:password:uid:gid:…`).
fn find(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (uid != 0).then_some((uid, gid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd() {
        let text =
            "root:x:0:0:root:/root:/bin/bash\npostgresql:x:1:1::/:\npostgres:x:101:104:a,,,:/var:/bin/sh\nbad:x\n";
        assert_eq!(find(text, "postgres"), Some((101, 104)));
        assert_eq!(find(text, "nobody"), None);
        assert_eq!(find(text, "bad"), None);
        assert_eq!(find(text, "root"), None, "never root");
    }
}
