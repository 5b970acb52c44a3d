//! Descriptions of tasks as embeddings (paper 3.3, language task encoding): the mean of a text encoder's last hidden
//! states, of unit length.

use std::path::Path;

use tokenizers::Tokenizer;
use weights::Bundle;
use weights::manifest::{DescribedTask, Pooling, TextContract, files};

use crate::bert::{Bert, batch, cutting};
use crate::error::{Error, Result};
use crate::lm::tokens;
use crate::model::Model;

/// Tokens of a description at most.
const LENGTH: usize = 256;
/// Farther than this from a zoo's descriptions, in units of what those of one task have between them, a task is another
/// one.
const NEAR: f64 = 2.0;
/// Texts that are run at a time.
const BATCH: usize = 32;

/// A text encoder.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    bert: Bert,
    tokenizer: Tokenizer,
    pooling: Pooling,
}

impl TextEncoder {
    /// Opens a directory with config.json, tokenizer.json and safetensors of a BERT.
    ///
    /// # Errors
    /// [`crate::Error::Model`] says what is missing or does not fit.
    pub fn open(dir: &Path) -> Result<Self> {
        let bert = Bert::load(&Model::open(dir)?)?;
        let tokenizer = tokens::open(dir, bert.config().vocabulary)?;
        let tokenizer = cutting(tokenizer, LENGTH.min(bert.config().positions))?;
        Ok(Self { bert, tokenizer, pooling: Pooling::default() })
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

    /// The same encoder, with embeddings that are this of its last hidden states.
    #[must_use]
    pub fn with_pooling(self, pooling: Pooling) -> Self {
        Self { pooling, ..self }
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
            let rows = self
                .bert
                .pooled(&batch, self.pooling)
                .and_then(|x| x.to_vec2::<f32>())
                .map_err(training::Error::Tensor)?;
            all.extend(rows.into_iter().map(|row| {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
                row.into_iter().map(|v| v / norm).collect()
            }));
        }
        Ok(all)
    }
}

/// The text encoder of a generator's bundle, and its zoo's descriptions.
#[derive(Debug, Clone)]
pub struct Descriptions {
    encoder: TextEncoder,
    contract: TextContract,
    /// Embeddings of the zoo's descriptions, and of which task each is.
    known: Vec<(usize, Vec<f32>)>,
}

/// What a generator knows that is nearest to a text.
#[derive(Debug, Clone, Copy)]
pub struct Nearest<'a> {
    /// The task.
    pub task: &'a DescribedTask,
    /// Cosine distance to the nearest of its descriptions, in units of what descriptions of one task have between them.
    pub distance: f64,
}

impl Nearest<'_> {
    /// Whether the text is likely to describe this very task.
    pub fn is_near(&self) -> bool {
        self.distance <= NEAR
    }
}

impl Descriptions {
    /// Of a bundle that is conditioned on a text. Slow: it embeds all descriptions of the zoo.
    ///
    /// # Errors
    /// Those of [`TextEncoder::from_files`]; [`Error::Weights`] when the encoder is not the one of the manifest.
    pub fn of(bundle: &Bundle) -> Result<Option<Self>> {
        let Some(contract) = bundle.manifest().text.clone() else { return Ok(None) };
        let [config, tokenizer, weights] = files::TEXT.map(|name| bundle.file(name));
        let encoder = TextEncoder::from_files(config?, tokenizer?, weights?)?.with_pooling(contract.pooling);
        if encoder.dim() != bundle.manifest().encoder.feature_dim {
            let (dim, needs) = (encoder.dim(), bundle.manifest().encoder.feature_dim);
            let reason = format!("its text encoder gives {dim} values and its manifest says {needs}");
            return Err(weights::Error::Bundle(reason).into());
        }
        let all = contract.tasks.iter().enumerate();
        let texts: Vec<(usize, &str)> =
            all.flat_map(|(i, task)| task.descriptions.iter().map(move |text| (i, text.as_str()))).collect();
        let only: Vec<&str> = texts.iter().map(|(_, text)| *text).collect();
        let known = texts.iter().map(|(i, _)| *i).zip(encoder.embed(&only)?).collect();
        Ok(Some(Self { encoder, contract, known }))
    }

    /// The embedding of a text, of unit length.
    ///
    /// # Errors
    /// [`Error::Text`] when it cannot be cut into tokens.
    pub fn embed(&self, text: &str) -> Result<Vec<f32>> {
        self.encoder.embed(&[text])?.pop().ok_or_else(|| Error::Text("the text has no embedding".into()))
    }

    /// The task whose descriptions are nearest to an embedding.
    pub fn nearest(&self, embedding: &[f32]) -> Option<Nearest<'_>> {
        let all = self.known.iter().map(|(task, known)| (*task, distance(known, embedding)));
        let (task, distance) = all.min_by(|a, b| a.1.total_cmp(&b.1))?;
        let distance = f64::from(distance.max(0.0) / self.contract.unit);
        Some(Nearest { task: self.contract.tasks.get(task)?, distance })
    }
}

/// Digest of a text as a dataset.
pub fn digest(text: &str) -> String {
    weights::digest::sha256(format!("text\0{text}").as_bytes())
}

/// 1 minus the cosine of two embeddings of unit length.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    1.0 - a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()
}
