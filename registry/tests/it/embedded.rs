//! The private server, started from the distribution at WEIGHTSMITH_POSTGRES.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use registry::Registry;
use registry::embedded::{EmbeddedPostgres, locate};

use tempfile::TempDir;

use crate::calls::generators;
use crate::fixtures;

fn distribution() -> PathBuf {
    let path = std::env::var_os("WEIGHTSMITH_POSTGRES")
        .expect("set WEIGHTSMITH_POSTGRES to a PostgreSQL directory with pgvector for this test");
    locate(Some(path.into())).unwrap()
}

/// A data directory the server's user can enter, whatever the umask.
fn data_dir() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

async fn connect(postgres: &EmbeddedPostgres, data: &Path) -> Registry {
    Registry::connect(&postgres.url(), &data.join("artifacts")).await.unwrap()
}

/// Processes that work in a directory below this one.
fn processes_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.path().join("cwd").read_link().ok())
        .filter(|cwd| cwd.starts_with(directory))
        .collect()
}

#[tokio::test]
async fn starts_keeps_and_stops() {
    let data = data_dir();
    let mut postgres = EmbeddedPostgres::start(&distribution(), data.path()).unwrap();
    let registry = connect(&postgres, data.path()).await;
    let version = fixtures::publish(&registry, "digits", "one").await;

    let busy = EmbeddedPostgres::start(&distribution(), data.path()).unwrap_err();
    assert_eq!(busy.code(), "data_directory_busy");
    registry.close().await;
    postgres.stop();
    postgres.stop();
    assert!(!postgres.is_running());
    assert_eq!(processes_below(data.path()), Vec::<PathBuf>::new());
    drop(postgres);

    let began = Instant::now();
    let postgres = EmbeddedPostgres::start(&distribution(), data.path()).unwrap();
    println!("restart {:?}", began.elapsed());
    let registry = connect(&postgres, data.path()).await;
    assert_eq!(generators::resolve(&registry, "digits").await.unwrap(), version);
    drop(postgres);
    assert_eq!(processes_below(data.path()), Vec::<PathBuf>::new(), "dropped: stopped");
}

/// Not a test of its own: the process that `killed_processes_leave_no_orphan_and_lose_nothing` kills.
#[tokio::test]
#[ignore = "run by another test"]
async fn child_that_is_killed() {
    let data = PathBuf::from(std::env::var_os("REGISTRY_TEST_DATA").expect("the other test sets it"));
    // On a thread that ends at once: the server must outlive the thread it was started from.
    let path = data.clone();
    let start = move || EmbeddedPostgres::start(&distribution(), &path).unwrap();
    let postgres = std::thread::spawn(start).join().unwrap();
    let registry = connect(&postgres, &data).await;
    let version = fixtures::publish(&registry, "digits", &uuid::Uuid::now_v7().to_string()).await;
    assert!(postgres.is_running());
    println!("\npublished {}", version.version);
    std::thread::sleep(Duration::from_secs(60));
}

fn spawn_child(data: &Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "embedded::child_that_is_killed"])
        .env("REGISTRY_TEST_DATA", data)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find(|line| line.starts_with("published"));
    (child, said.expect("the child published a version"))
}

#[tokio::test]
async fn killed_processes_leave_no_orphan_and_lose_nothing() {
    let data = data_dir();
    for expected in ["published 1", "published 2", "published 3"] {
        // The next one starts at once, while the orphan may still be shutting down.
        let (mut child, said) = spawn_child(data.path());
        assert_eq!(said, expected);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let began = Instant::now();
    while !processes_below(data.path()).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "orphans: {:?}", processes_below(data.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("orphan gone after {:?}", began.elapsed());
    let postgres = EmbeddedPostgres::start(&distribution(), data.path()).unwrap();
    let registry = connect(&postgres, data.path()).await;
    assert_eq!(generators::get(&registry, "digits").await.unwrap().versions, 3);
}

#[tokio::test]
async fn a_stale_pid_file_and_half_a_cluster_do_not_matter() {
    let data = data_dir();
    drop(EmbeddedPostgres::start(&distribution(), data.path()).unwrap());
    let server = data.path().join("postgres/server");
    // Our own pid: alive, but no Postgres.
    let stale = format!("{}\n{}\n0\n5432\n", std::process::id(), server.join("cluster").display());
    std::fs::write(server.join("cluster/postmaster.pid"), stale).unwrap();
    std::fs::create_dir_all(server.join("cluster.new-killed/base")).unwrap();
    let postgres = EmbeddedPostgres::start(&distribution(), data.path()).unwrap();
    connect(&postgres, data.path()).await.ping().await.unwrap();
    assert!(!server.join("cluster.new-killed").exists());
}

#[tokio::test]
async fn awkward_paths_work() {
    let data = data_dir();
    let long = data.path().join("x".repeat(80)).join("a b,'\"%é");
    let postgres = EmbeddedPostgres::start(&distribution(), &long).unwrap();
    connect(&postgres, &long).await.ping().await.unwrap();
    assert!(postgres.url().contains("host=%2Ftmp%2Fweightsmith-"), "too long for a socket: {}", postgres.url());
    let short = data.path().join("a b,'\"%é");
    let postgres = EmbeddedPostgres::start(&distribution(), &short).unwrap();
    connect(&postgres, &short).await.ping().await.unwrap();
    assert!(postgres.url().contains("a%20b%2C%27%22%25%C3%A9%2Fpostgres%2Fserver%2Fsocket"), "{}", postgres.url());
}

/// As in a root's home: only when root does another user run the server, so only then is there anything closed to it.
#[tokio::test]
async fn a_data_directory_closed_to_the_servers_user() {
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let data = closed.path().join("data");
    let start = || EmbeddedPostgres::start(&distribution(), &data);
    let postgres = start().unwrap();
    let registry = connect(&postgres, &data).await;
    let version = fixtures::publish(&registry, "digits", "one").await;
    registry.close().await;
    drop(postgres);
    let postgres = start().unwrap();
    assert_eq!(generators::resolve(&connect(&postgres, &data).await, "digits").await.unwrap(), version);
    drop(postgres);

    let note = data.join("postgres/location");
    let Ok(elsewhere) = std::fs::read_to_string(&note) else {
        assert!(data.join("postgres/server/cluster").is_dir(), "it is in the data directory, then");
        return;
    };
    assert!(!data.join("postgres/server").exists());
    std::fs::remove_dir_all(elsewhere.trim()).unwrap();
    let lost = start().unwrap_err();
    assert!(lost.to_string().contains("is gone"), "not silently an empty database: {lost}");
}

fn copy(from: &Path, to: &Path, leave_out: &str) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, PermissionsExt::from_mode(0o755)).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target, leave_out);
        } else if entry.file_name() != leave_out {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The distribution without pgvector. A wheel's programs find their libraries in `../../../NAME.libs`.
fn distribution_without_pgvector(root: &Path) -> PathBuf {
    let (complete, bare) = (distribution(), root.join("package/install"));
    copy(&complete, &bare, "vector.control");
    for entry in std::fs::read_dir(complete.ancestors().nth(2).unwrap()).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "libs") {
            std::os::unix::fs::symlink(entry.path(), root.join(entry.file_name())).unwrap();
        }
    }
    bare
}

