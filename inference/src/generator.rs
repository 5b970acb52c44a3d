//! A bundle ready to run: dataset encoder, denoiser, VAE and forward graphs on pools of sessions.

pub(crate) mod classes;
mod encode;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use datasets::Dataset;
use metrics::histogram;
use ort::value::TensorElementType;
use serde::Serialize;
use weights::manifest::{ArchitectureEntry, files};
use weights::{Bundle, Manifest, Part, Standardisation};

use crate::batch::{Batcher, Request};
use crate::contract::{Slot, batch_view, check, check_manifest, input_type, output};
use crate::convolutions;
use crate::error::{Error, Result, check_finite, check_length};
use crate::extractor::Extractor;
use crate::features;
use crate::forward::{Evaluation, Forward};
use crate::options::{SampleLimits, SampleOptions};
use crate::pool::{SessionPool, Use};
use crate::runtime::{Provider, Runtime};
use crate::samplers::{self, Noise};
use crate::statistics::Statistics;

pub use classes::Familiarity;

/// Rows in one run of a graph.
const BATCH: usize = 64;
/// What tells the seed of noise on latents from that of the walk.
const LATENT_NOISE: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the dataset encoder says about a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// z_D, `[embedding_dim]`: for search and comparison.
    pub dataset: Vec<f32>,
    /// The denoiser's condition, `[condition_dim]`.
    pub condition: Vec<f32>,
    /// Number of classes of the dataset.
    pub classes: usize,
}

/// Wall-clock time of a generation's parts, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// From noise to latents.
    pub sample_ms: f64,
    /// From latents to weights.
    pub decode_ms: f64,
}

/// Generated networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Flat weights θ (`[d]` each), in the order of the samples.
    pub weights: Vec<Vec<f32>>,
    /// How long it took.
    pub timings: Timings,
}

/// A loaded generator. All methods take `&self` and may be called from many threads. A clone shares the graphs.
#[derive(Debug, Clone)]
pub struct Generator {
    manifest: Arc<Manifest>,
    digest: String,
    encoder: Arc<SessionPool>,
    batcher: Arc<Batcher>,
    decoder: Arc<SessionPool>,
    vae_encoder: Arc<SessionPool>,
    predictor: Option<Arc<SessionPool>>,
    targets: Arc<Vec<Target>>,
    /// The architecture that is generated, as an index into the manifest's.
    chosen: usize,
    extractor: Option<Arc<Extractor>>,
    known: Option<Arc<classes::Known>>,
    provider: Provider,
    /// Who asks.
    client: Option<Arc<str>>,
}

/// What belongs to one architecture.
#[derive(Debug)]
struct Target {
    /// None of adapters: they are run in a text model.
    forward: Option<Forward>,
    /// Where networks store statistics.
    statistics: Option<Statistics>,
    /// Statistics of its rows.
    standardisation: Standardisation,
    /// The rows that a network of it is.
    pieces: Range<usize>,
    /// What of its networks is generated, where that is not all.
    part: Option<Part>,
}

