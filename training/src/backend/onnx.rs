//! The backend that records a network as an ONNX graph (opset 17).

use prost::Message;
use weights::convolution::{Convolution, PARAMS};
use weights::layout::NORM_EPSILON;
use weights::onnx::{
    AttributeProto, Dimension, DimensionProto, FLOAT, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, PRODUCER,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

use super::{Backend, EPSILON, Layers, Unary, Weights};
use crate::error::{Error, Result};
use crate::ops;
use crate::params::{Init, Params};

const INT64: i32 = 7;

/// Records operations; values are names. The first dimension of inputs and outputs named [`BATCH`] is symbolic.
#[derive(Debug)]
pub struct Onnx<'a> {
    params: Option<&'a Params>,
    graph: GraphProto,
    next: usize,
    /// Mean and variance of each normalisation, where they are measured in place of using those that are stored.
    measured: Option<Vec<[String; 2]>>,
}

/// Stands for the symbolic batch in [`Onnx::input`] and [`Onnx::output`].
pub const BATCH: usize = usize::MAX;

impl<'a> Onnx<'a> {
    /// An empty graph; parameters become initialisers with the values of `params`.
    pub fn new(name: &str, params: Option<&'a Params>) -> Self {
        Self { params, graph: GraphProto { name: name.to_owned(), ..Default::default() }, next: 0, measured: None }
    }

    /// An empty graph in which normalisations are by the statistics of the examples; see [`Self::statistics`].
    pub fn measuring(name: &str) -> Self {
        Self { measured: Some(Vec::new()), ..Self::new(name, None) }
    }

    /// Mean and variance `[c]` of each normalisation that was measured, in the order in which they were applied.
    pub fn statistics(&mut self) -> Vec<[String; 2]> {
        self.measured.take().unwrap_or_default()
    }

    /// Normalises `y [n, c, h, w]` by its own statistics, which are kept.
    fn normalise(&mut self, y: &str, scale: &String, shift: &String) -> Result<String> {
        let axes = |keep| vec![attr_ints("axes", &[0, 2, 3]), AttributeProto::int("keepdims", keep)];
        let mean = self.node("ReduceMean", &[y], axes(1));
        let centred = self.node("Sub", &[y, &mean], vec![]);
        let squares = self.node("Mul", &[&centred, &centred], vec![]);
        let variance = self.node("ReduceMean", &[&squares], axes(1));
        let both = [self.reshape(&mean, &[-1])?, self.reshape(&variance, &[-1])?];
        self.measured.get_or_insert_default().push(both);
        let std = self.affine(&variance, 1.0, NORM_EPSILON)?;
        let std = self.unary(&std, Unary::Sqrt)?;
        let unit = self.div(&centred, &std)?;
        let (scale, shift) = (self.reshape(scale, &[-1, 1, 1])?, self.reshape(shift, &[-1, 1, 1])?);
        let scaled = self.mul(&unit, &scale)?;
        self.add(&scaled, &shift)
    }

