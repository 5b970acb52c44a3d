//! pg_dump and pg_restore.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::unusable;
use crate::{Error, Result};

/// Where pg_dump and pg_restore are. They must be at least as new as the server.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder that holds them; `None`: those of `PATH`.
    pub folder: Option<PathBuf>,
}

impl Programs {
    /// Those of a PostgreSQL distribution (see [`crate::embedded::locate`]) when it has them, else those of `PATH`.
    #[must_use]
    pub fn of(distribution: Option<&Path>) -> Self {
        let folder = distribution.map(|path| path.join("bin"));
        Self { folder: folder.filter(|bin| bin.join("pg_dump").is_file() && bin.join("pg_restore").is_file()) }
    }

    pub(super) async fn dump(&self, url: &str, snapshot: &str, file: &Path) -> Result<()> {
        let mut command = self.command("pg_dump", url);
        command.args(["--format=custom", "--no-owner", "--no-privileges"]);
        command.arg(format!("--snapshot={snapshot}")).arg("--file").arg(file);
        run(command, file).await
    }

    pub(super) async fn restore(&self, url: &str, file: &Path) -> Result<()> {
        let mut command = self.command("pg_restore", url);
        command.args(["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]).arg(file);
        run(command, file).await
    }

    fn command(&self, name: &str, url: &str) -> Command {
        let program = self.folder.as_ref().map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        let mut command = Command::new(program);
        let (url, password) = split_password(url);
        command.arg("--dbname").arg(for_libpq(&url)).arg("--no-password");
        // Everybody on the machine can read a command's arguments.
        if let Some(password) = password {
            command.env("PGPASSWORD", password);
        }
        command
    }
}

async fn run(mut command: Command, file: &Path) -> Result<()> {
    let program = PathBuf::from(command.get_program());
    let output = tokio::task::spawn_blocking(move || command.stdin(std::process::Stdio::null()).output());
    let output = output.await.map_err(|error| Error::Input(std::io::Error::other(error)))?;
    let output = output.map_err(Error::io(&program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().find(|line| line.contains("error")).or(said.lines().last()).unwrap_or("no message");
    Err(unusable(file, format!("{} failed ({said}): see that it is as new as the server", program.display())))
}

/// A URL whose parameters have libpq's names: sqlx knows others besides, and one that libpq does not know at all.
fn for_libpq(url: &str) -> String {
    let Some((base, parameters)) = url.split_once('?') else { return url.to_owned() };
    let renamed = parameters.split('&').filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let name = match name {
            "statement-cache-capacity" => return None,
            "ssl-mode" => "sslmode",
            "ssl-root-cert" | "ssl-ca" => "sslrootcert",
            "ssl-cert" => "sslcert",
            "ssl-key" => "sslkey",
            other => other,
        };
        Some(format!("{name}={value}"))
    });
    format!("{base}?{}", renamed.collect::<Vec<_>>().join("&"))
}

/// A URL without its password, and the password.
fn split_password(url: &str) -> (String, Option<String>) {
    let split = || {
        let (scheme, rest) = url.split_once("://")?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        let (user, host) = authority.rsplit_once('@')?;
        let (user, password) = user.split_once(':')?;
        Some((format!("{scheme}://{user}@{host}{after}"), Some(decoded(password))))
    };
    split().unwrap_or_else(|| (url.to_owned(), None))
}

/// Text without its percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_libpqs_names() {
        let url = "postgres://db/models?ssl-mode=require&statement-cache-capacity=100&host=%2Ftmp";
        assert_eq!(for_libpq(url), "postgres://db/models?sslmode=require&host=%2Ftmp");
        assert_eq!(for_libpq("postgres://db/models"), "postgres://db/models");
    }

    #[test]
    fn passwords_are_no_arguments() {
        let with = split_password("postgres://me:p%40ss%@db:5432/models?sslmode=require");
        assert_eq!(with, ("postgres://me@db:5432/models?sslmode=require".into(), Some("p@ss%".into())));
        for without in ["postgres:///postgres?host=/tmp/a:b@c", "postgres://me@db/models", "postgres://db"] {
            assert_eq!(split_password(without), (without.to_owned(), None));
        }
    }
}
