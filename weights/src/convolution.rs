//! A convolution without bias and the batch normalisation that follows it: what residual networks are made of.

use crate::layout::ParamSpec;

/// A convolution with its normalisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Convolution {
    /// Its name.
    pub name: String,
    /// Name of its normalisation.
    pub norm: String,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Side of its kernel, odd; images are padded by half of it.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// 1, or the number of channels where each channel is convolved alone.
    pub groups: usize,
}

/// Parameters of a convolution with its normalisation: weight; scale, shift, running mean and running variance.
pub const PARAMS: usize = 5;

/// What a normalisation stores, behind its name.
const NORM: [&str; PARAMS - 1] = ["weight", "bias", "running_mean", "running_var"];

impl Convolution {
    /// One over all channels.
    pub fn new(name: impl Into<String>, norm: impl Into<String>, channels: [usize; 2], size: [usize; 2]) -> Self {
        let ([inputs, outputs], [kernel, stride]) = (channels, size);
        Self { name: name.into(), norm: norm.into(), inputs, outputs, kernel, stride, groups: 1 }
    }

    /// Names and shapes of its parameters.
    pub fn params(&self) -> Vec<(String, Vec<usize>)> {
        let weight = vec![self.outputs, self.inputs / self.groups, self.kernel, self.kernel];
        let norm = NORM.iter().map(|part| (format!("{}.{part}", self.norm), vec![self.outputs]));
        std::iter::once((format!("{}.weight", self.name), weight)).chain(norm).collect()
    }

    /// Its parameters as those of exchangeable output channels.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (String, usize)> + '_ {
        self.params().into_iter().map(|(name, _)| (name, 1))
    }

    /// Its weight as that of exchangeable input channels.
    pub(crate) fn columns(&self) -> (String, usize) {
        (format!("{}.weight", self.name), self.outputs)
    }
}

/// Whether a parameter is a normalisation's scale, which is 1 at the start.
pub fn is_scale(param: &ParamSpec) -> bool {
    param.shape.len() == 1 && param.name.ends_with(".weight")
}