impl Generator {
    /// Loads every graph of `bundle` and checks it against the manifest.
    ///
    /// # Errors
    /// [`Error::Bundle`] (or [`Error::Weights`]) names the file that is missing or does not fit.
    pub fn load(runtime: &Runtime, bundle: Bundle) -> Result<Self> {
        let manifest = bundle.manifest().clone();
        check_manifest(&manifest)?;
        let pool = |name: &str| runtime.pool(name, bundle.file(name)?, Use::Once);
        let standardisation = bundle.standardisation()?;
        let mut targets = Vec::with_capacity(manifest.architectures.len());
        for (index, entry) in manifest.architectures.iter().enumerate() {
            let (layout, shape) = (&entry.layout, entry.config.input_shape());
            let name = files::statistics(&entry.name);
            let statistics = match bundle.file(&name) {
                Ok(graph) => Some(Statistics::load(runtime, &name, graph, layout, &shape)?),
                Err(_) => None,
            };
            targets.push(Target {
                statistics,
                forward: match entry.forward.as_str() {
                    "" => None,
                    name => Some(Forward::load(runtime, name, bundle.file(name)?, layout, &shape)?),
                },
                standardisation: standardisation.of(&manifest.vectorise, index)?,
                pieces: manifest.vectorise.pieces_of(index),
                part: bundle.part(entry)?,
            });
        }
        if targets.is_empty() {
            return Err(Error::Bundle("it has no architecture".into()));
        }
        let encoder = pool(files::DATASET_ENCODER)?;
        let denoiser = runtime.pool(files::DENOISER, bundle.file(files::DENOISER)?, Use::Steps)?;
        let (decoder, vae_encoder) = (pool(files::VAE_DECODER)?, pool(files::VAE_ENCODER)?);
        let predictor = manifest.predictor.map(|_| pool(files::PREDICTOR)).transpose()?;
        check_graphs(&manifest, &encoder, &denoiser, &decoder, &vae_encoder)?;
        if let (Some(pool), Some(contract)) = (&predictor, manifest.predictor) {
            encode::check_predictor(&manifest, pool, contract)?;
        }
        let timestep = denoiser.lease()?.session().and_then(|s| input_type(s, "timestep"));
        let timestep = timestep.unwrap_or(TensorElementType::Float32);
        let batcher = Batcher::new(runtime, denoiser, manifest.latent.shape.clone(), timestep)?;
        if runtime.pads_batches() {
            batcher.warm_up(told(&manifest))?;
        }
        let batcher = Arc::new(batcher);
        let extractor = match &manifest.extractor {
            Some(used) => Some(Arc::new(Extractor::load(runtime, &used.spec, bundle.file(files::EXTRACTOR)?)?)),
            None => None,
        };
        let generator = Self {
            digest: bundle.digest(),
            provider: runtime.provider(),
            client: None,
            manifest: Arc::new(manifest),
            encoder,
            batcher,
            decoder,
            vae_encoder,
            predictor,
            targets: Arc::new(targets),
            chosen: 0,
            extractor,
            known: classes::Known::of(&bundle)?.map(Arc::new),
        };
        Ok(generator)
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bundle's digest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Where the graphs really run.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The same generator, for networks of the architecture `name`. It shares the graphs.
    ///
    /// # Errors
    /// [`Error::UnknownArchitecture`] with the names that there are.
    pub fn with_architecture(&self, name: &str) -> Result<Self> {
        Ok(Self { chosen: architecture(&self.manifest, name)?, ..self.clone() })
    }

    /// The same generator, for requests of this client: those of one client take turns with those of others. It shares the
    /// graphs.
    #[must_use]
    pub fn for_client(&self, client: &str) -> Self {
        Self { client: Some(client.into()), ..self.clone() }
    }

    /// The architecture that is generated: the manifest's first, unless another was chosen.
    pub fn architecture(&self) -> &ArchitectureEntry {
        // `load` refuses a manifest without architectures.
        &self.manifest.architectures[self.chosen]
    }

    /// The architecture's forward graph.
    ///
    /// # Errors
    /// [`Error::NoForward`] of adapters.
    pub fn forward(&self) -> Result<&Forward> {
        let architecture = || Error::NoForward { architecture: self.architecture().name.clone() };
        self.target().forward.as_ref().ok_or_else(architecture)
    }

    pub(crate) fn statistics(&self) -> Option<&Statistics> {
        self.target().statistics.as_ref()
    }

    fn target(&self) -> &Target {
        &self.targets[self.chosen]
    }

    /// Rows of a network.
    fn rows(&self) -> usize {
        self.target().pieces.len()
    }

    /// The index of each row of `networks` networks, `[networks · rows × index_dim]`; empty where all rows are of one
    /// kind.
    fn index(&self, networks: usize) -> Vec<f32> {
        let (pieces, dim) = (&self.target().pieces, self.manifest.vectorise.index_dim());
        let mut index = vec![0.0; pieces.len() * dim];
        for (row, piece) in index.chunks_exact_mut(dim.max(1)).zip(pieces.clone()) {
            row[piece] = 1.0;
        }
        index.repeat(networks)
    }

    /// Features `[classes, images_per_class, feature_dim]` of examples of `classes` (labels of `dataset`), in that
    /// order, which is the order of the generated head's rows. Which examples depends on `seed`; a class with fewer
    /// than needed repeats them.
    ///
    /// # Errors
    /// Codes `modality_mismatch`, `shape_mismatch`, `classes_mismatch`, `unknown_class`, `duplicate_class`,
    /// `class_without_images`, `non_finite`.
    pub fn features(&self, dataset: &Dataset, classes: &[u32], seed: u64) -> Result<Vec<f32>> {
        features::gather(self.extractor(), dataset, &self.support(dataset, classes, seed)?)
    }

    /// Indices `[classes × images_per_class]` of the examples that [`Self::features`] takes.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn support(&self, dataset: &Dataset, classes: &[u32], seed: u64) -> Result<Vec<usize>> {
        features::choose(&self.manifest, dataset, classes, seed)
    }

