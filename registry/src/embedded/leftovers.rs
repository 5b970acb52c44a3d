//! What a killed process left: a Postgres that is still shutting down, its pid file, half a cluster.

use std::path::Path;
use std::time::{Duration, Instant};

use super::sys;
use crate::{Error, Result};

/// How long an orphan may take to shut down by itself, and then after being told to quit.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// Waits for an orphan to end and removes what would keep a new server from starting.
///
/// The caller holds the data directory's lock, so no server here belongs to anyone.
pub(super) fn clear(server: &Path) -> Result<()> {
    remove_half_clusters(server)?;
    let cluster = server.join("cluster");
    if !wait_for_orphans(&cluster) {
        for pid in processes_in(&cluster) {
            tracing::warn!(pid, "a Postgres left by a killed process does not end: telling it to quit");
            // It may have ended just now.
            let _ = sys::signal(pid, sys::SIGQUIT);
        }
        if !wait_for_orphans(&cluster) {
            return Err(Error::PostgresStart {
                directory: server.to_owned(),
                reason: format!("an older server still runs in it: end the processes {:?}", processes_in(&cluster)),
            });
        }
    }
    // No process works in the cluster, so the file is stale. Left there, its pid could by chance be that of another
    // process of the same user (in a container: likely), and Postgres would refuse to start.
    let pid_file = cluster.join("postmaster.pid");
    match std::fs::remove_file(&pid_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(pid_file)(error)),
        _ => Ok(()),
    }
}

fn remove_half_clusters(server: &Path) -> Result<()> {
    for entry in std::fs::read_dir(server).map_err(Error::io(server))? {
        let entry = entry.map_err(Error::io(server))?;
        if entry.file_name().to_string_lossy().starts_with("cluster.new") {
            std::fs::remove_dir_all(entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    Ok(())
}

fn wait_for_orphans(cluster: &Path) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !processes_in(cluster).is_empty() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// The processes whose working directory is the cluster: every process of a Postgres server has it so.
fn processes_in(cluster: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The link of another user's process cannot be read; such a one is not ours.
        if std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == cluster) {
            found.push(pid);
        }
    }
    found
}
