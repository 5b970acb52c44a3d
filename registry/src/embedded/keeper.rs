//! The thread that owns the server's process.
//!
//! The death signal of a child fires when the *thread* that spawned it ends. So one thread spawns the server and stays
//! as long as it runs; it ends early only with the whole process, and the server with it. When the server ends by
//! itself (somebody killed it, memory ran out), the same thread starts it again.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{leftovers, sys};
use crate::{Error, Result};

/// How often the thread looks whether the server is still there.
const WATCH: Duration = Duration::from_millis(100);
/// How long a fast shutdown may take (its checkpoint may have much to write), and then an immediate one.
const FAST: Duration = Duration::from_secs(30);
const IMMEDIATE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// Between the server's end and its next start: doubled each time, and short again after it has run for a while.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Keeper {
    pid: u32,
    running: Arc<AtomicBool>,
    has_ended: Arc<AtomicBool>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread tells.
struct State {
    running: Arc<AtomicBool>,
    has_ended: Arc<AtomicBool>,
}

impl State {
    fn runs(&self, whether: bool) {
        if !whether {
            self.has_ended.store(true, Ordering::Release);
        }
        self.running.store(whether, Ordering::Release);
    }
}

impl Keeper {
    /// Spawns the server on a thread of its own.
    pub(super) fn start(command: Command, server: &Path) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (report, spawned) = mpsc::channel();
        let running = Arc::new(AtomicBool::new(true));
        let has_ended = Arc::new(AtomicBool::new(false));
        let state = State { running: Arc::clone(&running), has_ended: Arc::clone(&has_ended) };
        let directory = server.to_owned();
        let thread = std::thread::Builder::new()
            .name("postgres".into())
            .spawn(move || keep(command, &directory, &report, &stopped, &state))
            .map_err(Error::io(server))?;
        // The thread reports before anything else; if it could not, it is gone.
        let spawned = spawned.recv().unwrap_or_else(|_| Err(std::io::Error::other("the thread ended")));
        let pid = spawned.map_err(Error::io(server))?;
        Ok(Self { pid, running, has_ended, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Whether it has ended by itself before, be it started again or not.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Shuts the server down and waits for its end.
    pub(super) fn stop(&mut self) {
        // The thread takes the closed channel as the order to stop.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps Postgres failed");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn keep(
    mut command: Command,
    server: &Path,
    report: &Sender<std::io::Result<u32>>,
    stopped: &Receiver<()>,
    state: &State,
) {
    // Whoever waits for the report is in `Keeper::start`.
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            state.runs(false);
            let _ = report.send(Err(error));
            return;
        }
    };
    let _ = report.send(Ok(child.id()));
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let Some(status) = watch(&mut child, stopped) else { break };
        state.runs(false);
        if began.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        tracing::error!(%status, "the private PostgreSQL ended by itself, and is started again: see its log");
        let Some(again) = start_again(&mut command, server, stopped, &mut pause) else { return };
        child = again;
        state.runs(true);
    }
    shut_down(&mut child);
    state.runs(false);
}

/// Starts the server once more, after a pause, until that works; `None` after the order to stop.
fn start_again(command: &mut Command, server: &Path, stopped: &Receiver<()>, pause: &mut Duration) -> Option<Child> {
    loop {
        match stopped.recv_timeout(*pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
        }
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        // Its children outlive it for a moment, and keep a new one out.
        let spawned = leftovers::clear(server).and_then(|()| command.spawn().map_err(Error::io(server)));
        match spawned {
            Ok(child) => return Some(child),
            Err(error) => tracing::error!(%error, "the private PostgreSQL could not be started again"),
        }
    }
}

/// Waits for the order to stop (`None`) or for the server's own end.
fn watch(child: &mut Child, stopped: &Receiver<()>) -> Option<ExitStatus> {
    loop {
        match stopped.recv_timeout(WATCH) {
            Err(RecvTimeoutError::Timeout) => {
                if let Ok(Some(status)) = child.try_wait() {
                    return Some(status);
                }
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

fn shut_down(child: &mut Child) {
    for (signal, patience) in [(sys::SIGINT, FAST), (sys::SIGQUIT, IMMEDIATE)] {
        // A server that is gone already is found so below.
        let _ = sys::signal(child.id(), signal);
        if ends_within(child, patience) {
            return;
        }
        tracing::warn!(signal, "the private PostgreSQL does not end");
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn ends_within(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}