    /// The feature extractor, unless it is `pixels`.
    pub fn extractor(&self) -> Option<&Extractor> {
        self.extractor.as_deref()
    }

    /// A dataset as the generated networks take it: extracted, where they take the extractor's features.
    ///
    /// # Errors
    /// [`Error::Graph`] or [`Error::NonFinite`] from the extractor.
    pub fn network_data<'d>(&self, dataset: &'d Dataset) -> Result<Cow<'d, Dataset>> {
        match (&self.extractor, &self.manifest.extractor) {
            (Some(extractor), Some(used)) if used.networks => extractor.as_features(dataset),
            _ => Ok(Cow::Borrowed(dataset)),
        }
    }

    /// Encodes features as [`Self::features`] gives them, of as many classes as they are.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::ClassesOutside`], [`Error::NonFinite`] or [`Error::Graph`].
    pub fn embed(&self, features: &[f32]) -> Result<Embedding> {
        self.embed_batch(&[features])?.pop().ok_or_else(|| self.encoder.failed("it gave no embedding"))
    }

    /// Encodes several datasets in batches.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn embed_many(&self, features: &[Vec<f32>]) -> Result<Vec<Embedding>> {
        let mut embeddings = Vec::with_capacity(features.len());
        for batch in features.chunks(BATCH) {
            let batch: Vec<&[f32]> = batch.iter().map(Vec::as_slice).collect();
            embeddings.extend(self.embed_batch(&batch)?);
        }
        Ok(embeddings)
    }

    fn embed_batch(&self, features: &[&[f32]]) -> Result<Vec<Embedding>> {
        let contract = &self.manifest.encoder;
        let shape = [contract.classes, contract.images_per_class, contract.feature_dim];
        let mut joined = Vec::with_capacity(features.len() * shape.iter().product::<usize>());
        let (mut classes, mut presence) = (Vec::with_capacity(features.len()), Vec::new());
        for (row, features) in features.iter().enumerate() {
            check_finite("the features", features)?;
            let own = self.classes_of(features)?;
            joined.extend_from_slice(features);
            // Classes that the dataset does not have.
            joined.resize((row + 1) * shape.iter().product::<usize>(), 0.0);
            presence.extend(self.presence(own));
            classes.push(own);
        }
        let rows = features.len();
        let input = batch_view(&self.encoder, rows, &shape, &joined)?;
        let mut inputs = vec![("features", input.into())];
        if self.any_number() {
            inputs.push(("presence", batch_view(&self.encoder, rows, &[contract.classes], &presence)?.into()));
        }
        let mut lease = self.encoder.lease()?;
        let outputs = lease.run(inputs)?;
        let (wide, long) = (contract.embedding_dim, contract.condition_dim);
        let dataset = output(&self.encoder, &outputs, "dataset", rows * wide)?;
        let condition = output(&self.encoder, &outputs, "condition", rows * long)?;
        check_finite("the dataset embeddings", dataset)?;
        check_finite("the conditions", condition)?;
        let each = dataset.chunks_exact(wide).zip(condition.chunks_exact(long)).zip(classes);
        let embedding = |((d, c), classes): ((&[f32], &[f32]), usize)| Embedding {
            dataset: d.to_vec(),
            condition: c.to_vec(),
            classes,
        };
        Ok(each.map(embedding).collect())
    }

    /// Samples latents (`[rows × latent]` each, in the VAE's scale) for an embedding: those of all rows of a network.
    ///
    /// `progress(done, total)` is asked again and again while it samples, with the steps of all rows, and with all of them at
    /// the end; sampling stops when it gives false. Requests that come at the same time share runs of the denoiser.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::Length`], [`Error::NonFinite`], [`Error::Graph`] or [`Error::Cancelled`];
    /// [`Error::ClassesMismatch`] where the architecture's classes are not the dataset's.
    pub fn sample(
        &self,
        embedding: &Embedding,
        options: &SampleOptions,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        let schedule = &self.manifest.schedule;
        options.validate(&SampleLimits { max_count: usize::MAX, ..SampleLimits::default() })?;
        options.validate_for(schedule, self.manifest.guidance, self.manifest.quality.is_some())?;
        check_length("the condition's values", embedding.condition.len(), self.manifest.encoder.condition_dim)?;
        check_finite("the condition's values", &embedding.condition)?;
        if self.any_number() && embedding.classes != self.classes() {
            let (found, expected) = (embedding.classes, self.classes());
            return Err(Error::ClassesMismatch { found, needs: "the architecture that was chosen", expected });
        }
        let (dim, scale) = (self.rows() * self.manifest.latent.dim(), self.manifest.latent.scale);
        let mut z = self.batcher.sample(self.request(embedding, options), progress)?;
        self.disturb(&mut z, options);
        Ok(z.chunks_exact(dim).map(|row| row.iter().map(|v| v / scale).collect()).collect())
    }

    /// Adds the noise that samples are to differ by to latents in the denoiser's scale.
    fn disturb(&self, z: &mut [f32], options: &SampleOptions) {
        if options.latent_noise > 0.0 {
            // Not the noise that the walk began with.
            Noise::new(options.seed ^ LATENT_NOISE, 0..options.count * self.rows()).add(z, options.latent_noise);
        }
    }

    /// What is to be sampled, row by row.
    fn request(&self, embedding: &Embedding, options: &SampleOptions) -> Request {
        let quality = self.manifest.quality.map(|known| options.quality.unwrap_or(known.default));
        let told: Vec<f32> = quality.into_iter().chain(embedding.condition.iter().copied()).collect();
        let (index, kinds) = (self.index(1), self.manifest.vectorise.index_dim());
        let presence = self.presence(self.classes());
        let condition = |row: usize| [&told[..], &index[row * kinds..(row + 1) * kinds], &presence].concat();
        Request {
            plan: samplers::plan(&self.manifest.schedule, options),
            guidance: options.guidance,
            conditions: (0..self.rows()).map(condition).collect(),
            told: told.len(),
            dim: self.manifest.latent.dim(),
            seed: options.seed,
            streams: 0..options.count * self.rows(),
            client: self.client.clone(),
        }
    }

    /// Decodes latents (`[rows × latent]` each, as [`Self::sample`] or [`Self::encode_weights`] gives them) to flat
    /// weights θ (`[d]` each) of the architecture.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`] or [`Error::Graph`].
    pub fn decode(&self, latents: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let (shape, length) = (&self.manifest.latent.shape, self.manifest.vectorise.length);
        let per_network = self.rows();
        let mut weights = Vec::with_capacity(latents.len());
        for batch in latents.chunks((BATCH / per_network).max(1)) {
            let begun = Instant::now();
            for latent in batch {
                check_length("the latent's values", latent.len(), per_network * self.manifest.latent.dim())?;
                check_finite("the latent's values", latent)?;
            }
            let joined = batch.concat();
            let count = batch.len() * per_network;
            let input = batch_view(&self.decoder, count, shape, &joined)?;
            let mut inputs = vec![("latent", input.into())];
            let index = self.index(batch.len());
            if !index.is_empty() {
                let dim = self.manifest.vectorise.index_dim();
                inputs.push(("index", batch_view(&self.decoder, count, &[dim], &index)?.into()));
            }
            let mut lease = self.decoder.lease()?;
            let outputs = lease.run(inputs)?;
            let rows = output(&self.decoder, &outputs, "weights", count * length)?;
            let (values, target) = (self.architecture().generated_values(), self.target());
            for rows in rows.chunks_exact(per_network * length) {
                let made = target.standardisation.join(&self.manifest.vectorise, self.chosen, rows, values)?;
                check_finite("the decoded weights", &made)?;
                weights.push(match &target.part {
                    Some(part) => part.complete(&made)?,
                    None => made,
                });
            }
            histogram!("weightsmith_generation_batch_duration_seconds", "stage" => "decode").record(begun.elapsed());
        }
        Ok(weights)
    }

    /// Samples and decodes.
    ///
    /// # Errors
    /// As [`Self::sample`] and [`Self::decode`]; [`Error::Option`] where latents are to be refined, which needs examples.
    pub fn generate(
        &self,
        embedding: &Embedding,
        options: &SampleOptions,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Generated> {
        self.generate_on(embedding, options, None, progress)
    }

    /// As [`Self::generate`]; latents are refined on `examples` (as the networks take them, class k the head's row k),
    /// and statistics measured on them, where the options say so.
    ///
    /// # Errors
    /// As [`Self::generate`], [`Self::refine`] and [`Self::recalibrate`].
    pub fn generate_on(
        &self,
        embedding: &Embedding,
        options: &SampleOptions,
        examples: Option<&Dataset>,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Generated> {
        let start = Instant::now();
        let mut latents = self.sample(embedding, options, progress)?;
        if let Some(refine) = options.refine {
            let examples = examples.ok_or_else(|| Error::Option {
                option: "refine",
                found: refine.steps.to_string(),
                right: "left out where there are no labelled examples to refine on".into(),
            })?;
            let steps = options.effective_steps(&self.manifest.schedule) * options.count * self.rows();
            latents = self.refine(&latents, examples, &refine, &mut || progress(steps, steps))?;
        }
        let sampled = Instant::now();
        let mut weights = self.decode(&latents)?;
        if options.recalibrate {
            let examples = examples.ok_or_else(|| Error::Option {
                option: "recalibrate",
                found: "true".into(),
                right: "left out where there are no examples to measure on".into(),
            })?;
            weights = self.recalibrate(&weights, examples)?;
        }
        let milliseconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        let timings =
            Timings { sample_ms: milliseconds(start, sampled), decode_ms: milliseconds(sampled, Instant::now()) };
        Ok(Generated { weights, timings })
    }

    /// Accuracy and loss of the network `theta` on all of `dataset`, whose class k is the head's row k.
    ///
    /// # Errors
    /// As [`Forward::evaluate`].
    pub fn evaluate(&self, theta: &[f32], dataset: &Dataset) -> Result<Evaluation> {
        self.forward()?.evaluate(theta, &*self.network_data(dataset)?)
    }
}

/// Copies of a graph's weights that a loaded generator holds: its bytes, of which further sessions are made, the session with
/// all threads, and those that work beside each other, which are made when they are needed.
const COPIES: u64 = 3;

/// Bytes that a generator of this bundle holds when it is loaded, about.
pub fn memory(bundle: &Bundle) -> u64 {
    let size = |(name, bytes): (&str, &[u8])| {
        let length = bytes.len() as u64;
        match name {
            files::DENOISER => length * COPIES + convolutions::bytes(bytes),
            name if name.ends_with(".onnx") => length * COPIES,
            _ => length,
        }
    };
    bundle.entries().map(size).sum()
}

/// Index of the architecture `name` of a manifest.
fn architecture(manifest: &Manifest, name: &str) -> Result<usize> {
    let names = || manifest.architectures.iter().map(|entry| entry.name.as_str());
    names().position(|known| known == name).ok_or_else(|| Error::UnknownArchitecture {
        name: name.to_owned(),
        known: names().collect::<Vec<_>>().join(", "),
    })
}

/// Values of what the denoiser is told of a row.
fn told(manifest: &Manifest) -> usize {
    let contract = &manifest.encoder;
    let presence = contract.min_classes.map_or(0, |_| contract.classes);
    contract.condition_dim + manifest.vectorise.index_dim() + presence + usize::from(manifest.quality.is_some())
}

/// Checks the four networks' graphs; the forward graph checks itself.
fn check_graphs(
    manifest: &Manifest,
    encoder: &SessionPool,
    denoiser: &SessionPool,
    decoder: &SessionPool,
    vae_encoder: &SessionPool,
) -> Result<()> {
    let (contract, latent, length) = (&manifest.encoder, &manifest.latent.shape, [manifest.vectorise.length]);
    let features = [contract.classes, contract.images_per_class, contract.feature_dim];
    let condition = || Slot::batch("condition", &[contract.condition_dim]);
    let kinds = manifest.vectorise.index_dim();
    let with_index = |first| {
        let index = (kinds > 0).then(|| Slot::batch("index", &[kinds]));
        std::iter::once(first).chain(index).collect::<Vec<_>>()
    };
    let presence = contract.min_classes.map(|_| contract.classes);
    let told = told(manifest);
    let mut datasets = vec![Slot::batch("features", &features)];
    datasets.extend(presence.map(|classes| Slot::batch("presence", &[classes])));
    check(encoder, &datasets, &[Slot::batch("dataset", &[contract.embedding_dim]), condition()])?;
    check(
        denoiser,
        &[Slot::batch("latent", latent), Slot::timestep("timestep"), Slot::batch("condition", &[told])],
        &[Slot::batch("prediction", latent)],
    )?;
    check(decoder, &with_index(Slot::batch("latent", latent)), &[Slot::batch("weights", &length)])?;
    check(
        vae_encoder,
        &with_index(Slot::batch("weights", &length)),
        &[Slot::batch("mean", latent), Slot::batch("log_variance", latent)],
    )
}
