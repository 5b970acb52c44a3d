//! The backend that parts a network in two where the first generated parameter is: what comes before depends on the
//! example alone, is computed once for each and kept; what comes after is run for every model.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use weights::convolution::{Convolution, PARAMS};

use super::{Layers, Models, Unary};
use crate::error::{Error, Result};

/// A value on the way through a network of which a part is frozen, with a leading model axis.
#[derive(Debug, Clone)]
pub struct Value {
    kind: Kind,
    /// Nothing where it is not computed.
    tensor: Option<Tensor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A parameter that is not generated.
    Constant,
    /// Depends on the example alone: its number, in the order of computation. The example itself is 0.
    Frozen(usize),
    /// Depends on what is generated, or is a generated parameter.
    Live,
}

impl Value {
    /// A parameter that is not generated.
    pub fn constant(tensor: Option<Tensor>) -> Self {
        Self { kind: Kind::Constant, tensor }
    }

    /// A parameter that is generated.
    pub fn live(tensor: Option<Tensor>) -> Self {
        Self { kind: Kind::Live, tensor }
    }

    /// The tensor.
    ///
    /// # Errors
    /// [`Error::Config`] when it was not computed.
    pub fn tensor(&self) -> Result<&Tensor> {
        let text = "a value of the network is missing that does not depend on what is trained";
        self.tensor.as_ref().ok_or_else(|| Error::Config(text.into()))
    }

    fn is_live(&self) -> bool {
        self.kind == Kind::Live
    }
}

enum Mode<'a> {
    /// Only what depends on what is looked at; collects the frozen values that live ones are computed from.
    Trace(BTreeSet<usize>),
    /// Computes the frozen values of these numbers.
    Begin(&'a [usize], BTreeMap<usize, Tensor>),
    /// Computes live values from these frozen ones.
    End(BTreeMap<usize, Tensor>),
}

/// Runs one half of networks on [`Models`]. A normalisation whose statistics are constants divides by those, any other by
/// what the models are told to.
pub struct Cut<'a> {
    models: &'a mut Models,
    mode: Mode<'a>,
    count: usize,
}

impl<'a> Cut<'a> {
    /// Computes nothing, and finds out where the halves meet: [`Self::meeting`].
    pub fn trace(models: &'a mut Models) -> Self {
        Self { models, mode: Mode::Trace(BTreeSet::new()), count: 1 }
    }

    /// Computes the frozen values `wanted`, from which [`Self::end`] goes on: [`Self::found`].
    pub fn begin(models: &'a mut Models, wanted: &'a [usize]) -> Self {
        Self { models, mode: Mode::Begin(wanted, BTreeMap::new()), count: 1 }
    }

    /// Goes on from the frozen values `wanted`.
    pub fn end(models: &'a mut Models, wanted: &[usize], values: Vec<Tensor>) -> Self {
        Self { models, mode: Mode::End(wanted.iter().copied().zip(values).collect()), count: 1 }
    }

    /// The example; not needed where the network goes on from frozen values.
    pub fn example(&mut self, x: Option<Tensor>) -> Value {
        let tensor = match &mut self.mode {
            Mode::Trace(_) => None,
            Mode::Begin(wanted, found) => {
                if let Some(x) = x.as_ref().filter(|_| wanted.contains(&0)) {
                    found.insert(0, x.clone());
                }
                x
            }
            Mode::End(given) => given.get(&0).cloned(),
        };
        Value { kind: Kind::Frozen(0), tensor }
    }