    /// Declares a graph input.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> String {
        self.graph.input.push(value_info(name, shape));
        name.to_owned()
    }

    /// Declares `value` as the graph output `name`.
    pub fn output(&mut self, value: &str, name: &str, shape: &[usize]) {
        self.graph.node.push(NodeProto {
            input: vec![value.to_owned()],
            output: vec![name.to_owned()],
            name: format!("output_{name}"),
            op_type: "Identity".into(),
            ..NodeProto::default()
        });
        self.graph.output.push(value_info(name, shape));
    }

    /// The finished model file.
    pub fn finish(self) -> Vec<u8> {
        ModelProto {
            ir_version: 8,
            producer_name: PRODUCER.into(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        }
        .encode_to_vec()
    }

    fn node(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        self.next += 1;
        let output = format!("v{}", self.next);
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&s| s.to_owned()).collect(),
            output: vec![output.clone()],
            name: format!("{op}_{}", self.next),
            op_type: op.to_owned(),
            attribute,
            ..NodeProto::default()
        });
        output
    }

    fn ints(&mut self, values: &[i64]) -> String {
        self.next += 1;
        let name = format!("c{}", self.next);
        self.graph.initializer.push(TensorProto {
            dims: vec![values.len() as i64],
            data_type: INT64,
            name: name.clone(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
        name
    }

    fn floats(&mut self, name: String, data: &[f32], shape: &[usize]) -> String {
        self.graph.initializer.push(TensorProto {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: FLOAT,
            name: name.clone(),
            raw_data: data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
        name
    }

    fn scalar(&mut self, value: f64) -> String {
        self.next += 1;
        let name = format!("c{}", self.next);
        self.floats(name, &[value as f32], &[])
    }
}

fn value_info(name: &str, shape: &[usize]) -> ValueInfoProto {
    let dim = |&d: &usize| DimensionProto {
        value: Some(if d == BATCH { Dimension::Param("batch".into()) } else { Dimension::Value(d as i64) }),
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type: FLOAT, shape: Some(shape) };
    ValueInfoProto { name: name.to_owned(), kind: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn attr_ints(name: &str, ints: &[usize]) -> AttributeProto {
    let ints = ints.iter().map(|&i| i as i64).collect();
    AttributeProto { name: name.into(), ints, kind: 7, ..Default::default() }
}

fn attr_float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: Some(f), kind: 1, ..Default::default() }
}

fn attr_string(name: &str, s: &str) -> AttributeProto {
    AttributeProto { name: name.into(), s: Some(s.as_bytes().to_vec()), kind: 3, ..Default::default() }
}

impl Layers for Onnx<'_> {
    type T = String;

    fn linear(&mut self, x: &String, weight: &String, bias: &String) -> Result<String> {
        let y = self.project(x, weight)?;
        self.add(&y, bias)
    }

    fn conv2d(&mut self, x: &String, weight: &String, bias: &String, stride: usize, pad: usize) -> Result<String> {
        let attributes = vec![attr_ints("strides", &[stride; 2]), attr_ints("pads", &[pad; 4])];
        Ok(self.node("Conv", &[x, weight, bias], attributes))
    }

    fn max_pool2(&mut self, x: &String) -> Result<String> {
        let attributes = vec![attr_ints("kernel_shape", &[2, 2]), attr_ints("strides", &[2, 2])];
        Ok(self.node("MaxPool", &[x], attributes))
    }

    fn unary(&mut self, x: &String, f: Unary) -> Result<String> {
        Ok(match f {
            Unary::Silu => {
                let s = self.node("Sigmoid", &[x], vec![]);
                self.node("Mul", &[x, &s], vec![])
            }
            Unary::Tanh => self.node("Tanh", &[x], vec![]),
            Unary::Relu => self.node("Relu", &[x], vec![]),
            Unary::HardSwish => self.node("HardSwish", &[x], vec![]),
            Unary::Gelu => {
                let scaled = self.affine(x, std::f64::consts::FRAC_1_SQRT_2, 0.0)?;
                let erf = self.node("Erf", &[&scaled], vec![]);
                let gate = self.affine(&erf, 0.5, 0.5)?;
                self.node("Mul", &[x, &gate], vec![])
            }
            Unary::Sin => self.node("Sin", &[x], vec![]),
            Unary::Cos => self.node("Cos", &[x], vec![]),
            Unary::Sqrt => self.node("Sqrt", &[x], vec![]),
            Unary::Square => self.node("Mul", &[x, x], vec![]),
        })
    }

    fn conv_norm(&mut self, x: &String, params: &[String; PARAMS], c: &Convolution) -> Result<String> {
        let [weight, scale, shift, mean, variance] = params;
        let mut attributes = vec![attr_ints("strides", &[c.stride; 2]), attr_ints("pads", &[c.kernel / 2; 4])];
        if c.groups > 1 {
            attributes.push(AttributeProto::int("group", c.groups as i64));
        }
        let y = self.node("Conv", &[x, weight], attributes);
        if self.measured.is_some() {
            return self.normalise(&y, scale, shift);
        }
        // Its ε is 1e-5 where none is given.
        Ok(self.node("BatchNormalization", &[&y, scale, shift, mean, variance], vec![]))
    }

    fn squeeze_excite(&mut self, x: &String, [squeeze, bias, excite, shift]: &[String; 4]) -> Result<String> {
        let gate = self.node("GlobalAveragePool", &[x], vec![]);
        let gate = self.node("Conv", &[&gate, squeeze, bias], vec![]);
        let gate = self.node("Relu", &[&gate], vec![]);
        let gate = self.node("Conv", &[&gate, excite, shift], vec![]);
        let attributes = vec![attr_float("alpha", 1.0 / 6.0), attr_float("beta", 0.5)];
        let gate = self.node("HardSigmoid", &[&gate], attributes);
        self.mul(x, &gate)
    }

    fn tokens(&mut self, x: &String) -> Result<String> {
        let y = self.reshape(x, &[0, 0, -1])?;
        self.permute(&y, &[0, 2, 1])
    }

    fn prepend(&mut self, x: &String, token: &String) -> Result<String> {
        let token = self.expand_first(token, 3, x)?;
        self.concat(&[&token, x], 1)
    }

    fn sum_each(&mut self, x: &String, y: &String) -> Result<String> {
        self.add(x, y)
    }

    fn layer_norm(&mut self, x: &String, scale: &String, shift: &String) -> Result<String> {
        let attributes = vec![AttributeProto::int("axis", -1), attr_float("epsilon", ops::LAYER_NORM_EPSILON as f32)];
        Ok(self.node("LayerNormalization", &[x, scale, shift], attributes))
    }

    fn attention(&mut self, x: &String, heads: usize, width: usize) -> Result<String> {
        let split = [0, 0, heads as i64, (width / heads.max(1)) as i64];
        let mut part = |i: usize, order: &[usize]| {
            let part = self.slice_last(x, i * width, width)?;
            let part = self.reshape(&part, &split)?;
            self.permute(&part, order)
        };
        let (q, k, v) = (part(0, &[0, 2, 1, 3])?, part(1, &[0, 2, 3, 1])?, part(2, &[0, 2, 1, 3])?);
        let scores = self.matmul(&q, &k)?;
        let scores = self.affine(&scores, (heads as f64 / width as f64).sqrt(), 0.0)?;
        let shares = self.softmax(&scores)?;
        let y = self.matmul(&shares, &v)?;
        let y = self.permute(&y, &[0, 2, 1, 3])?;
        self.reshape(&y, &[0, 0, width as i64])
    }

    fn first_token(&mut self, x: &String) -> Result<String> {
        let (from, to, axis) = (self.ints(&[0]), self.ints(&[1]), self.ints(&[1]));
        let y = self.node("Slice", &[x, &from, &to, &axis], vec![]);
        self.reshape(&y, &[0, -1])
    }

    fn mean_tokens(&mut self, x: &String) -> Result<String> {
        Ok(self.node("ReduceMean", &[x], vec![attr_ints("axes", &[1]), AttributeProto::int("keepdims", 0)]))
    }

    fn standardise(&mut self, x: &String, mean: &[f32], std: &[f32]) -> Result<String> {
        let (mean, std) = (self.constant(mean, &[mean.len(), 1, 1])?, self.constant(std, &[std.len(), 1, 1])?);
        let x = self.sub(x, &mean)?;
        self.div(&x, &std)
    }

    fn sum(&mut self, a: &String, b: &String) -> Result<String> {
        self.add(a, b)
    }

    fn shrink(&mut self, x: &String, more: usize) -> Result<String> {
        let (starts, ends) = (self.ints(&[0, 0]), self.ints(&[i64::MAX; 2]));
        let (axes, steps) = (self.ints(&[2, 3]), self.ints(&[2, 2]));
        let y = self.node("Slice", &[x, &starts, &ends, &axes, &steps], vec![]);
        if more == 0 {
            return Ok(y);
        }
        let (before, behind) = ((more / 2) as i64, (more - more / 2) as i64);
        let pads = self.ints(&[0, before, 0, 0, 0, behind, 0, 0]);
        Ok(self.node("Pad", &[&y, &pads], vec![]))
    }

    fn mean_pool(&mut self, x: &String) -> Result<String> {
        let y = self.node("GlobalAveragePool", &[x], vec![]);
        self.flatten(&y)
    }

    fn flatten(&mut self, x: &String) -> Result<String> {
        Ok(self.node("Flatten", &[x], vec![AttributeProto::int("axis", 1)]))
    }
}

impl Backend for Onnx<'_> {
    fn param(&mut self, name: &str, shape: &[usize], _init: Init) -> Result<String> {
        if self.graph.initializer.iter().any(|t| t.name == name) {
            return Ok(name.to_owned());
        }
        let missing = || Error::Config(format!("parameter {name} was never trained"));
        let var = self.params.and_then(|p| p.get(name)).ok_or_else(missing)?;
        let data = var.flatten_all()?.to_vec1::<f32>()?;
        Ok(self.floats(name.to_owned(), &data, shape))
    }

    fn constant(&mut self, data: &[f32], shape: &[usize]) -> Result<String> {
        self.next += 1;
        let name = format!("c{}", self.next);
        Ok(self.floats(name, data, shape))
    }

    fn project(&mut self, x: &String, weight: &String) -> Result<String> {
        let transposed = self.node("Transpose", &[weight], vec![attr_ints("perm", &[1, 0])]);
        Ok(self.node("MatMul", &[x, &transposed], vec![]))
    }

    // One node each, which ONNX Runtime has a kernel for: a third of a UNet's time was in the parts of normalisations.
    fn layer_norm_last(&mut self, x: &String, w: Weights<'_, String>) -> Result<String> {
        let attributes = vec![AttributeProto::int("axis", -1), attr_float("epsilon", EPSILON as f32)];
        Ok(self.node("LayerNormalization", &[x, w.scale, w.shift], attributes))
    }

    fn group_norm(
        &mut self,
        x: &String,
        groups: usize,
        [c, h, w]: [usize; 3],
        p: Weights<'_, String>,
        f: Unary,
    ) -> Result<String> {
        let length = c / groups * h * w;
        let x = self.reshape(x, &[0, groups as i64, length as i64])?;
        let (ones, zeros) =
            (self.constant(&vec![1.0; length], &[length])?, self.constant(&vec![0.0; length], &[length])?);
        let x = self.layer_norm_last(&x, Weights { scale: &ones, shift: &zeros })?;
        let x = self.reshape(&x, &[0, c as i64, h as i64, w as i64])?;
        let x = self.mul(&x, p.scale)?;
        let x = self.add(&x, p.shift)?;
        self.unary(&x, f)
    }

    fn matmul(&mut self, a: &String, b: &String) -> Result<String> {
        Ok(self.node("MatMul", &[a, b], vec![]))
    }

    fn add(&mut self, a: &String, b: &String) -> Result<String> {
        Ok(self.node("Add", &[a, b], vec![]))
    }

    fn sub(&mut self, a: &String, b: &String) -> Result<String> {
        Ok(self.node("Sub", &[a, b], vec![]))
    }

    fn mul(&mut self, a: &String, b: &String) -> Result<String> {
        Ok(self.node("Mul", &[a, b], vec![]))
    }

    fn div(&mut self, a: &String, b: &String) -> Result<String> {
        Ok(self.node("Div", &[a, b], vec![]))
    }

    fn affine(&mut self, x: &String, scale: f64, shift: f64) -> Result<String> {
        let mut y = x.clone();
        if scale != 1.0 {
            let c = self.scalar(scale);
            y = self.node("Mul", &[&y, &c], vec![]);
        }
        if shift != 0.0 {
            let c = self.scalar(shift);
            y = self.node("Add", &[&y, &c], vec![]);
        }
        Ok(y)
    }

    fn softmax(&mut self, x: &String) -> Result<String> {
        Ok(self.node("Softmax", &[x], vec![AttributeProto::int("axis", -1)]))
    }

    fn mean_last(&mut self, x: &String) -> Result<String> {
        let mut axes = attr_ints("axes", &[]);
        axes.ints = vec![-1];
        Ok(self.node("ReduceMean", &[x], vec![axes, AttributeProto::int("keepdims", 1)]))
    }

    fn reshape(&mut self, x: &String, shape: &[i64]) -> Result<String> {
        let shape = self.ints(shape);
        Ok(self.node("Reshape", &[x, &shape], vec![]))
    }

    fn permute(&mut self, x: &String, order: &[usize]) -> Result<String> {
        Ok(self.node("Transpose", &[x], vec![attr_ints("perm", order)]))
    }

    fn slice_last(&mut self, x: &String, start: usize, length: usize) -> Result<String> {
        let (from, to, axis) = (self.ints(&[start as i64]), self.ints(&[(start + length) as i64]), self.ints(&[-1]));
        Ok(self.node("Slice", &[x, &from, &to, &axis], vec![]))
    }

    fn concat(&mut self, parts: &[&String], axis: usize) -> Result<String> {
        let inputs: Vec<&str> = parts.iter().map(|s| s.as_str()).collect();
        Ok(self.node("Concat", &inputs, vec![AttributeProto::int("axis", axis as i64)]))
    }

    fn upsample2(&mut self, x: &String) -> Result<String> {
        let scales = self.constant(&[1.0, 1.0, 2.0, 2.0], &[4])?;
        let attributes = vec![
            attr_string("mode", "nearest"),
            attr_string("coordinate_transformation_mode", "asymmetric"),
            attr_string("nearest_mode", "floor"),
        ];
        Ok(self.node("Resize", &[x, "", &scales], attributes))
    }

    fn expand_first(&mut self, x: &String, rank: usize, like: &String) -> Result<String> {
        let batch = self.node("Shape", &[like], vec![AttributeProto::int("start", 0), AttributeProto::int("end", 1)]);
        let ones = self.ints(&vec![1; rank.saturating_sub(1)]);
        let shape = self.node("Concat", &[&batch, &ones], vec![AttributeProto::int("axis", 0)]);
        Ok(self.node("Expand", &[x, &shape], vec![]))
    }
}
