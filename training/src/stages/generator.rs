//! From a zoo to a generator bundle: all stages in order, export, manifest.

use std::collections::BTreeMap;

use candle_core::Device;
use serde_json::json;
use weights::manifest::{
    ArchitectureEntry, EncoderContract, FORMAT, Modality, Precision, PredictorContract, QualityContract, files,
};
use weights::vectorise::Vectorise;
use weights::{Architecture, Bundle, Manifest, tensors};

use super::course::Given;
use super::diffusion::{self, Denoiser};
use super::encoder::{self, Encoder};
use super::known;
use super::measure;
use super::predictor;
use super::vae::{self, Vae};
use super::vectors::{self, Vectors};
use super::zoo::Zoo;
use crate::config::{Config, DiffusionConfig, EncoderConfig, EvaluationConfig, FEWEST, PredictorConfig};
use crate::curve::{self, Curve};
use crate::data::{Part, Sources};
use crate::error::{Error, Result};
use crate::export::{self, Probe};
use crate::networks::denoiser::DenoiserConfig;
use crate::progress::Progress;
use crate::snapshots::{self, Keep};

/// A trained generator with what later comparisons need.
#[derive(Debug)]
pub struct Trained {
    /// The bundle.
    pub bundle: Bundle,
    /// Inputs and candle's outputs of each graph.
    pub probes: Vec<Probe>,
    /// The zoo's vectors.
    pub vectors: Vectors,
    /// The loss of each step, by stage; also a file of the bundle.
    pub curve: Vec<Curve>,
    /// Seconds of each stage.
    pub seconds: Vec<(&'static str, f64)>,
}

/// Trains a generator on a zoo, or continues from the snapshots in `keep`: the result is the same. They stay until
/// [`Keep::clear`], so that what comes after training can fail and be done again.
///
/// # Errors
/// Those of the stages.
pub fn train(
    config: &Config,
    zoo: &Zoo,
    sources: &Sources,
    device: &Device,
    progress: &Progress,
    keep: Keep<'_>,
) -> Result<Trained> {
    sources.check_extractor(config)?;
    check_runs(zoo)?;
    check_classes(config, zoo)?;
    let mut seconds = Vec::new();
    let mut timed = Timed { seconds: &mut seconds };
    let mut vectors = timed.run("align", || vectors::vectorise(config, zoo, progress))?;
    let qualities = match config.diffusion.quality || config.vectors.best_share < 1.0 {
        true => Some(timed.run("quality", || measure::qualities(zoo, sources, progress))?),
        false => None,
    };
    if let Some(qualities) = qualities.as_ref().filter(|_| config.vectors.best_share < 1.0) {
        vectors.train = measure::best(zoo, &vectors.train, qualities, config.vectors.best_share);
    }
    let qualities = qualities.filter(|_| config.diffusion.quality);
    let identity = identity(config, zoo, sources)?;
    let given = Given { config, zoo, vectors: &vectors, sources, progress, keep, identity: &identity };
    let guide = match config.vae.predictor > 0.0 {
        true => Some(timed.run("guide", || predictor::train(&given, "guide", None, None, device))?),
        false => None,
    };
    let of_vae = vae_identity(config, zoo, sources)?;
    let for_vae = match keep.shared() {
        Some(keep) => Given { keep, identity: &of_vae, ..given },
        None => given,
    };
    let (mut vae, vae_curve) =
        timed.run("vae", || vae::train(&for_vae, guide.as_ref().map(|(predictor, ..)| predictor), device))?;
    let latents = vae.means(&vectors)?;
    let (mut encoder, encoder_curve) = timed.run("encoder", || encoder::train(&given, &latents))?;
    let (mut denoiser, denoiser_curve) =
        timed.run("denoiser", || diffusion::train(&given, &latents, &mut encoder, qualities.as_deref()))?;
    let known = known::classes(config, zoo, sources, &mut encoder)?;
    let seen = config.predictor.dataset.then_some(&encoder);
    let predictor = match config.predictor.steps > 0 {
        true => Some(timed.run("predictor", || predictor::train(&given, "predictor", Some(&mut vae), seen, device))?),
        false => None,
    };
    let mut curve = vec![vae_curve, encoder_curve, denoiser_curve];
    let mut metrics = metrics(zoo, &vectors, sources, &mut vae)?;
    let architectures = targets(config, zoo);
    let mut files = graphs(&architectures, zoo.part.as_ref(), &vectors, &vae, &encoder, &denoiser)?;
    if let Some((_, guide_curve, judged)) = guide {
        curve.insert(0, guide_curve);
        metrics["guide"] = judged;
    }
    let mut predictor = predictor.map(|(predictor, predictor_curve, judged)| {
        curve.push(predictor_curve);
        metrics["predictor"] = judged;
        predictor
    });
    if let Some(predictor) = &predictor {
        files.insert(files::PREDICTOR.into(), export::predictor(predictor)?);
    }
    files.insert(files::TRAINING_CURVE.into(), curve::to_json(&curve)?);
    if let Some((known, tokens)) = &known {
        let tokens: (&str, &[usize], &[f32]) = ("tokens", &[known.tokens, known.dim], tokens);
        files.insert(files::KNOWN_CLASSES.into(), tensors::named_to_safetensors(&[tokens], &BTreeMap::new()));
    }
    if let Some(extractor) = sources.extractor() {
        files.insert(files::EXTRACTOR.into(), extractor.onnx.clone());
    }
    let mut probes = export::probes(&mut vae, &mut encoder, &mut denoiser, &architectures)?;
    if zoo.part.is_some() {
        // There is no graph of statistics.
        probes.retain(|probe| files.contains_key(&probe.graph));
    }
    let mut manifest = manifest(config, zoo, sources, &vectors, &encoder, &denoiser, metrics)?;
    manifest.architectures = architectures.iter().map(|a| entry(a, zoo.part.as_ref())).collect();
    manifest.format = Manifest::format_of(&manifest.vectorise, &manifest.architectures);
    manifest.encoder.known_classes = known.map(|(known, _)| known);
    manifest.quality = qualities.map(|q| QualityContract { default: measure::high(&given, &q) });
    if let Some(predictor) = &mut predictor {
        probes.extend(export::predictor_probes(predictor)?);
        manifest.predictor = Some(PredictorContract { dataset: predictor.shape.dataset.is_some() });
    }
    Ok(Trained { bundle: Bundle::new(manifest, files)?, probes, vectors, curve, seconds })
}

/// Digest of all that a generator depends on, this program among it: equal ones are the same generator.
///
/// # Errors
/// When the configuration cannot be written down.
pub fn identity(config: &Config, zoo: &Zoo, sources: &Sources) -> Result<String> {
    let extractor = sources.extractor().map(|e| (&e.used, weights::digest::sha256(&e.onnx)));
    snapshots::identity(&(config, &zoo.digest, extractor))
}

/// Digest of all that a generator's VAE depends on: not of what its configuration says of later stages.
fn vae_identity(config: &Config, zoo: &Zoo, sources: &Sources) -> Result<String> {
    let mut own = Config {
        name: String::new(),
        description: String::new(),
        encoder: EncoderConfig::default(),
        denoiser: DenoiserConfig::Mlp { width: 0, blocks: 0 },
        diffusion: DiffusionConfig::default(),
        evaluation: EvaluationConfig::default(),
        ..config.clone()
    };
    if own.vae.predictor == 0.0 {
        own.predictor = PredictorConfig::default();
    }
    identity(&own, zoo, sources)
}

/// Refuses a zoo of one lineage: all its checkpoints are near copies of one network.
fn check_runs(zoo: &Zoo) -> Result<()> {
    for (index, architecture) in zoo.architectures().enumerate() {
        if zoo.runs.iter().filter(|run| run.architecture == index).count() < 2 {
            let of = if zoo.further.is_empty() { String::new() } else { format!(" of {}", architecture.name()) };
            return Err(Error::Config(format!(
                "the zoo has a single lineage{of}; a generator needs at least 2 runs, and hundreds to be any good"
            )));
        }
    }
    Ok(())
}

/// Refuses a zoo of several numbers of classes where the configuration does not say so.
fn check_classes(config: &Config, zoo: &Zoo) -> Result<()> {
    let classes = zoo.architecture.classes();
    let other = zoo.architectures().find(|architecture| architecture.classes() != classes);
    match other.filter(|_| config.most_classes().is_none()) {
        Some(other) => Err(Error::Config(format!(
            "the zoo has networks of {classes} and of {} classes: name all numbers in tasks.classes",
            other.classes()
        ))),
        None => Ok(()),
    }
}

struct Timed<'a> {
    seconds: &'a mut Vec<(&'static str, f64)>,
}

