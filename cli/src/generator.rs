//! `weightsmith generator`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use inference::samplers::Noise;
use inference::{Embedding, Generator, SampleOptions};
use registry::generators::{self, GeneratorFilter};
use registry::{ListRequest, MAX_LIMIT};
use training::precision::to_half;
use weights::Bundle;

use crate::context::{RegistryArgs, RuntimeArgs, caller, prepare, say, with_registry, write_whole, writing};
use crate::error::{Error, Result};
use crate::publish;

/// Commands on generators.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the generators of the registry.
    #[command(after_help = "Example:\n  weightsmith generator list --data-dir .weightsmith/demo")]
    List {
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Write a generator's bundle to a file.
    #[command(after_help = "Example:\n  weightsmith generator export digits@1 --out digits.tar")]
    Export {
        /// `name`, `name@version` or `name@alias`.
        reference: String,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Verify a bundle's digests and graphs, then publish it.
    #[command(after_help = "Example:\n  weightsmith generator import digits.tar --name digits")]
    Import {
        /// The bundle.
        file: PathBuf,
        /// Name to publish under; without it the bundle's own.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        registry: RegistryArgs,
        #[command(flatten)]
        runtime: RuntimeArgs,
    },
    /// Make a generator whose denoiser computes in half precision (f16), and say how much its weights differ.
    #[command(after_help = "Example:\n  weightsmith generator half digits.tar --out digits-half.tar")]
    Half {
        /// The bundle.
        file: PathBuf,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        runtime: RuntimeArgs,
    },
}

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::List { registry } => with_registry(&registry, list),
        Command::Export { reference, out, registry } => with_registry(&registry, async |registry| {
            let version = generators::resolve(registry, &caller(), &reference).await?;
            if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
            }
            registry.artifacts().save(&version.artifact_digest, &out).await?;
            say(&format!("{} {}@{} {}", out.display(), version.generator, version.version, version.digest));
            Ok(())
        }),
        Command::Import { file, name, registry: place, runtime } => {
            let bundle = read_bundle(&file)?;
            let name = name.unwrap_or_else(|| bundle.manifest().name.clone());
            registry::check_name(&name)?;
            // Loading checks every graph against the manifest.
            Generator::load(&runtime.open()?, bundle.clone())?;
            let version = with_registry(&place, async |registry| {
                writing(registry, async |write| publish::generator(registry, write, &bundle, &name, None).await).await
            })?;
            say(&format!("{}@{} {}", version.generator, version.version, version.digest));
            Ok(())
        }
        Command::Half { file, out, runtime } => half(&file, &out, &runtime),
    }
}

/// Networks that are sampled in both precisions.
const COMPARED: usize = 8;

fn half(file: &PathBuf, out: &Path, runtime: &RuntimeArgs) -> Result<()> {
    prepare(out)?;
    let bundle = read_bundle(file)?;
    let half = to_half(&bundle)?;
    let (runtime, mut tar) = (runtime.open()?, Vec::new());
    let generator = Generator::load(&runtime, bundle)?;
    let [single, other] = [generator.clone(), Generator::load(&runtime, half.clone())?].map(|g| weights(&g));
    let (single, other) = (single?, other?);
    half.write_tar(&mut tar)?;
    write_whole(out, &tar)?;
    let rounded = distance(single.iter().zip(&other));
    let apart = distance(single.iter().zip(single.iter().skip(1)));
    let of_apart = 100.0 * rounded / apart;
    say(&format!(
        "same seeds, {COMPARED} networks: {rounded:.2e} from f32 (root mean square), {of_apart:.2} % of what two networks differ by"
    ));
    say(&format!("{} {}", out.display(), half.digest()));
    Ok(())
}

/// Networks of one random condition.
fn weights(generator: &Generator) -> Result<Vec<Vec<f32>>> {
    let encoder = &generator.manifest().encoder;
    let condition = Noise::new(1, 0..1).first(encoder.condition_dim);
    let dataset = condition.iter().copied().cycle().take(encoder.embedding_dim).collect();
    let embedding = Embedding { dataset, condition, classes: generator.classes() };
    let options = SampleOptions { count: COMPARED, ..SampleOptions::default() };
    Ok(generator.decode(&generator.sample(&embedding, &options, &mut |_, _| true)?)?)
}

/// Root mean square difference of pairs of networks.
fn distance<'a>(pairs: impl Iterator<Item = (&'a Vec<f32>, &'a Vec<f32>)>) -> f64 {
    let squares = pairs.flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)));
    let (sum, n) = squares.fold((0.0, 0usize), |(sum, n), square| (sum + square, n + 1));
    (sum / n.max(1) as f64).sqrt()
}

/// Reads and verifies a bundle file.
pub fn read_bundle(file: &PathBuf) -> Result<Bundle> {
    let reader = std::fs::File::open(file).map_err(Error::io(file))?;
    let bundle = Bundle::read_tar(std::io::BufReader::new(reader));
    bundle.map_err(|e| Error::input(e.code(), format!("{}: {e}", file.display())))
}

async fn list(registry: &registry::Registry) -> Result<()> {
    let mut page = ListRequest { limit: MAX_LIMIT, ..ListRequest::default() };
    say(&format!("{:<24} {:>8} {:>7}  description", "name", "versions", "latest"));
    loop {
        let found = generators::list(registry, &caller(), &GeneratorFilter::default(), &page).await?;
        for g in found.items {
            let latest = g.latest.map_or_else(|| "-".to_owned(), |v| v.to_string());
            say(&format!("{:<24} {:>8} {latest:>7}  {}", g.name, g.versions, g.about.description));
        }
        match found.next_cursor {
            Some(cursor) => page.cursor = Some(cursor),
            None => return Ok(()),
        }
    }
}
