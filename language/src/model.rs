//! A model's directory as Hugging Face writes it: `config.json`, and `model.safetensors` or shards that
//! `model.safetensors.index.json` lists. Values are read where they are asked for: a model of any size takes the memory
//! of what is read.
//!
//! Reading is by position and not by memory map: pages of a map count as the process' memory, and a file that gets
//! shorter under a map kills the process where a read gives an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;
use weights::checkpoint::{Checkpoint, Dtype, Limits, Options, TensorSpec};

use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes read at a time.
const BUFFER: usize = 1 << 20;

/// A file of tensors.
#[derive(Debug)]
pub struct Shard {
    /// Its name in the directory.
    pub name: String,
    /// Where its tensors' bytes begin: what is before is the header.
    pub start: u64,
    file: File,
    path: PathBuf,
}

/// A tensor of the model.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name, shape, type.
    pub spec: TensorSpec,
    /// Index of its shard.
    pub shard: usize,
    /// First byte in the shard.
    pub start: u64,
}

impl Entry {
    /// Its values.
    pub fn len(&self) -> usize {
        self.spec.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A model whose tensors are known and not read.
#[derive(Debug)]
pub struct Model {
    dir: PathBuf,
    config: Value,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

impl Model {
    /// Opens a directory: reads the configuration and the shards' headers.
    ///
    /// # Errors
    /// [`Error::Model`] when the configuration or a shard is missing, a shard is cut off, the index and the shards
    /// disagree, or the model is quantised; [`Error::Io`].
    pub fn open(dir: &Path) -> Result<Self> {
        let config = read_config(dir)?;
        let mut model = Self { dir: dir.to_owned(), config, shards: Vec::new(), entries: BTreeMap::new() };
        let listed = listed(dir)?;
        let names: BTreeSet<&String> = listed.values().collect();
        match names.is_empty() {
            true => model.add(SINGLE)?,
            false => names.into_iter().try_for_each(|name| model.add(name))?,
        }
        for (tensor, shard) in &listed {
            let found = model.entries.get(tensor).map(|e| &model.shards[e.shard].name);
            if found != Some(shard) {
                return Err(Error::model(dir, format!("{INDEX} says that {tensor} is in {shard}, and it is not")));
            }
        }
        Ok(model)
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        let refused = |reason: String| Error::model(&self.dir, format!("{name}: {reason}"));
        let open = || File::open(&path);
        let file = open().map_err(|e| refused(format!("{e}; a model has {SINGLE}, or {INDEX} and its shards")))?;
        let checkpoint = Checkpoint::open(open().map_err(Error::io(&path))?, &Options::default(), &Limits::default())
            .map_err(|e| refused(e.to_string()))?;
        let shard = self.shards.len();
        let mut first = u64::MAX;
        for (spec, start) in checkpoint.places() {
            if !matches!(spec.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) && spec.name.ends_with("weight") {
                let text = "tensor {name} is {type}, as in quantised models; those of F32, F16 and BF16 are read";
                return Err(refused(text.replace("{name}", &spec.name).replace("{type}", spec.dtype.name())));
            }
            first = first.min(start);
            let entry = Entry { spec: spec.clone(), shard, start };
            if self.entries.insert(spec.name.clone(), entry).is_some() {
                return Err(refused(format!("tensor {} is in another shard too", spec.name)));
            }
        }
        self.shards.push(Shard { name: name.to_owned(), start: first, file, path });
        Ok(())
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Its files of tensors.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Its tensors by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`Error::Model`] when there is none.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            let tied = name == "lm_head.weight" && self.config["tie_word_embeddings"] == Value::Bool(true);
            let why = if tied { "; its embedding is tied: the output layer has no values of its own" } else { "" };
            Error::model(&self.dir, format!("there is no tensor {name}{why}"))
        })
    }

    /// Values `range` of the tensor `name` into `out` (as many), as f32.
    ///
    /// # Errors
    /// [`Error::Model`] when there is no such tensor or range, or the shard ends early; [`Error::Io`].
    pub fn read(&self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        if range.end > entry.len() || range.len() != out.len() {
            let text = format!("{name} has {} values, and {range:?} are asked for", entry.len());
            return Err(Error::model(&self.dir, text));
        }
        let size = entry.spec.dtype.size();
        let mut bytes = vec![0; (range.len() * size).min(BUFFER)];
        let mut at = entry.start + (range.start * size) as u64;
        for values in out.chunks_mut(BUFFER / size) {
            let part = &mut bytes[..values.len() * size];
            self.bytes(entry.shard, at, part)?;
            at += part.len() as u64;
            to_f32(entry.spec.dtype, part, values)
                .ok_or_else(|| Error::model(&self.dir, format!("{name} is not of F32, F16 or BF16")))?;
        }
        Ok(())
    }

