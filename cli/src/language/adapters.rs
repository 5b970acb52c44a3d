//! `weightsmith language adapters`: a zoo of adapters for described tasks, and the generator that is learned from it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ::language::described::{DescribedConfig, Learned, learn};
use inference::Runtime;
use training::progress::Progress;

use crate::context::{RegistryArgs, RuntimeArgs, prepare, progress, say, with_registry, write_whole, writing};
use crate::error::{Error, Result};
use crate::{publish, train};

/// The configuration of the demo.
pub const PHRASES: &str = include_str!("../../../configs/phrases.toml");

/// What to learn.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; without it the built-in one, on built-in sentences.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The text encoder: a directory with config.json, tokenizer.json and model.safetensors of a BERT.
    #[arg(long, env = "WEIGHTSMITH_TEXT_ENCODER")]
    encoder: PathBuf,
    /// Folder that trained adapters are kept in, so that an interrupted run goes on; OUT.adapters unless given.
    #[arg(long)]
    zoo: Option<PathBuf>,
    /// File that the bundle is written to.
    #[arg(long)]
    out: PathBuf,
    /// Also publish the generator in the registry.
    #[arg(long)]
    register: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Reads a configuration, or takes the built-in one.
pub fn load_config(path: Option<&Path>) -> Result<DescribedConfig> {
    let (name, text) = match path {
        None => ("the built-in configuration".to_owned(), PHRASES.to_owned()),
        Some(path) => (path.display().to_string(), std::fs::read_to_string(path).map_err(Error::io(path))?),
    };
    let invalid = |reason: String| Error::input("config_invalid", format!("{name}: {reason}"));
    let config: DescribedConfig = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
    config.check().map_err(|e| invalid(e.to_string()))?;
    for name in std::iter::once(&config.name).chain(config.tasks.iter().map(|task| &task.name)) {
        registry::check_name(name).map_err(|e| invalid(e.to_string()))?;
    }
    Ok(config)
}

/// Learns a generator, and compares its graphs with what was trained.
pub fn learned(
    config: &DescribedConfig,
    (encoder, zoo): (&Path, &Path),
    runtime: &Runtime,
    progress: &Progress,
) -> Result<Learned> {
    let learned = learn(config, encoder, Some(zoo), progress)?;
    let difference = train::verify(runtime, &learned.bundle, &learned.probes)?;
    tracing::info!(difference, "graphs equal what was trained");
    Ok(learned)
}

/// The scores of a generator's tasks, a line each.
pub fn table(learned: &Learned) -> String {
    let mut out = format!("{:<16} {:>8} {:>10} {:>9}", "task", "trained", "generated", "shuffled");
    for m in &learned.measured {
        let (zoo, generated, shuffled) = (100.0 * m.zoo, 100.0 * m.generated, 100.0 * m.shuffled);
        out.push_str(&format!("\n{:<16} {zoo:>8.1} {generated:>10.1} {shuffled:>9.1}", m.task));
    }
    out
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let config = load_config(args.config.as_deref())?;
    let (runtime, progress) = (args.runtime.open()?, progress()?);
    if args.register {
        args.registry.check()?;
    }
    prepare(&args.out)?;
    let zoo = args.zoo.clone().unwrap_or_else(|| args.out.with_extension("adapters"));
    let learned = learned(&config, (&args.encoder, &zoo), &runtime, &progress)?;
    let mut tar = Vec::new();
    learned.bundle.write_tar(&mut tar)?;
    write_whole(&args.out, &tar)?;
    say(&table(&learned));
    let (out, digest, seconds) = (args.out.display(), learned.bundle.digest(), start.elapsed().as_secs_f64());
    say(&format!("{out} {digest} ({seconds:.0} s)"));
    if args.register {
        let version = with_registry(&args.registry, async |registry| {
            writing(registry, async |write| {
                publish::generator(registry, write, &learned.bundle, &config.name, None).await
            })
            .await
        })?;
        say(&format!("registered as {}@{}", version.generator, version.version));
    }
    Ok(())
}
