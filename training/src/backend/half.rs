//! A recorded graph in half precision: weights and arithmetic in f16, inputs and outputs in f32 as they were. What is made
//! of the timestep alone stays in f32 up to the first matrix product: angles go up to 1,000, of which f16 keeps no
//! fraction.

use std::collections::{BTreeMap, BTreeSet};

use ::half::f16;
use prost::Message;
use weights::onnx::{AttributeProto, FLOAT, GraphProto, ModelProto, NodeProto, PRODUCER, TensorProto, ValueInfoProto};

use crate::error::{Error, Result};

const FLOAT16: i32 = 10;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Shapes and indices.
    Whole,
    Single,
    Half,
}

/// Operations that keep what is made of the timestep in f32.
const EXACT: [&str; 10] = ["Add", "Concat", "Cos", "Div", "Expand", "Mul", "Reshape", "Sin", "Slice", "Sub"];

/// The graph in half precision; what is made of its input `exact` alone stays in f32.
///
/// # Errors
/// [`Error::Config`] where the bytes are no graph that was recorded here, it is in half precision already, or a weight is
/// beyond what f16 holds (65,504).
pub fn half(graph: &[u8], exact: &str) -> Result<Vec<u8>> {
    let refused = |why: &str| Error::Config(format!("the graph cannot be had in half precision: {why}"));
    let mut model = ModelProto::decode(graph).map_err(|e| refused(&format!("it is damaged ({e})")))?;
    if model.producer_name != PRODUCER {
        return Err(refused("it was not exported by weightsmith"));
    }
    let graph = model.graph.take().ok_or_else(|| refused("it is empty"))?;
    if graph.initializer.iter().any(|t| t.data_type == FLOAT16) {
        return Err(refused("it is already"));
    }
    model.graph = Some(Halving::of(&graph).rewrite(graph, exact)?);
    Ok(model.encode_to_vec())
}

/// The state of a rewrite.
struct Halving {
    /// Of inputs and of what nodes gave. Inputs that are taken in f16 are `Half`.
    kinds: BTreeMap<String, Kind>,
    initialisers: BTreeMap<String, i32>,
    /// Initialisers that are needed as they are.
    kept: BTreeSet<String>,
    /// Values that are needed in f16 too, under the name with [`HALF`]: initialisers, and what a node casts.
    halved: BTreeSet<String>,
    nodes: Vec<NodeProto>,
}

/// Ends the name of a value that has an f32 of its name too.
const HALF: &str = ".f16";

impl Halving {
    fn of(graph: &GraphProto) -> Self {
        Self {
            kinds: BTreeMap::new(),
            initialisers: graph.initializer.iter().map(|t| (t.name.clone(), t.data_type)).collect(),
            kept: BTreeSet::new(),
            halved: BTreeSet::new(),
            nodes: Vec::new(),
        }
    }

    fn rewrite(mut self, graph: GraphProto, exact: &str) -> Result<GraphProto> {
        for ValueInfoProto { name, .. } in &graph.input {
            self.kinds.insert(name.clone(), Kind::Single);
            if name != exact {
                self.cast(name);
                self.kinds.insert(name.clone(), Kind::Half);
            }
        }
        let outputs: BTreeSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
        for node in graph.node {
            self.node(node, &outputs);
        }
        let mut initializer = Vec::new();
        for tensor in graph.initializer {
            if self.halved.contains(&tensor.name) {
                initializer.push(halved(&tensor)?);
            }
            if self.kept.contains(&tensor.name) {
                initializer.push(tensor);
            }
        }
        Ok(GraphProto { name: graph.name, node: self.nodes, initializer, input: graph.input, output: graph.output })
    }

    /// What a node computes in: whole numbers where all that it takes are, f32 where all that it takes was made of the
    /// exact input and constants, f16 else.
    fn kind(&self, node: &NodeProto) -> Kind {
        if node.op_type == "Shape" {
            return Kind::Whole;
        }
        let made: Vec<Kind> = node.input.iter().filter_map(|input| self.kinds.get(input).copied()).collect();
        let constant = |input: &String| self.initialisers.get(input) == Some(&FLOAT);
        if made.iter().all(|&kind| kind == Kind::Whole) && !node.input.iter().any(constant) {
            return Kind::Whole;
        }
        let exact = EXACT.contains(&node.op_type.as_str()) && made.contains(&Kind::Single);
        if exact && !made.contains(&Kind::Half) { Kind::Single } else { Kind::Half }
    }

    fn node(&mut self, mut node: NodeProto, outputs: &BTreeSet<&str>) {
        let kind = self.kind(&node);
        for (i, input) in node.input.iter_mut().enumerate() {
            // Scales of a resize are f32 whatever it resizes.
            let half = kind == Kind::Half && !(node.op_type == "Resize" && i > 0);
            *input = self.taken(input, half);
        }
        let mut last = None;
        for output in &mut node.output {
            self.kinds.insert(output.clone(), kind);
            if kind == Kind::Half && outputs.contains(output.as_str()) {
                let half = format!("{output}{HALF}");
                last = Some(cast_node(&half, output, FLOAT));
                *output = half;
            }
        }
        self.nodes.push(node);
        self.nodes.extend(last);
    }

    /// The name under which a node takes a value.
    fn taken(&mut self, name: &str, half: bool) -> String {
        match (self.initialisers.get(name), half) {
            (Some(&FLOAT), true) => {
                self.halved.insert(name.to_owned());
                return format!("{name}{HALF}");
            }
            (Some(_), _) => {
                self.kept.insert(name.to_owned());
            }
            // An input, or what was made of the exact one.
            (None, true) if self.halved.contains(name) => return format!("{name}{HALF}"),
            (None, true) if self.kinds.get(name) == Some(&Kind::Single) => return self.cast(name),
            _ => {}
        }
        name.to_owned()
    }

    /// The value in f16.
    fn cast(&mut self, name: &str) -> String {
        let half = format!("{name}{HALF}");
        self.halved.insert(name.to_owned());
        self.nodes.push(cast_node(name, &half, FLOAT16));
        half
    }
}

fn cast_node(from: &str, to: &str, kind: i32) -> NodeProto {
    NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        name: format!("cast_{to}"),
        op_type: "Cast".into(),
        attribute: vec![AttributeProto::int("to", i64::from(kind))],
        ..NodeProto::default()
    }
}

fn halved(tensor: &TensorProto) -> Result<TensorProto> {
    let mut raw_data = Vec::with_capacity(tensor.raw_data.len() / 2);
    for bytes in tensor.raw_data.chunks_exact(4) {
        let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let half = f16::from_f32(value);
        if value.is_finite() && !half.is_finite() {
            let largest = f16::MAX;
            return Err(Error::Config(format!("{} has the value {value}; f16 holds at most {largest}", tensor.name)));
        }
        raw_data.extend_from_slice(&half.to_le_bytes());
    }
    Ok(TensorProto { dims: tensor.dims.clone(), data_type: FLOAT16, name: format!("{}{HALF}", tensor.name), raw_data })
}
