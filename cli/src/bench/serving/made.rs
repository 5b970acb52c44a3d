//! The generator that is served: made on the spot, trained for a few steps, since its speed does not depend on them.

use std::path::Path;

use inference::samplers::{self, Noise};
use inference::{Embedding, Generator, Runtime, SampleOptions};
use serde_json::json;
use training::progress::Progress;
use training::stages::{generator, zoo};
use training::{Config, Keep, Part, Sources};
use weights::{Bundle, tensors};

use crate::context::write_whole;
use crate::error::{Error, Result};

/// Channels and multipliers of the UNet, 9 million parameters on latents 8×16×16.
const UNET: (usize, [usize; 3]) = (80, [1, 2, 4]);

/// Width and blocks of the MLP.
const MLP: (usize, usize) = (256, 4);

/// What a generator's denoiser is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The UNet.
    Unet,
    /// The residual MLP of `configs/tiny-cnn.toml`.
    Mlp,
    /// A small MLP, for what does not depend on the network.
    Small,
}

/// A generator with an embedding of a task of its zoo.
pub struct Made {
    pub bundle: Bundle,
    pub generator: Generator,
    pub embedding: Embedding,
    /// Labelled images of the task.
    pub support: datasets::Dataset,
    size: Size,
}

fn config(size: Size) -> String {
    let (latent, denoiser) = match size {
        Size::Unet => {
            let (channels, multipliers) = UNET;
            let denoiser = format!("kind = \"unet\"\nchannels = {channels}\nmultipliers = {multipliers:?}");
            ("[8, 16, 16]", denoiser)
        }
        Size::Mlp => {
            let (width, blocks) = MLP;
            ("[64]", format!("kind = \"mlp\"\nwidth = {width}\nblocks = {blocks}"))
        }
        Size::Small => ("[64]", "kind = \"mlp\"\nwidth = 64\nblocks = 1".into()),
    };
    format!(
        "name = \"bench\"\nseed = 7\n[data]\nsources = [{{ name = \"digits\", from = \"digits\" }}]\n\
         [tasks]\nkind = \"class_sets\"\nclasses = 5\nseen = 6\norders = 1\n\
         [architecture]\nkind = \"mlp\"\nhidden = [32]\n[zoo]\nepochs = 2\n\
         [vae]\nlatent = {latent}\nsteps = 4\nbatch = 8\nbehaviour = 0.0\n[encoder]\nsteps = 4\n\
         [denoiser]\n{denoiser}\n[diffusion]\nbatch = 8\nsteps = 3\nprediction = \"epsilon\"\n"
    )
}

/// Trains one.
///
/// # Errors
/// When training or loading fails.
pub fn make(runtime: &Runtime, size: Size) -> Result<Made> {
    let config = Config::parse(&config(size))?;
    let sources = Sources::load(&config)?;
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let silent = Progress::silent();
    let zoo = zoo::build(&config, &sources, folder.path(), &silent, Keep::nothing())?;
    let bundle =
        generator::train(&config, &zoo, &sources, &training::device::current(), &silent, Keep::nothing())?.bundle;
    let generator = Generator::load(runtime, bundle.clone())?;
    let task = &zoo.runs[0].task;
    let source = sources.list().iter().find(|source| source.name == task.source);
    let source = source.ok_or_else(|| Error::Internal("the zoo's source is not there".into()))?;
    let support = source.dataset(Part::Train).select_classes(&task.classes)?;
    let classes: Vec<u32> = (0..).take(task.classes.len()).collect();
    let embedding = generator.embed(&generator.features(&support, &classes, 0)?)?;
    Ok(Made { bundle, generator, embedding, support, size })
}

impl Made {
    /// Writes what `peers/serve.py` reads, for batches of at most `batch`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, options: &SampleOptions, batch: usize) -> Result<()> {
        for (name, bytes) in self.bundle.entries() {
            if !name.contains('/') {
                write_whole(&folder.join(name), bytes)?;
            }
        }
        let (manifest, dim) = (self.generator.manifest(), self.generator.manifest().latent.dim());
        let noise = Noise::new(options.seed, 0..batch).first(dim);
        let shape: Vec<usize> = std::iter::once(batch).chain(manifest.latent.shape.iter().copied()).collect();
        let noise = tensors::named_to_safetensors(&[("noise", &shape, &noise)], &Default::default());
        write_whole(&folder.join("noise.safetensors"), &noise)?;
        let steps = samplers::plan(&manifest.schedule, options);
        let steps: Vec<_> =
            steps.iter().map(|s| json!({"t": s.t, "latent": s.latent, "prediction": s.prediction})).collect();
        let network = match self.size {
            Size::Unet => json!({"kind": "unet", "channels": UNET.0, "multipliers": UNET.1}),
            Size::Mlp => json!({"kind": "mlp", "width": MLP.0, "blocks": MLP.1}),
            Size::Small => return Err(Error::Internal("there is no peer of the small network".into())),
        };
        let schedule = &manifest.schedule;
        let schedule = json!({
            "steps": schedule.steps, "beta_start": schedule.beta_start, "beta_end": schedule.beta_end,
        });
        let plan = json!({
            "schedule": schedule, "steps": steps, "condition": self.embedding.condition, "scale": manifest.latent.scale,
            "latent": manifest.latent.shape, "network": network,
        });
        write_whole(&folder.join("plan.json"), plan.to_string().as_bytes())
    }
}
