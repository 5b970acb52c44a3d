//! 3×3 convolutions of a denoiser on the CPU by Winograd's filtering (`kernels`), which takes a quarter of the products that
//! ONNX Runtime's own take: nodes of a recorded graph are replaced by an operator of ours when it is loaded, the bundle stays as
//! it is. Their weights are kept once for all sessions of the graph. One row alone has too few tiles for that: the session with
//! all threads runs the graph as it was recorded.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use kernels::{Conv, Pool, Prepared};
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;
use prost::Message;
use weights::onnx::{AttributeProto, FLOAT, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, PRODUCER};

const DOMAIN: &str = "weightsmith";
const OPERATOR: &str = "Convolution";
/// Attribute of a node of ours: which layer it is.
const LAYER: &str = "layer";

/// A graph without those of its convolutions that are done here, and these.
#[derive(Debug)]
pub(crate) struct Convolutions {
    graph: Vec<u8>,
    layers: Arc<[Layer]>,
}

#[derive(Debug)]
struct Layer {
    conv: Conv,
    weight: Prepared<Vec<f32>>,
    bias: Vec<f32>,
}

impl Convolutions {
    /// Those of a recorded graph; none where it has none that are faster here.
    pub fn of(graph: &[u8]) -> Option<Self> {
        let mut model = recorded(graph)?;
        let mut graph = model.graph.take()?;
        let found = found(&graph);
        let layers = found.iter().map(|(node, conv)| layer(&graph, &graph.node[*node], *conv));
        let layers: Arc<[Layer]> = layers.collect::<Option<Vec<_>>>().filter(|layers| !layers.is_empty())?.into();
        for (i, (at, _)) in (0..).zip(&found) {
            let node = &mut graph.node[*at];
            node.input.truncate(1);
            (node.op_type, node.domain) = (OPERATOR.into(), DOMAIN.into());
            node.attribute = vec![AttributeProto::int(LAYER, i)];
        }
        let used = |name: &String| graph.node.iter().any(|node| node.input.contains(name));
        let kept = graph.initializer.iter().filter(|tensor| used(&tensor.name)).cloned().collect();
        graph.initializer = kept;
        model.opset_import.push(OperatorSetIdProto { domain: DOMAIN.into(), version: 1 });
        model.graph = Some(graph);
        Some(Self { graph: model.encode_to_vec(), layers })
    }

    /// The graph, to be run with [`Self::operators`].
    pub fn graph(&self) -> &[u8] {
        &self.graph
    }

    /// The operators for a session of so many threads.
    pub fn operators(&self, threads: usize) -> ort::Result<OperatorDomain> {
        let operator = Convolution { layers: self.layers.clone(), threads, buffers: Pool::default() };
        OperatorDomain::new(DOMAIN)?.add(operator)
    }
}

/// Bytes of the filters that a graph's convolutions are transformed to.
pub(crate) fn bytes(graph: &[u8]) -> u64 {
    let Some(graph) = recorded(graph).and_then(|model| model.graph) else { return 0 };
    let pairs: usize = found(&graph).iter().map(|(_, conv)| conv.o * conv.c).sum();
    (pairs * 36 * size_of::<f32>()) as u64
}

fn recorded(graph: &[u8]) -> Option<ModelProto> {
    ModelProto::decode(graph).ok().filter(|model| model.producer_name == PRODUCER)
}

/// Nodes whose convolutions are faster here.
fn found(graph: &GraphProto) -> Vec<(usize, Conv)> {
    let fits = |node: &NodeProto| {
        let is = |name: &str, values: &[i64]| node.attribute(name).is_some_and(|a| a.ints == values);
        // Recorded ones have no other attributes: dilations and groups are 1.
        let plain = node.attribute.len() == 2 && is("strides", &[1; 2]) && is("pads", &[1; 4]);
        let [_, weight, _] = &node.input[..] else { return None };
        let weight = graph.initializer.iter().find(|tensor| tensor.name == *weight)?;
        let &[o, c, 3, 3] = &weight.dims[..] else { return None };
        let conv = convolution(usize::try_from(o).ok()?, usize::try_from(c).ok()?);
        (node.op_type == "Conv" && plain && conv.is_filtered()).then_some(conv)
    };
    graph.node.iter().enumerate().filter_map(|(i, node)| Some((i, fits(node)?))).collect()
}

