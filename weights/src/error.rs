//! The error type of this crate.

/// Why a value of the domain core was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An architecture's sizes make no network.
    #[error("architecture {name}: {reason}")]
    Architecture {
        /// The architecture's name.
        name: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A matrix has no spectrum.
    #[error("a matrix of {rows} rows and {cols} columns: {reason}")]
    Matrix {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is absent from a weights file.
    #[error("tensor {tensor} is missing; the layout needs {expected}")]
    MissingTensor {
        /// The parameter's name.
        tensor: String,
        /// The tensors that the layout has.
        expected: String,
    },
    /// A tensor has another shape than the layout gives it.
    #[error("tensor {tensor} has shape {found:?}; the layout needs {expected:?}")]
    TensorShape {
        /// The parameter's name.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape in the layout.
        expected: Vec<usize>,
    },
    /// A tensor has a type other than f32.
    #[error("tensor {tensor} is {found}; weights are read as F32")]
    TensorType {
        /// The parameter's name.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor has another type than the layout gives it.
    #[error("tensor {tensor} is {found}; the layout needs {expected}")]
    TensorDtype {
        /// The parameter's name.
        tensor: String,
        /// The type in the file.
        found: &'static str,
        /// The type in the layout.
        expected: &'static str,
    },
    /// A tensor that the layout does not have.
    #[error("tensor {tensor} should not be there; the layout has {expected}")]
    UnexpectedTensor {
        /// The tensor's name.
        tensor: String,
        /// The tensors that the layout has.
        expected: String,
    },
    /// A tensor of a kind that is not read.
    #[error("tensor {tensor} cannot be used: {reason}")]
    TensorUnsupported {
        /// The tensor's name.
        tensor: String,
        /// What it is, and what would be right.
        reason: String,
    },
    /// A checkpoint without tensors.
    #[error("there are no tensors in it; give a state dict, or the key path of the one inside")]
    NoTensors,
    /// The tensors are further down.
    #[error("its tensors are nested; choose one of the keys {keys}")]
    NestedTensors {
        /// Where there are tensors.
        keys: String,
    },
    /// A file is not a checkpoint.
    #[error("not a usable checkpoint: {0}")]
    Checkpoint(String),
    /// A checkpoint asks for too much.
    #[error("{what} of the checkpoint is {found}; the limit is {limit}")]
    CheckpointTooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: u64,
        /// How large it may be.
        limit: u64,
    },
    /// The source failed.
    #[error("the file could not be read to its end: {0}")]
    Read(#[source] std::io::Error),
    /// The destination failed.
    #[error("the tensors could not be written: {0}")]
    Write(#[source] std::io::Error),
    /// A value is NaN or infinite.
    #[error("{what} holds a value that is not finite at position {position}; every weight must be a finite number")]
    NotFinite {
        /// Which tensor or vector.
        what: String,
        /// Index of the first such value.
        position: usize,
    },
    /// A vector's length does not fit.
    #[error("{what} has {found} values; {expected} are needed")]
    Length {
        /// Which vector.
        what: String,
        /// Values found.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// Networks cannot be cut into rows in this way.
    #[error("vectors: {0}")]
    Vectorise(String),
    /// The generated parameters are not a part of the network.
    #[error("part of a network: {0}")]
    Part(String),
    /// A file is not safetensors.
    #[error("not a safetensors file: {0}")]
    Safetensors(String),
    /// A bundle is damaged or not a bundle.
    #[error("not a usable generator bundle: {0}")]
    Bundle(String),
}

impl Error {
    /// A stable code for clients.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Architecture { .. } => "architecture_invalid",
            Self::MissingTensor { .. } => "tensor_missing",
            Self::TensorShape { .. } => "tensor_shape",
            Self::TensorType { .. } | Self::TensorDtype { .. } => "tensor_type",
            Self::UnexpectedTensor { .. } => "tensor_unexpected",
            Self::TensorUnsupported { .. } => "tensor_unsupported",
            Self::NoTensors => "no_tensors",
            Self::NestedTensors { .. } => "tensors_nested",
            Self::Checkpoint(_) => "checkpoint_invalid",
            Self::CheckpointTooLarge { .. } => "checkpoint_too_large",
            Self::Read(_) | Self::Write(_) => "io",
            Self::NotFinite { .. } => "non_finite",
            Self::Length { .. } => "length_mismatch",
            Self::Vectorise(_) => "vectors_invalid",
            Self::Part(_) => "part_invalid",
            Self::Safetensors(_) => "safetensors_invalid",
            Self::Bundle(_) => "bundle_invalid",
            Self::Matrix { .. } => "matrix_invalid",
        }
    }
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Fails with [`Error::Length`] unless `found` equals `expected`.
pub(crate) fn check_length(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Length { what: what.to_owned(), found, expected })
}

/// Fails with [`Error::NotFinite`] at the first NaN or infinity of `values`.
pub fn check_finite(what: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(position) => Err(Error::NotFinite { what: what.to_owned(), position }),
    }
}