impl Timed<'_> {
    fn run<T>(&mut self, name: &'static str, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = std::time::Instant::now();
        let value = f()?;
        self.seconds.push((name, start.elapsed().as_secs_f64()));
        Ok(value)
    }
}

/// Accuracies that the manifest states, on test images. No times: equal seeds give equal bundles.
fn metrics(zoo: &Zoo, vectors: &Vectors, sources: &Sources, vae: &mut Vae) -> Result<serde_json::Value> {
    let sample: Vec<usize> = vectors.train.iter().copied().step_by(vectors.train.len().div_ceil(256)).collect();
    let train = vae.reconstruction_accuracy(zoo, vectors, sources, &sample, Part::Test)?;
    let held_out = vae.reconstruction_accuracy(zoo, vectors, sources, &vectors.held_out, Part::Test)?;
    let dispersion = vae.dispersion(vectors)?;
    Ok(json!({
        "zoo_accuracy": zoo.mean_accuracy(),
        "latent_active": dispersion.active,
        "latent_largest_deviation": dispersion.largest,
        "reconstruction_accuracy_train": train,
        "reconstruction_accuracy_held_out": if held_out.is_nan() { serde_json::Value::Null } else { json!(held_out) },
    }))
}

/// What a generator makes networks of: the zoo's architectures, or the heads of any number of classes, also of those that
/// no network of the zoo has.
fn targets(config: &Config, zoo: &Zoo) -> Vec<Architecture> {
    match config.most_classes() {
        Some(most) => {
            let features = zoo.architecture.input_dim();
            (FEWEST..=most).map(|classes| Architecture::Head { features, classes }).collect()
        }
        None => zoo.architectures().cloned().collect(),
    }
}

