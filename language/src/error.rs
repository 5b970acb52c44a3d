//! The error type of this crate.

use std::path::{Path, PathBuf};

/// Why something of a language model was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory is no model, or one that is not read.
    #[error("model {path}: {reason}")]
    Model {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Texts, tokens or settings of a language model that cannot be used.
    #[error("{0}")]
    Text(String),
    /// A model could not be evaluated.
    #[error("evaluation: {0}")]
    Evaluator(String),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A layout or matrix does not fit.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// Training or generation failed.
    #[error(transparent)]
    Training(#[from] training::Error),
}

impl Error {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Model { .. } => "model_invalid",
            Self::Text(_) => "text_invalid",
            Self::Evaluator(_) => "evaluation_failed",
            Self::Io { .. } => "io",
            Self::Weights(e) => e.code(),
            Self::Training(e) => e.code(),
        }
    }

    /// For `map_err` on file operations.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    /// Its sentence without the folder that the paths in it are in: for those who are not to know the machine.
    pub fn within(&self, folder: &Path) -> String {
        self.to_string().replace(&folder.join("").display().to_string(), "")
    }

    /// A directory that is no model, and why.
    pub(crate) fn model(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Model { path: path.as_ref().to_owned(), reason: reason.into() }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