    /// Numbers of the frozen values that live ones are computed from, ascending.
    pub fn meeting(self) -> Vec<usize> {
        match self.mode {
            Mode::Trace(used) => used.into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// The frozen values that were asked for, in the order of their numbers.
    pub fn found(self) -> Vec<Tensor> {
        match self.mode {
            Mode::Begin(_, found) => found.into_values().collect(),
            _ => Vec::new(),
        }
    }

    fn op(&mut self, inputs: &[&Value], run: impl FnOnce(&mut Models, &[&Tensor]) -> Result<Tensor>) -> Result<Value> {
        let tensors: Vec<&Tensor> = inputs.iter().filter_map(|v| v.tensor.as_ref()).collect();
        let complete = tensors.len() == inputs.len();
        if inputs.iter().any(|v| v.is_live()) {
            let tensor = match &mut self.mode {
                Mode::Trace(used) => {
                    used.extend(inputs.iter().filter_map(|v| match v.kind {
                        Kind::Frozen(number) => Some(number),
                        _ => None,
                    }));
                    None
                }
                Mode::Begin(..) => None,
                Mode::End(_) => {
                    let tensors = inputs.iter().map(|v| v.tensor()).collect::<Result<Vec<_>>>()?;
                    Some(run(self.models, &tensors)?)
                }
            };
            return Ok(Value::live(tensor));
        }
        let number = self.count;
        self.count += 1;
        let tensor = match &mut self.mode {
            Mode::Trace(_) => None,
            Mode::Begin(wanted, found) if complete && found.len() < wanted.len() => {
                let value = run(self.models, &tensors)?;
                if wanted.contains(&number) {
                    found.insert(number, value.clone());
                }
                Some(value)
            }
            Mode::Begin(..) => None,
            Mode::End(given) => given.get(&number).cloned(),
        };
        Ok(Value { kind: Kind::Frozen(number), tensor })
    }
}

/// A 1×1 convolution that changes nothing, `[m, c, c, 1, 1]`, for `y [m, n, c, h, w]`.
fn unchanged(y: &Tensor) -> Result<Tensor> {
    let (m, _, c, ..) = y.dims5()?;
    Ok(Tensor::eye(c, DType::F32, y.device())?.reshape((1, c, c, 1, 1))?.broadcast_as((m, c, c, 1, 1))?)
}

impl Layers for Cut<'_> {
    type T = Value;

    fn linear(&mut self, x: &Value, weight: &Value, bias: &Value) -> Result<Value> {
        self.op(&[x, weight, bias], |l, v| l.linear(v[0], v[1], v[2]))
    }

    fn conv2d(&mut self, x: &Value, weight: &Value, bias: &Value, stride: usize, pad: usize) -> Result<Value> {
        self.op(&[x, weight, bias], |l, v| l.conv2d(v[0], v[1], v[2], stride, pad))
    }

    fn max_pool2(&mut self, x: &Value) -> Result<Value> {
        self.op(&[x], |l, v| l.max_pool2(v[0]))
    }

    fn unary(&mut self, x: &Value, f: Unary) -> Result<Value> {
        self.op(&[x], |l, v| l.unary(v[0], f))
    }

    fn conv_norm(&mut self, x: &Value, params: &[Value; PARAMS], c: &Convolution) -> Result<Value> {
        let [weight, scale, shift, mean, variance] = params;
        let live = [scale, shift, mean, variance].iter().any(|v| v.is_live());
        let stored = !mean.is_live() && !variance.is_live();
        let norm = |cut: &mut Self, x: &Value, first: &Value, c: &Convolution| {
            cut.op(&[x, first, scale, shift, mean, variance], |models, v| {
                let params = [v[1], v[2], v[3], v[4], v[5]].map(Clone::clone);
                match stored {
                    true => Models::default().conv_norm(v[0], &params, c),
                    false => models.conv_norm(v[0], &params, c),
                }
            })
        };
        // A convolution of each channel alone costs no more than what takes its place below.
        if !live || x.is_live() || weight.is_live() || c.groups > 1 {
            return norm(self, x, weight, c);
        }
        // Only the normalisation is generated: the convolution before it is frozen.
        let y = self.op(&[x, weight], |models, v| {
            let (m, o, ..) = v[1].dims5()?;
            let bias = Tensor::zeros((m, o), DType::F32, v[0].device())?;
            models.conv2d(v[0], v[1], &bias, c.stride, c.kernel / 2)
        })?;
        let kernel = Value::constant(y.tensor.as_ref().map(unchanged).transpose()?);
        norm(self, &y, &kernel, &Convolution::new(&*c.name, &*c.norm, [c.outputs; 2], [1, 1]))
    }

    fn squeeze_excite(&mut self, x: &Value, params: &[Value; 4]) -> Result<Value> {
        let [squeeze, bias, excite, shift] = params;
        self.op(&[x, squeeze, bias, excite, shift], |l, v| {
            l.squeeze_excite(v[0], &[v[1], v[2], v[3], v[4]].map(Clone::clone))
        })
    }

    fn tokens(&mut self, x: &Value) -> Result<Value> {
        self.op(&[x], |l, v| l.tokens(v[0]))
    }

    fn prepend(&mut self, x: &Value, token: &Value) -> Result<Value> {
        self.op(&[x, token], |l, v| l.prepend(v[0], v[1]))
    }

    fn sum_each(&mut self, x: &Value, y: &Value) -> Result<Value> {
        self.op(&[x, y], |l, v| l.sum_each(v[0], v[1]))
    }

    fn layer_norm(&mut self, x: &Value, scale: &Value, shift: &Value) -> Result<Value> {
        self.op(&[x, scale, shift], |l, v| l.layer_norm(v[0], v[1], v[2]))
    }

    fn attention(&mut self, x: &Value, heads: usize, width: usize) -> Result<Value> {
        self.op(&[x], |l, v| l.attention(v[0], heads, width))
    }

    fn first_token(&mut self, x: &Value) -> Result<Value> {
        self.op(&[x], |l, v| l.first_token(v[0]))
    }

    fn mean_tokens(&mut self, x: &Value) -> Result<Value> {
        self.op(&[x], |l, v| l.mean_tokens(v[0]))
    }

    fn standardise(&mut self, x: &Value, mean: &[f32], std: &[f32]) -> Result<Value> {
        self.op(&[x], |l, v| l.standardise(v[0], mean, std))
    }

    fn sum(&mut self, a: &Value, b: &Value) -> Result<Value> {
        self.op(&[a, b], |l, v| l.sum(v[0], v[1]))
    }

    fn shrink(&mut self, x: &Value, more: usize) -> Result<Value> {
        self.op(&[x], |l, v| l.shrink(v[0], more))
    }

    fn mean_pool(&mut self, x: &Value) -> Result<Value> {
        self.op(&[x], |l, v| l.mean_pool(v[0]))
    }

    fn flatten(&mut self, x: &Value) -> Result<Value> {
        self.op(&[x], |l, v| l.flatten(v[0]))
    }
}
