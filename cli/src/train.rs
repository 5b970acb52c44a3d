//! `weightsmith train`.

use std::path::PathBuf;

use inference::{Generator, Provider, Runtime};
use training::device;
use training::export::Probe;
use training::stages;
use training::stages::generator::{self, Trained};
use weights::Bundle;

use crate::context::{
    RegistryArgs, RuntimeArgs, SnapshotArgs, prepare, progress, say, with_registry, write_whole, writing,
};
use crate::error::{Error, Result};
use crate::extractor;
use crate::parity;
use crate::publish;
use crate::zoo::load_config;

/// Train a generator on a zoo.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith train --zoo out/digits-zoo --out out/digits.tar --register")]
pub struct Args {
    /// Configuration file; without it the built-in digits configuration.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Folder of the zoo that `zoo build` made with the same configuration.
    #[arg(long)]
    zoo: PathBuf,
    /// File that the bundle is written to.
    #[arg(long)]
    out: PathBuf,
    /// Also publish zoo and generator in the registry.
    #[arg(long)]
    register: bool,
    #[command(flatten)]
    snapshots: SnapshotArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    args.snapshots.check()?;
    let config = load_config(args.config.as_ref())?;
    let progress = progress()?;
    args.runtime.train_there()?;
    let sources = extractor::sources(&config, &args.registry, &args.runtime, &progress)?;
    let zoo = stages::zoo::open(&args.zoo)?;
    if stages::zoo::differs(&config, &sources, &args.zoo)? {
        let reason = "it was built with another configuration or other data; train with the configuration it has";
        return Err(training::Error::Zoo { path: args.zoo, reason: reason.into() }.into());
    }
    let runtime = args.runtime.open()?;
    if args.register {
        args.registry.check()?;
    }
    prepare(&args.out)?;
    let snapshots = args.snapshots.open(&args.out)?;
    let trained = generator::train(&config, &zoo, &sources, &device::current(), &progress, snapshots.keep())?;
    let difference = verify(&runtime, &trained.bundle, &trained.probes)?;
    let mut tar = Vec::new();
    trained.bundle.write_tar(&mut tar)?;
    write_whole(&args.out, &tar)?;
    report(&args, &trained, difference);
    if args.register {
        let version = with_registry(&args.registry, async |registry| {
            let generator = Generator::load(&runtime, trained.bundle.clone())?;
            writing(registry, async |write| {
                let published = publish::zoo(registry, write, &sources, &zoo).await?;
                let bundle = &trained.bundle;
                let version = publish::generator(registry, write, bundle, &config.name, Some(published.id)).await?;
                publish::run_embeddings(write, &version, published.id, &generator, &zoo, &sources).await?;
                Ok(version)
            })
            .await
        })?;
        say(&format!("registered as {}@{}", version.generator, version.version));
    }
    snapshots.finish()
}

fn report(args: &Args, trained: &Trained, difference: f32) {
    for (stage, seconds) in &trained.seconds {
        say(&format!("{stage:>10} {seconds:7.1} s"));
    }
    say(&format!("metrics {}", trained.bundle.manifest().metrics));
    say(&format!("largest difference of ONNX Runtime from candle: {difference:.1e}"));
    say(&format!("{} {}", args.out.display(), trained.bundle.digest()));
}

/// Runs every probe on ONNX Runtime and returns the largest difference from candle's outputs.
///
/// # Errors
/// [`Error::Parity`] when it is above what is allowed there: [`parity::tolerance`].
pub fn verify(runtime: &Runtime, bundle: &Bundle, probes: &[Probe]) -> Result<f32> {
    let tolerance = parity::tolerance(device::current().is_cpu() && runtime.provider() == Provider::Cpu);
    let mut worst = 0f32;
    for probe in probes {
        let (output, difference) = parity::of_graph(runtime, bundle.file(&probe.graph)?, probe)?;
        if difference > tolerance {
            let text = format!("{}: {output} differs by {difference:.1e} from what was trained", probe.graph);
            return Err(Error::Parity(text));
        }
        worst = worst.max(difference);
    }
    Ok(worst)
}