#[tokio::test]
async fn a_server_without_pgvector_is_told_clearly() {
    let data = data_dir();
    let bare = distribution_without_pgvector(data.path());
    let postgres = EmbeddedPostgres::start(&bare, &data.path().join("data")).unwrap();
    let error = Registry::connect(&postgres.url(), &data.path().join("artifacts")).await.unwrap_err();
    assert_eq!(error.code(), "pgvector_missing");
    assert!(error.to_string().contains("install pgvector"), "{error}");
}

#[test]
fn failures_to_start_say_why() {
    let data = data_dir();
    let missing = EmbeddedPostgres::start(&data.path().join("nothing"), data.path()).unwrap_err();
    assert_eq!(missing.code(), "postgres_missing");
    assert!(!data.path().join("postgres").exists(), "nothing was made");

    drop(EmbeddedPostgres::start(&distribution(), data.path()).unwrap());
    let cluster = data.path().join("postgres/server/cluster");
    let configuration = cluster.join("postgresql.conf");
    let good = std::fs::read_to_string(&configuration).unwrap();
    std::fs::write(&configuration, format!("{good}\nno_such_setting = 1\n")).unwrap();
    let refused = EmbeddedPostgres::start(&distribution(), data.path()).unwrap_err();
    assert_eq!(refused.code(), "postgres_start");
    assert!(refused.to_string().contains("no_such_setting"), "the log is quoted: {refused}");
    std::fs::write(&configuration, good).unwrap();

    std::fs::write(cluster.join("PG_VERSION"), "9\n").unwrap();
    let refused = EmbeddedPostgres::start(&distribution(), data.path()).unwrap_err();
    assert!(refused.to_string().contains("made by PostgreSQL 9"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_killed_comes_back() {
    let data = data_dir();
    let postgres = EmbeddedPostgres::start(&distribution(), data.path()).unwrap();
    let registry = connect(&postgres, data.path()).await;
    let version = fixtures::publish(&registry, "digits", "one").await;
    for round in 0..2 {
        let pid_file = data.path().join("postgres/server/cluster/postmaster.pid");
        let pid = std::fs::read_to_string(&pid_file).unwrap().lines().next().unwrap().to_owned();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        let began = Instant::now();
        let mut failures = 0;
        loop {
            match generators::resolve(&registry, "digits").await {
                Ok(found) if failures > 0 || began.elapsed() > Duration::from_millis(50) => {
                    assert_eq!(found, version);
                    let now = std::fs::read_to_string(&pid_file).unwrap_or_default();
                    if now.lines().next().is_some_and(|now| now != pid) {
                        break;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.code(), "database_unavailable", "{error:?}");
                    failures += 1;
                }
            }
            assert!(began.elapsed() < Duration::from_secs(30), "round {round}: it does not come back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("back after {:?}, {failures} failures", began.elapsed());
        assert!(postgres.is_running());
    }
    drop(postgres);
    assert_eq!(processes_below(data.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn another_process_joins() {
    let data = data_dir();
    assert_eq!(EmbeddedPostgres::join(data.path()).unwrap(), None, "nobody is there");
    let mut postgres = EmbeddedPostgres::start(&distribution(), data.path()).unwrap();
    // The lock is the process's, not the file's: another descriptor of ours sees it as another process does.
    assert_eq!(EmbeddedPostgres::join(data.path()).unwrap(), Some(postgres.url()));
    connect(&postgres, data.path()).await.ping().await.unwrap();
    let note = data.path().join("postgres/connection");
    assert_eq!(std::fs::metadata(&note).unwrap().permissions().mode() & 0o777, 0o600);
    postgres.stop();
    assert!(!note.exists());
    drop(postgres);
    std::fs::write(&note, "postgres://stale").unwrap();
    assert_eq!(EmbeddedPostgres::join(data.path()).unwrap(), None, "a note without its process is not believed");
    drop(EmbeddedPostgres::start(&distribution(), data.path()).unwrap());
}
