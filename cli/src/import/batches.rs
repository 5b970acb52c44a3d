//! Files into a zoo, 64 at a time: what the command and the job have in common.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::imports::{self, Taken};
use rayon::prelude::*;
use registry::imports::{Added, NewImport, Origin, Source};
use registry::jobs::{self, Attempt};
use registry::zoos::{self, Zoo};
use registry::{Caller, NewAbout, Registry, Write, ZooId, architectures};
use serde::{Deserialize, Serialize};
use weights::checkpoint::{Options, TensorLayout};

use super::table::Row;
use crate::context::blocking;
use crate::error::{Error, Result};

/// Files of one unit of work.
pub const BATCH: usize = 64;
/// Failures that a tally names; the others are counted.
const NAMED: usize = 100;
/// Name of the tally among what an attempt keeps for the next one.
const TALLY: &str = "tally";

/// What all files have in common.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Common {
    /// Where the tensors are in PyTorch files.
    #[serde(default)]
    pub key: Option<String>,
    /// What to take off the beginning of the tensors' names.
    #[serde(default)]
    pub strip_prefix: Option<String>,
    /// Values where the file's row has none.
    #[serde(flatten)]
    pub row: Row,
    /// Whether to go on after a file that cannot be imported.
    #[serde(default)]
    pub keep_going: bool,
}

/// A file to import.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it is.
    pub path: PathBuf,
    /// How it is called in errors.
    pub shown: String,
    /// Its name, as it is kept.
    pub name: String,
    /// What its CSV says of it.
    pub row: Row,
}

/// A file that was not imported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// How it is called.
    pub file: String,
    /// Stable code.
    pub code: String,
    /// What is wrong.
    pub detail: String,
}

/// What became of the files so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Files looked at.
    pub done: usize,
    /// Added.
    pub added: usize,
    /// With weights that the zoo has.
    pub known: usize,
    /// Imported before.
    pub passed: usize,
    /// Not imported.
    pub failed: usize,
    /// The first of these.
    pub failures: Vec<Failure>,
}

/// The zoo that files go into.
#[derive(Clone, Debug)]
pub enum Target {
    /// One that is there.
    Zoo(ZooId),
    /// One to make with the first checkpoint: its name and the name of its architecture.
    New(String, Option<String>),
}

/// Imports files.
pub struct Importer {
    /// Where to.
    pub registry: Registry,
    /// In whose name.
    pub caller: Caller,
    /// What all files have in common.
    pub common: Common,
    /// Folder of temporary files.
    pub folder: PathBuf,
    /// The zoo.
    pub target: Target,
    /// The job's attempt, when it is a job's work: it then ends when it is told to, and goes on where another was.
    pub attempt: Option<Attempt>,
}

/// A file in its stored form with what is known of it, or why not.
type Outcome = std::result::Result<(Taken, NewImport), Error>;

impl Importer {
    /// Imports all files, a batch at a time; `report` learns how many are done after each. The first batch with a file
    /// that cannot be imported ends it, unless it is to go on: nothing of that batch is added.
    ///
    /// # Errors
    /// That of the first such file, which it names; `cancelled`, `job_lost`; those of the registry.
    pub async fn all(mut self, items: &[Item], report: impl Fn(&Tally)) -> Result<Tally> {
        let mut tally = self.before().await?;
        report(&tally);
        while let Some(batch) = items.get(tally.done..).filter(|rest| !rest.is_empty()) {
            let batch = &batch[..batch.len().min(BATCH)];
            tally = self.batch(batch, tally).await?;
            report(&tally);
        }
        Ok(tally)
    }

