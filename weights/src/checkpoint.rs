//! Checkpoints from elsewhere: safetensors, and what `torch.save` writes. Only named tensors are taken; no code of a
//! file is ever run. What is read is where each tensor lies, so that a checkpoint of any size is copied, checked and
//! hashed in one pass at constant memory.
//!
//! The stored form is canonical: safetensors with the tensors sorted by the size of their values (largest first) and
//! then by name, and `{"format": "pt"}` as the only metadata. Every tensor keeps its name, type, shape and bits, so the
//! same tensors have the same digest whatever file they came in.

mod canonical;
mod layout;
mod pickle;
mod safetensors;
mod torch;

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom};

pub use canonical::Written;
pub use layout::TensorLayout;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest name of a tensor, in bytes.
const MAX_NAME: usize = 500;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 32;

/// Type of a tensor's values, named as in safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum Dtype {
    /// 64-bit floating point.
    F64,
    /// 32-bit floating point.
    #[default]
    F32,
    /// 16-bit floating point.
    F16,
    /// 16-bit floating point with the exponent of 32 bits.
    BF16,
    /// 64-bit signed.
    I64,
    /// 32-bit signed.
    I32,
    /// 16-bit signed.
    I16,
    /// 8-bit signed.
    I8,
    /// 64-bit unsigned.
    U64,
    /// 32-bit unsigned.
    U32,
    /// 16-bit unsigned.
    U16,
    /// 8-bit unsigned.
    U8,
    /// A byte that is 0 or 1.
    Bool,
}

impl Dtype {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Its name in safetensors.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// Whether its values may be NaN or infinite.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }
}

/// What a tensor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its shape, outermost dimension first; none for a single value.
    pub shape: Vec<usize>,
    /// The type of its values.
    #[serde(default)]
    pub dtype: Dtype,
}

impl TensorSpec {
    /// Number of values; none when it overflows.
    pub fn values(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, size| product.checked_mul(u64::try_from(*size).ok()?))
    }

    /// Bytes of its values; none when it overflows.
    pub fn bytes(&self) -> Option<u64> {
        self.values()?.checked_mul(self.dtype.size() as u64)
    }

    fn check(&self) -> Result<()> {
        let name: String = self.name.chars().take(100).collect();
        let refused = |reason: &str| Err(Error::TensorUnsupported { tensor: name.clone(), reason: reason.to_owned() });
        if self.name.is_empty() || self.name.len() > MAX_NAME || self.name.chars().any(char::is_control) {
            return refused("its name must have 1 to 500 bytes without control characters");
        }
        if self.name == "__metadata__" {
            return refused("its name is reserved by safetensors");
        }
        if self.shape.len() > MAX_DIMENSIONS || self.bytes().is_none_or(|bytes| bytes > i64::MAX as u64) {
            return refused("its shape is too large");
        }
        Ok(())
    }
}

/// Which tensors of a file to take, and under which names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Where the dictionary of tensors is in a PyTorch file, as in `model.state_dict`; none: at the top. Safetensors
    /// files have one level and pass it over.
    pub key: Option<String>,
    /// What to take off the beginning of names that have it, as in `module.`.
    pub strip_prefix: Option<String>,
}

/// How much a file may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all tensors together.
    pub bytes: u64,
    /// Bytes of a header or pickle.
    pub header: u64,
    /// Tensors.
    pub tensors: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, header: 64 << 20, tensors: 100_000 }
    }
}

/// A tensor and where its bytes begin.
#[derive(Debug, Clone)]
struct Found {
    spec: TensorSpec,
    start: u64,
}

/// A checkpoint whose tensors are known and not read yet.
#[derive(Debug)]
pub struct Checkpoint<R> {
    source: R,
    tensors: Vec<Found>,
}

impl<R: Read + Seek> Checkpoint<R> {
    /// Reads which tensors a file has; its form is told by its first bytes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], [`Error::Safetensors`], [`Error::NoTensors`], [`Error::NestedTensors`],
    /// [`Error::TensorUnsupported`], [`Error::CheckpointTooLarge`], [`Error::Read`].
    pub fn open(mut source: R, options: &Options, limits: &Limits) -> Result<Self> {
        source.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
        let mut start = Vec::new();
        source.by_ref().take(torch::LEGACY.len() as u64).read_to_end(&mut start).map_err(Error::Read)?;
        source.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
        let tensors = if start.starts_with(torch::ZIP) {
            torch::read_zip(&mut source, options, limits)?
        } else if start == torch::LEGACY {
            torch::read_legacy(&mut source, options, limits)?
        } else if start.get(8) == Some(&b'{') {
            safetensors::read(&mut source, limits)?
        } else {
            let text = "it is neither safetensors nor a file of torch.save; convert it to one of those";
            return Err(Error::Checkpoint(text.into()));
        };
        let tensors = renamed(tensors, options.strip_prefix.as_deref().unwrap_or_default())?;
        check(&tensors, limits)?;
        Ok(Self { source, tensors })
    }

    /// Its tensors, and at which byte of the file each begins, in the order of the file.
    pub fn places(&self) -> impl Iterator<Item = (&TensorSpec, u64)> {
        self.tensors.iter().map(|found| (&found.spec, found.start))
    }

    /// Names, shapes and types of its tensors, in the order of the file.
    pub fn layout(&self) -> TensorLayout {
        TensorLayout { params: self.tensors.iter().map(|found| found.spec.clone()).collect() }
    }
}

fn renamed(mut tensors: Vec<Found>, prefix: &str) -> Result<Vec<Found>> {
    for tensor in &mut tensors {
        if let Some(short) = tensor.spec.name.strip_prefix(prefix) {
            tensor.spec.name = short.to_owned();
        }
    }
    let mut names = HashSet::new();
    match tensors.iter().find(|tensor| !names.insert(tensor.spec.name.as_str())) {
        None => Ok(tensors),
        Some(twice) => Err(Error::TensorUnsupported {
            tensor: twice.spec.name.clone(),
            reason: "two tensors have that name once the prefix is off".into(),
        }),
    }
}

fn check(tensors: &[Found], limits: &Limits) -> Result<()> {
    if tensors.is_empty() {
        return Err(Error::NoTensors);
    }
    if tensors.len() > limits.tensors {
        let (found, limit) = (tensors.len() as u64, limits.tensors as u64);
        return Err(Error::CheckpointTooLarge { what: "the number of tensors", found, limit });
    }
    let mut total = 0u64;
    for tensor in tensors {
        tensor.spec.check()?;
        total = total.saturating_add(tensor.spec.bytes().unwrap_or(u64::MAX));
    }
    if total > limits.bytes {
        return Err(Error::CheckpointTooLarge { what: "the tensors together", found: total, limit: limits.bytes });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "checkpoint_tests.rs"]
mod tests;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "checkpoint_header_tests.rs"]
mod header_tests;