/// One of 3×3 filters over planes of any size.
fn convolution(o: usize, c: usize) -> Conv {
    Conv { c, h: 0, w: 0, o, k: 3, stride: 1, pad: 1 }
}

fn layer(graph: &GraphProto, node: &NodeProto, conv: Conv) -> Option<Layer> {
    let values = |name: &String, len: usize| {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == *name && tensor.data_type == FLOAT)?;
        let (values, rest) = tensor.raw_data.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (rest.is_empty() && values.len() == len).then_some(values)
    };
    let weight = Prepared::new(conv, values(&node.input[1], conv.o * conv.c * 9)?);
    Some(Layer { conv, weight, bias: values(&node.input[2], conv.o)? })
}

/// The operator: an image's plane and channels in, of its layer's out.
struct Convolution {
    layers: Arc<[Layer]>,
    threads: usize,
    buffers: Pool,
}

impl Operator for Convolution {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        OPERATOR
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let index = context.get::<i64>(LAYER).and_then(|index| usize::try_from(index).ok());
        let index = index.filter(|index| *index < self.layers.len()).ok_or_else(|| ort::Error::new("no such layer"))?;
        let (layers, threads, buffers) = (self.layers.clone(), self.threads, self.buffers.clone());
        Ok(Box::new(move |context: &ComputeContext| layers[index].compute(context, threads, &buffers)))
    }
}

/// What a thread does: the channels of some images, into their place.
struct Part<'y> {
    images: Range<usize>,
    channels: Range<usize>,
    y: Mutex<&'y mut [f32]>,
}

impl Layer {
    fn compute(&self, context: &ComputeContext, threads: usize, buffers: &Pool) -> ort::Result<()> {
        let missing = || ort::Error::new("a convolution without its tensors");
        let input = context.input(0)?.ok_or_else(missing)?;
        let (shape, x) = input.try_extract_tensor::<f32>()?;
        let side = |i: usize| shape.get(i).and_then(|side| usize::try_from(*side).ok()).unwrap_or(0);
        let (n, conv) = (side(0), Conv { h: side(2), w: side(3), ..self.conv });
        if shape.len() != 4 || side(1) != conv.c || n * conv.h * conv.w == 0 {
            return Err(ort::Error::new(format!("a convolution of {} channels takes no {shape:?}", conv.c)));
        }
        let plane = conv.h * conv.w;
        let mut output = context.output(0, [n, conv.o, conv.h, conv.w])?.ok_or_else(missing)?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        let parts = parts(n, conv.o, plane, threads, y);
        let image = conv.c * plane;
        let work = |i: usize| {
            let Part { images, channels, y } = &parts[i];
            let x = &x[images.start * image..images.end * image];
            let mut y = y.lock().unwrap_or_else(PoisonError::into_inner);
            conv.forward_prepared(x, &self.weight, &self.bias, channels.clone(), &mut y, buffers);
        };
        match parts.len() {
            1 => work(0),
            all => context.par_for(all, all, work)?,
        }
        Ok(())
    }
}

/// Cuts an output for so many threads: between images, and where there are fewer between channels too.
fn parts(n: usize, channels: usize, plane: usize, threads: usize, mut y: &mut [f32]) -> Vec<Part<'_>> {
    let (across, within) = if n >= threads { (threads, 1) } else { (n, threads.div_ceil(n)) };
    let cut = |all: usize, parts: usize, i: usize| all * i / parts..all * (i + 1) / parts;
    let ranges = (0..across).flat_map(|i| (0..within).map(move |j| (cut(n, across, i), cut(channels, within, j))));
    let mut parts = Vec::with_capacity(across * within);
    for (images, channels) in ranges {
        let (own, rest) = std::mem::take(&mut y).split_at_mut(images.len() * channels.len() * plane);
        y = rest;
        parts.push(Part { images, channels, y: Mutex::new(own) });
    }
    parts
}

#[cfg(test)]
mod tests {
    use weights::onnx::TensorProto;

    use super::*;

