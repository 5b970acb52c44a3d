//! A pickle as data. Nothing in it is ever run: a call is a node with its callable's name and its arguments, and what
//! those mean is decided by whoever reads the tree.
//!
//! Nodes lie in one vector and name each other by number, so that neither depth nor cycles of a hostile file matter,
//! and their number is bounded by the bytes that were read.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use crate::error::{Error, Result};

/// Number of a node.
pub(super) type Id = usize;

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// `None`, and values that nobody here looks at: floats, bytes, sets, large numbers.
    Other,
    /// A truth value.
    Bool(bool),
    /// A whole number of 64 bits.
    Int(i64),
    /// Text.
    Text(String),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dictionary of any kind, in its order.
    Dict(Vec<(Id, Id)>),
    /// A name of a module.
    Global(String, String),
    /// A call, or an object of a class.
    Call(Id, Id),
    /// Something outside the pickle: a storage.
    Persistent(Id),
}

/// A read pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    /// The value that the pickle is of.
    pub(super) root: Id,
}

impl Pickle {
    pub(super) fn node(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::Other)
    }

    /// All nodes.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The text of a node that is one.
    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number of a node that is one, 0 or more.
    pub(super) fn count(&self, id: Id) -> Option<u64> {
        match self.node(id) {
            Node::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The numbers of a node that is a sequence of them.
    pub(super) fn counts(&self, id: Id) -> Option<Vec<u64>> {
        self.items(id)?.iter().map(|id| self.count(*id)).collect()
    }

    /// The items of a node that is a sequence.
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// Module and name of a node that is a global.
    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(module, name) => Some((module, name)),
            _ => None,
        }
    }
}

fn damaged(reason: &str) -> Error {
    Error::Checkpoint(format!("its pickle is damaged: {reason}"))
}

/// Bytes with a budget.
struct Input<R> {
    reader: R,
    used: u64,
    limit: u64,
}

impl<R: BufRead> Input<R> {
    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        if count > self.limit - self.used {
            return Err(Error::CheckpointTooLarge {
                what: "the pickle",
                found: self.used.saturating_add(count),
                limit: self.limit,
            });
        }
        let mut bytes = Vec::new();
        self.reader.by_ref().take(count).read_to_end(&mut bytes).map_err(Error::Read)?;
        if bytes.len() as u64 != count {
            return Err(damaged("it ends early"));
        }
        self.used += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        if N as u64 > self.limit - self.used {
            return Err(Error::CheckpointTooLarge { what: "the pickle", found: self.limit + 1, limit: self.limit });
        }
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("it ends early"),
            _ => Error::Read(error),
        })?;
        self.used += N as u64;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A little-endian number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<u64> {
        let bytes = self.array::<N>()?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn line(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return text(bytes),
                byte => bytes.push(byte),
            }
        }
    }

    fn text<const N: usize>(&mut self) -> Result<Node> {
        let length = self.number::<N>()?;
        Ok(Node::Text(text(self.take(length)?)?))
    }

    fn skip<const N: usize>(&mut self) -> Result<Node> {
        let length = self.number::<N>()?;
        self.take(length).map(|_| Node::Other)
    }
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| damaged("a text in it is not UTF-8"))
}

struct Machine<R> {
    input: Input<R>,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

/// Reads one pickle, of at most `limit` bytes; returns how many it has.
///
/// # Errors
/// [`Error::Checkpoint`], [`Error::CheckpointTooLarge`], [`Error::Read`].
pub(super) fn read(reader: impl BufRead, limit: u64) -> Result<(Pickle, u64)> {
    let input = Input { reader, used: 0, limit };
    let mut machine = Machine { input, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let code = machine.input.byte()?;
        if code == b'.' {
            let root = machine.pop()?;
            return Ok((Pickle { nodes: machine.nodes, root }, machine.input.used));
        }
        machine.step(code)?;
    }
}

impl<R: BufRead> Machine<R> {
    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
    }

