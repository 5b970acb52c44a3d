//! `weightsmith zoo import`: checkpoints of models that others trained, thousands in one command.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use api::imports::{self, Taken};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use registry::imports::{Added, NewImport, Origin, Source};
use registry::zoos::{self, Zoo};
use registry::{NewAbout, Registry, architectures};
use serde::Deserialize;
use weights::checkpoint::{Options, TensorLayout};

use crate::context::{RegistryArgs, caller, complain, say, with_registry, writing};
use crate::error::{Error, Result};

/// Endings of files that a folder is searched for.
const ENDINGS: [&str; 5] = ["safetensors", "pt", "pth", "th", "bin"];
/// Files of one unit of work.
const BATCH: usize = 64;

/// Add checkpoints from outside to a zoo; what is there already is passed over, so the same command continues.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  weightsmith zoo import --zoo resnets --key state_dict --strip-prefix module. --csv models.csv models/"
)]
pub struct Args {
    /// Files, and folders that are searched for .safetensors, .pt, .pth, .th and .bin.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The zoo, by name; it is made when there is none.
    #[arg(long)]
    zoo: String,
    /// The architecture of a new zoo, by name; without it, that of the first file.
    #[arg(long)]
    architecture: Option<String>,
    /// Where the tensors are in PyTorch files, as in `model.state_dict`.
    #[arg(long)]
    key: Option<String>,
    /// What to take off the beginning of the tensors' names, as in `module.`.
    #[arg(long)]
    strip_prefix: Option<String>,
    /// Test accuracy of all files, 0 to 1.
    #[arg(long)]
    accuracy: Option<f32>,
    /// Test loss of all files.
    #[arg(long)]
    loss: Option<f32>,
    /// What they were trained on: the id of a registered dataset, or a name.
    #[arg(long)]
    dataset: Option<String>,
    /// Name of their run; without it each file is a run of its own, by its name.
    #[arg(long)]
    run: Option<String>,
    /// Epochs trained.
    #[arg(long)]
    epoch: Option<i32>,
    /// A CSV with the column path (from the CSV's folder) and any of accuracy, loss, dataset, run, epoch, tags (between
    /// semicolons) and description. Each file has to have a row, unless --defaults.
    #[arg(long, value_name = "CSV")]
    csv: Option<PathBuf>,
    /// Take files without a row of the CSV too, with the values of the flags.
    #[arg(long, requires = "csv")]
    defaults: bool,
    /// Go on after a file that cannot be imported, and name all of them at the end.
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// A row of the CSV.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    path: PathBuf,
    #[serde(default)]
    accuracy: Option<f32>,
    #[serde(default)]
    loss: Option<f32>,
    #[serde(default)]
    dataset: Option<String>,
    #[serde(default)]
    run: Option<String>,
    #[serde(default)]
    epoch: Option<i32>,
    #[serde(default)]
    tags: Option<String>,
    #[serde(default)]
    description: Option<String>,
}

/// What became of the files.
#[derive(Default)]
struct Tally {
    added: usize,
    known: usize,
    passed: usize,
    failed: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    registry::check_name(&args.zoo)?;
    let files = files(&args.paths)?;
    let rows = rows(args, &files)?;
    let tally = with_registry(&args.registry, async |registry| all(args, registry, &files, &rows).await)?;
    let Tally { added, known, passed, failed } = &tally;
    say(&format!(
        "{}: {added} added, {known} with weights that the zoo has, {passed} imported before, {} failed, of {} files",
        args.zoo,
        failed.len(),
        files.len()
    ));
    if failed.is_empty() {
        return Ok(());
    }
    failed.iter().for_each(|line| complain(line));
    Err(Error::input("import_incomplete", format!("{} files were not imported: see above", failed.len())))
}

/// The files to import, each once, in order.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        collect(path, &mut found, true)?;
    }
    let mut seen = HashSet::new();
    found.retain(|file| seen.insert(file.clone()));
    if found.is_empty() {
        let text = format!("there is no file to import: give files, or folders with .{}", ENDINGS.join(", ."));
        return Err(Error::input("nothing_to_import", text));
    }
    Ok(found)
}

fn collect(path: &Path, found: &mut Vec<PathBuf>, named: bool) -> Result<()> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        let mut inside: Vec<PathBuf> = entries.map_err(Error::io(path))?.into_iter().map(|e| e.path()).collect();
        inside.sort();
        return inside.iter().try_for_each(|path| collect(path, found, false));
    }
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    if named || ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
        found.push(path.canonicalize().map_err(Error::io(path))?);
    }
    Ok(())
}

/// Rows by file.
fn rows(args: &Args, files: &[PathBuf]) -> Result<BTreeMap<PathBuf, Row>> {
    let Some(csv) = &args.csv else { return Ok(BTreeMap::new()) };
    let wrong = |text: String| Error::input("csv_invalid", format!("{}: {text}", csv.display()));
    let folder = csv.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(csv).map_err(|e| wrong(e.to_string()))?;
    let mut rows = BTreeMap::new();
    for (at, row) in reader.deserialize::<Row>().enumerate() {
        let row = row.map_err(|e| wrong(e.to_string()))?;
        let file = folder.join(&row.path);
        let file = file.canonicalize().map_err(|e| {
            wrong(format!("row {} names {}, which cannot be read ({e}); remove the row", at + 2, row.path.display()))
        })?;
        if rows.insert(file, row.clone()).is_some() {
            return Err(wrong(format!("{} has two rows; keep one", row.path.display())));
        }
    }
    match files.iter().find(|file| !args.defaults && !rows.contains_key(*file)) {
        None => Ok(rows),
        Some(file) => {
            Err(wrong(format!("{} has no row; add one, or use --defaults to take the flags' values", file.display())))
        }
    }
}

