//! What all checkpoints of a zoo have in common: names, shapes and types of their tensors.

use std::collections::HashMap;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::TensorSpec;
use crate::error::{Error, Result};

/// Tensors an error lists at most.
const SHOWN: usize = 5;

/// Names, shapes and types, in order. As JSON: `{"params": [{"name", "shape", "offset", "dtype"}]}`, in which `offset`
/// is the number of values before the tensor; a layout without types is one of F32.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TensorLayout {
    /// The tensors.
    pub params: Vec<TensorSpec>,
}

#[derive(Serialize)]
struct Param<'a> {
    name: &'a str,
    shape: &'a [usize],
    offset: u64,
    dtype: super::Dtype,
}

impl Serialize for TensorLayout {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut offset = 0u64;
        let params: Vec<Param<'_>> = self
            .params
            .iter()
            .map(|spec| {
                let param = Param { name: &spec.name, shape: &spec.shape, offset, dtype: spec.dtype };
                offset = offset.saturating_add(spec.values().unwrap_or(u64::MAX));
                param
            })
            .collect();
        let mut object = serializer.serialize_struct("TensorLayout", 1)?;
        object.serialize_field("params", &params)?;
        object.end()
    }
}

impl TensorLayout {
    /// Checks a layout that somebody wrote down.
    ///
    /// # Errors
    /// [`Error::NoTensors`] or [`Error::TensorUnsupported`].
    pub fn validate(&self) -> Result<()> {
        if self.params.is_empty() {
            return Err(Error::NoTensors);
        }
        let mut names = std::collections::HashSet::new();
        for spec in &self.params {
            spec.check()?;
            if !names.insert(spec.name.as_str()) {
                let reason = "the layout names it twice; name each tensor once".to_owned();
                return Err(Error::TensorUnsupported { tensor: spec.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// Number of floating-point values: the parameters, and buffers such as running means.
    pub fn parameters(&self) -> u64 {
        let floats = self.params.iter().filter(|spec| spec.dtype.is_float());
        floats.fold(0, |sum, spec| sum.saturating_add(spec.values().unwrap_or(u64::MAX)))
    }

    /// Compares what a checkpoint has (`self`) with what it should have; the order does not matter.
    ///
    /// # Errors
    /// Names the first tensor that is missing, has another shape or type, or should not be there.
    pub fn fits(&self, expected: &Self) -> Result<()> {
        let found: HashMap<&str, &TensorSpec> = self.params.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        for wanted in &expected.params {
            let Some(spec) = found.get(wanted.name.as_str()) else {
                return Err(Error::MissingTensor { tensor: wanted.name.clone(), expected: expected.names() });
            };
            if spec.shape != wanted.shape {
                let (tensor, found, expected) = (spec.name.clone(), spec.shape.clone(), wanted.shape.clone());
                return Err(Error::TensorShape { tensor, found, expected });
            }
            if spec.dtype != wanted.dtype {
                let (tensor, found, expected) = (spec.name.clone(), spec.dtype.name(), wanted.dtype.name());
                return Err(Error::TensorDtype { tensor, found, expected });
            }
        }
        let names: std::collections::HashSet<&str> = expected.params.iter().map(|spec| spec.name.as_str()).collect();
        match self.params.iter().find(|spec| !names.contains(spec.name.as_str())) {
            None => Ok(()),
            Some(spec) => Err(Error::UnexpectedTensor { tensor: spec.name.clone(), expected: expected.names() }),
        }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.params.iter().take(SHOWN).map(|spec| spec.name.as_str()).collect();
        match self.params.len() {
            0..=SHOWN => names.join(", "),
            all => format!("{}, … ({all} tensors)", names.join(", ")),
        }
    }
}
