//! `weightsmith dataset`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use datasets::{Dataset, Format, Limits, ReadOptions, folder, idx};
use registry::{ListRequest, MAX_LIMIT, Registry, datasets as rows};

use crate::context::{RegistryArgs, caller, labels, say, with_registry, writing};
use crate::error::{Error, Result};
use crate::publish;

/// Commands on datasets.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register labelled data: a zip, tar(.gz), npz or IDX file, or a folder of classes or of IDX files.
    #[command(
        after_help = "Example:\n  weightsmith dataset import pets.tar.gz --name pets --height 32 --width 32 --channels 3"
    )]
    Import(Box<Import>),
    /// List the datasets of the registry.
    #[command(after_help = "Example:\n  weightsmith dataset list")]
    List {
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Say what a dataset is.
    #[command(after_help = "Example:\n  weightsmith dataset show pets")]
    Show {
        /// Its id, or a name: then the newest of that name.
        dataset: String,
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

/// What to register.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The file or folder.
    path: PathBuf,
    /// Name to register it under.
    #[arg(long)]
    name: String,
    /// `zip`, `tar.gz`, `tar`, `idx` (images, then labels, in one file) or `npz`; without it as the file's name ends.
    #[arg(long)]
    format: Option<Format>,
    /// A CSV with columns path and label for an archive without folders of classes.
    #[arg(long, value_name = "CSV")]
    labels: Option<PathBuf>,
    /// Classes to take, in label order; all without it.
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
    /// 1 (grey) or 3 (RGB) channels; as the images are without it.
    #[arg(long)]
    channels: Option<usize>,
    /// Height that images are resized to.
    #[arg(long, requires = "width")]
    height: Option<usize>,
    /// Width that images are resized to.
    #[arg(long, requires = "height")]
    width: Option<usize>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Import(args) => import(&args),
        Command::List { registry } => with_registry(&registry, list),
        Command::Show { dataset, registry } => with_registry(&registry, async |registry| {
            let row = match dataset.parse() {
                Ok(id) => rows::get(registry, &caller(), id).await?,
                Err(_) => rows::by_name(registry, &caller(), &dataset).await?,
            };
            let text = serde_json::to_string_pretty(&row).map_err(|e| Error::Internal(e.to_string()))?;
            say(&text);
            Ok(())
        }),
    }
}

fn import(args: &Import) -> Result<()> {
    registry::check_name(&args.name)?;
    let mut data = read(args)?;
    if !args.classes.is_empty() {
        data = data.select_classes(&labels(&data, &args.classes)?)?;
    }
    data.name.clone_from(&args.name);
    let row = with_registry(&args.registry, async |registry| {
        writing(registry, async |write| publish::dataset(registry, write, &data).await).await
    })?;
    let before = if row.name == args.name { "" } else { " (the same content was registered before)" };
    say(&format!(
        "{} {}: {} examples of {:?} in {} classes, {}{before}",
        row.id,
        row.name,
        row.examples,
        row.shape,
        row.class_names.len(),
        row.digest
    ));
    Ok(())
}

fn read(args: &Import) -> Result<Dataset> {
    let limits = Limits::default();
    let labels = args.labels.as_ref().map(|path| std::fs::read(path).map_err(Error::io(path))).transpose()?;
    let size = args.height.zip(args.width).map(|(height, width)| [height, width]);
    let options = ReadOptions { channels: args.channels, size, labels };
    options.check(&limits)?;
    if args.path.is_dir() {
        return read_folder(&args.path, options, &limits);
    }
    let name = args.path.file_name().unwrap_or_default().to_string_lossy();
    let format = args.format.or_else(|| Format::of_name(&name)).ok_or_else(|| {
        Error::input("unknown_format", format!("{name} does not tell its format; say --format zip, tar.gz, idx or npz"))
    })?;
    let wrong = |e: datasets::Error| Error::input(e.code(), format!("{}: {e}", args.path.display()));
    datasets::read_file(&args.path, format, &options, &limits).map_err(wrong)
}

fn read_folder(path: &Path, options: ReadOptions, limits: &Limits) -> Result<Dataset> {
    if options.labels.is_some() {
        return Err(Error::input("option_invalid", "--labels is for archives; a folder has a folder for each class"));
    }
    let mut entries = std::fs::read_dir(path).map_err(Error::io(path))?.flatten();
    let idx = entries.any(|entry| entry.path().is_file() && entry.file_name().to_string_lossy().contains("images"));
    let data = if idx { idx::load_dir_with(path, limits)? } else { folder::load(path, limits)? };
    let data = match options.channels {
        Some(channels) => data.with_channels(channels)?,
        None => data,
    };
    match options.size {
        Some([height, width]) => Ok(data.resize(height, width)?),
        None => Ok(data),
    }
}

async fn list(registry: &Registry) -> Result<()> {
    let mut page = ListRequest { limit: MAX_LIMIT, ..ListRequest::default() };
    say(&format!("{:<36} {:<24} {:>8} {:>7}  shape", "id", "name", "examples", "classes"));
    loop {
        let found = rows::list(registry, &caller(), &rows::DatasetFilter::default(), &page).await?;
        for row in found.items {
            let (id, classes) = (row.id.to_string(), row.class_names.len());
            say(&format!("{id:<36} {:<24} {:>8} {classes:>7}  {:?}", row.name, row.examples, row.shape));
        }
        match found.next_cursor {
            Some(cursor) => page.cursor = Some(cursor),
            None => return Ok(()),
        }
    }
}
