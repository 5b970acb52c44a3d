//! Gradients of the generator's own networks on the CPU, recorded operation by operation. candle's own backward pass
//! makes zeros for each gradient, adds to them into a new tensor, and copies what it transposed; here a gradient is
//! moved to where it belongs, or added in place, and operations that belong together are one (normalisation with scale,
//! shift and SiLU; attention; linear maps with bias and residual). Operations that no hot loop has go through candle.

mod attention;
mod backend;
mod conv;
mod matrix;
mod norm;
mod shapes;
mod silu;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use candle_core::{CpuStorage, Device, Storage, Tensor};

use crate::error::{Error, Result};
use crate::params::Params;

/// A value on the tape; one without a node is a constant.
#[derive(Debug, Clone)]
pub struct Traced {
    /// Contiguous, on the CPU, and unknown to candle's own gradients.
    value: Tensor,
    node: Option<usize>,
}

impl Traced {
    /// The values.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
}

/// Takes the gradient of what an operation gave, and adds to those of what it took.
type Backward = Box<dyn FnOnce(Vec<f32>, &mut Grads) -> Result<()> + Send>;

/// A recording of operations over these parameters.
pub struct Tape<'a> {
    params: &'a mut Params,
    /// Each after those that it depends on; none for leaves.
    nodes: Vec<Option<Backward>>,
    /// Nodes of parameters.
    leaves: BTreeMap<String, Traced>,
}

impl<'a> Tape<'a> {
    /// An empty tape.
    pub fn new(params: &'a mut Params) -> Self {
        Self { params, nodes: Vec::new(), leaves: BTreeMap::new() }
    }

    /// An input without a gradient.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn constant_input(&self, x: &Tensor) -> Result<Traced> {
        Ok(Traced { value: x.contiguous()?.detach(), node: None })
    }

    /// An input whose gradient [`Tape::backward`] gives.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn input(&mut self, x: &Tensor) -> Result<Traced> {
        self.nodes.push(None);
        Ok(Traced { value: x.contiguous()?.detach(), node: Some(self.nodes.len() - 1) })
    }

    /// Records the result of an operation on `inputs`.
    fn record(
        &mut self,
        inputs: &[&Traced],
        values: Vec<f32>,
        shape: &[usize],
        backward: impl FnOnce(Vec<f32>, &mut Grads) -> Result<()> + Send + 'static,
    ) -> Result<Traced> {
        let value = Tensor::from_vec(values, shape, &Device::Cpu)?;
        self.record_tensor(inputs, value, backward)
    }

    fn record_tensor(
        &mut self,
        inputs: &[&Traced],
        value: Tensor,
        backward: impl FnOnce(Vec<f32>, &mut Grads) -> Result<()> + Send + 'static,
    ) -> Result<Traced> {
        if inputs.iter().all(|input| input.node.is_none()) {
            return Ok(Traced { value, node: None });
        }
        self.nodes.push(Some(Box::new(backward)));
        Ok(Traced { value, node: Some(self.nodes.len() - 1) })
    }

    /// An operation that candle does, with candle's own gradients.
    fn candle(
        &mut self,
        inputs: &[&Traced],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Traced> {
        let values: Vec<Tensor> = inputs.iter().map(|input| input.value.clone()).collect();
        let value = f(&values)?.contiguous()?;
        let nodes: Vec<Option<usize>> = inputs.iter().map(|input| input.node).collect();
        self.record_tensor(inputs, value, move |grad, grads| {
            let vars = values.iter().map(candle_core::Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
            let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let output = f(&tracked)?;
            let grad = Tensor::from_vec(grad, output.shape(), &Device::Cpu)?;
            let own = (output * grad)?.sum_all()?.backward()?;
            for (var, node) in vars.iter().zip(nodes) {
                if let (Some(grad), Some(_)) = (own.get(var), node) {
                    grads.add(node, grad.flatten_all()?.to_vec1()?);
                }
            }
            Ok(())
        })
    }

    /// Gradients of `output`'s values times `grad`, with respect to the parameters and to `input`.
    ///
    /// # Errors
    /// When `grad` has another number of values than `output`.
    pub fn backward(self, output: &Traced, grad: &Tensor, input: Option<&Traced>) -> Result<Gradients> {
        let mut grads = Grads(Vec::new());
        grads.0.resize_with(self.nodes.len(), || None);
        if grad.elem_count() != output.value.elem_count() {
            return Err(Error::Config(format!("a gradient of {:?} for {:?}", grad.dims(), output.value.dims())));
        }
        if output.node.is_some() {
            grads.add(output.node, grad.flatten_all()?.to_vec1()?);
        }
        for (i, backward) in self.nodes.into_iter().enumerate().rev() {
            if let Some(backward) = backward
                && let Some(grad) = grads.0[i].take()
            {
                backward(grad, &mut grads)?;
            }
        }
        let mut taken = |of: &Traced| -> Result<Option<Tensor>> {
            let grad = of.node.and_then(|node| grads.0[node].take());
            Ok(grad.map(|grad| Tensor::from_vec(grad, of.value.shape(), &Device::Cpu)).transpose()?)
        };
        let mut params = BTreeMap::new();
        for (name, leaf) in &self.leaves {
            if let Some(grad) = taken(leaf)? {
                params.insert(name.clone(), grad);
            }
        }
        Ok(Gradients { params, input: input.map(taken).transpose()?.flatten() })
    }
}

/// What [`Tape::backward`] gives.
#[derive(Debug)]
pub struct Gradients {
    /// By parameter; those that the output does not depend on are missing.
    pub params: BTreeMap<String, Tensor>,
    /// Of the input that was asked for.
    pub input: Option<Tensor>,
}

/// Gradients by node.
struct Grads(Vec<Option<Vec<f32>>>);

impl Grads {
    /// Adds `grad` to a node's, which it becomes where there is none yet.
    fn add(&mut self, node: Option<usize>, grad: Vec<f32>) {
        let Some(node) = node else { return };
        match &mut self.0[node] {
            Some(sum) => sum.iter_mut().zip(&grad).for_each(|(sum, g)| *sum += g),
            none => *none = Some(grad),
        }
    }

    /// The same without taking it.
    fn add_copy(&mut self, node: Option<usize>, grad: &[f32]) {
        let Some(node) = node else { return };
        match &mut self.0[node] {
            Some(sum) => sum.iter_mut().zip(grad).for_each(|(sum, g)| *sum += g),
            none => *none = Some(grad.to_vec()),
        }
    }

    /// Lets `f` add to a node's gradient of `len` values, or write it where its second argument says that there is none
    /// yet (it is zero then).
    fn write(&mut self, node: Option<usize>, len: usize, f: impl FnOnce(&mut [f32], bool)) {
        let Some(node) = node else { return };
        let fresh = self.0[node].is_none();
        f(self.0[node].get_or_insert_with(|| vec![0f32; len]), fresh);
    }
}

/// Lets `f` see the values of tensors of a tape.
fn read<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(data)), Some((from, to))) => &data[from..to],
            _ => return Err(Error::Config("a tape holds contiguous f32 tensors on the CPU".into())),
        };
    }
    Ok(f(slices))
}