    /// All values of the tensor `name`.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.entry(name)?.len()];
        self.read(name, 0..values.len(), &mut values)?;
        Ok(values)
    }

    /// Tensors of these names and shapes, f32, each read under the name that `own` gives.
    ///
    /// # Errors
    /// [`Error::Model`] when one is missing or of another shape; [`Error::Weights`] when a value is not finite.
    pub(crate) fn tensors_as(
        &self,
        wanted: Vec<(String, Vec<usize>)>,
        own: impl Fn(&str) -> String,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in wanted {
            let own = own(&name);
            let found = &self.entry(&own)?.spec.shape;
            if *found != shape {
                return Err(Error::model(
                    &self.dir,
                    format!("{own} is {found:?}; its configuration makes it {shape:?}"),
                ));
            }
            let values = self.tensor(&own)?;
            weights::error::check_finite(&own, &values)?;
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).map_err(training::Error::Tensor)?;
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }

    /// Bytes of a shard from `at` on.
    ///
    /// # Errors
    /// [`Error::Io`], also when the file has become shorter.
    pub(crate) fn bytes(&self, shard: usize, at: u64, out: &mut [u8]) -> Result<()> {
        let shard = &self.shards[shard];
        shard.file.read_exact_at(out, at).map_err(Error::io(&shard.path))
    }

    /// The matrices of its numbered blocks, in the order of blocks and names: what spectra are taken of and layers are
    /// generated for. Embeddings, the output layer and normalisations are none.
    pub fn matrices(&self) -> Vec<Matrix> {
        let mut all: Vec<Matrix> = self.entries.values().filter_map(Matrix::of).collect();
        all.sort_by(|a, b| (a.block, &a.name).cmp(&(b.block, &b.name)));
        all
    }
}

/// A matrix of a block.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Matrix {
    /// Name of the tensor.
    pub name: String,
    /// The name with `*` for the block's number: matrices of equal groups are comparable.
    pub group: String,
    /// The block's number.
    pub block: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl Matrix {
    fn of(entry: &Entry) -> Option<Self> {
        let &[rows, cols] = entry.spec.shape.as_slice() else { return None };
        let (group, block) = training::stages::layers::kind(&entry.spec.name);
        let float = matches!(entry.spec.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        (float && rows > 1 && cols > 1)
            .then(|| Self { name: entry.spec.name.clone(), group, block: block.unwrap_or(0), rows, cols })
            .filter(|_| block.is_some())
    }
}

fn read_config(dir: &Path) -> Result<Value> {
    let path = dir.join(CONFIG);
    let text = std::fs::read(&path).map_err(|e| {
        Error::model(dir, format!("{CONFIG} cannot be read ({e}); a model is a directory with {CONFIG} and {SINGLE}"))
    })?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| Error::model(dir, format!("{CONFIG}: {e}")))?;
    if !config.is_object() {
        return Err(Error::model(dir, format!("{CONFIG} is no JSON object")));
    }
    let quantised = &config["quantization_config"];
    if !quantised.is_null() {
        let method = quantised["quant_method"].as_str().unwrap_or("unknown");
        let text =
            format!("it is quantised ({method}); weights of F32, F16 and BF16 are read: give the model before that");
        return Err(Error::model(dir, text));
    }
    Ok(config)
}

/// Which shard each tensor is in, by the index; empty when there is none.
fn listed(dir: &Path) -> Result<BTreeMap<String, String>> {
    let path = dir.join(INDEX);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(Error::io(&path)(e)),
    };
    let invalid = |reason: &str| Error::model(dir, format!("{INDEX}: {reason}"));
    let index: Value = serde_json::from_slice(&text).map_err(|e| invalid(&e.to_string()))?;
    let map: BTreeMap<String, String> = serde_json::from_value(index["weight_map"].clone())
        .map_err(|_| invalid("weight_map must say for each tensor in which file it is"))?;
    if map.is_empty() {
        return Err(invalid("weight_map is empty"));
    }
    match map.values().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        Some(outside) => Err(invalid(&format!("{outside} is not a file's name in the directory"))),
        None => Ok(map),
    }
}

/// Values of `bytes` as f32; none when the type is not read.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Option<()> {
    match dtype {
        Dtype::F32 => {
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
        }
        Dtype::F16 => {
            let values = bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
        }
        Dtype::BF16 => {
            let values = bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
        }
        _ => return None,
    }
    Some(())
}

/// `values` as bytes of `dtype` (rounded to nearest) at the end of `out`; none when the type is not written.
pub(crate) fn from_f32(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Option<()> {
    match dtype {
        Dtype::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Dtype::F16 => values.iter().for_each(|v| out.extend(half::f16::from_f32(*v).to_le_bytes())),
        Dtype::BF16 => values.iter().for_each(|v| out.extend(half::bf16::from_f32(*v).to_le_bytes())),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "model_tests.rs"]
pub(crate) mod tests;
