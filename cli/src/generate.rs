//! `weightsmith generate`.

use std::path::PathBuf;

use ::language::text::{Descriptions, Nearest, digest};
use inference::{Generator, Provenance, Refine, Runtime, SampleLimits, SampleOptions, SamplerKind, to_safetensors};
use registry::generators;
use weights::{Bundle, lora};

use crate::context::{RegistryArgs, RuntimeArgs, caller, labels, say, with_registry, write_whole};
use crate::error::{Error, Result};
use crate::generator::read_bundle;

/// Generate weights for labelled data.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith generate --bundle out/digits.tar --data digits --classes 3,1,4,0,7 \
                  --count 5 --out out/weights")]
pub struct Args {
    /// A bundle file.
    #[arg(long, conflicts_with = "generator", required_unless_present = "generator")]
    bundle: Option<PathBuf>,
    /// A generator of the registry: `name`, `name@version` or `name@alias`.
    #[arg(long)]
    generator: Option<String>,
    /// Labelled data: `digits`, `idx:DIR`, `folder:DIR`, `npz:FILE` or `zip:FILE`.
    #[arg(long, required_unless_present = "text")]
    data: Option<String>,
    /// A description of a task, in place of labelled data, for a generator of adapters.
    #[arg(long, conflicts_with_all = ["data", "classes", "refine", "recalibrate"])]
    text: Option<String>,
    /// Classes in the order of the head's rows; without it all, in the data's order.
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
    /// Architecture of the networks, by its name in the manifest; without it the first, or where heads have any number of
    /// classes that of the classes given.
    #[arg(long)]
    architecture: Option<String>,
    /// Number of samples.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// `ddim`, `ddpm` or `dpm_solver_pp`.
    #[arg(long, default_value = "ddim")]
    sampler: String,
    /// Steps; without it 20 of DDPM, else 5 where the denoiser predicts the clean latent, and 20 where the noise.
    #[arg(long)]
    steps: Option<usize>,
    /// DDIM's η: 0 is deterministic; without it 0 where the denoiser predicts the clean latent, 1 where the noise.
    #[arg(long)]
    eta: Option<f64>,
    /// Classifier-free guidance; 1 is off.
    #[arg(long, default_value_t = 1.0)]
    guidance: f32,
    /// Deviation of noise added to what was sampled: samples differ more, and are worse.
    #[arg(long, default_value_t = 0.0)]
    latent_noise: f32,
    /// Quality asked for, of a generator that is conditioned on it; without it high.
    #[arg(long, allow_hyphen_values = true)]
    quality: Option<f32>,
    /// Steps of refinement of each sample's latent on the examples that the encoder sees.
    #[arg(long, default_value_t = 0)]
    refine: usize,
    /// Measure the statistics of normalisations on the examples that the encoder sees, in place of the generated ones.
    #[arg(long)]
    recalibrate: bool,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seed of the choice of examples that the encoder sees.
    #[arg(long, default_value_t = 0)]
    data_seed: u64,
    /// Folder that the files sample-N.safetensors are written to; of adapters directories sample-N, as Python's `peft` loads
    /// them.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let sampler: SamplerKind = args.sampler.parse()?;
    let options = SampleOptions {
        count: args.count,
        sampler,
        seed: args.seed,
        steps: args.steps,
        eta: args.eta,
        guidance: args.guidance,
        latent_noise: args.latent_noise,
        quality: args.quality,
        refine: (args.refine > 0).then(|| Refine { steps: args.refine, ..Refine::default() }),
        recalibrate: args.recalibrate,
    };
    options.validate(&SampleLimits::default())?;
    let runtime = args.runtime.open()?;
    let (name, bundle) = load_bundle(&args)?;
    if let Some(text) = &args.text {
        return described(&args, text, &options, (&runtime, &name, bundle));
    }
    if bundle.manifest().text.is_some() {
        let text = format!("{name} takes a description of a task: give it with --text, in place of --data");
        return Err(Error::input("modality_mismatch", text));
    }
    let mut generator = Generator::load(&runtime, bundle)?;
    if let Some(name) = &args.architecture {
        generator = generator.with_architecture(name)?;
    }
    let data = datasets::load_source(args.data.as_deref().unwrap_or_default())?;
    let classes = labels(&data, &args.classes)?;
    if generator.any_number() && args.architecture.is_none() {
        generator = generator.for_classes(classes.len())?;
    }
    let embedding = generator.embed(&generator.features(&data, &classes, args.data_seed)?)?;
    let support = generator.gather_support(&data, &classes, args.data_seed)?.whole();
    let generated = generator.generate_on(&embedding, &options, Some(&support.data), &mut |_, _| true)?.weights;
    let names: Vec<String> = classes.iter().map(|&c| data.class_names[c as usize].clone()).collect();
    let digest = data.digest();
    let files = files(&generator, &generated, (&name, &digest, &names), &options)?;
    for (index, bytes) in files.iter().enumerate() {
        let path = args.out.join(format!("sample-{index}.safetensors"));
        write_whole(&path, bytes)?;
        say(&format!("{} {}", path.display(), weights::digest::sha256(bytes)));
    }
    Ok(())
}

