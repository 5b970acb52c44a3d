//! `weightsmith zoo import`: checkpoints of models that others trained, thousands in one command.

pub mod batches;
pub mod table;

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use registry::Registry;
use registry::zoos;

use crate::context::{RegistryArgs, caller, complain, say, with_registry};
use crate::error::{Error, Result};
use batches::{Common, Failure, Importer, Item, Tally, Target};
use table::Row;

/// Endings of files that a folder is searched for.
pub const ENDINGS: [&str; 5] = ["safetensors", "pt", "pth", "th", "bin"];

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

impl Args {
    fn common(&self) -> Common {
        let row = Row {
            accuracy: self.accuracy,
            loss: self.loss,
            dataset: self.dataset.clone(),
            run: self.run.clone(),
            epoch: self.epoch,
            ..Row::default()
        };
        let (key, strip_prefix) = (self.key.clone(), self.strip_prefix.clone());
        Common { key, strip_prefix, row, keep_going: self.keep_going }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    registry::check_name(&args.zoo)?;
    let files = files(&args.paths)?;
    let items = items(args, &files)?;
    let tally = with_registry(&args.registry, async |registry| all(args, registry, &items).await)?;
    let Tally { added, known, passed, failed, failures, .. } = &tally;
    say(&format!(
        "{}: {added} added, {known} with weights that the zoo has, {passed} imported before, {failed} failed, of {} files",
        args.zoo,
        files.len()
    ));
    if *failed == 0 {
        return Ok(());
    }
    failures.iter().for_each(|Failure { file, code, detail }| complain(&format!("{file}: {detail} [{code}]")));
    Err(Error::input("import_incomplete", format!("{failed} files were not imported: see above")))
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
    if named || is_checkpoint(path) {
        found.push(path.canonicalize().map_err(Error::io(path))?);
    }
    Ok(())
}

/// Whether a file's name is that of a checkpoint.
pub fn is_checkpoint(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// The files with what the CSV says of them.
fn items(args: &Args, files: &[PathBuf]) -> Result<Vec<Item>> {
    let mut rows = match &args.csv {
        Some(csv) => {
            let folder = csv.parent().map_or_else(PathBuf::new, Path::to_path_buf);
            let find = |path: &Path| folder.join(path).canonicalize().map_err(|e| format!("cannot be read ({e})"));
            let name = csv.display().to_string();
            let file = File::open(csv).map_err(|e| Error::input("csv_invalid", format!("{name}: {e}")))?;
            Some((table::read(file, &name, find)?, name))
        }
        None => None,
    };
    files
        .iter()
        .map(|path| {
            let row = match &mut rows {
                Some((rows, name)) => match rows.remove(path) {
                    None if !args.defaults => return Err(table::no_row(name, &path.display().to_string())),
                    row => row.unwrap_or_default(),
                },
                None => Row::default(),
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(Item { path: path.clone(), shown: path.display().to_string(), name, row })
        })
        .collect()
}

async fn all(args: &Args, registry: &Registry, items: &[Item]) -> Result<Tally> {
    let bar = ProgressBar::new(items.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {eta} left") {
        bar.set_style(style);
    }
    let importer = Importer {
        registry: registry.clone(),
        caller: caller(),
        common: args.common(),
        folder: args.registry.upload_dir()?,
        target: target(args, registry).await?,
        attempt: None,
    };
    let tally = importer.all(items, |tally| bar.set_position(tally.done as u64)).await;
    bar.finish_and_clear();
    tally
}

/// The zoo of the name, or one to make.
async fn target(args: &Args, registry: &Registry) -> Result<Target> {
    match zoos::get(registry, &caller(), &args.zoo).await {
        Ok(zoo) => Ok(Target::Zoo(zoo.id)),
        Err(error) if error.code() == "not_found" => Ok(Target::New(args.zoo.clone(), args.architecture.clone())),
        Err(error) => Err(error.into()),
    }
}
