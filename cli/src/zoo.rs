//! `weightsmith zoo`.

use std::path::PathBuf;

use clap::Subcommand;
use training::{Config, stages};

use crate::context::{RegistryArgs, RuntimeArgs, SnapshotArgs, progress, say};
use crate::error::{Error, Result};
use crate::{extractor, import};

/// Commands on zoos.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train the models of a configuration; an interrupted zoo continues.
    #[command(after_help = "Example:\n  weightsmith zoo build --config configs/digits.toml --out out/digits-zoo")]
    Build {
        /// Configuration file; without it the built-in digits configuration.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Folder of the zoo.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        snapshots: SnapshotArgs,
        #[command(flatten)]
        registry: RegistryArgs,
        #[command(flatten)]
        runtime: RuntimeArgs,
    },
    Import(import::Args),
}

/// The configuration of the demo.
pub const DIGITS: &str = include_str!("../../configs/digits.toml");

/// Reads a configuration, or takes the built-in one.
pub fn load_config(path: Option<&PathBuf>) -> Result<Config> {
    let Some(path) = path else { return Ok(Config::parse(DIGITS)?) };
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let config = Config::parse(&text).map_err(|e| Error::input(e.code(), format!("{}: {e}", path.display())))?;
    // Said now, and not by the registry when all is trained.
    let sources = config.data.sources.iter().map(|source| &source.name);
    for name in std::iter::once(&config.name).chain(sources) {
        // Also the longest name that is derived from it.
        registry::check_name(name)
            .and_then(|()| registry::check_name(&format!("{name}-validation")))
            .map_err(|e| Error::input(e.code(), format!("{}: {e}", path.display())))?;
    }
    Ok(config)
}

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    let (config, out, snapshots, registry, runtime) = match command {
        Command::Import(args) => return import::run(&args),
        Command::Build { config, out, snapshots, registry, runtime } => (config, out, snapshots, registry, runtime),
    };
    snapshots.check()?;
    let config = load_config(config.as_ref())?;
    let progress = progress()?;
    runtime.train_there()?;
    let sources = extractor::sources(&config, &registry, &runtime, &progress)?;
    if stages::zoo::differs(&config, &sources, &out)? {
        let reason = "it was built with another configuration or other data; choose another folder, or remove it";
        return Err(training::Error::Zoo { path: out, reason: reason.into() }.into());
    }
    let snapshots = snapshots.open(&out)?;
    let zoo = stages::zoo::build(&config, &sources, &out, &progress, snapshots.keep())?;
    say(&format!(
        "{}: {} runs, {} checkpoints of {} ({} parameters), mean test accuracy {:.2} %, {}",
        out.display(),
        zoo.runs.len(),
        zoo.checkpoints.len(),
        zoo.architecture.name(),
        zoo.parameters(),
        100.0 * zoo.mean_accuracy(),
        zoo.digest
    ));
    snapshots.finish()
}
