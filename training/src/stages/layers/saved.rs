//! What was learned of layers as one file: safetensors, with the rest as JSON in its metadata.

use serde::{Deserialize, Serialize};
use weights::tensors;

use super::{Layers, LayersConfig, Moments};
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
            kinds: self.types.kinds.clone(),
            parts: self.types.parts,
            moments: self.types.moments.clone(),
            scale: self.rows.scale(),
        };
        let all = self.rows.parameters()?;
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
        layers.rows.restore(bytes, head.scale).map_err(|e| match e {
            Error::Config(text) => invalid(text),
            other => other,
        })?;
        Ok(layers)
    }
}
