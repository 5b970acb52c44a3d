//! Progress of long work: a bar with rate and time left on a terminal, lines elsewhere; an observer for others who
//! want to know; and the wish to stop.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};

/// Where a stage stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// The stage: `zoo`, `vae`, `encoder`, `denoiser`, …
    pub stage: &'static str,
    /// Steps done, from 0 (the stage begins) to `steps`; after a resume also those of before.
    pub step: usize,
    /// Steps of the stage. A zoo counts steps of one model.
    pub steps: usize,
    /// Loss of this step.
    pub loss: Option<f32>,
    /// Steps a second since the stage began or was resumed; none before the first step.
    pub rate: Option<f64>,
    /// Seconds left at that rate.
    pub seconds_left: Option<f64>,
}

/// Learns of each step, on the thread that made it: what takes long belongs elsewhere.
pub trait Observer: Send + Sync {
    /// A stage begins, or has made a step.
    fn report(&self, report: &Report);

    /// Something worth a line: a resume, a snapshot that is passed over.
    fn note(&self, _text: &str) {}
}

impl<F: Fn(&Report) + Send + Sync> Observer for F {
    fn report(&self, report: &Report) {
        self(report);
    }
}

/// Shows progress and carries the wish to stop. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    cancel: Arc<AtomicBool>,
    visible: bool,
    observer: Option<Arc<dyn Observer>>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let observed = self.observer.is_some();
        f.debug_struct("Progress").field("visible", &self.visible).field("observed", &observed).finish()
    }
}

impl Progress {
    /// When `visible`, shows bars (or, without a terminal, lines) on standard error; stops when `cancel` becomes true.
    pub fn new(visible: bool, cancel: Arc<AtomicBool>) -> Self {
        Self { cancel, visible, observer: None }
    }

    /// Shows nothing, never stops.
    pub fn silent() -> Self {
        Self::new(false, Arc::new(AtomicBool::new(false)))
    }

    /// Tells `observer` of each step.
    #[must_use]
    pub fn observed(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Fails with [`Error::Interrupted`] once the user asked to stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// A line for the user and the observer.
    pub fn note(&self, text: &str) {
        if self.visible {
            // A closed pipe does not stop the work.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
        if let Some(observer) = &self.observer {
            observer.note(text);
        }
    }

    /// A line where there is no terminal to draw a bar on.
    fn tell(&self, line: &str) {
        if self.visible && !std::io::stderr().is_terminal() {
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
        let stage = Stage {
            bar,
            name,
            total,
            before: done,
            done: AtomicUsize::new(done),
            started: Instant::now(),
            progress: self.clone(),
        };
        stage.report(done, None);
        stage
    }
}

/// A stage under way.
#[derive(Debug)]
pub struct Stage {
    bar: ProgressBar,
    name: &'static str,
    total: usize,
    /// Steps that were done when it began.
    before: usize,
    done: AtomicUsize,
    started: Instant,
    progress: Progress,
}

impl Stage {
    /// `n` further steps are done.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the user asked to stop.
    pub fn advance(&self, n: usize) -> Result<()> {
        self.step(n, None)
    }

    /// `n` further steps are done, the last with this loss.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the user asked to stop.
    pub fn advance_with(&self, n: usize, loss: f32) -> Result<()> {
        self.step(n, Some(loss))
    }

    fn step(&self, n: usize, loss: Option<f32>) -> Result<()> {
        self.bar.inc(n as u64);
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        self.report(done, loss);
        self.progress.check()
    }

    /// `n` steps need not be made: an earlier process made them.
    pub fn resumed(&self, n: usize) {
        self.bar.inc(n as u64);
        self.bar.reset_eta();
        self.done.fetch_add(n, Ordering::Relaxed);
    }

    fn report(&self, step: usize, loss: Option<f32>) {
        let Some(observer) = &self.progress.observer else { return };
        let made = step.saturating_sub(self.before) as f64;
        let rate = Some(made / self.started.elapsed().as_secs_f64()).filter(|rate| *rate > 0.0 && rate.is_finite());
        let left = self.total.saturating_sub(step) as f64;
        let seconds_left = rate.map(|rate| left / rate);
        observer.report(&Report { stage: self.name, step, steps: self.total, loss, rate, seconds_left });
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
