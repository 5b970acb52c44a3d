//! What all handlers share.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use datasets::Dataset;
use inference::{Generator, Runtime, SampleLimits};
use language::text::Descriptions;
use registry::embeddings::{self, SubjectKind};
use registry::generators::GeneratorVersion;
use registry::jobs::Watch;
use registry::{JobId, Registry, VersionId};
use tokio::sync::{broadcast, watch};

use crate::auth::{AuthSettings, Known};
use crate::cache::Cache;
use crate::error::Result;
use crate::health::Probes;
use crate::inline::LABELLED;
use crate::limits::{Work, blocking};
use crate::manners::Origin;
use crate::texts;

/// Datasets above this many bytes are read anew for each request.
const LARGEST_CACHED_DATASET: i64 = 256 << 20;

/// Spreads of zoos that are kept.
const SPREADS_CACHED: usize = 64;

/// What an operator may choose about serving.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Address to listen on.
    pub bind: SocketAddr,
    /// Most bytes of a request's body.
    pub body_limit: usize,
    /// Most samples of one generation.
    pub max_count: usize,
    /// Generations of more samples than this are jobs.
    pub async_above: usize,
    /// Most sampling steps of one generation.
    pub max_steps: usize,
    /// Requests that may wait for a place to work.
    pub queue: usize,
    /// Requests that work at a time; 0 means as many as share a run of the denoiser.
    pub workers: usize,
    /// Generators kept loaded.
    pub generators_cached: usize,
    /// Memory of the generators kept loaded, in bytes.
    pub generators_memory: u64,
    /// Registered datasets kept in memory.
    pub datasets_cached: usize,
    /// Longest time to answer a request; a download under way is not cut off.
    pub timeout: Duration,
    /// How long requests under way may go on after the signal to stop.
    pub grace: Duration,
    /// Most bytes of an uploaded file.
    pub upload_limit: u64,
    /// Folder that uploads are kept in while they are read; none: the system's.
    pub upload_dir: Option<std::path::PathBuf>,
    /// Folder of language models, a directory each; none: there are none.
    pub models: Option<std::path::PathBuf>,
    /// Longest time from a connection's beginning, or from an answer, to the end of the next request's head.
    pub header_timeout: Duration,
    /// Longest pause in a request's body.
    pub body_timeout: Duration,
    /// Origins of pages that may use the API from a browser.
    pub cors_origins: Vec<Origin>,
    /// Whether `/metrics` is served by [`crate::server::serve_metrics`], and not with the rest.
    pub metrics_elsewhere: bool,
    /// Limits of labelled data that clients send.
    pub datasets: datasets::Limits,
    /// How clients prove who they are.
    pub auth: AuthSettings,
}

impl Settings {
    /// Folder of temporary files.
    pub fn folder(&self) -> std::path::PathBuf {
        self.upload_dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            body_limit: 32 << 20,
            max_count: 256,
            async_above: 256,
            max_steps: 10_000,
            queue: 64,
            workers: 0,
            generators_cached: 64,
            generators_memory: 2 << 30,
            datasets_cached: 4,
            timeout: Duration::from_secs(300),
            grace: Duration::from_secs(30),
            upload_limit: 2 << 30,
            upload_dir: None,
            models: None,
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(30),
            cors_origins: Vec::new(),
            metrics_elsewhere: false,
            datasets: datasets::Limits {
                max_examples: 100_000,
                max_classes: 1_000,
                max_decompressed_bytes: 256 << 20,
                max_values: 256 << 20,
                max_files: 110_000,
                max_compressed_bytes: 2 << 30,
                ..datasets::Limits::default()
            },
            auth: AuthSettings::default(),
        }
    }
}

/// The state of a server; clones share it.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

/// A generator version in memory.
struct Loaded {
    generator: Arc<Generator>,
    texts: Option<Arc<Descriptions>>,
    /// Bytes that it holds.
    memory: u64,
}

struct Inner {
    registry: Registry,
    runtime: Runtime,
    probes: Probes,
    settings: Settings,
    work: Work,
    generators: Cache<Loaded>,
    datasets: Cache<Dataset>,
    spreads: Cache<Option<f64>>,
    jobs: OnceLock<Watch>,
    stopping: watch::Sender<bool>,
    known: Known,
}

impl AppState {
    /// The state over a connected registry and a loaded ONNX Runtime.
    #[must_use]
    pub fn new(registry: Registry, runtime: Runtime, settings: Settings) -> Self {
        // They share the runs of the denoiser, and are there to fill them.
        let workers = if settings.workers == 0 { inference::BATCH_ROWS } else { settings.workers };
        Self(Arc::new(Inner {
            work: Work::new(workers, settings.queue),
            generators: Cache::sized(settings.generators_cached, settings.generators_memory, |loaded| loaded.memory),
            datasets: Cache::new(settings.datasets_cached),
            spreads: Cache::new(SPREADS_CACHED),
            jobs: OnceLock::new(),
            stopping: watch::Sender::new(false),
            probes: Probes::default(),
            known: Known::default(),
            registry,
            runtime,
            settings,
        }))
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The ONNX Runtime.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.0.runtime
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Says which jobs have news. The first call, on an async runtime, begins to listen.
    pub(crate) fn job_notices(&self) -> broadcast::Receiver<JobId> {
        self.0.jobs.get_or_init(|| Watch::start(self.registry())).subscribe()
    }

    /// Becomes true when the server stops: answers without an end end then.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.subscribe()
    }

