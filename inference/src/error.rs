//! The error type of this crate.

use std::path::PathBuf;

/// Why a generator could not be loaded, or a request could not be met.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No ONNX Runtime library was named.
    #[error(
        "no ONNX Runtime library is set; set WEIGHTSMITH_ORT to libonnxruntime.so (version 1.{minimum} or newer) or to \
         the folder that holds it"
    )]
    RuntimeUnset {
        /// Oldest usable minor version.
        minimum: u32,
    },
    /// The path named as the library holds none.
    #[error(
        "WEIGHTSMITH_ORT names {path}, where there is no libonnxruntime.so; it must be that file or a folder that holds it",
        path = .0.display()
    )]
    RuntimeMissing(PathBuf),
    /// The library cannot be loaded or is too old.
    #[error(
        "{path} cannot be used as ONNX Runtime ({reason}); WEIGHTSMITH_ORT must name a libonnxruntime.so of version \
         1.{minimum} or newer, built for this system",
        path = .path.display()
    )]
    RuntimeUnusable {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        reason: String,
        /// Oldest usable minor version.
        minimum: u32,
    },
    /// Another library is already loaded in this process.
    #[error("this process already uses {loaded}, so it cannot load {asked}; one process works with one library",
        loaded = .loaded.display(), asked = .asked.display())]
    RuntimeConflict {
        /// The library in use.
        loaded: PathBuf,
        /// The library asked for.
        asked: PathBuf,
    },
    /// CUDA was demanded and cannot be used.
    #[error(
        "device cuda cannot be used ({0}); it needs an NVIDIA GPU and WEIGHTSMITH_ORT set to the library of \
         onnxruntime-gpu, or use device auto or cpu"
    )]
    CudaUnavailable(String),
    /// A device of no known name.
    #[error("unknown device {0:?}; use auto, cpu or cuda")]
    UnknownDevice(String),
    /// A sampler of no known name.
    #[error("unknown sampler {0:?}; use ddim, ddpm or dpm_solver_pp")]
    UnknownSampler(String),
    /// A graph of the bundle is not what the manifest says.
    #[error("not a usable generator bundle: {0}")]
    Bundle(String),
    /// A feature extractor that cannot be used.
    #[error("the feature extractor {name:?} cannot be used: {reason}")]
    Extractor {
        /// Its name.
        name: String,
        /// What does not fit, and what would.
        reason: String,
    },
    /// A graph failed while it ran.
    #[error("{graph} failed in ONNX Runtime: {reason}")]
    Graph {
        /// The graph's file name.
        graph: String,
        /// What ONNX Runtime says.
        reason: String,
    },
    /// The dataset is of another kind than the generator takes.
    #[error("the dataset holds {found} examples; this generator takes {expected} examples")]
    ModalityMismatch {
        /// Kind of the dataset.
        found: String,
        /// Kind that the generator takes.
        expected: String,
    },
    /// Examples of another shape than needed.
    #[error("the dataset's examples have shape {found:?}; {needs} needs {expected:?}")]
    ShapeMismatch {
        /// Shape of the dataset's examples.
        found: Vec<usize>,
        /// What needs another.
        needs: &'static str,
        /// The shape needed.
        expected: Vec<usize>,
    },
    /// Another number of classes than needed.
    #[error("{found} classes were given; {needs} needs exactly {expected}")]
    ClassesMismatch {
        /// Classes found.
        found: usize,
        /// What needs another number.
        needs: &'static str,
        /// The number needed.
        expected: usize,
    },
    /// A number of classes that a generator for any number of classes does not take.
    #[error("{found} classes were given; this generator takes any number from {least} to {most}")]
    ClassesOutside {
        /// Classes found.
        found: usize,
        /// The smallest number.
        least: usize,
        /// The largest number.
        most: usize,
    },
    /// Networks that no graph of the bundle runs.
    #[error("{architecture} is an adapter of a text model: it has no graph to be evaluated or refined with here")]
    NoForward {
        /// Its name.
        architecture: String,
    },
    /// NaN or an infinity.
    #[error("{what} hold a value that is not finite at position {position}; every value must be a finite number")]
    NonFinite {
        /// Which values, in the plural.
        what: String,
        /// Index of the first such value.
        position: usize,
    },
    /// A vector of another length than needed.
    #[error("{what} have {found} values; {expected} are needed")]
    Length {
        /// Which values, in the plural.
        what: &'static str,
        /// Values found.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// A sampling option outside its range.
    #[error("{option} is {found}; it must be {right}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// The value given.
        found: String,
        /// The values allowed.
        right: String,
    },
    /// No architecture of that name in the generator.
    #[error("there is no architecture {name} in this generator; it makes {known}")]
    UnknownArchitecture {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The caller's progress function asked to stop.
    #[error("sampling was cancelled at step {step} of {total}")]
    Cancelled {
        /// Steps done.
        step: usize,
        /// Steps in all.
        total: usize,
    },
    /// From the domain core.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// From the dataset.
    #[error(transparent)]
    Dataset(#[from] datasets::Error),
}

impl Error {
    /// A stable code for clients.
    pub fn code(&self) -> &'static str {
        match self {
            Self::RuntimeUnset { .. } | Self::RuntimeMissing(_) => "runtime_missing",
            Self::RuntimeUnusable { .. } => "runtime_unusable",
            Self::RuntimeConflict { .. } => "runtime_conflict",
            Self::CudaUnavailable(_) => "cuda_unavailable",
            Self::UnknownDevice(_) => "unknown_device",
            Self::UnknownSampler(_) => "unknown_sampler",
            Self::Bundle(_) => "bundle_invalid",
            Self::Extractor { .. } => "extractor_invalid",
            Self::Graph { .. } => "graph_failed",
            Self::ModalityMismatch { .. } => "modality_mismatch",
            Self::NoForward { .. } => "no_forward",
            Self::ShapeMismatch { .. } => "shape_mismatch",
            Self::ClassesMismatch { .. } | Self::ClassesOutside { .. } => "classes_mismatch",
            Self::NonFinite { .. } => "non_finite",
            Self::Length { .. } => "length_mismatch",
            Self::Option { .. } => "option_invalid",
            Self::UnknownArchitecture { .. } => "unknown_architecture",
            Self::Cancelled { .. } => "cancelled",
            Self::Weights(error) => error.code(),
            Self::Dataset(error) => error.code(),
        }
    }
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Fails with [`Error::NonFinite`] at the first NaN or infinity.
pub(crate) fn check_finite(what: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(position) => Err(Error::NonFinite { what: what.to_owned(), position }),
    }
}

/// Fails with [`Error::Length`] unless `found` is `expected`.
pub(crate) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::Length { what, found, expected }),
    }
}
