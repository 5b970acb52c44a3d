//! A cluster's directories, how it is made and started, and where it listens.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::account::Account;
use super::sys;
use crate::{Error, Result};

/// Bytes a Unix socket's path can have, the closing zero excluded.
const SOCKET_PATH_MAX: usize = 107;
/// The socket's file name, and so its port in URLs.
const SOCKET: &str = ".s.PGSQL.5432";
/// Lines of the log that an error quotes.
const QUOTED_LINES: usize = 3;

/// A cluster that is there.
pub(super) struct Cluster {
    dist: PathBuf,
    server: PathBuf,
    socket: PathBuf,
    account: Account,
}

impl Cluster {
    /// Opens the cluster in the server directory; makes it if there is none.
    pub(super) fn open(dist: &Path, server: &Path, account: &Account) -> Result<Self> {
        let socket = socket_directory(server, account)?;
        let cluster = Self { dist: dist.to_owned(), server: server.to_owned(), socket, account: *account };
        if cluster.data().is_dir() {
            cluster.check_version()?
        } else {
            cluster.initialise()?
        }
        Ok(cluster)
    }

    fn data(&self) -> PathBuf {
        self.server.join("cluster")
    }

    fn log(&self) -> PathBuf {
        self.server.join("log")
    }

    /// One of the distribution's programs, as the server's user, untouched by our environment, ending with us.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.dist.join("bin").join(name));
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        self.account.apply(&mut command);
        sys::die_with_parent(&mut command);
        command
    }

    fn initialise(&self) -> Result<()> {
        let partial = self.server.join(format!("cluster.new-{}", Uuid::now_v7()));
        let mut initdb = self.program("initdb");
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"]).arg(&partial);
        let output = initdb.output().map_err(Error::io(self.dist.join("bin/initdb")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // What is left of it would be removed at the next start anyway.
            let _ = std::fs::remove_dir_all(&partial);
            return Err(self.error(&format!("initdb failed: {}", last_lines(&said))));
        }
        std::fs::rename(&partial, self.data()).map_err(Error::io(self.data()))
    }

    /// A cluster can be opened by its own major version only.
    fn check_version(&self) -> Result<()> {
        let path = self.data().join("PG_VERSION");
        let made_by = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let output = self.program("postgres").arg("--version").output().map_err(Error::io(&self.dist))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let major = said.split_whitespace().last().and_then(|version| version.split('.').next()).unwrap_or_default();
        if made_by.trim() == major {
            return Ok(());
        }
        Err(self.error(&format!(
            "its files were made by PostgreSQL {}, and {} is version {major}: set WEIGHTSMITH_POSTGRES to a version {} \
             directory, or move the data with pg_dump",
            made_by.trim(),
            self.dist.display(),
            made_by.trim()
        )))
    }

    /// The server, ready to be spawned; what it says goes to the log file.
    pub(super) fn command(&self) -> Result<Command> {
        use std::os::unix::process::CommandExt;

        let log = File::create(self.log()).map_err(Error::io(self.log()))?;
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data());
        // In quotes: the setting is a list, and a path may hold a comma.
        let socket = self.socket.display().to_string().replace('"', "\"\"");
        command.arg("-c").arg(format!("unix_socket_directories=\"{socket}\""));
        for setting in ["listen_addresses=", "port=5432", "max_connections=100", "jit=off"] {
            command.args(["-c", setting]);
        }
        command.arg("-c").arg(format!("shared_buffers={}MB", shared_buffers(memory_mib())));
        // Ctrl-C in a terminal reaches the whole process group; the server must outlive our last queries.
        command.process_group(0).stdout(Stdio::null()).stderr(log);
        Ok(command)
    }

    /// Whether the server with this pid accepts connections (the postmaster's pid file says so, as for pg_ctl).
    pub(super) fn is_ready(&self, pid: u32) -> bool {
        std::fs::read_to_string(self.data().join("postmaster.pid")).is_ok_and(|text| {
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
        })
    }

    /// The socket's directory, when it is not in the server directory.
    pub(super) fn short_socket(&self) -> Option<PathBuf> {
        (!self.socket.starts_with(&self.server)).then(|| self.socket.clone())
    }

    /// The connection URL over the socket.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@localhost:5432/postgres?host={}", encode(&self.socket))
    }

    /// An error that quotes the end of the server's log.
    pub(super) fn start_error(&self, what: &str) -> Error {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        self.error(&format!("{what}; its log {} ends with: {}", self.log().display(), last_lines(&log)))
    }

    fn error(&self, reason: &str) -> Error {
        Error::PostgresStart { directory: self.server.clone(), reason: reason.into() }
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(QUOTED_LINES);
    lines.get(from..).unwrap_or_default().join(" | ")
}

/// The directory of the socket: in the server directory, or a short one when the path would be too long for a socket.
fn socket_directory(server: &Path, account: &Account) -> Result<PathBuf> {
    let inside = server.join("socket");
    let directory = if inside.join(SOCKET).as_os_str().len() < SOCKET_PATH_MAX {
        inside
    } else {
        let hash = hex::encode(Sha256::digest(server.as_os_str().as_encoded_bytes()));
        // Not TMPDIR, which may be long or closed to the server's user.
        Path::new("/tmp").join(format!("weightsmith-{}", hash.get(..16).unwrap_or(&hash)))
    };
    if !directory.exists() {
        account.make_private(&directory)?;
    }
    if !account.owns_private(&directory) {
        return Err(Error::PostgresStart {
            directory: server.to_owned(),
            reason: format!("{} is not a directory of Postgres' user alone: remove it", directory.display()),
        });
    }
    Ok(directory)
}

/// Percent-encodes a path for a URL's query.
fn encode(path: &Path) -> String {
    let mut encoded = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            encoded.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Memory of this machine in MiB, where the system tells.
fn memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib >> 10)
}

/// MiB of PostgreSQL's own cache: a thirty-second of the memory, since others need the machine too. It is taken as
/// pages come in, so a small catalogue holds little of it.
fn shared_buffers(memory: Option<u64>) -> u64 {
    memory.map_or(32, |mib| (mib / 32).clamp(32, 1024))
}