    pub(crate) fn stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// Looks at all that the server needs, so that the first request does not wait for it. What is not ready now may be
    /// later: `/health/ready` says so.
    pub async fn warm_up(&self) {
        crate::health::check(self).await;
    }

    pub(crate) fn probes(&self) -> &Probes {
        &self.0.probes
    }

    /// Tokens that were recognised a moment ago.
    pub(crate) fn known(&self) -> &Known {
        &self.0.known
    }

    pub(crate) fn work(&self) -> &Work {
        &self.0.work
    }

    /// Upper bounds of sampling options.
    pub(crate) fn sample_limits(&self) -> SampleLimits {
        let Settings { max_count, max_steps, .. } = self.0.settings;
        SampleLimits { max_count, max_steps, ..SampleLimits::default() }
    }

    /// A generator version, loaded.
    pub(crate) async fn generator(&self, version: &GeneratorVersion) -> Result<Arc<Generator>> {
        self.loaded(version).await.map(|loaded| loaded.generator.clone())
    }

    /// What embeds texts for a generator version; none where it takes labelled examples.
    pub(crate) async fn texts(&self, version: &GeneratorVersion) -> Result<Option<Arc<Descriptions>>> {
        self.loaded(version).await.map(|loaded| loaded.texts.clone())
    }

    async fn loaded(&self, version: &GeneratorVersion) -> Result<Arc<Loaded>> {
        self.0.generators.get(&version.digest, || self.load_generator(version)).await
    }

    async fn load_generator(&self, version: &GeneratorVersion) -> Result<Loaded> {
        let tar = self.registry().artifacts().read(&version.artifact_digest).await?;
        let (runtime, expected) = (self.runtime().clone(), version.digest.clone());
        blocking(move || {
            let bundle = weights::Bundle::read_tar(&tar[..])?;
            if bundle.digest() != expected {
                let reason = format!("its digest is {}, the registry has {expected}", bundle.digest());
                return Err(weights::Error::Bundle(reason).into());
            }
            let memory = inference::memory(&bundle);
            let texts = Descriptions::of(&bundle).map_err(crate::Error::Language)?.map(Arc::new);
            Ok(Loaded { generator: Arc::new(Generator::load(&runtime, bundle)?), texts, memory })
        })
        .await
    }

    /// The spread of the embeddings of a version's runs, of which there are some.
    pub(crate) async fn spread(&self, version: VersionId) -> Result<Option<f64>> {
        let load = || async { Ok(embeddings::spread(self.registry(), version, SubjectKind::Run).await?) };
        self.0.spreads.get(&version.to_string(), load).await.map(|spread| *spread)
    }

    /// A registered dataset of labelled examples, read.
    pub(crate) async fn dataset(&self, row: &registry::datasets::Dataset) -> Result<Arc<Dataset>> {
        if row.modality == texts::MODALITY {
            return Err(texts::mismatch(texts::MODALITY, LABELLED));
        }
        let values: i64 = row.shape.iter().map(|d| i64::from(*d)).product();
        if values.saturating_mul(row.examples) > LARGEST_CACHED_DATASET {
            return self.load_dataset(row).await.map(Arc::new);
        }
        self.0.datasets.get(&row.artifact_digest, || self.load_dataset(row)).await
    }

    /// A registered text, read.
    pub(crate) async fn text(&self, row: &registry::datasets::Dataset) -> Result<Arc<str>> {
        if row.modality != texts::MODALITY {
            return Err(texts::mismatch(&row.modality, texts::MODALITY));
        }
        let bytes = self.registry().artifacts().read(&row.artifact_digest).await?;
        let text = std::str::from_utf8(&bytes).map_err(|error| crate::Error::Internal(error.to_string()))?;
        Ok(Arc::from(text))
    }

    async fn load_dataset(&self, row: &registry::datasets::Dataset) -> Result<Dataset> {
        let npz = self.registry().artifacts().read(&row.artifact_digest).await?;
        let digest = row.artifact_digest.clone();
        blocking(move || {
            // What is stored was checked when it came, so a file that cannot be read now is not the client's fault.
            datasets::npz::from_npz(&npz, &datasets::Limits::default()).map_err(|error| {
                crate::Error::Internal(format!("the stored dataset {digest} is not readable: {error}"))
            })
        })
        .await
    }
}