    /// The tally of the attempt before this one.
    async fn before(&self) -> Result<Tally> {
        let Some(attempt) = &self.attempt else { return Ok(Tally::default()) };
        let kept = jobs::load_snapshot(&self.registry, attempt.job.id, TALLY).await?;
        Ok(kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    async fn batch(&mut self, batch: &[Item], mut tally: Tally) -> Result<Tally> {
        // Without its architecture, the first batch takes that of its first file.
        let zoo = self.zoo().await?;
        let start = tally.clone();
        let expected = self.expected(zoo.as_ref()).await?;
        let fresh = self.fresh(zoo.as_ref(), batch).await?;
        tally.done += batch.len();
        tally.passed += batch.len() - fresh.len();
        let taken = self.take(fresh, expected).await?;
        let mut good: Vec<(Item, (Taken, NewImport))> = Vec::new();
        for (item, outcome) in taken {
            match outcome {
                Ok(one) => {
                    let fits = match good.first() {
                        Some((_, (first, _))) => one.0.layout.fits(&first.layout).map_err(api::Error::Import),
                        None => Ok(()),
                    };
                    match fits {
                        Ok(()) => good.push((item, one)),
                        Err(error) => self.failed(&mut tally, &item, error.into())?,
                    }
                }
                Err(error) => self.failed(&mut tally, &item, error)?,
            }
        }
        self.add(zoo, good, &start, tally).await
    }

    /// The layout that the files must have, when it is known.
    async fn expected(&self, zoo: Option<&Zoo>) -> Result<Option<TensorLayout>> {
        let architecture = match (&self.target, zoo.and_then(|zoo| zoo.architecture_id)) {
            (_, Some(id)) => architectures::by_id(&self.registry, &self.caller, id).await?,
            (Target::New(_, Some(name)), None) => architectures::get(&self.registry, &self.caller, name).await?,
            _ => return Ok(None),
        };
        Ok(Some(imports::layout_of(&architecture)?))
    }

    /// The zoo as it is now; none before its first checkpoint.
    async fn zoo(&self) -> Result<Option<Zoo>> {
        match &self.target {
            Target::Zoo(id) => Ok(Some(zoos::by_id(&self.registry, &self.caller, *id).await?)),
            Target::New(..) => Ok(None),
        }
    }

    /// The files of a batch that are not in the zoo already.
    async fn fresh(&self, zoo: Option<&Zoo>, batch: &[Item]) -> Result<Vec<Item>> {
        let Some(zoo) = zoo else { return Ok(batch.to_vec()) };
        let items = batch.to_vec();
        let stop = self.stop();
        let digested = blocking(move || {
            let digest = |item: Item| {
                check(&stop)?;
                let digest = std::fs::File::open(&item.path).and_then(|mut file| imports::digest(&mut file));
                Ok((item, digest.ok()))
            };
            items.into_par_iter().map(digest).collect::<Result<Vec<_>>>()
        })
        .await?;
        let digests: Vec<String> = digested.iter().filter_map(|(_, digest)| digest.clone()).collect();
        let Common { key, strip_prefix, .. } = self.common.clone();
        let (key, prefix) = (key.unwrap_or_default(), strip_prefix.unwrap_or_default());
        let before = registry::imports::journal(&self.registry, zoo.id, &digests, &key, &prefix).await?;
        let is_fresh = |digest: &Option<String>| !digest.as_ref().is_some_and(|digest| before.contains_key(digest));
        Ok(digested.into_iter().filter(|(_, digest)| is_fresh(digest)).map(|(item, _)| item).collect())
    }

    /// Brings files to their stored form.
    async fn take(&self, items: Vec<Item>, expected: Option<TensorLayout>) -> Result<Vec<(Item, Outcome)>> {
        let Common { key, strip_prefix, .. } = self.common.clone();
        let (options, folder, stop) = (Options { key, strip_prefix }, self.folder.clone(), self.stop());
        let taken = blocking(move || {
            let take = |item: Item| {
                check(&stop)?;
                let taken = imports::take(&item.path, &options, expected.as_ref(), &folder);
                Ok((item, taken))
            };
            items.into_par_iter().map(take).collect::<Result<Vec<_>>>()
        })
        .await?;
        let mut described = Vec::with_capacity(taken.len());
        for (item, taken) in taken {
            let outcome = match taken {
                Ok(taken) => self.described(&item, &taken).await.map(|new| (taken, new)),
                Err(error) => Err(error.into()),
            };
            described.push((item, outcome));
        }
        Ok(described)
    }

    async fn described(&self, item: &Item, taken: &Taken) -> Result<NewImport> {
        let row = item.row.clone().or(&self.common.row);
        let dataset = match &row.dataset {
            Some(text) => registry::imports::origin(&self.registry, &self.caller, text).await?,
            None => Origin::default(),
        };
        let stem = Path::new(&item.name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let tags = row.tags.as_deref().unwrap_or_default().split(';');
        Ok(NewImport {
            run: row.run.unwrap_or(stem),
            dataset,
            epoch: row.epoch,
            accuracy: row.accuracy,
            loss: row.loss,
            artifact_digest: String::new(),
            source: Source {
                name: item.name.clone(),
                digest: taken.source_digest.clone(),
                key: self.common.key.clone().unwrap_or_default(),
                strip_prefix: self.common.strip_prefix.clone().unwrap_or_default(),
            },
            tags: tags.map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect(),
            description: row.description.unwrap_or_default(),
        })
    }

    /// Notes a failure; an error unless the import is to go on.
    fn failed(&self, tally: &mut Tally, item: &Item, error: Error) -> Result<()> {
        let detail = error.to_string();
        if !is_of_the_file(&error) {
            return Err(error);
        }
        if !self.common.keep_going {
            return Err(stopping(error.code(), &item.shown, &detail));
        }
        tally.failed += 1;
        if tally.failures.len() < NAMED {
            tally.failures.push(Failure { file: item.shown.clone(), code: error.code().into(), detail });
        }
        Ok(())
    }

    /// Adds files in one unit of work; when the registry refuses them and the import is to go on, each in its own.
    async fn add(
        &mut self,
        zoo: Option<Zoo>,
        good: Vec<(Item, (Taken, NewImport))>,
        start: &Tally,
        mut tally: Tally,
    ) -> Result<Tally> {
        let (items, ones): (Vec<Item>, Vec<(Taken, NewImport)>) = good.into_iter().unzip();
        let refused = match self.write(zoo.as_ref(), &ones, &tally, None).await {
            Ok(tally) => return Ok(tally),
            Err(error) if is_of_the_file(&error) => error,
            Err(error) => return Err(error),
        };
        if !self.common.keep_going {
            let ends = (items.first(), items.last());
            let which =
                if let (Some(a), Some(b)) = ends { format!("{} to {}", a.shown, b.shown) } else { String::new() };
            return Err(stopping(refused.code(), &which, &refused.to_string()));
        }
        for (item, one) in items.iter().zip(&ones) {
            let zoo = self.zoo().await?;
            // Another attempt begins with this batch again: what it counts then is not kept from here.
            match self.write(zoo.as_ref(), std::slice::from_ref(one), &tally, Some(start)).await {
                Ok(now) => tally = now,
                Err(error) => self.failed(&mut tally, item, error)?,
            }
        }
        Ok(tally)
    }

    /// One unit of work: the zoo when there is none yet, the checkpoints, and for a job the tally with them (`kept`, or
    /// the one it gives).
    async fn write(
        &mut self,
        zoo: Option<&Zoo>,
        ones: &[(Taken, NewImport)],
        tally: &Tally,
        kept: Option<&Tally>,
    ) -> Result<Tally> {
        let mut tally = tally.clone();
        if ones.is_empty() {
            return Ok(tally);
        }
        check(&self.stop())?;
        let mut write = self.registry.write(&self.caller).await?;
        let made = match zoo {
            Some(_) => None,
            None => Some(self.make_zoo(&mut write).await?),
        };
        let zoo = zoo.or(made.as_ref()).ok_or_else(|| Error::Internal("an import has no zoo".into()))?;
        let added = imports::add(&self.registry, &mut write, zoo, ones).await?;
        let new = added.iter().filter(|one| matches!(one, Added::New(_))).count();
        tally.added += new;
        tally.known += added.len() - new;
        if let Some(attempt) = &self.attempt {
            let text =
                serde_json::to_vec(kept.unwrap_or(&tally)).map_err(|error| Error::Internal(error.to_string()))?;
            let kept = self.registry.artifacts().put_bytes(text, "application/json").await?;
            jobs::keep_snapshot(&mut write, attempt.claim, TALLY, &kept.digest).await?;
        }
        let id = zoo.id;
        write.commit().await?;
        self.target = Target::Zoo(id);
        Ok(tally)
    }

    async fn make_zoo(&self, write: &mut Write) -> Result<Zoo> {
        let Target::New(name, architecture) = &self.target else {
            return Err(Error::Internal("the zoo of an import is there already".into()));
        };
        let architecture = match architecture {
            Some(name) => Some(architectures::get(&self.registry, &self.caller, name).await?),
            None => None,
        };
        Ok(registry::imports::create_zoo(write, name, architecture.as_ref(), NewAbout::default()).await?)
    }

    fn stop(&self) -> Arc<AtomicBool> {
        self.attempt.as_ref().map(|attempt| attempt.stop.clone()).unwrap_or_default()
    }
}

fn check(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(api::Error::Cancelled.into()) } else { Ok(()) }
}

/// The end of an import that is not to go on.
fn stopping(code: &'static str, which: &str, detail: &str) -> Error {
    let rest = "nothing of its batch was added, earlier ones stay; ask to keep going to pass such files over";
    Error::input(code, format!("{which}: {detail}; {rest}"))
}

/// Whether the error is the file's own: another file may do.
fn is_of_the_file(error: &Error) -> bool {
    match error {
        Error::Registry(error) | Error::Api(api::Error::Registry(error)) => {
            matches!(error.code(), "invalid_value" | "already_exists" | "not_found")
        }
        Error::Api(error) => error.status().is_client_error(),
        Error::Input { .. } => true,
        _ => false,
    }
}
