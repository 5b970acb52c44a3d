//! Networks whose weights have a model axis: whole ones, or the generated part of ones whose rest is frozen.

use candle_core::{Device, Tensor};
use weights::{Architecture, Layout};

use crate::backend::Models;
use crate::data::TaskData;
use crate::error::Result;
use crate::frozen::Frozen;
use crate::networks::target;

/// What weights are: whole networks, or the generated part of ones whose rest is frozen and whose examples have been
/// through the first half.
#[derive(Debug, Clone, Copy)]
pub struct Net<'a> {
    architecture: &'a Architecture,
    frozen: Option<&'a Frozen>,
}

impl<'a> Net<'a> {
    /// Networks of `architecture`, with the frozen rest that there is.
    pub fn new(architecture: &'a Architecture, frozen: Option<&'a Frozen>) -> Self {
        Self { architecture, frozen }
    }

    /// Networks for these tasks.
    pub(crate) fn of(architecture: &'a Architecture, tasks: &[TaskData<'a>]) -> Self {
        Self::new(architecture, tasks.first().and_then(TaskData::frozen))
    }

    /// Layout of the weights.
    pub fn layout(&self) -> Layout {
        self.frozen.map_or_else(|| self.architecture.layout(), |frozen| frozen.part().layout().clone())
    }

    /// Shape of an example.
    fn input_shape(&self) -> Vec<usize> {
        self.frozen.map_or_else(|| self.architecture.input_shape(), |frozen| vec![frozen.dim()])
    }

    pub(crate) fn input_dim(&self) -> usize {
        self.input_shape().iter().product()
    }

    /// Values that a pass holds of one example.
    pub(crate) fn activations(&self) -> usize {
        self.frozen.map_or_else(|| self.architecture.activations(), Frozen::dim)
    }

    /// Inputs as a tensor `[m, n, …input]`.
    ///
    /// # Errors
    /// When the length does not fit.
    pub fn inputs(&self, x: Vec<f32>, models: usize, device: &Device) -> Result<Tensor> {
        let n = x.len() / self.input_dim() / models.max(1);
        let shape: Vec<usize> = [models, n].into_iter().chain(self.input_shape()).collect();
        Ok(Tensor::from_vec(x, shape, device)?)
    }

    /// Logits `[m, n, classes]` of models with these parameters (`[m, …shape]` each) on inputs `x [m, n, …input]`.
    pub(crate) fn forward(&self, models: &mut Models, params: &[Tensor], x: &Tensor) -> Result<Tensor> {
        match self.frozen {
            Some(frozen) => frozen.second_half(models, params, x),
            None => target::forward(models, self.architecture, params, x),
        }
    }

    /// Logits `[m, n, classes]` of models with weights `theta [m, d]` on inputs `x [m, n, …input]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, theta: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.forward(&mut Models::default(), &split(theta, &self.layout())?, x)
    }

    /// The weights `theta` (`[d]`) with the statistics of their normalisations measured on examples (`n · input` values) in
    /// place of those that they have; the same where they have none.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn recalibrate(&self, theta: &[f32], x: Vec<f32>) -> Result<Vec<f32>> {
        let (layout, mut theta) = (self.layout(), theta.to_vec());
        if layout.buffers().next().is_none() {
            return Ok(theta);
        }
        let device = crate::device::current();
        let params = split(&Tensor::from_slice(&theta, (1, theta.len()), &device)?, &layout)?;
        let mut models = Models::measuring();
        self.forward(&mut models, &params, &self.inputs(x, 1, &device)?)?;
        let statistics = models.statistics();
        for (buffer, values) in layout.buffers().zip(statistics.iter().flatten()) {
            theta[buffer.range()].copy_from_slice(&values.flatten_all()?.to_vec1()?);
        }
        Ok(theta)
    }

    /// Whether nothing of the networks is frozen.
    pub(crate) fn is_whole(&self) -> bool {
        self.frozen.is_none()
    }

    /// Whether the `i`th parameter is trained.
    pub(crate) fn trains(&self, i: usize) -> bool {
        self.frozen.is_none_or(|frozen| frozen.trains(i))
    }
}

/// Cuts flat vectors `theta [m, d]` into the parameters of `layout`, `[m, …shape]` each.
///
/// # Errors
/// When `theta` is narrower than the layout.
pub fn split(theta: &Tensor, layout: &Layout) -> Result<Vec<Tensor>> {
    let models = theta.dim(0)?;
    layout
        .params
        .iter()
        .map(|param| {
            let shape: Vec<usize> = std::iter::once(models).chain(param.shape.iter().copied()).collect();
            Ok(theta.narrow(1, param.offset, param.len())?.reshape(shape)?)
        })
        .collect()
}
