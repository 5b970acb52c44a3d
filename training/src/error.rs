//! The error type of this crate.

use std::path::{Path, PathBuf};

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration value makes no sense; says what would be right.
    #[error("configuration: {0}")]
    Config(String),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] datasets::Error),
    /// A layout, vector or bundle does not fit.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A zoo directory is damaged or belongs to another configuration.
    #[error("zoo {path}: {reason}")]
    Zoo {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A loss became NaN or infinite.
    #[error("{stage}: the loss is not finite at step {step}; lower the learning rate or raise the loss weights' floor")]
    Diverged {
        /// Which stage.
        stage: &'static str,
        /// Optimiser step.
        step: usize,
    },
    /// The latents of all checkpoints are one point: nothing can be generated from them.
    #[error(
        "{stage}: the latent has collapsed at step {step}: its largest deviation over checkpoints is {deviation:.1e}; \
         lower vae.beta, or raise vae.mse or vae.behaviour"
    )]
    Collapsed {
        /// Which stage.
        stage: &'static str,
        /// Optimiser step.
        step: usize,
        /// Largest standard deviation of a latent's dimension over checkpoints.
        deviation: f32,
    },
    /// CUDA was asked for and cannot be used; says what is missing.
    #[error("CUDA cannot be used for training: {0}")]
    NoCuda(String),
    /// Snapshots cannot be kept or read.
    #[error("snapshots: {0}")]
    Snapshots(String),
    /// The user asked to stop; what was done so far is kept where snapshots are.
    #[error("interrupted; the same command continues where it stopped")]
    Interrupted,
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    /// A stable code for clients.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "config_invalid",
            Self::Data(e) => e.code(),
            Self::Weights(e) => e.code(),
            Self::Tensor(_) => "tensor_operation",
            Self::Io { .. } => "io",
            Self::Zoo { .. } => "zoo_invalid",
            Self::Diverged { .. } => "diverged",
            Self::Collapsed { .. } => "collapsed",
            Self::NoCuda(_) => "cuda_unavailable",
            Self::Snapshots(_) => "snapshots_unavailable",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
