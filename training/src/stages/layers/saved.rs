//! What was learned of layers as one file: safetensors, with the rest as JSON in its metadata.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use weights::tensors;

use super::{Layers, LayersConfig, Moments, chunks::Chunk};
use crate::error::{Error, Result};

const KEY: &str = "weightsmith.layers";

#[derive(Serialize, Deserialize)]
struct Head {
    config: LayersConfig,
    kinds: Vec<String>,
    parts: usize,
    moments: Vec<Moments>,
    scale: f64,
}

fn invalid(reason: impl std::fmt::Display) -> Error {
    Error::Config(format!("a file of learned layers: {reason}"))
}

impl Layers {
    /// As one safetensors file, with further texts in its metadata.
    ///
    /// # Errors
    /// When parameters cannot be read.
    pub fn to_bytes(&self, texts: &[(&str, String)]) -> Result<Vec<u8>> {
        let head = Head {
            config: self.config.clone(),
            kinds: self.kinds.clone(),
            parts: self.parts,
            moments: self.moments.clone(),
            scale: self.scale,
        };
        let mut all: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        for (prefix, params) in [("vae", &self.vae_params), ("denoiser", &self.denoiser)] {
            for (name, value) in params.snapshot()? {
                all.push((format!("{prefix}/{name}"), value.dims().to_vec(), value.flatten_all()?.to_vec1()?));
            }
        }
        let list: Vec<(&str, &[usize], &[f32])> =
            all.iter().map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice())).collect();
        let head = serde_json::to_string(&head).map_err(invalid)?;
        let texts = texts.iter().map(|(key, text)| ((*key).to_owned(), text.clone()));
        Ok(tensors::named_to_safetensors(&list, &texts.chain([(KEY.to_owned(), head)]).collect()))
    }

    /// Reads what [`Layers::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Config`] says why the bytes are not such a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let metadata = tensors::metadata(bytes)?;
        let head = metadata.get(KEY).ok_or_else(|| invalid(format!("its metadata has no {KEY}")))?;
        let head: Head = serde_json::from_str(head).map_err(invalid)?;
        head.config.check()?;
        if head.kinds.is_empty() || head.kinds.len() != head.moments.len() || head.parts == 0 {
            return Err(invalid("its types and their moments do not fit each other"));
        }
        let mut layers = Self::new(&head.config, head.kinds, head.parts, head.moments);
        layers.scale = head.scale;
        layers.create()?;
        for (prefix, params) in [("vae", &layers.vae_params), ("denoiser", &layers.denoiser)] {
            let mut values = BTreeMap::new();
            for (name, own) in params.snapshot()? {
                let (shape, data) = tensors::named_from_safetensors(bytes, &format!("{prefix}/{name}"))?;
                if shape != own.dims() {
                    return Err(invalid(format!("{prefix}/{name} is {shape:?}; {:?} fits", own.dims())));
                }
                weights::error::check_finite(&name, &data)?;
                values.insert(name, Tensor::from_vec(data, shape, params.device())?);
            }
            params.restore(&values)?;
        }
        Ok(layers)
    }

    /// Makes all parameters, which exist from their first use on.
    fn create(&mut self) -> Result<()> {
        let kind = self.kinds[0].clone();
        let chunk = Chunk { kind, position: 0.0, part: 0, offset: 0, len: self.config.chunk };
        let (kinds, conditions) = self.conditions(std::slice::from_ref(&chunk))?;
        let table = super::Table { all: std::slice::from_ref(&chunk), kinds, conditions };
        let zeros = vec![0f32; self.config.chunk];
        self.latents(&table, &zeros.as_slice())?;
        let z = self.sample(std::slice::from_ref(&chunk), 0..1, 0)?;
        self.decode(std::slice::from_ref(&chunk), &z)?;
        Ok(())
    }
}