async fn all(args: &Args, registry: &Registry, files: &[PathBuf], rows: &BTreeMap<PathBuf, Row>) -> Result<Tally> {
    let zoo = zoo(args, registry).await?;
    let folder = args.registry.upload_dir()?;
    let mut tally = Tally::default();
    let bar = ProgressBar::new(files.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {eta} left") {
        bar.set_style(style);
    }
    for batch in files.chunks(BATCH) {
        import(args, registry, &zoo, batch, rows, &folder, &mut tally).await?;
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(tally)
}

/// The zoo of the name, or a new one.
async fn zoo(args: &Args, registry: &Registry) -> Result<Zoo> {
    match zoos::get(registry, &caller(), &args.zoo).await {
        Ok(zoo) => return Ok(zoo),
        Err(error) if error.code() == "not_found" => {}
        Err(error) => return Err(error.into()),
    }
    let architecture = match &args.architecture {
        Some(name) => Some(architectures::get(registry, &caller(), name).await?),
        None => None,
    };
    writing(registry, async |write| {
        let about = NewAbout::default();
        Ok(registry::imports::create_zoo(write, &args.zoo, architecture.as_ref(), about).await?)
    })
    .await
}

/// Imports one batch; what is done stays done when a later file fails.
async fn import(
    args: &Args,
    registry: &Registry,
    zoo: &Zoo,
    batch: &[PathBuf],
    rows: &BTreeMap<PathBuf, Row>,
    folder: &Path,
    tally: &mut Tally,
) -> Result<()> {
    // Without its architecture, the first batch takes that of its first file.
    let zoo = zoos::by_id(registry, &caller(), zoo.id).await?;
    let expected = expected(registry, &zoo).await?;
    let digests: Vec<std::io::Result<String>> =
        batch.par_iter().map(|file| imports::digest(&mut std::fs::File::open(file)?)).collect();
    let readable: Vec<String> = digests.iter().flatten().cloned().collect();
    let (key, prefix) = (args.key.clone().unwrap_or_default(), args.strip_prefix.clone().unwrap_or_default());
    let before = registry::imports::journal(registry, zoo.id, &readable, &key, &prefix).await?;
    let fresh: Vec<&PathBuf> = batch
        .iter()
        .zip(&digests)
        .filter(|(_, digest)| !digest.as_ref().is_ok_and(|digest| before.contains_key(digest)))
        .map(|(file, _)| file)
        .collect();
    tally.passed += batch.len() - fresh.len();
    let options = Options { key: args.key.clone(), strip_prefix: args.strip_prefix.clone() };
    let taken: Vec<(&PathBuf, api::Result<Taken>)> =
        fresh.into_par_iter().map(|file| (file, imports::take(file, &options, expected.as_ref(), folder))).collect();
    let mut good = Vec::new();
    let mut bad = None;
    let first_layout = taken.iter().find_map(|(_, one)| one.as_ref().ok().map(|one| one.layout.clone()));
    for (file, one) in taken {
        let fits = one.and_then(|one| match &first_layout {
            Some(layout) => one.layout.fits(layout).map(|()| one).map_err(api::Error::Import),
            None => Ok(one),
        });
        match fits {
            Ok(one) => {
                let new = described(args, registry, file, rows.get(file), &one).await?;
                good.push((one, new));
            }
            Err(error) => {
                let line = format!("{}: {error}", file.display());
                tally.failed.push(format!("{line} [{}]", error.code()));
                bad.get_or_insert((error.code(), line));
            }
        }
    }
    let stopped = bad.filter(|_| !args.keep_going);
    let added = writing(registry, async |write| Ok(imports::add(registry, write, &zoo, good).await?)).await?;
    let new = added.iter().filter(|one| matches!(one, Added::New(_))).count();
    tally.added += new;
    tally.known += added.len() - new;
    match stopped {
        None => Ok(()),
        Some((code, line)) => Err(Error::input(
            code,
            format!("{line}; what came before is imported, --keep-going passes such files over"),
        )),
    }
}

async fn expected(registry: &Registry, zoo: &Zoo) -> Result<Option<TensorLayout>> {
    Ok(match zoo.architecture_id {
        Some(id) => Some(imports::layout_of(&architectures::by_id(registry, &caller(), id).await?)?),
        None => None,
    })
}

async fn described(
    args: &Args,
    registry: &Registry,
    file: &Path,
    row: Option<&Row>,
    taken: &Taken,
) -> Result<NewImport> {
    let row = row.cloned().unwrap_or_default();
    let dataset = match row.dataset.as_ref().or(args.dataset.as_ref()) {
        Some(text) => registry::imports::origin(registry, &caller(), text).await?,
        None => Origin::default(),
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let tags = row.tags.as_deref().unwrap_or_default().split(';');
    Ok(NewImport {
        run: row.run.or_else(|| args.run.clone()).unwrap_or(stem),
        dataset,
        epoch: row.epoch.or(args.epoch),
        accuracy: row.accuracy.or(args.accuracy),
        loss: row.loss.or(args.loss),
        artifact_digest: String::new(),
        source: Source {
            name,
            digest: taken.source_digest.clone(),
            key: args.key.clone().unwrap_or_default(),
            strip_prefix: args.strip_prefix.clone().unwrap_or_default(),
        },
        tags: tags.map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect(),
        description: row.description.unwrap_or_default(),
    })
}
