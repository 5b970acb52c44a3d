//! Snapshots of training under way: what a stage needs to go on as if it had never stopped. Where they are kept is the
//! caller's: a folder ([`Folder`]), a registry (a worker's implementation of [`Snapshots`]), or nowhere
//! ([`Keep::nothing`]).

mod folder;
mod format;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use folder::Folder;
pub use format::Snapshot;

use crate::error::{Error, Result};
use crate::progress::Progress;

/// A place for named files of bytes. Names are of lowercase letters, digits, `-` and `.`.
///
/// A failure is [`Error::Snapshots`], or [`Error::Interrupted`] when the training is no longer this process's: that ends
/// it at once. Another one that happens while training is under way is told and training goes on; one
/// that happens while a snapshot is looked for ends it, so that nothing is trained twice for want of a connection.
pub trait Snapshots: Sync {
    /// Stores `bytes` under `name`, in place of what was there; after a crash the old or the new bytes are there.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn save(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// The bytes under `name`, if there are any.
    ///
    /// # Errors
    /// When the place cannot be read.
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Removes what is stored under `name`; nothing there is no error.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn remove(&self, name: &str) -> Result<()>;

    /// How errors name the place.
    fn place(&self) -> PathBuf {
        PathBuf::from("its store")
    }

    /// Whether something is stored under `name`.
    ///
    /// # Errors
    /// When the place cannot be read.
    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.load(name)?.is_some())
    }
}

/// Time between two snapshots where nothing else is asked for.
pub const EVERY: Duration = Duration::from_secs(15);
/// A longer time between two is as good as none.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// A snapshot takes at most this share of the time: where it takes long, the next one comes later.
const SHARE: u32 = 50;
/// Snapshots of a stage: the last and the one before it.
const SLOTS: usize = 2;
/// The stages of a generator's training that keep snapshots.
const STAGES: [&str; 5] = ["guide", "vae", "encoder", "denoiser", "predictor"];

/// What is trained: a digest of all that it depends on, the sources of this program that train among it. Training of
/// other sources would not be the training that the result says it is.
pub(crate) fn identity(what: &impl serde::Serialize) -> Result<String> {
    let all = (what, env!("CARGO_PKG_VERSION"), env!("WEIGHTSMITH_SOURCES"));
    let text = serde_json::to_vec(&all).map_err(|e| Error::Config(e.to_string()))?;
    Ok(weights::digest::sha256(&text))
}

/// Where and how often snapshots are kept.
#[derive(Clone, Copy)]
pub struct Keep<'a> {
    place: Option<&'a dyn Snapshots>,
    every: Duration,
    /// Where finished VAEs are found again.
    shared: Option<&'a dyn Snapshots>,
    /// Whether names say what is trained.
    by_identity: bool,
}

impl<'a> Keep<'a> {
    /// Keeps snapshots in `place`, one each `every` (and at the end of a stage, and when training is interrupted).
    pub fn new(place: &'a dyn Snapshots, every: Duration) -> Self {
        Self { place: Some(place), every: every.min(LONGEST), shared: None, by_identity: false }
    }

    /// Keeps the snapshots of VAEs in `place`, each under a name of its own, and never clears them: generators that differ in
    /// what comes after it alone (dataset encoder, denoiser, predictor) train one VAE together.
    #[must_use]
    pub fn sharing(self, place: &'a dyn Snapshots) -> Self {
        Self { shared: Some(place), ..self }
    }

    /// Where those are kept, if anywhere.
    pub(crate) fn shared(&self) -> Option<Self> {
        Some(Self { place: Some(self.shared?), by_identity: true, ..*self })
    }

    /// Keeps none.
    pub fn nothing() -> Self {
        Self { place: None, every: EVERY, shared: None, by_identity: false }
    }

    /// Removes the snapshots of a generator's training, once its result is stored.
    ///
    /// # Errors
    /// When the place cannot be written.
    pub fn clear(&self) -> Result<()> {
        let Some(place) = self.place else { return Ok(()) };
        STAGES.iter().flat_map(|stage| slots(stage)).try_for_each(|name| place.remove(&name))
    }

