//! What PyTorch writes: `torch.save` since 1.6 is a zip archive with `data.pkl` and a file a storage; before, it was a
//! row of pickles followed by the storages. Both end as a list of tensors and where their bytes lie.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufReader, Read, Seek, SeekFrom};

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Id, Node, Pickle};
use super::{Dtype, Found, Limits, Options, TensorSpec};
use crate::error::{Error, Result};

/// First bytes of the older form: a pickle of its magic number.
pub(super) const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";
/// First bytes of a zip archive.
pub(super) const ZIP: &[u8] = b"PK\x03\x04";
/// Version of the older form.
const LEGACY_VERSION: i64 = 1001;
/// Storages of one file.
const MAX_STORAGES: usize = 1 << 20;

fn refused(reason: impl Into<String>) -> Error {
    Error::Checkpoint(reason.into())
}

/// Where the bytes of a storage are, and how many.
type Places = BTreeMap<String, std::ops::Range<u64>>;

/// Tensors of the zip form.
pub(super) fn read_zip<R: Read + Seek>(source: &mut R, options: &Options, limits: &Limits) -> Result<Vec<Found>> {
    let broken = |error: zip::result::ZipError| refused(format!("its zip archive is damaged: {error}"));
    let mut archive = ZipArchive::new(&mut *source).map_err(broken)?;
    let folder = folder_of(&archive)?;
    if let Ok(mut file) = archive.by_name(&format!("{folder}byteorder")) {
        let mut order = String::new();
        file.by_ref().take(16).read_to_string(&mut order).map_err(Error::Read)?;
        if order.trim() != "little" {
            return Err(refused(format!("its byte order is {}; only little-endian files are read", order.trim())));
        }
    }
    let file = archive.by_name(&format!("{folder}data.pkl")).map_err(broken)?;
    let (pickle, _) = pickle::read(BufReader::new(file), limits.header)?;
    let tree = Tree { pickle: &pickle };
    let tensors = tree.tensors(options)?;
    let mut places = Places::new();
    for tensor in &tensors {
        if places.contains_key(&tensor.storage.key) {
            continue;
        }
        let name = format!("{folder}data/{}", tensor.storage.key);
        let mut file = archive.by_name(&name).map_err(|_| {
            refused(format!(
                "it has no file {name} for tensor {}: it was cut off, or not written by torch.save",
                tensor.name
            ))
        })?;
        if file.compression() != CompressionMethod::Stored || file.encrypted() {
            return Err(refused(format!("{name} in it is compressed; use the file as torch.save writes it")));
        }
        let start = file.data_start().ok_or_else(|| refused(format!("{name} in it has no place")))?;
        // To its end, where the archive's checksum is compared.
        let size = std::io::copy(&mut file, &mut std::io::sink())
            .map_err(|error| refused(format!("{name} in it is damaged: {error}")))?;
        places.insert(tensor.storage.key.clone(), start..start.saturating_add(size));
    }
    tensors.into_iter().map(|tensor| tensor.place(&places)).collect()
}

/// The folder of `data.pkl`, with its `/`.
fn folder_of<R: Read + Seek>(archive: &ZipArchive<R>) -> Result<String> {
    let at_top = |folder: &str| folder.is_empty() || folder.find('/') == Some(folder.len() - 1);
    for name in archive.file_names().flatten() {
        if let Some(folder) = name.strip_suffix("data.pkl").filter(|folder| at_top(folder)) {
            return Ok(folder.to_owned());
        }
    }
    Err(refused("it is a zip archive without data.pkl; give a file that torch.save wrote"))
}

/// Tensors of the older form; the source is at its beginning.
pub(super) fn read_legacy<R: Read + Seek>(source: &mut R, options: &Options, limits: &Limits) -> Result<Vec<Found>> {
    let mut reader = BufReader::new(&mut *source);
    let mut left = limits.header;
    let mut next = |reader: &mut BufReader<&mut R>| {
        let (pickle, used) = pickle::read(reader, left)?;
        left -= used;
        Ok::<_, Error>(pickle)
    };
    next(&mut reader)?;
    let version = next(&mut reader)?;
    if *version.node(version.root) != Node::Int(LEGACY_VERSION) {
        return Err(refused("its protocol is unknown; load it in PyTorch and save its state dict again"));
    }
    let system = next(&mut reader)?;
    if let Node::Dict(entries) = system.node(system.root)
        && entries
            .iter()
            .any(|(k, v)| system.text(*k) == Some("little_endian") && system.node(*v) == &Node::Bool(false))
    {
        return Err(refused("its byte order is big; only little-endian files are read"));
    }
    let pickle = next(&mut reader)?;
    let keys = next(&mut reader)?;
    let tree = Tree { pickle: &pickle };
    let tensors = tree.tensors(options)?;
    let position = reader.stream_position().map_err(Error::Read)?;
    let places = legacy_places(reader.into_inner(), position, &tree.storages()?, &keys)?;
    tensors.into_iter().map(|tensor| tensor.place(&places)).collect()
}

