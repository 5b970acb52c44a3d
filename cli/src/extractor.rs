//! `weightsmith extractor`, and data that goes through one.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use inference::{Extractor, Runtime};
use registry::{ListRequest, MAX_LIMIT, NewAbout, Registry, extractors as rows};
use training::progress::Progress;
use training::{Config, Extract, Sources};
use weights::manifest::{ExtractorSpec, ResizeRule};

use crate::context::{RegistryArgs, RuntimeArgs, caller, say, with_registry, write_whole, writing};
use crate::error::{Error, Result};

/// Commands on feature extractors.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register an ONNX image encoder: it is run once, and refused when it does not fit.
    #[command(
        after_help = "Example:\n  weightsmith extractor import clip.onnx --name clip --input images --output features \
                      --shape 3,224,224 --resize crop --mean 0.481,0.458,0.408 --std 0.269,0.261,0.276"
    )]
    Import(Box<Import>),
    /// List the extractors of the registry.
    #[command(after_help = "Example:\n  weightsmith extractor list")]
    List {
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

/// What to register.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The ONNX file.
    file: PathBuf,
    /// Name to register it under.
    #[arg(long)]
    name: String,
    /// Name of the graph's input, f32 `[batch, channels, height, width]`.
    #[arg(long)]
    input: String,
    /// Name of the graph's output.
    #[arg(long)]
    output: String,
    /// Channels, height and width of the input.
    #[arg(long, value_delimiter = ',', required = true, value_name = "C,H,W")]
    shape: Vec<usize>,
    /// How images get that size.
    #[arg(long, value_enum, default_value_t = Resize::Stretch)]
    resize: Resize,
    /// What is taken from each channel, whose values are 0 to 1 [default: 0].
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true)]
    mean: Vec<f32>,
    /// What each channel is then divided by [default: 1].
    #[arg(long, value_delimiter = ',')]
    std: Vec<f32>,
    /// What it is.
    #[arg(long, default_value = "")]
    description: String,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// How images get the size of the graph's input.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Resize {
    /// Height and width each for itself.
    Stretch,
    /// The largest middle part of the same proportions.
    Crop,
}

impl Import {
    fn spec(&self) -> Result<ExtractorSpec> {
        let shape = <[usize; 3]>::try_from(self.shape.as_slice())
            .map_err(|_| Error::input("option_invalid", "--shape must be three numbers: channels,height,width"))?;
        let or = |values: &[f32], otherwise: f32| match values.is_empty() {
            true => vec![otherwise; shape[0].min(3)],
            false => values.to_vec(),
        };
        Ok(ExtractorSpec {
            name: self.name.clone(),
            input: self.input.clone(),
            output: self.output.clone(),
            shape,
            resize: match self.resize {
                Resize::Stretch => ResizeRule::Stretch,
                Resize::Crop => ResizeRule::Crop,
            },
            mean: or(&self.mean, 0.0),
            std: or(&self.std, 1.0),
            dim: 0,
        })
    }
}

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Import(args) => import(&args),
        Command::List { registry } => with_registry(&registry, list),
    }
}

fn import(args: &Import) -> Result<()> {
    registry::check_name(&args.name)?;
    let onnx = std::fs::read(&args.file).map_err(Error::io(&args.file))?;
    let spec = Extractor::probe(&args.runtime.open()?, &args.spec()?, &onnx)?.spec().clone();
    let row = with_registry(&args.registry, async |registry| {
        let artifact = registry.artifacts().put_file(Path::new(&args.file), "application/onnx").await?;
        let new = rows::NewExtractor {
            name: args.name.clone(),
            dim: i32::try_from(spec.dim).unwrap_or(i32::MAX),
            spec: serde_json::to_value(&spec).map_err(|e| Error::Internal(e.to_string()))?,
            artifact_digest: artifact.digest,
            about: NewAbout { description: args.description.clone(), ..NewAbout::default() },
        };
        writing(registry, async |write| Ok(rows::create(write, &new).await?)).await
    })?;
    say(&format!("{} gives {} features of images {:?} {}", row.name, row.dim, spec.shape, row.artifact_digest));
    Ok(())
}

async fn list(registry: &Registry) -> Result<()> {
    let mut page = ListRequest { limit: MAX_LIMIT, ..ListRequest::default() };
    say(&format!("{:<24} {:>8}  description", "name", "features"));
    loop {
        let found = rows::list(registry, &caller(), &page).await?;
        for row in found.items {
            say(&format!("{:<24} {:>8}  {}", row.name, row.dim, row.about.description));
        }
        match found.next_cursor {
            Some(cursor) => page.cursor = Some(cursor),
            None => return Ok(()),
        }
    }
}

/// A loaded extractor with its graph.
struct Loaded {
    extractor: Extractor,
    onnx: Vec<u8>,
}

impl Extract for Loaded {
    fn spec(&self) -> &ExtractorSpec {
        self.extractor.spec()
    }

    fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    fn extract(&self, images: &datasets::Dataset) -> std::result::Result<datasets::Dataset, String> {
        self.extractor.extract(images).map_err(|error| error.to_string())
    }
}

/// The sources of a configuration; with the features of its backbone, or of its extractor, which the registry has.
pub fn sources(config: &Config, place: &RegistryArgs, runtime: &RuntimeArgs, shown: &Progress) -> Result<Sources> {
    let sources = Sources::load(config)?;
    match config.extractor() {
        None => Ok(sources),
        Some(_) if config.data.backbone.is_some() => with_backbone(&runtime.open()?, config, sources, shown, None),
        Some(name) => {
            let runtime = runtime.open()?;
            with_registry(place, async |registry| extracted(registry, &caller(), &runtime, config, sources, name).await)
        }
    }
}

/// Makes the backbone of a configuration, and puts its sources through it; `cache` keeps its graph.
pub fn with_backbone(
    runtime: &Runtime,
    config: &Config,
    sources: Sources,
    shown: &Progress,
    cache: Option<&Path>,
) -> Result<Sources> {
    let file = match cache {
        Some(dir) => {
            let key = training::backbone::key(config, &sources)?;
            Some(dir.join(format!("{}.onnx", key.trim_start_matches("sha256:").chars().take(16).collect::<String>())))
        }
        None => None,
    };
    let known = file.as_ref().and_then(|file| std::fs::read(file).ok());
    let made = match known {
        Some(onnx) => training::backbone::of(config, &sources, onnx)?,
        None => training::backbone::fit(config, &sources, shown)?,
    };
    let extractor = Extractor::load(runtime, &made.spec, &made.onnx)?;
    if let Some(file) = &file {
        write_whole(file, &made.onnx)?;
    }
    Ok(sources.extracted(config, &Loaded { extractor, onnx: made.onnx })?)
}

/// Puts sources through a registered extractor.
pub async fn extracted(
    registry: &Registry,
    caller: &registry::Caller,
    runtime: &Runtime,
    config: &Config,
    sources: Sources,
    name: &str,
) -> Result<Sources> {
    let row = rows::get(registry, caller, name).await?;
    let spec: ExtractorSpec = serde_json::from_value(row.spec)
        .map_err(|e| Error::Internal(format!("the specification of the extractor {name} is damaged: {e}")))?;
    let onnx = registry.artifacts().read(&row.artifact_digest).await?.to_vec();
    // It takes long, and others run on this thread.
    tokio::task::block_in_place(|| {
        let extractor = Extractor::load(runtime, &spec, &onnx)?;
        Ok(sources.extracted(config, &Loaded { extractor, onnx })?)
    })
}
