//! Just enough of ONNX's protobuf encoding to write small graphs whose results are known in closed form.

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(out: &mut Vec<u8>, field: u64, value: i64) {
    varint(out, field << 3);
    varint(out, value as u64);
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A number, a list of numbers.
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
}

/// A graph under construction, opset 17.
#[derive(Default)]
pub struct Graph {
    body: Vec<u8>,
}

impl Graph {
    pub fn new() -> Self {
        let mut graph = Self::default();
        bytes(&mut graph.body, 2, b"test");
        graph
    }

    /// A node with one output named `output`.
    pub fn node(self, op: &str, inputs: &[&str], output: &str) -> Self {
        self.node_with(op, inputs, output, &[])
    }

    pub fn node_with(mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> Self {
        let mut node = Vec::new();
        inputs.iter().for_each(|name| bytes(&mut node, 1, name.as_bytes()));
        bytes(&mut node, 2, output.as_bytes());
        bytes(&mut node, 4, op.as_bytes());
        for (name, value) in attributes {
            let mut attribute = Vec::new();
            bytes(&mut attribute, 1, name.as_bytes());
            match value {
                Attribute::Int(i) => {
                    number(&mut attribute, 3, *i);
                    number(&mut attribute, 20, 2);
                }
                Attribute::Ints(list) => {
                    list.iter().for_each(|&i| number(&mut attribute, 8, i));
                    number(&mut attribute, 20, 7);
                }
            }
            bytes(&mut node, 5, &attribute);
        }
        bytes(&mut self.body, 1, &node);
        self
    }

    fn initializer(mut self, name: &str, shape: &[usize], element: i64, raw: &[u8]) -> Self {
        let mut tensor = Vec::new();
        shape.iter().for_each(|&d| number(&mut tensor, 1, d as i64));
        number(&mut tensor, 2, element);
        bytes(&mut tensor, 8, name.as_bytes());
        bytes(&mut tensor, 9, raw);
        bytes(&mut self.body, 5, &tensor);
        self
    }

    pub fn floats(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializer(name, shape, 1, &raw)
    }

    pub fn integers(self, name: &str, values: &[i64]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializer(name, &[values.len()], 7, &raw)
    }

    fn value(mut self, field: u64, name: &str, element: i64, shape: &[usize]) -> Self {
        let mut dims = Vec::new();
        for &d in shape {
            let mut dim = Vec::new();
            match d {
                0 => bytes(&mut dim, 2, b"batch"),
                _ => number(&mut dim, 1, d as i64),
            }
            bytes(&mut dims, 1, &dim);
        }
        let mut tensor = Vec::new();
        number(&mut tensor, 1, element);
        bytes(&mut tensor, 2, &dims);
        let mut ty = Vec::new();
        bytes(&mut ty, 1, &tensor);
        let mut info = Vec::new();
        bytes(&mut info, 1, name.as_bytes());
        bytes(&mut info, 2, &ty);
        bytes(&mut self.body, field, &info);
        self
    }

    /// An f32 input; a dimension of 0 is the batch.
    pub fn input(self, name: &str, shape: &[usize]) -> Self {
        self.value(11, name, 1, shape)
    }

    /// An i64 input; a dimension of 0 is the batch.
    pub fn integer_input(self, name: &str, shape: &[usize]) -> Self {
        self.value(11, name, 7, shape)
    }

    /// An f32 output; a dimension of 0 is the batch.
    pub fn output(self, name: &str, shape: &[usize]) -> Self {
        self.value(12, name, 1, shape)
    }

    /// The model's bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut opset = Vec::new();
        number(&mut opset, 2, 17);
        let mut model = Vec::new();
        number(&mut model, 1, 8);
        bytes(&mut model, 7, &self.body);
        bytes(&mut model, 8, &opset);
        model
    }
}
