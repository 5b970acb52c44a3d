//! Networks that learn, with the loss around them in candle: on a tape on the CPU in f32, by candle alone elsewhere.

use candle_core::{Tensor, Var};

use super::{Tape, Traced};
use crate::backend::{Backend, Eager};
use crate::error::Result;
use crate::optim::Gradient;
use crate::params::Params;

/// A backend that networks learn on.
pub(crate) trait Learning: Backend {
    /// What candle makes of values between networks, with candle's own gradients.
    ///
    /// # Errors
    /// Those of `f`.
    fn between(
        &mut self,
        inputs: &[&Self::T],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Self::T>;
}

impl Learning for Eager<'_> {
    fn between(
        &mut self,
        inputs: &[&Tensor],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Tensor> {
        f(&inputs.iter().map(|&input| input.clone()).collect::<Vec<_>>())
    }
}

impl Learning for Tape<'_> {
    fn between(
        &mut self,
        inputs: &[&Traced],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Traced> {
        self.candle(inputs, f)
    }
}

/// What is computed with a network's parameters before the loss.
pub(crate) trait Pass {
    /// What the loss is made of, from inputs whose number and meaning are the pass's own.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn outputs<B: Learning>(&self, b: &mut B, inputs: &[B::T]) -> Result<Vec<B::T>>;
}

/// What [`learn`] gives.
#[derive(Debug)]
pub(crate) struct Learned {
    /// The share of the loss.
    pub loss: f32,
    /// Gradients of the parameters, in order of their names; none where the loss does not depend on one.
    pub params: Vec<Option<Gradient>>,
    /// Gradients of the inputs, in their order; of those that candle tracks.
    pub inputs: Vec<Option<Tensor>>,
}

/// `share` of the loss that `loss` makes of a pass's outputs, and its gradients with respect to the parameters and to those
/// inputs that candle tracks.
///
/// # Errors
/// When shapes do not fit; whatever `loss` returns.
pub(crate) fn learn(
    params: &mut Params,
    pass: &impl Pass,
    inputs: &[&Tensor],
    share: f64,
    loss: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Learned> {
    match params.on_tape() {
        true => on_tape(params, pass, inputs, share, loss),
        false => by_candle(params, pass, inputs, share, loss),
    }
}

/// A pass's outputs alone, which nothing has gradients of.
///
/// # Errors
/// When shapes do not fit.
pub(crate) fn values(params: &mut Params, pass: &impl Pass, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    if !params.device().is_cpu() {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
        return Ok(pass.outputs(&mut Eager::new(params), &inputs)?.iter().map(Tensor::detach).collect());
    }
    let mut tape = Tape::without_gradients(params);
    let inputs = inputs.iter().map(|input| tape.constant_input(input)).collect::<Result<Vec<_>>>()?;
    pass.outputs(&mut tape, &inputs)?.iter().map(Traced::tensor).collect()
}

/// [`learn`] on a tape: candle's gradients are those of the outputs, and the tape goes back from there.
pub(crate) fn on_tape(
    params: &mut Params,
    pass: &impl Pass,
    inputs: &[&Tensor],
    share: f64,
    loss: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Learned> {
    let mut tape = Tape::new(params);
    let mut taken = Vec::with_capacity(inputs.len());
    for &input in inputs {
        taken.push(if input.track_op() { tape.input(input)? } else { tape.constant_input(input)? });
    }
    let outputs = pass.outputs(&mut tape, &taken)?;
    let vars = outputs.iter().map(|output| Ok(Var::from_tensor(&output.tensor()?)?)).collect::<Result<Vec<_>>>()?;
    let loss = loss(&tensors(&vars))?.affine(share, 0.0)?;
    let grads = loss.backward()?;
    let from: Vec<(&Traced, &Tensor)> =
        outputs.iter().zip(&vars).filter_map(|(output, var)| Some((output, grads.get(var)?))).collect();
    let mut grads = tape.backward(&from, &taken)?;
    let own = params.names().map(|name| grads.params.remove(name).map(Gradient::Buffer));
    let own = own.collect();
    Ok(Learned { loss: loss.to_scalar()?, params: own, inputs: grads.inputs })
}

/// [`learn`] by candle.
pub(crate) fn by_candle(
    params: &mut Params,
    pass: &impl Pass,
    inputs: &[&Tensor],
    share: f64,
    loss: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Learned> {
    let mut vars = Vec::with_capacity(inputs.len());
    for &input in inputs {
        vars.push(input.track_op().then(|| Var::from_tensor(&input.detach())).transpose()?);
    }
    let taken: Vec<Tensor> = inputs.iter().zip(&vars).map(|(&x, var)| var.as_deref().unwrap_or(x).clone()).collect();
    let outputs = pass.outputs(&mut Eager::new(params), &taken)?;
    let loss = loss(&outputs)?.affine(share, 0.0)?;
    let grads = loss.backward()?;
    let inputs = vars.iter().map(|var| grads.get(var.as_deref()?).cloned()).collect();
    let own = params.vars().iter().map(|var| grads.get(var).cloned().map(Gradient::Tensor)).collect();
    Ok(Learned { loss: loss.to_scalar()?, params: own, inputs })
}

fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|var| var.as_tensor().clone()).collect()
}