/// The files of all samples, which are made before the first is written.
fn files(
    generator: &Generator,
    generated: &[Vec<f32>],
    (generator_name, dataset, classes): (&str, &str, &[String]),
    options: &SampleOptions,
) -> Result<Vec<Vec<u8>>> {
    let file = |(index, theta): (usize, &Vec<f32>)| {
        let provenance = Provenance { generator_name, dataset, classes, options, index, instead: None };
        Ok(to_safetensors(generator, theta, &provenance)?)
    };
    generated.iter().enumerate().map(file).collect()
}

/// Writes adapters for a task that a text describes.
fn described(
    args: &Args,
    text: &str,
    options: &SampleOptions,
    (runtime, name, bundle): (&Runtime, &str, Bundle),
) -> Result<()> {
    let Some(descriptions) = Descriptions::of(&bundle)? else {
        let text = format!("{name} takes labelled data: give it with --data, in place of --text");
        return Err(Error::input("modality_mismatch", text));
    };
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::input("text_invalid", "--text is empty: describe the task in a sentence or two"));
    }
    let generator = Generator::load(runtime, bundle)?;
    let Some(lora) = generator.architecture().config.lora() else {
        return Err(Error::Internal("a generator of the modality text makes adapters".into()));
    };
    let values = descriptions.embed(text)?;
    let near = descriptions.nearest(&values);
    let classes = near.filter(Nearest::is_near).map(|near| near.task.classes.clone()).unwrap_or_default();
    let generated = generator.generate(&generator.embed(&values)?, options, &mut |_, _| true)?.weights;
    let files = files(&generator, &generated, (name, &digest(text), &classes), options)?;
    let config = lora.config_file();
    for (index, bytes) in files.iter().enumerate() {
        let dir = args.out.join(format!("sample-{index}"));
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        write_whole(&dir.join(lora::CONFIG), config.as_bytes())?;
        write_whole(&dir.join(lora::FILE), bytes)?;
        say(&format!("{} {}", dir.display(), weights::digest::sha256(bytes)));
    }
    if let Some(near) = near {
        let (task, distance) = (&near.task.name, near.distance);
        let far = if near.is_near() { "" } else { ": far, so likely for another task than the one described" };
        say(&format!(
            "the nearest task of the zoo is {task}, at {distance:.2} of what its own descriptions are apart{far}"
        ));
    }
    Ok(())
}

fn load_bundle(args: &Args) -> Result<(String, Bundle)> {
    if let Some(file) = &args.bundle {
        let bundle = read_bundle(file)?;
        return Ok((bundle.manifest().name.clone(), bundle));
    }
    let reference = args.generator.clone().unwrap_or_default();
    with_registry(&args.registry, async |registry| {
        let version = generators::resolve(registry, &caller(), &reference).await?;
        let tar = registry.artifacts().read(&version.artifact_digest).await?;
        let name = format!("{}@{}", version.generator, version.version);
        Ok((name, Bundle::read_tar(tar.as_ref())?))
    })
}
