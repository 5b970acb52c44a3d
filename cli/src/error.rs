//! The error that a command ends with: one line, and an exit code.

use std::path::{Path, PathBuf};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the user gave cannot be used.
    #[error("{text}")]
    Input {
        /// Stable code.
        code: &'static str,
        /// What is wrong and what would be right.
        text: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Labelled data.
    #[error(transparent)]
    Data(#[from] datasets::Error),
    /// Weights and bundles.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// Training.
    #[error(transparent)]
    Training(#[from] training::Error),
    /// Language models.
    #[error(transparent)]
    Language(::language::Error),
    /// ONNX Runtime.
    #[error(transparent)]
    Inference(#[from] inference::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The server.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// A request to a server.
    #[error("{0}")]
    Http(String),
    /// `fsck` found problems.
    #[error("{0} problems: see the report")]
    Damaged(u64),
    /// An exported graph differs from what was trained.
    #[error("{0}")]
    Parity(String),
    /// Something that should not happen.
    #[error("{0}")]
    Internal(String),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An input error.
    pub fn input(code: &'static str, text: impl Into<String>) -> Self {
        Self::Input { code, text: text.into() }
    }

    /// For `map_err` on file operations.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Input { code, .. } => code,
            Self::Io { .. } => "io",
            Self::Data(e) => e.code(),
            Self::Weights(e) => e.code(),
            Self::Training(e) => e.code(),
            Self::Language(e) => e.code(),
            Self::Inference(e) => e.code(),
            Self::Registry(e) => e.code(),
            Self::Api(e) => e.code(),
            Self::Http(_) => "http",
            Self::Damaged(_) => "damaged",
            Self::Parity(_) => "parity",
            Self::Internal(_) => "internal",
        }
    }

    /// 2 for bad input, 3 for a schema that lacks migrations, 130 for an interruption, 1 for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Training(training::Error::Interrupted) => 130,
            Self::Training(
                training::Error::Tensor(_) | training::Error::Diverged { .. } | training::Error::Collapsed { .. },
            ) => 1,
            Self::Input { .. } | Self::Io { .. } | Self::Data(_) | Self::Weights(_) | Self::Training(_) => 2,
            Self::Language(_) => 2,
            Self::Inference(inference::Error::Graph { .. }) => 1,
            Self::Registry(e)
                if matches!(
                    e.code(),
                    "database" | "storage" | "storage_full" | "io" | "artifact_corrupt" | "maintenance_busy"
                ) =>
            {
                1
            }
            Self::Registry(registry::Error::SchemaBehind { .. }) => 3,
            Self::Inference(_) | Self::Registry(_) | Self::Api(api::Error::OpenNeedsLoopback(_)) => 2,
            // What the API would call the client's mistake is one here too, as in an import.
            Self::Api(e) if e.status().is_client_error() => 2,
            Self::Api(_) | Self::Http(_) | Self::Damaged(_) | Self::Parity(_) | Self::Internal(_) => 1,
        }
    }
}

impl From<::language::Error> for Error {
    fn from(error: ::language::Error) -> Self {
        // Interruptions and divergence have exit codes of their own.
        match error {
            ::language::Error::Training(error) => Self::Training(error),
            error => Self::Language(error),
        }
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        // The chain says what happened on the wire; the outer error only that something did.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Http(text)
    }
}
