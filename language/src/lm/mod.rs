//! Language models that are run here: Llama, Mistral, Phi-3 and GPT-2, and small ones that are trained here.

pub mod config;
pub mod decoder;
pub mod tokens;
pub mod train;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use training::progress::Progress;

pub use config::{Config, Family};
pub use decoder::Decoder;

use crate::error::{Error, Result};
use crate::model::Model;

/// Windows that are run at a time.
const BATCH: usize = 16;

impl Decoder {
    /// All of a model's tensors, in memory as f32.
    ///
    /// # Errors
    /// [`Error::Model`] when the configuration is of a family that is not run, or a tensor is missing or of another
    /// shape.
    pub fn load(model: &Model) -> Result<Self> {
        let config = Config::of(model)?;
        // GPT-2's own files have no prefix before the blocks; those of its language model have.
        let bare = config.family == Family::Gpt2 && model.entries().contains_key("wte.weight");
        let own = |name: &str| if bare { name.trim_start_matches("transformer.").to_owned() } else { name.to_owned() };
        let tensors = model.tensors_as(config.tensors(), own)?;
        Ok(Self::new(config, tensors))
    }

    /// Writes a model's directory of one file, which must not exist.
    ///
    /// # Errors
    /// [`Error::Model`] when it exists, [`Error::Io`].
    pub fn save(&self, dir: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<()> {
        let part = crate::rewrite::Part::new(dir)?;
        let write = |name: &str, bytes: &[u8]| {
            let path = part.path().join(name);
            std::fs::write(&path, bytes).map_err(Error::io(&path))
        };
        let config = format!("{:#}\n", self.config().to_json());
        write("config.json", config.as_bytes())?;
        let tokenizer = tokenizer.to_string(false).map_err(|e| Error::Text(e.to_string()))?;
        write(tokens::FILE, tokenizer.as_bytes())?;
        let tensors: HashMap<String, Tensor> = self.tensors().clone().into_iter().collect();
        candle_core::safetensors::save(&tensors, part.path().join("model.safetensors"))
            .map_err(training::Error::Tensor)?;
        part.keep(dir)
    }

    /// Mean negative log-likelihood of a token, over the windows of `length` tokens of `tokens`.
    ///
    /// # Errors
    /// [`Error::Text`] when there is no window.
    pub fn loss(&self, tokens: &[u32], length: usize) -> Result<f64> {
        self.loss_while(tokens, length, &Progress::silent())
    }

    /// As [`Self::loss`], unless `progress` is told to stop.
    ///
    /// # Errors
    /// As [`Self::loss`]; interruption as [`Error::Training`].
    pub fn loss_while(&self, tokens: &[u32], length: usize, progress: &Progress) -> Result<f64> {
        let length = length.min(self.config().positions) + 1;
        let windows = tokens::windows(tokens, length);
        if windows.is_empty() {
            return Err(Error::Text(format!("there are {} tokens; a window has {length}", tokens.len())));
        }
        let (mut sum, mut n) = (0.0, 0usize);
        for some in windows.chunks(BATCH) {
            progress.check()?;
            let tensor = Tensor::from_vec(some.concat(), (some.len(), length), &Device::Cpu)
                .and_then(|t| self.surprise(&t))
                .and_then(|t| t.sum_all()?.to_scalar::<f32>())
                .map_err(training::Error::Tensor)?;
            sum += f64::from(tensor);
            n += some.len() * (length - 1);
        }
        Ok(sum / n as f64)
    }

    /// Log-likelihood of `continuation` behind `context`, both as tokens, summed over the continuation.
    ///
    /// # Errors
    /// [`Error::Text`] when one of them is empty, or both are longer than the model's positions.
    pub fn log_likelihood(&self, context: &[u32], continuation: &[u32]) -> Result<f64> {
        let all = [context, continuation].concat();
        if context.is_empty() || continuation.is_empty() || all.len() > self.config().positions + 1 {
            let text = format!("{} and {} tokens", context.len(), continuation.len());
            return Err(Error::Text(format!(
                "{text} of context and continuation: the model has {} positions",
                self.config().positions
            )));
        }
        let n = all.len();
        let surprise = Tensor::from_vec(all, (1, n), &Device::Cpu)
            .and_then(|t| self.surprise(&t)?.flatten_all()?.to_vec1::<f32>())
            .map_err(training::Error::Tensor)?;
        Ok(-surprise[context.len() - 1..].iter().map(|v| f64::from(*v)).sum::<f64>())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
