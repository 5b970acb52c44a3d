//! Vectorising (paper A.2), model-wise: all layers concatenated and zero-padded to the longest network of the zoo.

use serde::{Deserialize, Serialize};

use crate::error::{Result, check_length};

/// How networks become vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum VectoriseMode {
    /// One vector a network, padded to the zoo's longest.
    #[default]
    ModelWise,
}

/// Vectorising of a zoo: the mode and the padded length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vectorise {
    /// Mode.
    pub mode: VectoriseMode,
    /// Length of each vector after padding, d_max.
    pub length: usize,
}

impl Vectorise {
    /// Model-wise vectors for networks with these numbers of parameters.
    pub fn model_wise(parameters: &[usize]) -> Self {
        Self { mode: VectoriseMode::ModelWise, length: parameters.iter().copied().max().unwrap_or(0) }
    }

    /// Pads `theta` (`[d]`, d ≤ `length`) with zeros to `[length]`.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when `theta` is longer than the vectors.
    pub fn pad(&self, theta: &[f32]) -> Result<Vec<f32>> {
        if theta.len() > self.length {
            check_length("the weight vector", theta.len(), self.length)?;
        }
        let mut padded = theta.to_vec();
        padded.resize(self.length, 0.0);
        Ok(padded)
    }

    /// The first `parameters` values of a padded vector (`[length]`).
    ///
    /// # Errors
    /// [`crate::Error::Length`] when `padded` has another length or fewer values than asked.
    pub fn unpad<'a>(&self, padded: &'a [f32], parameters: usize) -> Result<&'a [f32]> {
        check_length("the padded vector", padded.len(), self.length)?;
        padded.get(..parameters).ok_or_else(|| crate::Error::Length {
            what: "the padded vector".to_owned(),
            found: padded.len(),
            expected: parameters,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pad_then_unpad_is_exact(theta in proptest::collection::vec(-1e6f32..1e6, 0..50), more in 0usize..20) {
            let vectorise = Vectorise::model_wise(&[theta.len(), theta.len() + more]);
            let padded = vectorise.pad(&theta).unwrap();
            prop_assert_eq!(padded.len(), theta.len() + more);
            prop_assert_eq!(vectorise.unpad(&padded, theta.len()).unwrap(), &theta[..]);
        }
    }

    #[test]
    fn too_long_is_refused() {
        assert!(Vectorise::model_wise(&[3]).pad(&[0.0; 4]).is_err());
        assert!(Vectorise::model_wise(&[3]).unpad(&[0.0; 3], 4).is_err());
    }
}
