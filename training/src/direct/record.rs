//! The backend that notes down which layers a target network has.

use weights::Architecture;
use weights::convolution::{Convolution, PARAMS};

use super::conv::{Conv, KERNELS};
use super::{Kind, Layer, Network, Then};
use crate::backend::{Layers, Unary};
use crate::error::{Error, Result};
use crate::networks::target;

/// The layers of an architecture, where all of them are known here.
pub(super) fn record(architecture: &Architecture) -> Option<Network> {
    let layout = architecture.layout();
    let params: Vec<Value> = (0..layout.params.len()).map(Value::Param).collect();
    let input = match architecture.input_shape()[..] {
        [values] => Shape::Flat(values),
        [channels, height, width] => Shape::Image(channels, height, width),
        _ => return None,
    };
    let mut recorder = Recorder { layout: &layout, layers: Vec::new(), open: false };
    let output = target::forward(&mut recorder, architecture, &params, &Value::At(0, input)).ok()?;
    let whole = matches!(output, Value::At(at, _) if at == recorder.layers.len()) && !recorder.open;
    let network = Network { layers: recorder.layers, input: input.values(), classes: architecture.classes() };
    (whole && network.layers.last().is_some_and(|last| last.output() == network.classes)).then_some(network)
}

/// A parameter, or what is behind so many layers.
#[derive(Debug, Clone, Copy)]
enum Value {
    Param(usize),
    At(usize, Shape),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Flat(usize),
    Image(usize, usize, usize),
}

impl Shape {
    fn values(self) -> usize {
        match self {
            Self::Flat(values) => values,
            Self::Image(c, h, w) => c * h * w,
        }
    }
}

struct Recorder<'a> {
    layout: &'a weights::Layout,
    layers: Vec<Layer>,
    /// Whether the last layer is a convolution whose tanh has not come yet.
    open: bool,
}

fn unknown<T>() -> Result<T> {
    Err(Error::Config("the network has a layer that is not written out".into()))
}

impl Recorder<'_> {
    /// Shape of a value that is the last there is.
    fn last(&self, x: &Value) -> Result<Shape> {
        match *x {
            Value::At(at, shape) if at == self.layers.len() => Ok(shape),
            _ => unknown(),
        }
    }

    fn push(&mut self, kind: Kind, [weight, bias]: [&Value; 2], shape: Shape) -> Result<Value> {
        let (&Value::Param(weight), &Value::Param(bias)) = (weight, bias) else { return unknown() };
        let (weight, bias) = (self.layout.params[weight].range(), self.layout.params[bias].range());
        if bias.start < weight.end || self.open {
            return unknown();
        }
        self.open = matches!(kind, Kind::Conv(_));
        self.layers.push(Layer { kind, weight, bias });
        Ok(Value::At(self.layers.len(), shape))
    }

    fn shape_of(&self, param: &Value) -> Result<&[usize]> {
        match param {
            Value::Param(i) => Ok(&self.layout.params[*i].shape),
            Value::At(..) => unknown(),
        }
    }
}

impl Layers for Recorder<'_> {
    type T = Value;

    fn linear(&mut self, x: &Value, weight: &Value, bias: &Value) -> Result<Value> {
        let Shape::Flat(inputs) = self.last(x)? else { return unknown() };
        let &[outputs, width] = self.shape_of(weight)? else { return unknown() };
        if width != inputs {
            return unknown();
        }
        self.push(Kind::Linear { inputs, outputs, then: Then::Nothing }, [weight, bias], Shape::Flat(outputs))
    }

    fn conv2d(&mut self, x: &Value, weight: &Value, bias: &Value, stride: usize, pad: usize) -> Result<Value> {
        let Shape::Image(channels, height, width) = self.last(x)? else { return unknown() };
        let &[outputs, inputs, kernel, _] = self.shape_of(weight)? else { return unknown() };
        let fits = inputs == channels && KERNELS.contains(&kernel) && kernel <= height.min(width);
        if !fits || (stride, pad) != (1, 0) {
            return unknown();
        }
        let conv = Conv { channels, height, width, outputs, kernel, pool: false };
        let (h, w) = conv.after();
        self.push(Kind::Conv(conv), [weight, bias], Shape::Image(outputs, h, w))
    }

    fn max_pool2(&mut self, x: &Value) -> Result<Value> {
        let Shape::Image(c, h, w) = self.last(x)? else { return unknown() };
        match self.layers.last_mut() {
            Some(Layer { kind: Kind::Conv(conv), .. })
                if self.open && !conv.pool && h.is_multiple_of(2) && w.is_multiple_of(2) =>
            {
                conv.pool = true;
                Ok(Value::At(self.layers.len(), Shape::Image(c, h / 2, w / 2)))
            }
            _ => unknown(),
        }
    }

    fn unary(&mut self, x: &Value, f: Unary) -> Result<Value> {
        self.last(x)?;
        match (self.layers.last_mut().map(|layer| &mut layer.kind), f) {
            (Some(Kind::Conv(_)), Unary::Tanh) if self.open => self.open = false,
            (Some(Kind::Linear { then: then @ Then::Nothing, .. }), Unary::Tanh) => *then = Then::Tanh,
            (Some(Kind::Linear { then: then @ Then::Nothing, .. }), Unary::Relu) => *then = Then::Relu,
            _ => return unknown(),
        }
        Ok(*x)
    }

    fn flatten(&mut self, x: &Value) -> Result<Value> {
        Ok(Value::At(self.layers.len(), Shape::Flat(self.last(x)?.values())))
    }

    fn conv_norm(&mut self, _: &Value, _: &[Value; PARAMS], _: &Convolution) -> Result<Value> {
        unknown()
    }

    fn squeeze_excite(&mut self, _: &Value, _: &[Value; 4]) -> Result<Value> {
        unknown()
    }

    fn tokens(&mut self, _: &Value) -> Result<Value> {
        unknown()
    }

    fn prepend(&mut self, _: &Value, _: &Value) -> Result<Value> {
        unknown()
    }

    fn sum_each(&mut self, _: &Value, _: &Value) -> Result<Value> {
        unknown()
    }

    fn layer_norm(&mut self, _: &Value, _: &Value, _: &Value) -> Result<Value> {
        unknown()
    }

    fn attention(&mut self, _: &Value, _: usize, _: usize) -> Result<Value> {
        unknown()
    }

    fn first_token(&mut self, _: &Value) -> Result<Value> {
        unknown()
    }

    fn mean_tokens(&mut self, _: &Value) -> Result<Value> {
        unknown()
    }

    fn standardise(&mut self, _: &Value, _: &[f32], _: &[f32]) -> Result<Value> {
        unknown()
    }

    fn sum(&mut self, _: &Value, _: &Value) -> Result<Value> {
        unknown()
    }

    fn shrink(&mut self, _: &Value, _: usize) -> Result<Value> {
        unknown()
    }

    fn mean_pool(&mut self, _: &Value) -> Result<Value> {
        unknown()
    }
}
