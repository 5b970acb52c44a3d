//! Gradients of the generator's own networks on the CPU, recorded operation by operation. candle's own backward pass
//! makes zeros for each gradient, adds to them into a new tensor, and copies what it transposed; here a gradient is
//! moved to where it belongs, or added in place, and operations that belong together are one (normalisation with scale,
//! shift and SiLU; attention; linear maps with bias and residual). Operations that no hot loop has go through candle,
//! and so does the loss: [`learn`].

mod attention;
mod backend;
mod learn;
mod norm;
#[cfg(test)]
mod passes;
mod shapes;
mod silu;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{CpuStorage, Device, Storage, Tensor};

use crate::error::{Error, Result};
use crate::params::Params;
pub use kernels::{Buffer, Pool};
pub(crate) use learn::{Learned, Learning, Pass, learn, values};
#[cfg(test)]
pub(crate) use learn::{by_candle, on_tape};

/// A value on the tape; one without a node is a constant.
#[derive(Debug, Clone)]
pub struct Traced {
    values: Values,
    shape: Vec<usize>,
    node: Option<usize>,
}

/// Where values are.
#[derive(Debug, Clone)]
enum Values {
    /// Made by an operation.
    Buffer(Arc<Buffer>),
    /// A parameter or an input: contiguous, on the CPU, and unknown to candle's own gradients.
    Tensor(Tensor),
}

impl Traced {
    /// As a tensor.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn tensor(&self) -> Result<Tensor> {
        match &self.values {
            Values::Buffer(buffer) => Ok(Tensor::from_slice(buffer, self.shape.as_slice(), &Device::Cpu)?),
            Values::Tensor(tensor) => Ok(tensor.reshape(self.shape.as_slice())?),
        }
    }

    fn dim(&self, i: usize) -> usize {
        self.shape.get(i).copied().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Takes the gradient of what an operation gave, and adds to those of what it took.
type Backward = Box<dyn FnOnce(Buffer, &mut Grads) -> Result<()> + Send>;

/// A recording of operations over these parameters.
pub struct Tape<'a> {
    params: &'a mut Params,
    /// Each after those that it depends on; none for leaves.
    nodes: Vec<Option<Backward>>,
    /// Nodes of parameters.
    leaves: BTreeMap<String, Traced>,
    pool: Pool,
    /// Whether anything is recorded.
    records: bool,
}

impl<'a> Tape<'a> {
    /// An empty tape.
    pub fn new(params: &'a mut Params) -> Self {
        let pool = params.pool().clone();
        Self { params, nodes: Vec::new(), leaves: BTreeMap::new(), pool, records: true }
    }

    /// A tape that records nothing: its operations, for their values alone.
    pub fn without_gradients(params: &'a mut Params) -> Self {
        Self { records: false, ..Self::new(params) }
    }

