//! The bytes of a snapshot: a line with format and digest, then a safetensors file.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};
use weights::{digest, tensors};

use crate::error::{Error, Result};
use crate::params::Params;
use crate::random;

/// Version of the format; another one is passed over.
const FORMAT: u32 = 1;
const MAGIC: &str = "weightsmith-snapshot";

/// State of a stage after some step: named tensors and named texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Steps that are done.
    pub step: usize,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    texts: BTreeMap<String, String>,
}

fn damaged(what: &str) -> Error {
    Error::Snapshots(format!("a snapshot holds no {what} that fits; remove it, and training begins anew"))
}

impl Snapshot {
    /// Nothing yet, after `step` steps.
    pub fn new(step: usize) -> Self {
        Self { step, ..Self::default() }
    }

    /// The bytes: `identity` says what was trained (a digest of configuration and zoo).
    pub fn to_bytes(&self, identity: &str) -> Vec<u8> {
        let mut list: Vec<(&str, &[usize], &[f32])> = Vec::with_capacity(self.tensors.len());
        for (name, (shape, data)) in &self.tensors {
            list.push((name, shape, data));
        }
        let mut metadata: BTreeMap<String, String> =
            self.texts.iter().map(|(name, text)| (format!("text.{name}"), text.clone())).collect();
        metadata.insert("identity".into(), identity.into());
        metadata.insert("step".into(), self.step.to_string());
        let body = tensors::named_to_safetensors(&list, &metadata);
        let mut bytes = format!("{MAGIC} {FORMAT} {}\n", digest::sha256(&body)).into_bytes();
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// Says why the bytes are not a snapshot of `identity`.
    pub fn from_bytes(bytes: &[u8], identity: &str) -> std::result::Result<Self, String> {
        let end = bytes.iter().position(|&b| b == b'\n').ok_or("it is no snapshot, or cut off")?;
        let (line, body) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 1..]);
        let mut words = line.split(' ');
        if words.next() != Some(MAGIC) {
            return Err("it is no snapshot".into());
        }
        if words.next() != Some(&FORMAT.to_string()) {
            return Err(format!("it is of another format; this version reads format {FORMAT}"));
        }
        if words.next() != Some(&digest::sha256(body)) {
            return Err("it is damaged: its digest differs".into());
        }
        Self::parse(body, identity)
    }

    fn parse(body: &[u8], identity: &str) -> std::result::Result<Self, String> {
        let metadata = tensors::metadata(body).map_err(|e| e.to_string())?;
        if metadata.get("identity").map(String::as_str) != Some(identity) {
            return Err("it is of another configuration, zoo or version".into());
        }
        let step = metadata.get("step").and_then(|s| s.parse().ok()).ok_or("it has no step")?;
        let file = SafeTensors::deserialize(body).map_err(|e| e.to_string())?;
        let mut snapshot = Self::new(step);
        for (name, view) in file.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(format!("tensor {name} is not of f32"));
            }
            let (words, _) = view.data().as_chunks::<4>();
            let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            snapshot.tensors.insert(name.to_owned(), (view.shape().to_vec(), values));
        }
        let text = |(name, text): (String, String)| Some((name.strip_prefix("text.")?.to_owned(), text));
        snapshot.texts = metadata.into_iter().filter_map(text).collect();
        Ok(snapshot)
    }

    /// Adds a vector.
    pub fn put(&mut self, name: &str, values: Vec<f32>) {
        self.tensors.insert(name.into(), (vec![values.len()], values));
    }

    /// Takes a vector out.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn take(&mut self, name: &str) -> Result<Vec<f32>> {
        self.tensors.remove(name).map(|(_, values)| values).ok_or_else(|| damaged(name))
    }

    /// Takes a vector of `n` values out.
    ///
    /// # Errors
    /// When there is none of that name and length.
    pub fn take_len(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        self.take(name).and_then(|values| if values.len() == n { Ok(values) } else { Err(damaged(name)) })
    }

    /// Adds tensors under `prefix`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn put_all(&mut self, prefix: &str, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, tensor) in tensors {
            let values = tensor.flatten_all()?.to_vec1()?;
            self.tensors.insert(format!("{prefix}.{name}"), (tensor.dims().to_vec(), values));
        }
        Ok(())
    }

    /// Takes the tensors under `prefix` out.
    ///
    /// # Errors
    /// When the device fails.
    pub fn take_all(&mut self, prefix: &str, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        let prefix = format!("{prefix}.");
        let names: Vec<String> = self.tensors.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
        let mut out = BTreeMap::new();
        for name in names {
            if let Some((shape, values)) = self.tensors.remove(&name) {
                out.insert(name[prefix.len()..].to_owned(), Tensor::from_vec(values, shape, device)?);
            }
        }
        Ok(out)
    }

    /// Sets all of `params` to the tensors under `prefix`.
    ///
    /// # Errors
    /// When one is missing or has another shape: then none is changed.
    pub fn restore(&mut self, prefix: &str, params: &Params) -> Result<()> {
        let found = self.take_like(prefix, &params.snapshot()?, params.device())?;
        params.restore(&found)
    }

    /// Takes the tensors under `prefix` out, which must have the names and shapes of `like`.
    ///
    /// # Errors
    /// When they do not.
    pub fn take_like(
        &mut self,
        prefix: &str,
        like: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> Result<BTreeMap<String, Tensor>> {
        let found = self.take_all(prefix, device)?;
        let shapes = |all: &BTreeMap<String, Tensor>| -> Vec<(String, Vec<usize>)> {
            all.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect()
        };
        if shapes(&found) == shapes(like) { Ok(found) } else { Err(damaged(prefix)) }
    }

    /// Adds a number, exactly.
    pub fn put_f64(&mut self, name: &str, value: f64) {
        self.texts.insert(name.into(), format!("{:016x}", value.to_bits()));
    }

    /// The number of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn f64(&self, name: &str) -> Result<f64> {
        let bits = self.texts.get(name).and_then(|text| u64::from_str_radix(text, 16).ok());
        bits.map(f64::from_bits).ok_or_else(|| damaged(name))
    }

    /// Adds a count.
    pub fn put_count(&mut self, name: &str, value: u64) {
        self.texts.insert(name.into(), value.to_string());
    }

    /// The count of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn count(&self, name: &str) -> Result<u64> {
        self.texts.get(name).and_then(|text| text.parse().ok()).ok_or_else(|| damaged(name))
    }

    /// Adds a generator's exact state.
    pub fn put_rng(&mut self, name: &str, rng: &ChaCha8Rng) {
        self.texts.insert(name.into(), random::state(rng));
    }

    /// The generator of that name, where it stood.
    ///
    /// # Errors
    /// When there is none.
    pub fn rng(&self, name: &str) -> Result<ChaCha8Rng> {
        self.texts.get(name).and_then(|text| random::from_state(text)).ok_or_else(|| damaged(name))
    }
}