    fn tensor(name: &str, dims: &[i64]) -> TensorProto {
        let raw_data = vec![0; 4 * dims.iter().product::<i64>() as usize];
        TensorProto { name: name.into(), dims: dims.to_vec(), data_type: FLOAT, raw_data }
    }

    fn ints(name: &str, ints: &[i64]) -> AttributeProto {
        AttributeProto { name: name.into(), ints: ints.to_vec(), kind: 7, ..Default::default() }
    }

    /// Two convolutions by one weight, of which the first is changed.
    fn model(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> Vec<u8> {
        let node = |from: &str, to: &str| NodeProto {
            input: [from, "w", "b"].map(String::from).to_vec(),
            output: vec![to.into()],
            op_type: "Conv".into(),
            attribute: vec![ints("strides", &[1, 1]), ints("pads", &[1; 4])],
            ..Default::default()
        };
        let initializer = vec![tensor("w", &[40, 40, 3, 3]), tensor("b", &[40])];
        let mut graph = GraphProto { node: vec![node("x", "y"), node("y", "z")], initializer, ..Default::default() };
        let mut model = ModelProto { producer_name: PRODUCER.into(), ..Default::default() };
        change(&mut model, &mut graph);
        model.graph = Some(graph);
        model.encode_to_vec()
    }

    #[test]
    fn convolutions_and_their_weights_are_taken_out() {
        let whole = model(|_, _| ());
        let own = Convolutions::of(&whole).unwrap();
        let graph = ModelProto::decode(own.graph()).unwrap().graph.unwrap();
        assert!(graph.initializer.is_empty() && own.layers.len() == 2);
        let inputs: Vec<_> = graph.node.iter().map(|node| (node.input.join(" "), &node.domain[..])).collect();
        assert_eq!(inputs, [("x".into(), DOMAIN), ("y".into(), DOMAIN)]);
        assert_eq!(bytes(&whole), 2 * 4 * 57_600);
        // What another node needs stays.
        let mixed = model(|_, graph| graph.node[0].attribute[0] = ints("strides", &[2, 2]));
        let own = Convolutions::of(&mixed).unwrap();
        let graph = ModelProto::decode(own.graph()).unwrap().graph.unwrap();
        assert_eq!((graph.initializer.len(), own.layers.len(), &graph.node[0].op_type[..]), (2, 1, "Conv"));
    }

    #[test]
    fn other_graphs_stay_as_they_are() {
        type Change = fn(&mut ModelProto, &mut GraphProto);
        let changes: [Change; 7] = [
            |model, _| model.producer_name = "pytorch".into(),
            |_, graph| graph.node.iter_mut().for_each(|node| node.op_type = "ConvTranspose".into()),
            |_, graph| graph.node.iter_mut().for_each(|node| node.attribute.push(ints("dilations", &[2, 2]))),
            |_, graph| graph.initializer[0].dims = vec![40, 40, 1, 9],
            |_, graph| graph.initializer[0].dims = vec![16, 100, 3, 3],
            |_, graph| graph.initializer[0].data_type = 10,
            // Damage, which ONNX Runtime names.
            |_, graph| graph.initializer[0].raw_data.truncate(1001),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            assert!(Convolutions::of(&model(change)).is_none(), "change {i}");
        }
        assert!(Convolutions::of(b"no graph").is_none() && Convolutions::of(&[]).is_none());
    }

    #[test]
    fn every_value_is_in_one_part() {
        for (n, channels, threads) in [(1, 33, 1), (1, 33, 2), (1, 33, 4), (3, 5, 2), (2, 7, 3), (5, 2, 4), (64, 3, 2)]
        {
            let mut y: Vec<f32> = (0..n * channels * 2).map(|i| i as f32).collect();
            let parts = parts(n, channels, 2, threads, &mut y);
            assert!(parts.len() >= threads.min(n * channels), "{n} {channels} {threads}");
            let mut next = 0;
            for Part { images, channels: own, y } in parts {
                // Several images have all their channels: their values lie together.
                assert!(images.len() == 1 || own == (0..channels));
                let y = y.into_inner().unwrap();
                assert_eq!((y.len(), y[0] as usize), (images.len() * own.len() * 2, next));
                assert_eq!(next, (images.start * channels + own.start) * 2);
                next += y.len();
            }
            assert_eq!(next, n * channels * 2);
        }
    }
}