/// Finds the storages, which lie one after the other, each after its number of values.
fn legacy_places<R: Read + Seek>(
    source: &mut R,
    mut position: u64,
    storages: &BTreeMap<String, Storage>,
    keys: &Pickle,
) -> Result<Places> {
    let mut places = Places::new();
    let end = source.seek(SeekFrom::End(0)).map_err(Error::Read)?;
    let list = keys.items(keys.root).ok_or_else(|| refused("the list of its storages is missing"))?;
    for key in list.iter().take(MAX_STORAGES) {
        let key = keys.text(*key).ok_or_else(|| refused("a storage in it has no name"))?;
        let storage = storages.get(key).ok_or_else(|| refused(format!("nothing in it uses its storage {key}")))?;
        source.seek(SeekFrom::Start(position)).map_err(Error::Read)?;
        let mut count = [0; 8];
        source.read_exact(&mut count).map_err(|_| refused("it ends early: a storage is missing"))?;
        let count = u64::from_le_bytes(count);
        let start = position + 8;
        let length = count.checked_mul(storage.size).filter(|length| *length <= end.saturating_sub(start));
        let length = length.ok_or_else(|| refused("it ends early: a storage is cut off"))?;
        places.insert(key.to_owned(), start..start + length);
        position = start + length;
    }
    Ok(places)
}

/// A storage as a pickle names it.
#[derive(Debug, Clone)]
struct Storage {
    key: String,
    /// The type of its values; an untyped one leaves that to its tensors.
    dtype: Option<Dtype>,
    /// Bytes of one of its values.
    size: u64,
}

/// A tensor whose bytes are not found yet.
#[derive(Debug)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    storage: Storage,
    /// Its first value in the storage.
    offset: u64,
}

impl Tensor {
    fn place(self, places: &Places) -> Result<Found> {
        let spec = TensorSpec { name: self.name, dtype: self.dtype, shape: self.shape };
        let outside = || refused(format!("tensor {} reaches outside its storage", spec.name));
        let place = places.get(&self.storage.key).ok_or_else(outside)?;
        let size = spec.dtype.size() as u64;
        let start = self.offset.checked_mul(size).and_then(|offset| place.start.checked_add(offset));
        let end = start.zip(spec.bytes()).and_then(|(start, bytes)| start.checked_add(bytes));
        match start.zip(end) {
            Some((start, end)) if end <= place.end => Ok(Found { spec, start }),
            _ => Err(outside()),
        }
    }
}

/// Reads tensors out of a pickle.
struct Tree<'a> {
    pickle: &'a Pickle,
}

/// What an entry of a state dict turned out to be.
enum Entry {
    Tensor {
        dtype: Dtype,
        shape: Vec<usize>,
        storage: Storage,
        offset: u64,
    },
    /// A dictionary with tensors in it.
    Nested,
    /// A number, a text, an optimiser's settings.
    Other,
}