    /// The keeper of one stage, whose snapshots are those of `identity` only.
    pub(crate) fn stage(&self, name: impl Into<String>, identity: &'a str, progress: &Progress) -> Keeper<'a> {
        let name = name.into();
        let short: String = identity.trim_start_matches("sha256:").chars().take(16).collect();
        Keeper {
            place: self.place,
            name: if self.by_identity { format!("{name}-{short}") } else { name },
            identity,
            progress: progress.clone(),
            every: self.every,
            slot: 0,
            due: Instant::now() + self.every,
        }
    }
}

impl std::fmt::Debug for Keep<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keep").field("kept", &self.place.is_some()).field("every", &self.every).finish()
    }
}

fn slots(stage: &str) -> impl Iterator<Item = String> {
    (0..SLOTS).map(move |slot| slot_name(stage, slot))
}

fn slot_name(stage: &str, slot: usize) -> String {
    format!("{stage}.{slot}.snapshot")
}

/// Loads and saves the snapshots of one stage.
pub(crate) struct Keeper<'a> {
    place: Option<&'a dyn Snapshots>,
    name: String,
    identity: &'a str,
    progress: Progress,
    every: Duration,
    slot: usize,
    due: Instant,
}

impl Keeper<'_> {
    /// The newest whole snapshot of this stage and identity. One that is damaged or of something else is told of and
    /// passed over: then the one before it is taken, or the stage begins anew.
    ///
    /// # Errors
    /// When the place cannot be read.
    pub fn load(&mut self) -> Result<Option<Snapshot>> {
        let Some(place) = self.place else { return Ok(None) };
        let mut best: Option<Snapshot> = None;
        for slot in 0..SLOTS {
            let name = slot_name(&self.name, slot);
            let Some(bytes) = place.load(&name)? else { continue };
            match Snapshot::from_bytes(&bytes, self.identity) {
                Ok(snapshot) if best.as_ref().is_none_or(|b| b.step < snapshot.step) => {
                    self.slot = (slot + 1) % SLOTS;
                    best = Some(snapshot);
                }
                Ok(_) => {}
                Err(reason) => self.progress.note(&format!("snapshot {name} is passed over: {reason}")),
            }
        }
        if let Some(found) = &best {
            self.progress.note(&format!("{}: continues after step {}", self.name, found.step));
        }
        Ok(best)
    }

    /// To be called with the result of each step: keeps a snapshot when it is time, when the stage is at its end, and
    /// when the user asked to stop.
    ///
    /// # Errors
    /// That of the step, or of `make`; [`Error::Interrupted`] when the place says that this training is over.
    pub fn after(&mut self, step: Result<()>, end: bool, make: impl FnOnce() -> Result<Snapshot>) -> Result<()> {
        if self.place.is_none() {
            return step;
        }
        let stop = matches!(step, Err(Error::Interrupted));
        if stop || (step.is_ok() && (end || Instant::now() >= self.due)) {
            let start = Instant::now();
            self.save(make()?)?;
            self.due = Instant::now() + self.every.max(start.elapsed() * SHARE);
        }
        step
    }

    fn save(&mut self, snapshot: Snapshot) -> Result<()> {
        let Some(place) = self.place else { return Ok(()) };
        let name = slot_name(&self.name, self.slot);
        match place.save(&name, &snapshot.to_bytes(self.identity)) {
            Ok(()) => self.slot = (self.slot + 1) % SLOTS,
            // Someone else goes on with this training.
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => self.progress.note(&format!("no snapshot {name}, training goes on: {error}")),
        }
        Ok(())
    }

    /// Removes the snapshots of this stage.
    pub fn remove(&self) {
        let Some(place) = self.place else { return };
        for name in slots(&self.name) {
            if let Err(error) = place.remove(&name) {
                self.progress.note(&format!("snapshot {name} is of no more use and cannot be removed: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place that answers every save with the same error.
    struct Refuses(fn() -> Error);

    impl Snapshots for Refuses {
        fn save(&self, _: &str, _: &[u8]) -> Result<()> {
            Err((self.0)())
        }

        fn load(&self, _: &str) -> Result<Option<Vec<u8>>> {
            Ok(None)
        }

        fn remove(&self, _: &str) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_lost_training_ends_at_a_snapshot() {
        let ended = |place: &Refuses| {
            let progress = Progress::silent();
            let mut keeper = Keep::new(place, Duration::ZERO).stage("vae", "this", &progress);
            keeper.after(Ok(()), false, || Ok(Snapshot::new(1)))
        };
        assert!(ended(&Refuses(|| Error::Snapshots("the disk is full".into()))).is_ok(), "training goes on");
        assert!(matches!(ended(&Refuses(|| Error::Interrupted)), Err(Error::Interrupted)));
    }
}
