//! `weightsmith train`.

use std::path::PathBuf;

use inference::{Generator, Runtime, SessionPool};
use training::export::Probe;
use training::stages;
use training::stages::generator::{self, Trained};
use weights::Bundle;

use crate::context::{
    RegistryArgs, RuntimeArgs, SnapshotArgs, prepare, progress, say, with_registry, write_whole, writing,
};
use crate::error::{Error, Result};
use crate::extractor;
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

/// Largest difference that exported graphs may have from candle, relative to the output's scale where that is
/// above 1.
const PARITY: f32 = 1e-4;

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    args.snapshots.check()?;
    let config = load_config(args.config.as_ref())?;
    let progress = progress()?;
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
    let trained = generator::train(&config, &zoo, &sources, &candle_device(), &progress, snapshots.keep())?;
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

/// The device of training.
pub fn candle_device() -> candle_core::Device {
    candle_core::Device::Cpu
}

/// Runs every probe on ONNX Runtime and returns the largest difference from candle's outputs.
///
/// # Errors
/// [`Error::Parity`] when it is above 1e-4 of the output's scale.
pub fn verify(runtime: &Runtime, bundle: &Bundle, probes: &[Probe]) -> Result<f32> {
    let mut worst = 0f32;
    for probe in probes {
        let pool = SessionPool::new(runtime, probe.graph.clone(), bundle.file(&probe.graph)?.to_vec())?;
        let inputs: Vec<_> =
            probe.inputs.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.data.as_slice())).collect();
        let outputs = pool.run(&inputs)?;
        for expected in &probe.outputs {
            let found = outputs.get(&expected.name).filter(|t| t.shape == expected.shape);
            let found = found.ok_or_else(|| {
                Error::Parity(format!("{} gives no {} of shape {:?}", probe.graph, expected.name, expected.shape))
            })?;
            let scale = expected.data.iter().fold(1f32, |m, v| m.max(v.abs()));
            let difference = largest_difference(&found.data, &expected.data) / scale;
            if difference > PARITY {
                let text =
                    format!("{}: {} differs by {difference:.1e} from what was trained", probe.graph, expected.name);
                return Err(Error::Parity(text));
            }
            worst = worst.max(difference);
        }
    }
    Ok(worst)
}

/// Largest absolute difference; infinite when one is not a number.
fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}