impl Tree<'_> {
    /// The tensors of the dictionary that the options name.
    fn tensors(&self, options: &Options) -> Result<Vec<Tensor>> {
        let root = self.pickle.root;
        let chosen = match options.key.as_deref().filter(|key| !key.is_empty()) {
            Some(key) => self.descend(root, key).ok_or_else(|| self.no_such_key(key))?,
            None => root,
        };
        let Node::Dict(entries) = self.pickle.node(chosen) else {
            return Err(self.not_a_dict(chosen));
        };
        let (mut tensors, mut nested) = (Vec::new(), Vec::new());
        let mut places = BTreeMap::new();
        for (key, value) in entries {
            let Some(key) = self.pickle.text(*key) else { continue };
            match self.entry(key, *value)? {
                Entry::Tensor { dtype, shape, storage, offset } => {
                    let tensor = Tensor { name: key.to_owned(), dtype, shape, storage, offset };
                    // A key that comes again replaces the value, as it does in Python.
                    match places.insert(key, tensors.len()) {
                        Some(before) => tensors[before] = tensor,
                        None => tensors.push(tensor),
                    }
                }
                Entry::Nested => nested.push(key),
                Entry::Other => {}
            }
        }
        let nested: Vec<String> = match (nested.is_empty(), tensors.is_empty()) {
            (true, true) => self.deeper(chosen),
            _ => nested.into_iter().map(str::to_owned).collect(),
        };
        if nested.is_empty() { Ok(tensors) } else { Err(Error::NestedTensors { keys: nested.join(", ") }) }
    }

    /// Paths of dictionaries with tensors, two levels down.
    fn deeper(&self, from: Id) -> Vec<String> {
        let dict = |id: Id| match self.pickle.node(id) {
            Node::Dict(entries) => entries.iter().take(100),
            _ => [].iter().take(0),
        };
        let mut paths = Vec::new();
        for (outer, value) in dict(from) {
            for (inner, value) in dict(*value) {
                if let (Some(outer), Some(inner)) = (self.pickle.text(*outer), self.pickle.text(*inner))
                    && matches!(self.entry(inner, *value), Ok(Entry::Nested))
                {
                    paths.push(format!("{outer}.{inner}"));
                }
            }
        }
        paths.truncate(8);
        paths
    }

    /// Follows a path such as `model.state_dict`; a key may itself hold dots.
    fn descend(&self, from: Id, path: &str) -> Option<Id> {
        let Node::Dict(entries) = self.pickle.node(from) else { return None };
        let named = |name: &str| entries.iter().rev().find(|(key, _)| self.pickle.text(*key) == Some(name));
        if let Some((_, value)) = named(path) {
            return Some(*value);
        }
        let (first, rest) = path.split_once('.')?;
        named(first).and_then(|(_, value)| self.descend(*value, rest))
    }

    fn keys(&self, id: Id) -> String {
        let Node::Dict(entries) = self.pickle.node(id) else { return "none".into() };
        let keys: Vec<&str> = entries.iter().filter_map(|(key, _)| self.pickle.text(*key)).take(8).collect();
        let more = if entries.len() > keys.len() { ", …" } else { "" };
        format!("{}{more}", keys.join(", "))
    }

    fn no_such_key(&self, key: &str) -> Error {
        let shown: String = key.chars().take(100).collect();
        refused(format!("it has no key {shown}; the keys at its top are {}", self.keys(self.pickle.root)))
    }

    fn not_a_dict(&self, id: Id) -> Error {
        match self.pickle.node(id) {
            Node::Call(callable, _) => {
                let class = self.pickle.global(*callable).map_or_else(String::new, |(m, n)| format!(" ({m}.{n})"));
                refused(format!(
                    "it holds a whole object{class}, whose code is never run; save its state_dict() instead"
                ))
            }
            _ => refused("what it holds there is not a dictionary of tensors; save a state_dict()"),
        }
    }

    fn entry(&self, name: &str, id: Id) -> Result<Entry> {
        match self.pickle.node(id) {
            Node::Call(callable, arguments) => {
                let (callable, arguments) = self.unwrapped(*callable, *arguments);
                match self.pickle.global(callable) {
                    Some(("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor" | "_rebuild_tensor_v3")) => {
                        self.tensor(name, arguments)
                    }
                    Some((module, what)) if module.starts_with("torch") && what.starts_with("_rebuild") => {
                        Err(Error::TensorUnsupported {
                            tensor: name.to_owned(),
                            reason: format!("it is a {module}.{what}"),
                        })
                    }
                    _ => Ok(Entry::Other),
                }
            }
            Node::Dict(entries) => {
                let holds = |id: &Id| {
                    matches!(self.pickle.node(*id), Node::Call(callable, _)
                    if self.pickle.global(*callable).is_some_and(|(module, _)| module.starts_with("torch._")))
                };
                let any = entries.iter().any(|(_, value)| holds(value));
                Ok(if any { Entry::Nested } else { Entry::Other })
            }
            _ => Ok(Entry::Other),
        }
    }

    /// Looks through the calls around a tensor: a parameter, a subclass.
    fn unwrapped(&self, mut callable: Id, mut arguments: Id) -> (Id, Id) {
        // A parameter of a subclass of a tensor has two of them; more is a file that means harm.
        for _ in 0..4 {
            let items = self.pickle.items(arguments).unwrap_or_default();
            match (self.pickle.global(callable), items) {
                (Some(("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")), [inner, ..]) => {
                    match self.pickle.node(*inner) {
                        Node::Call(inner, of) => (callable, arguments) = (*inner, *of),
                        _ => break,
                    }
                }
                (Some(("torch._tensor", "_rebuild_from_type_v2")), [inner, _, of, ..]) => {
                    (callable, arguments) = (*inner, *of);
                }
                _ => break,
            }
        }
        (callable, arguments)
    }

    fn tensor(&self, name: &str, arguments: Id) -> Result<Entry> {
        let unsupported =
            |reason: &str| Error::TensorUnsupported { tensor: name.to_owned(), reason: reason.to_owned() };
        let items = self.pickle.items(arguments).unwrap_or_default();
        let [storage, offset, shape, strides, rest @ ..] = items else {
            return Err(unsupported("it is not described as tensors are"));
        };
        let storage = self.storage(*storage).map_err(|reason| unsupported(&reason))?;
        let described = (self.pickle.count(*offset), self.pickle.counts(*shape), self.pickle.counts(*strides));
        let (Some(offset), Some(shape), Some(strides)) = described else {
            return Err(unsupported("its place or shape is not made of whole numbers"));
        };
        if shape.len() != strides.len() || !contiguous(&shape, &strides) {
            return Err(unsupported(
                "its values do not lie in order (it is a transposed or strided view); save tensor.contiguous()",
            ));
        }
        let shape = shape.into_iter().map(usize::try_from).collect::<std::result::Result<_, _>>();
        let shape = shape.map_err(|_| unsupported("its shape is too large"))?;
        let own = rest.get(2).and_then(|id| self.pickle.global(*id)).map(|(_, dtype)| dtype_of(dtype));
        let dtype = match (own, storage.dtype) {
            (Some(own), _) => own.ok_or_else(|| unsupported("its type is not one of those that are read"))?,
            (None, Some(dtype)) => dtype,
            (None, None) => return Err(unsupported("its type is unknown")),
        };
        Ok(Entry::Tensor { dtype, shape, storage, offset })
    }

    /// `('storage', class, key, location, size)`, with a view of another storage after it in the older form.
    fn storage(&self, id: Id) -> std::result::Result<Storage, String> {
        let Node::Persistent(id) = self.pickle.node(id) else { return Err("it has no storage".into()) };
        let items = self.pickle.items(*id).unwrap_or_default();
        let [tag, class, key, _, _, rest @ ..] = items else { return Err("its storage is not described".into()) };
        let (Some("storage"), Some((_, class)), Some(key)) =
            (self.pickle.text(*tag), self.pickle.global(*class), self.pickle.text(*key))
        else {
            return Err("its storage is not described as storages are".into());
        };
        if rest.iter().any(|id| self.pickle.node(*id) != &Node::Other) {
            return Err("its storage is a view of another; save it with a newer PyTorch".into());
        }
        if class == "UntypedStorage" {
            return Ok(Storage { key: key.to_owned(), dtype: None, size: 1 });
        }
        let dtype = class
            .strip_suffix("Storage")
            .and_then(storage_dtype)
            .ok_or_else(|| format!("its values are of {class}; f64, f32, f16, bf16, integers and bool are read"))?;
        Ok(Storage { key: key.to_owned(), dtype: Some(dtype), size: dtype.size() as u64 })
    }

    /// All storages that the pickle names.
    fn storages(&self) -> Result<BTreeMap<String, Storage>> {
        let mut storages: BTreeMap<String, Storage> = BTreeMap::new();
        let mut seen = HashSet::new();
        for (id, node) in self.pickle.nodes().iter().enumerate() {
            let Node::Persistent(inner) = node else { continue };
            if !seen.insert(*inner) {
                continue;
            }
            let storage =
                self.storage(id).map_err(|reason| refused(format!("a tensor in it is not usable: {reason}")))?;
            let (key, dtype) = (storage.key.clone(), storage.dtype);
            if storages.insert(key, storage).is_some_and(|before| before.dtype != dtype) {
                return Err(refused("a storage in it has two types"));
            }
        }
        Ok(storages)
    }
}

/// Whether values lie in row-major order without gaps; dimensions of 1 may have any stride.
fn contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    if shape.contains(&0) {
        return true;
    }
    for (size, stride) in shape.iter().zip(strides).rev() {
        if *size != 1 {
            if *stride != expected {
                return false;
            }
            expected = expected.saturating_mul(*size);
        }
    }
    true
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::Bool,
        _ => return None,
    })
}

fn dtype_of(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        _ => return None,
    })
}