    fn pop(&mut self) -> Result<Id> {
        self.stack.pop().ok_or_else(|| damaged("its stack is empty"))
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| damaged("its stack is empty"))
    }

    /// The items above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing"))?;
        if mark > self.stack.len() {
            return Err(damaged("a mark is missing"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let start = self.stack.len().checked_sub(count).ok_or_else(|| damaged("its stack is empty"))?;
        let items = self.stack.split_off(start);
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            0x80 => drop(self.input.byte()?),
            0x95 => drop(self.input.array::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.marked()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.marked()?;
                self.push(Node::Tuple(items));
            }
            b']' => self.push(Node::List(Vec::new())),
            b'l' => {
                let items = self.marked()?;
                self.push(Node::List(items));
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.marked()?;
                self.push(Node::Dict(pairs(&items)?));
            }
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(code)?,
            0x8f => self.push(Node::Other),
            0x91 => {
                drop(self.marked()?);
                self.push(Node::Other);
            }
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memory(code)?,
            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'o' | b'i' | b'b' | b'P' | b'Q' => self.object(code)?,
            _ => {
                let node = self.scalar(code)?;
                self.push(node);
            }
        }
        Ok(())
    }

    fn scalar(&mut self, code: u8) -> Result<Node> {
        let input = &mut self.input;
        Ok(match code {
            b'N' => Node::Other,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(input.byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(input.array()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(input.array()?))),
            b'I' => match input.line()?.as_str() {
                "00" => Node::Bool(false),
                "01" => Node::Bool(true),
                line => line.trim().parse().map_or(Node::Other, Node::Int),
            },
            b'L' => input.line()?.trim().trim_end_matches('L').parse().map_or(Node::Other, Node::Int),
            0x8a => {
                let length = u64::from(input.byte()?);
                long(&input.take(length)?)
            }
            0x8b => {
                let length = input.number::<4>()?;
                long(&input.take(length)?)
            }
            b'G' => input.array::<8>().map(|_| Node::Other)?,
            b'F' => input.line().map(|_| Node::Other)?,
            b'V' => Node::Text(input.line()?),
            b'S' => Node::Text(input.line()?.trim_matches(['\'', '"']).to_owned()),
            0x8c | b'U' => input.text::<1>()?,
            b'X' | b'T' => input.text::<4>()?,
            0x8d => input.text::<8>()?,
            b'C' => input.skip::<1>()?,
            b'B' => input.skip::<4>()?,
            0x8e | 0x96 => input.skip::<8>()?,
            code => return Err(damaged(&format!("there is no operation {code:#04x}"))),
        })
    }

    /// Puts items into the container below them.
    fn fill(&mut self, code: u8) -> Result<()> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.marked()?,
        };
        let container = self.top()?;
        match (self.nodes.get_mut(container), code) {
            (Some(Node::List(list)), b'a' | b'e') => list.extend(items),
            (Some(Node::Dict(dict)), b's' | b'u') => dict.extend(pairs(&items)?),
            // Of an object of some class, which nobody looks into.
            (Some(Node::Call(..) | Node::Other), _) => {}
            _ => return Err(damaged("items go into something that is not a container")),
        }
        Ok(())
    }

    fn memory(&mut self, code: u8) -> Result<()> {
        let key = match code {
            b'p' | b'g' => self.input.line()?.trim().parse().map_err(|_| damaged("a memo key is not a number"))?,
            b'q' | b'h' => self.input.number::<1>()?,
            b'r' | b'j' => self.input.number::<4>()?,
            _ => self.memo.len() as u64,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let id = self.memo.get(&key).copied().ok_or_else(|| damaged("a memo is missing"))?;
            self.stack.push(id);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn object(&mut self, code: u8) -> Result<()> {
        match code {
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push(Node::Global(module, name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.nodes.get(module), self.nodes.get(name)) {
                    (Some(Node::Text(module)), Some(Node::Text(name))) => {
                        let node = Node::Global(module.clone(), name.clone());
                        self.push(node);
                    }
                    _ => return Err(damaged("a global has no name")),
                }
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments);
            }
            0x92 => {
                let _keywords = self.pop()?;
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments);
            }
            b'o' => {
                let mut items = self.marked()?;
                if items.is_empty() {
                    return Err(damaged("an object has no class"));
                }
                let arguments = items.split_off(1);
                self.nodes.push(Node::Tuple(arguments));
                self.call(items[0], self.nodes.len() - 1);
            }
            b'i' => {
                let class = Node::Global(self.input.line()?, self.input.line()?);
                let arguments = self.marked()?;
                self.nodes.extend([class, Node::Tuple(arguments)]);
                self.call(self.nodes.len() - 2, self.nodes.len() - 1);
            }
            // The state of an object, such as `_metadata` of a state dict: nobody looks at it.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'P' => {
                let id = self.input.line()?;
                self.nodes.push(Node::Text(id));
                self.push(Node::Persistent(self.nodes.len() - 1));
            }
            _ => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
        }
        Ok(())
    }

    /// A call of a dictionary's class is an empty one that is filled later; any other call stays what it is.
    fn call(&mut self, callable: Id, arguments: Id) {
        let node = match self.nodes.get(callable) {
            Some(Node::Global(module, name))
                if module == "collections" && (name == "OrderedDict" || name == "defaultdict") =>
            {
                Node::Dict(Vec::new())
            }
            _ => Node::Call(callable, arguments),
        };
        self.push(node);
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err(damaged("a key has no value")),
    }
}

fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Other;
    }
    let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
    let mut number = [fill; 8];
    number[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(bytes: &[u8]) -> Result<(Pickle, u64)> {
        read(bytes, 1000)
    }

    #[test]
    fn values() {
        for (bytes, expected) in [
            (&b"K\x07."[..], Node::Int(7)),
            (b"J\xff\xff\xff\xff.", Node::Int(-1)),
            (b"\x8a\x02\x00\xff.", Node::Int(-256)),
            (b"\x8a\x00.", Node::Int(0)),
            (b"I01\n.", Node::Bool(true)),
            (b"I-5\n.", Node::Int(-5)),
            (b"\x8c\x02ab.", Node::Text("ab".into())),
            (b"N.", Node::Other),
            (b"K\x01K\x02\x862.", Node::Tuple(vec![0, 1])),
            (b"ccollections\nOrderedDict\n)R.", Node::Dict(vec![])),
            (b"cos\nsystem\n(S'ls'\ntR.", Node::Call(0, 2)),
        ] {
            let (pickle, used) = node(bytes).unwrap();
            assert_eq!((pickle.node(pickle.root), used), (&expected, bytes.len() as u64));
        }
    }

    #[test]
    fn containers_fill_in_place() {
        // d = {}; l = [1]; d["a"] = l, with l filled after it was put there.
        let (pickle, _) = node(b"}q\x00\x8c\x01a]q\x01sh\x01K\x01a0.").unwrap();
        let Node::Dict(dict) = pickle.node(pickle.root) else { panic!("no dict") };
        assert_eq!((pickle.text(dict[0].0), pickle.counts(dict[0].1)), (Some("a"), Some(vec![1])));
    }

    #[test]
    fn damage_is_an_error() {
        for bytes in [
            &b""[..],
            b".",
            b"K",
            b"(.",
            b"t.",
            b"(0t.",
            b"K\x01(000t.",
            b"\xff.",
            b"h\x05.",
            b"X\xff\xff\xff\x7fab.",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
            b"K\x01K\x02a.",
            b"}(K\x01u.",
            b"(o.",
            b"\x8c\x01\xff.",
        ] {
            assert!(node(bytes).is_err(), "{bytes:?}");
        }
    }
}
