//! What experiments share: zoos by the digest of all that they depend on, generators and their VAEs by theirs. All are kept
//! in `OUT/cache`, and continue where they were stopped.

use std::path::{Path, PathBuf};
use std::time::Instant;

use inference::Runtime;
use serde::{Deserialize, Serialize};
use training::progress::Progress;
use training::snapshots::{self, Folder, Keep};
use training::stages::generator;
use training::stages::zoo::{self, Zoo};
use training::{Config, Sources};
use weights::Bundle;

use crate::context::write_whole;
use crate::error::{Error, Result};
use crate::train;

/// Seconds of stages, in order.
pub type Seconds = Vec<(String, f64)>;

/// What is known of something that was made before.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Made {
    seconds: Seconds,
}

/// The folder.
pub struct Cache<'a> {
    dir: PathBuf,
    runtime: &'a Runtime,
    progress: &'a Progress,
}

/// The first digits of a digest.
fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(16).collect()
}

impl<'a> Cache<'a> {
    /// The cache of an output folder.
    pub fn new(out: &Path, runtime: &'a Runtime, progress: &'a Progress) -> Self {
        Self { dir: out.join("cache"), runtime, progress }
    }

    /// The zoo of a configuration, and the seconds that building it took.
    ///
    /// # Errors
    /// Those of training it.
    pub fn zoo(&self, config: &Config, sources: &Sources) -> Result<(Zoo, f64)> {
        let dir = self.dir.join("zoos").join(short(&zoo::key(config, sources)?));
        let note = dir.with_extension("json");
        let before: f64 = made(&note).seconds.iter().map(|(_, s)| s).sum();
        let folder = Folder::new(dir.with_extension("snapshots"));
        let finished = zoo::open(&dir).is_ok();
        let start = Instant::now();
        let zoo = zoo::build(config, sources, &dir, self.progress, Keep::new(&folder, snapshots::EVERY));
        let mut seconds = before;
        // Reading a finished one is no part of what building it took; an interrupted one's parts are.
        if !finished {
            seconds += start.elapsed().as_secs_f64();
            remember(&note, vec![("zoo".into(), seconds)])?;
        }
        folder.remove_empty();
        Ok((zoo?, seconds))
    }

    /// The generator of a configuration on a zoo, its identity, and the seconds of its stages.
    ///
    /// # Errors
    /// Those of training it, and [`Error::Parity`].
    pub fn generator(&self, config: &Config, zoo: &Zoo, sources: &Sources) -> Result<(Bundle, Seconds)> {
        let identity = short(&generator::identity(config, zoo, sources)?);
        let dir = self.dir.join("generators");
        let (file, note) = (dir.join(format!("{identity}.tar")), dir.join(format!("{identity}.json")));
        if let Some(bundle) = read(&file, self.progress)? {
            return Ok((bundle, made(&note).seconds));
        }
        let folder = Folder::new(dir.join(format!("{identity}.snapshots")));
        let _lock = folder.lock()?;
        // Variants that differ in what comes after the VAE share it.
        let vaes = Folder::new(self.dir.join("vaes"));
        let keep = Keep::new(&folder, snapshots::EVERY).sharing(&vaes);
        let trained = generator::train(config, zoo, sources, &training::device::current(), self.progress, keep)?;
        train::verify(self.runtime, &trained.bundle, &trained.probes)?;
        let mut tar = Vec::new();
        trained.bundle.write_tar(&mut tar)?;
        let seconds: Seconds = trained.seconds.iter().map(|(name, s)| ((*name).to_owned(), *s)).collect();
        remember(&note, seconds.clone())?;
        write_whole(&file, &tar)?;
        keep.clear()?;
        folder.remove_empty();
        Ok((trained.bundle, seconds))
    }
}

fn made(note: &Path) -> Made {
    let text = std::fs::read(note).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn remember(note: &Path, seconds: Seconds) -> Result<()> {
    let text = serde_json::to_vec(&Made { seconds }).map_err(|e| Error::Internal(e.to_string()))?;
    write_whole(note, &text)
}

/// The bundle of a file, unless there is none; a damaged one is told of, and made anew.
fn read(file: &Path, progress: &Progress) -> Result<Option<Bundle>> {
    let open = match std::fs::File::open(file) {
        Ok(open) => open,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(file)(e)),
    };
    match Bundle::read_tar(std::io::BufReader::new(open)) {
        Ok(bundle) => Ok(Some(bundle)),
        Err(e) => {
            progress.note(&format!("{}: {e}; it is trained again", file.display()));
            Ok(None)
        }
    }
}