/// How the networks of [`targets`] lie in rows.
fn all_rows(vectors: &Vectors) -> Result<Vectorise> {
    match (&vectors.vectorise.rows, vectors.vectorise.most_classes()) {
        (Some(rows), Some(most)) => Ok(Vectorise::class_rows(rows.features, (FEWEST..=most).collect(), most)?),
        _ => Ok(vectors.vectorise.clone()),
    }
}

fn graphs(
    architectures: &[Architecture],
    part: Option<&weights::Part>,
    vectors: &Vectors,
    vae: &Vae,
    encoder: &Encoder,
    denoiser: &Denoiser,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut out = BTreeMap::from(export::vae(&vae.shape, &vae.params)?);
    out.insert(files::DATASET_ENCODER.into(), export::dataset_encoder(encoder)?);
    out.insert(files::DENOISER.into(), export::denoiser(&denoiser.shape, &denoiser.params)?);
    for architecture in architectures {
        out.insert(files::forward(&architecture.name()), export::forward(architecture)?);
        match part {
            Some(part) => {
                out.insert(files::constants(&architecture.name()), part.to_safetensors());
            }
            // Statistics of constants are not measured, and those of the others lie behind them.
            None => {
                let graph = export::statistics(architecture)?;
                out.extend(graph.map(|graph| (files::statistics(&architecture.name()), graph)));
            }
        }
    }
    out.insert(files::STANDARDISATION.into(), vectors.standardisation.to_safetensors());
    Ok(out)
}

fn entry(architecture: &Architecture, part: Option<&weights::Part>) -> ArchitectureEntry {
    let (name, layout) = (architecture.name(), architecture.layout());
    ArchitectureEntry {
        parameters: layout.parameters(),
        forward: files::forward(&name),
        generated: part.map(weights::Part::names).unwrap_or_default(),
        config: architecture.clone(),
        layout,
        name,
    }
}

fn manifest(
    config: &Config,
    zoo: &Zoo,
    sources: &Sources,
    vectors: &Vectors,
    encoder: &Encoder,
    denoiser: &Denoiser,
    metrics: serde_json::Value,
) -> Result<Manifest> {
    let extractor = sources.extractor();
    let input_shape = extractor.map_or_else(|| sources.input_shape().to_vec(), |e| e.images.clone());
    let data: BTreeMap<&str, String> = sources.list().iter().map(|s| (s.name.as_str(), s.data.digest())).collect();
    let settings = serde_json::to_value(config).map_err(|e| Error::Config(e.to_string()))?;
    Ok(Manifest {
        // What follows from the zoo `train` fills in.
        format: FORMAT,
        name: config.name.clone(),
        description: config.description.clone(),
        modality: if input_shape.len() == 3 { Modality::Image } else { Modality::Features },
        architectures: Vec::new(),
        vectorise: all_rows(vectors)?,
        standardise: config.vectors.standardise,
        latent: denoiser.latent.clone(),
        schedule: denoiser.schedule.clone(),
        encoder: EncoderContract {
            extractor: extractor.map_or_else(|| "pixels".into(), |e| e.used.spec.name.clone()),
            feature_dim: encoder.shape.feature_dim,
            classes: encoder.shape.classes,
            min_classes: encoder.shape.any_number.then_some(FEWEST),
            images_per_class: encoder.shape.images,
            embedding_dim: encoder.shape.embedding_dim,
            condition_dim: encoder.shape.condition_dim(),
            known_classes: None,
            input_shape,
        },
        extractor: extractor.map(|e| e.used.clone()),
        text: None,
        predictor: None,
        quality: None,
        guidance: config.diffusion.condition_dropout > 0.0,
        precision: Precision::Single,
        training: json!({
            "config": settings,
            "zoo": { "name": zoo.name, "digest": zoo.digest, "runs": zoo.runs.len(), "checkpoints": zoo.checkpoints.len() },
            "datasets": data,
            "version": env!("CARGO_PKG_VERSION"),
            "revision": env!("WEIGHTSMITH_REVISION"),
        }),
        metrics,
        files: BTreeMap::new(),
    })
}
