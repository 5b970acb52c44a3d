//! Descriptions of tasks as embeddings (paper 3.3, language task encoding): the mean of a text encoder's last hidden
//! states, of unit length.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::bert::{Bert, batch};
use crate::error::{Error, Result};
use crate::lm::tokens;
use crate::model::Model;

/// Tokens of a description at most.
const LENGTH: usize = 256;
/// Texts that are run at a time.
const BATCH: usize = 32;

/// A text encoder.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    bert: Bert,
    tokenizer: Tokenizer,
}

impl TextEncoder {
    /// Opens a directory with config.json, tokenizer.json and safetensors of a BERT.
    ///
    /// # Errors
    /// [`crate::Error::Model`] says what is missing or does not fit.
    pub fn open(dir: &Path) -> Result<Self> {
        let bert = Bert::load(&Model::open(dir)?)?;
        let tokenizer = tokens::open(dir, bert.config().vocabulary)?;
        Ok(Self { bert, tokenizer })
    }

    /// From the bytes of config.json, tokenizer.json and model.safetensors.
    ///
    /// # Errors
    /// As [`TextEncoder::open`]; [`crate::Error::Io`] when there is no room for temporary files.
    pub fn from_files(config: &[u8], tokenizer: &[u8], weights: &[u8]) -> Result<Self> {
        // All of them are in memory once it is open.
        let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
        for (name, bytes) in [("config.json", config), (tokens::FILE, tokenizer), ("model.safetensors", weights)] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).map_err(Error::io(&path))?;
        }
        Self::open(folder.path())
    }

    /// The encoder itself.
    pub fn bert(&self) -> &Bert {
        &self.bert
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Values of an embedding.
    pub fn dim(&self) -> usize {
        self.bert.config().hidden
    }

    /// Embeddings of texts, each of unit length.
    ///
    /// # Errors
    /// [`crate::Error::Text`] when a text cannot be cut.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(texts.len());
        for part in texts.chunks(BATCH) {
            let pairs: Vec<(&str, Option<&str>)> = part.iter().map(|text| (*text, None)).collect();
            let batch = batch(&self.tokenizer, &pairs, LENGTH.min(self.bert.config().positions))?;
            let rows = self.bert.mean(&batch).and_then(|x| x.to_vec2::<f32>()).map_err(training::Error::Tensor)?;
            all.extend(rows.into_iter().map(|row| {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
                row.into_iter().map(|v| v / norm).collect()
            }));
        }
        Ok(all)
    }
}
