//! A private PostgreSQL under the data directory, for when no server is given.
//!
//! It listens on a Unix socket only, in a directory that nobody else can enter, and ends with this process, even when
//! the process is killed; when the server dies alone, it is started again. A file lock keeps a second server out;
//! another process on the same machine can join the running one ([`EmbeddedPostgres::join`]).
//!
//! ```text
//! DATA_DIR/postgres/lock             held while the server runs
//! DATA_DIR/postgres/connection       its URL, for processes that join it
//! DATA_DIR/postgres/server/cluster   the database files   } or elsewhere, when the server's user cannot enter
//! DATA_DIR/postgres/server/socket    the socket           } DATA_DIR: `DATA_DIR/postgres/location` then says where
//! DATA_DIR/postgres/server/log       what the server said }
//! ```

mod account;
mod cluster;
mod connection;
mod keeper;
mod leftovers;
mod locate;
mod place;
mod sys;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Error, Result};
use account::Account;
use cluster::Cluster;
use keeper::Keeper;
pub use locate::locate;

/// How long the server may take to come up; recovery after a crash is part of it.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long another process's server is waited for.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the lock is tried.
const LOCK_TRIES: usize = 20;
/// Between two looks at whether it is up.
const POLL: Duration = Duration::from_millis(5);

/// A running private PostgreSQL. It stops when this value is dropped.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    // Before the lock: the server stops first, then others may have the directory.
    keeper: Keeper,
    url: String,
    /// The socket's directory when it had to be outside the data directory.
    short_socket: Option<PathBuf>,
    base: PathBuf,
    _lock: File,
}

impl EmbeddedPostgres {
    /// Starts the PostgreSQL of `pg_dist` (see [`locate()`]) on the cluster in `data_dir`, which is made if need be,
    /// and waits until it answers. Blocks: about a second the first time, a tenth of one later.
    ///
    /// # Errors
    /// `postgres_missing`, `data_directory_busy`, `postgres_start`, `io`.
    pub fn start(pg_dist: &Path, data_dir: &Path) -> Result<Self> {
        let dist = locate(Some(pg_dist.to_owned()))?;
        let base = prepare_base(data_dir)?;
        let lock = lock_for_long(&base, data_dir)?;
        connection::remove(&base);
        let account = Account::for_server(&base)?;
        let server = place::choose(&base, &dist, &account)?;
        // Leftovers are recognised by their working directory, which the kernel gives without links.
        let server = server.canonicalize().map_err(Error::io(&server))?;
        leftovers::clear(&server)?;
        let cluster = Cluster::open(&dist, &server, &account)?;
        let keeper = Keeper::start(cluster.command()?, &server)?;
        wait_until_ready(&keeper, &cluster)?;
        connection::write(&base, &cluster.url())?;
        Ok(Self { keeper, url: cluster.url(), short_socket: cluster.short_socket(), base, _lock: lock })
    }

    /// The URL of the server that another process runs on `data_dir`; `None` when none does. Blocks while that one is
    /// coming up. The server ends with the process that runs it, also for those who joined.
    ///
    /// # Errors
    /// `data_directory_busy` when the other process does not bring its server up, `io`.
    pub fn join(data_dir: &Path) -> Result<Option<String>> {
        let base = data_dir.join("postgres");
        if !base.is_dir() {
            return Ok(None);
        }
        let deadline = Instant::now() + JOIN_TIMEOUT;
        loop {
            // Held: the process that wrote the file is alive. The kernel gives the lock up with the process.
            match lock(&base, data_dir) {
                Ok(_) => return Ok(None),
                Err(Error::DataDirectoryBusy(_)) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
            if let Some(url) = connection::read(&base)? {
                return Ok(Some(url));
            }
            std::thread::sleep(POLL * 10);
        }
    }

    /// The connection URL: what `DATABASE_URL` would be.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Whether the server is there: when it was killed from outside, it comes back in a moment.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.keeper.is_running()
    }

    /// Stops the server: connections are ended, everything committed is on disk. Does nothing the second time.
    pub fn stop(&mut self) {
        connection::remove(&self.base);
        self.keeper.stop();
        if let Some(directory) = self.short_socket.take() {
            // Empty now; if not, the next start uses it again.
            let _ = std::fs::remove_dir(directory);
        }
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn prepare_base(data_dir: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;

    std::fs::create_dir_all(data_dir).map_err(Error::io(data_dir))?;
    let base = data_dir.canonicalize().map_err(Error::io(data_dir))?.join("postgres");
    if !base.is_dir() {
        std::fs::create_dir(&base).map_err(Error::io(&base))?;
        // Whatever the umask, the server's user may pass through to its own directory.
        std::fs::set_permissions(&base, PermissionsExt::from_mode(0o711)).map_err(Error::io(&base))?;
    }
    Ok(base)
}

/// As [`lock`], but waits out those who only look whether it is held.
fn lock_for_long(base: &Path, data_dir: &Path) -> Result<File> {
    for _ in 0..LOCK_TRIES {
        match lock(base, data_dir) {
            Err(Error::DataDirectoryBusy(_)) => std::thread::sleep(POLL),
            other => return other,
        }
    }
    lock(base, data_dir)
}

fn lock(base: &Path, data_dir: &Path) -> Result<File> {
    let path = base.join("lock");
    let file = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::DataDirectoryBusy(data_dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(Error::io(&path)(error)),
    }
}

fn wait_until_ready(keeper: &Keeper, cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !cluster.is_ready(keeper.pid()) {
        if keeper.has_ended() {
            return Err(cluster.start_error("it ended at once"));
        }
        if Instant::now() > deadline {
            return Err(cluster.start_error("it took more than two minutes"));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