    /// An input without a gradient.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn constant_input(&self, x: &Tensor) -> Result<Traced> {
        Ok(Traced { values: Values::Tensor(x.contiguous()?.detach()), shape: x.dims().to_vec(), node: None })
    }

    /// An input whose gradient [`Tape::backward`] gives where it is asked for.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn input(&mut self, x: &Tensor) -> Result<Traced> {
        if !self.records {
            return self.constant_input(x);
        }
        self.nodes.push(None);
        Ok(Traced { node: Some(self.nodes.len() - 1), ..self.constant_input(x)? })
    }

    /// Records the result of an operation on `inputs`.
    fn record(
        &mut self,
        inputs: &[&Traced],
        values: Buffer,
        shape: &[usize],
        backward: impl FnOnce(Buffer, &mut Grads) -> Result<()> + Send + 'static,
    ) -> Traced {
        let mut result = Traced { values: Values::Buffer(Arc::new(values)), shape: shape.to_vec(), node: None };
        if inputs.iter().any(|input| input.node.is_some()) {
            self.nodes.push(Some(Box::new(backward)));
            result.node = Some(self.nodes.len() - 1);
        }
        result
    }

    /// An operation that candle does, with candle's own gradients.
    fn candle(
        &mut self,
        inputs: &[&Traced],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Traced> {
        let values = inputs.iter().map(|input| input.tensor()).collect::<Result<Vec<_>>>()?;
        let value = f(&values)?.contiguous()?;
        let own = self.constant_input(&value)?;
        let out = read([&own.values], |[values]| self.pool.copy(values))?;
        let pool = self.pool.clone();
        let nodes: Vec<Option<usize>> = inputs.iter().map(|input| input.node).collect();
        Ok(self.record(inputs, out, value.dims(), move |grad, grads| {
            let vars = values.iter().map(candle_core::Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
            let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let output = f(&tracked)?;
            let grad = Tensor::from_slice(&grad, output.shape(), &Device::Cpu)?;
            let own = (output * grad)?.sum_all()?.backward()?;
            for (var, node) in vars.iter().zip(nodes) {
                if let (Some(grad), Some(_)) = (own.get(var), node) {
                    grads.add(node, pool.copy(&grad.flatten_all()?.to_vec1::<f32>()?));
                }
            }
            Ok(())
        }))
    }

    /// Gradients of the sum of all outputs' values, each times the gradient that comes with it, with respect to the
    /// parameters and to `inputs`.
    ///
    /// # Errors
    /// When a gradient has another number of values than its output.
    pub fn backward(self, outputs: &[(&Traced, &Tensor)], inputs: &[Traced]) -> Result<Gradients> {
        let mut grads = Grads { all: Vec::new(), pool: self.pool.clone() };
        grads.all.resize_with(self.nodes.len(), || None);
        for (output, grad) in outputs {
            if grad.elem_count() != output.count() {
                return Err(Error::Config(format!("a gradient of {:?} for {:?}", grad.dims(), output.shape)));
            }
            if output.node.is_some() {
                grads.add(output.node, self.pool.copy(&grad.flatten_all()?.to_vec1::<f32>()?));
            }
        }
        for (i, backward) in self.nodes.into_iter().enumerate().rev() {
            if let Some(backward) = backward
                && let Some(grad) = grads.all[i].take()
            {
                backward(grad, &mut grads)?;
            }
        }
        let mut taken = |of: &Traced| of.node.and_then(|node| grads.all[node].take());
        let own = |(name, leaf): (&String, &Traced)| Some((name.clone(), taken(leaf)?));
        let params = self.leaves.iter().filter_map(own).collect();
        let of_input = |input: &Traced| {
            let grad = taken(input).map(|grad| Tensor::from_slice(&grad, input.shape.as_slice(), &Device::Cpu));
            Ok(grad.transpose()?)
        };
        Ok(Gradients { params, inputs: inputs.iter().map(of_input).collect::<Result<_>>()? })
    }
}

/// What [`Tape::backward`] gives.
#[derive(Debug)]
pub struct Gradients {
    /// By parameter; those that no output depends on are missing.
    pub params: BTreeMap<String, Buffer>,
    /// Of the inputs that were asked for; none where no output depends on one, or it has no gradient.
    pub inputs: Vec<Option<Tensor>>,
}

/// Gradients by node.
struct Grads {
    all: Vec<Option<Buffer>>,
    pool: Pool,
}

impl Grads {
    /// Adds `grad` to a node's, which it becomes where there is none yet.
    fn add(&mut self, node: Option<usize>, grad: Buffer) {
        let Some(node) = node else { return };
        match &mut self.all[node] {
            Some(sum) => sum.iter_mut().zip(&*grad).for_each(|(sum, g)| *sum += g),
            none => *none = Some(grad),
        }
    }

    /// The same without taking it.
    fn add_copy(&mut self, node: Option<usize>, grad: &[f32]) {
        let Some(node) = node else { return };
        match &mut self.all[node] {
            Some(sum) => sum.iter_mut().zip(grad).for_each(|(sum, g)| *sum += g),
            none => *none = Some(self.pool.copy(grad)),
        }
    }

    /// Lets `f` add to a node's gradient of `len` values, or, where its second argument says that there is none yet,
    /// write all of it.
    fn write(&mut self, node: Option<usize>, len: usize, f: impl FnOnce(&mut [f32], bool)) {
        let Some(node) = node else { return };
        let fresh = self.all[node].is_none();
        f(self.all[node].get_or_insert_with(|| self.pool.take(len)), fresh);
    }
}

/// Lets `f` see values.
fn read<const N: usize, R>(values: [&Values; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    read_all(&values, |all| {
        let mut slices: [&[f32]; N] = [&[]; N];
        slices.copy_from_slice(all);
        f(slices)
    })
}

/// The same for any number.
fn read_all<R>(values: &[&Values], f: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let guards: Vec<_> = values
        .iter()
        .map(|values| match values {
            Values::Buffer(_) => None,
            Values::Tensor(tensor) => Some(tensor.storage_and_layout()),
        })
        .collect();
    let mut slices: Vec<&[f32]> = Vec::with_capacity(values.len());
    for (values, guard) in values.iter().zip(&guards) {
        let tensor = guard.as_ref().map(|(storage, layout)| (&**storage, layout.contiguous_offsets()));
        slices.push(match (values, tensor) {
            (Values::Buffer(buffer), _) => buffer,
            (_, Some((Storage::Cpu(CpuStorage::F32(data)), Some((from, to))))) => &data[from..to],
            _ => return Err(Error::Config("a tape holds contiguous f32 tensors on the CPU".into())),
        });
    }
    Ok(f(&slices))
}
