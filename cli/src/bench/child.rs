//! A server in a process of its own, and how much memory it holds.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::context::kernel_kib;
use crate::error::{Error, Result};

/// How often memory is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// A running `weightsmith serve`; it ends when this is dropped.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
}

impl Server {
    /// Starts this very program as a server on the data folder, open on loopback, and waits until it says where it is.
    pub fn start(data_dir: &Path) -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::io("weightsmith"))?;
        let mut child = Command::new(&program)
            .args(["serve", "--open", "--no-worker", "--bind", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io(&program))?;
        let mut lines = child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
        let said = lines.find_map(|line| address(&line.ok()?));
        // What it says later is of no interest, but the pipe has to be read.
        std::thread::spawn(move || lines.for_each(drop));
        match said {
            Some(url) => Ok(Self { child, url }),
            None => Err(Error::Internal("the server ended before it served: its standard error says why".into())),
        }
    }

    /// Memory it holds now, in bytes.
    pub fn memory(&self) -> u64 {
        memory(self.child.id())
    }

    /// The most memory it holds while `work` goes on, and what `work` gives.
    pub async fn peak_during<T>(&self, work: impl Future<Output = T>) -> (u64, T) {
        let (peak, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let watcher = {
            let (peak, over, id) = (peak.clone(), over.clone(), self.child.id());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    peak.fetch_max(memory(id), Ordering::Relaxed);
                    std::thread::sleep(INTERVAL);
                }
            })
        };
        let done = work.await;
        over.store(true, Ordering::Relaxed);
        // It only sleeps and adds.
        let _ = watcher.join();
        (peak.load(Ordering::Relaxed), done)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in `weightsmith serves http://… (…)`.
fn address(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("serves ")?;
    rest.split_whitespace().next().filter(|url| url.starts_with("http://")).map(str::to_owned)
}

/// Resident bytes of a process, 0 when it is gone.
pub fn memory(process: u32) -> u64 {
    kernel_kib(&format!("/proc/{process}/status"), "VmRSS").map_or(0, |kib| kib as u64 * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let line = "weightsmith serves http://127.0.0.1:4321 (cpu); the API is described at …/docs";
        assert_eq!(address(line).as_deref(), Some("http://127.0.0.1:4321"));
        assert_eq!(address("starting"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(memory(std::process::id()) > 1 << 20);
        assert_eq!(memory(u32::MAX), 0);
    }
}
