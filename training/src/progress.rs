//! Progress of long work: a bar with rate and time left on a terminal, lines elsewhere; and the wish to stop.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};

/// Shows progress and carries the wish to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress {
    cancel: Arc<AtomicBool>,
    visible: bool,
}

impl Progress {
    /// When `visible`, shows bars (or, without a terminal, lines) on standard error; stops when `cancel` becomes true.
    pub fn new(visible: bool, cancel: Arc<AtomicBool>) -> Self {
        Self { cancel, visible }
    }

    /// Shows nothing, never stops.
    pub fn silent() -> Self {
        Self::new(false, Arc::new(AtomicBool::new(false)))
    }

    /// Fails with [`Error::Interrupted`] once the user asked to stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// A line where there is no terminal to draw a bar on.
    fn tell(&self, line: &str) {
        if self.visible && !std::io::stderr().is_terminal() {
            // A closed pipe does not stop the work.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        }
    }

    /// Begins a stage of `total` steps, `done` of them already made.
    pub fn stage(&self, name: &'static str, total: usize, done: usize) -> Stage {
        let bar = if self.visible {
            ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr_with_hz(5))
        } else {
            ProgressBar::hidden()
        };
        let template = "{prefix:>16} [{bar:30}] {pos}/{len} {per_sec:.1} left {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name);
        bar.set_position(done as u64);
        bar.reset_eta();
        self.tell(&format!("{name}: {} steps", total - done.min(total)));
        Stage { bar, name, started: Instant::now(), progress: self.clone() }
    }
}

/// A stage under way.
#[derive(Debug)]
pub struct Stage {
    bar: ProgressBar,
    name: &'static str,
    started: Instant,
    progress: Progress,
}

impl Stage {
    /// `n` further steps are done.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the user asked to stop.
    pub fn advance(&self, n: usize) -> Result<()> {
        self.bar.inc(n as u64);
        self.progress.check()
    }

    /// Shows a short text behind the bar.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Ends the stage.
    pub fn finish(self) {
        self.bar.finish_and_clear();
        self.progress.tell(&format!("{}: done in {:.1} s", self.name, self.started.elapsed().as_secs_f32()));
    }
}
