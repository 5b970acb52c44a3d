//! Layout of a network's parameters inside one flat vector (paper A.2).

use serde::{Deserialize, Serialize};

/// ε of batch normalisation: it divides by √(variance + ε). That of PyTorch and ONNX.
pub const NORM_EPSILON: f64 = 1e-5;

/// One parameter: its name in checkpoints, its shape and where it lies in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParamSpec {
    /// Name as in a state dict, `layer.weight` or `layer.bias`.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Index of its first value in the flat vector.
    pub offset: usize,
}

impl ParamSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is a statistic of the data and no trained weight: the running mean and variance of a normalisation.
    /// They are measured on images, and generated along with the weights.
    pub fn is_buffer(&self) -> bool {
        self.name.ends_with(".running_mean") || self.is_variance()
    }

    /// Whether its values are variances, which are never negative.
    pub fn is_variance(&self) -> bool {
        self.name.ends_with(".running_var")
    }

    /// Range of its values in the flat vector.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Parameters in order: per layer the weight, then the bias, flattened row-major and concatenated: θ ∈ R^d.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The parameters in the order of the flat vector.
    pub params: Vec<ParamSpec>,
}

impl Layout {
    /// Builds a layout from names and shapes in order.
    pub fn new<N: Into<String>>(params: impl IntoIterator<Item = (N, Vec<usize>)>) -> Self {
        let mut offset = 0;
        let params = params
            .into_iter()
            .map(|(name, shape)| {
                let spec = ParamSpec { name: name.into(), shape, offset };
                offset += spec.len();
                spec
            })
            .collect();
        Self { params }
    }

    /// Number of parameters d.
    pub fn parameters(&self) -> usize {
        self.params.iter().map(ParamSpec::len).sum()
    }

    /// The buffers: see [`ParamSpec::is_buffer`].
    pub fn buffers(&self) -> impl Iterator<Item = &ParamSpec> {
        self.params.iter().filter(|p| p.is_buffer())
    }

    /// The parameter named `name`.
    pub fn get(&self, name: &str) -> Option<&ParamSpec> {
        self.params.iter().find(|p| p.name == name)
    }

    /// Names of all parameters, for messages.
    pub fn names(&self) -> String {
        self.params.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}
