//! Texts as conditions: descriptions of tasks, the encoders that embed them, and how far they are from a zoo's.

use std::sync::Arc;

use language::adapters::distance;
use language::text::TextEncoder;
use weights::Bundle;
use weights::manifest::{DescribedTask, TextContract, files};

use crate::error::{Error, Result};

/// Media type of a stored text.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
/// The modality of datasets that are one text.
pub(crate) const MODALITY: &str = "text";
/// Most characters of a text: encoders read the first few hundred words.
const MOST: usize = 10_000;

/// A text of a request, without the blanks around it.
///
/// # Errors
/// `invalid_value` when there is nothing in it, or too much.
pub(crate) fn checked(text: &str) -> Result<&str> {
    let text = text.trim();
    let count = text.chars().count();
    let rule = match count {
        0 => "the text is empty: describe the task in a sentence or two".to_owned(),
        1..=MOST if text.contains('\0') => "the text has a NUL character: leave it out".to_owned(),
        1..=MOST => return Ok(text),
        _ => format!("the text has {count} characters, and at most {MOST} are taken: shorten it"),
    };
    Err(Error::ValueInvalid(rule))
}

/// Digest of a text as a dataset.
pub(crate) fn digest(text: &str) -> String {
    weights::digest::sha256(format!("text\0{text}").as_bytes())
}

/// Of a dataset of labelled examples where a text is needed, or the other way round.
pub(crate) fn mismatch(found: &str, expected: &str) -> Error {
    inference::Error::ModalityMismatch { found: found.to_owned(), expected: expected.to_owned() }.into()
}

/// The text encoder of a generator, and its zoo's descriptions.
pub(crate) struct Texts {
    encoder: TextEncoder,
    contract: TextContract,
    /// Embeddings of the zoo's descriptions, and of which task each is.
    known: Vec<(usize, Vec<f32>)>,
}

/// What a generator knows that is nearest to a text.
pub(crate) struct Nearest<'a> {
    /// The task.
    pub(crate) task: &'a DescribedTask,
    /// Cosine distance to the nearest of its descriptions, in units of what descriptions of one task have between them.
    pub(crate) distance: f64,
}

impl Texts {
    /// Of a bundle that has one. Slow: it embeds all descriptions of the zoo.
    pub(crate) fn of(bundle: &Bundle) -> Result<Option<Arc<Self>>> {
        let Some(contract) = bundle.manifest().text.clone() else { return Ok(None) };
        let [config, tokenizer, weights] = files::TEXT.map(|name| bundle.file(name));
        let encoder = TextEncoder::from_files(config?, tokenizer?, weights?).map_err(Error::Language)?;
        if encoder.dim() != bundle.manifest().encoder.feature_dim {
            let (dim, needs) = (encoder.dim(), bundle.manifest().encoder.feature_dim);
            let reason = format!("its text encoder gives {dim} values and its manifest says {needs}");
            return Err(weights::Error::Bundle(reason).into());
        }
        let all = contract.tasks.iter().enumerate();
        let texts: Vec<(usize, &str)> =
            all.flat_map(|(i, task)| task.descriptions.iter().map(move |text| (i, text.as_str()))).collect();
        let only: Vec<&str> = texts.iter().map(|(_, text)| *text).collect();
        let embeddings = encoder.embed(&only).map_err(Error::Language)?;
        let known = texts.iter().map(|(i, _)| *i).zip(embeddings).collect();
        Ok(Some(Arc::new(Self { encoder, contract, known })))
    }

    /// The embedding of a text, of unit length. Blocks.
    pub(crate) fn embed(&self, text: &str) -> Result<Vec<f32>> {
        let mut all = self.encoder.embed(&[text]).map_err(Error::Language)?;
        all.pop().ok_or_else(|| Error::Internal("a text has no embedding".into()))
    }

    /// The task whose descriptions are nearest to an embedding.
    pub(crate) fn nearest(&self, embedding: &[f32]) -> Option<Nearest<'_>> {
        let all = self.known.iter().map(|(task, known)| (*task, distance(known, embedding)));
        let (task, distance) = all.min_by(|a, b| a.1.total_cmp(&b.1))?;
        let distance = f64::from(distance.max(0.0) / self.contract.unit);
        Some(Nearest { task: self.contract.tasks.get(task)?, distance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_neither_empty_nor_endless() {
        assert_eq!(checked("  a task \n").unwrap(), "a task");
        for (text, said) in [("", "empty"), (" \n\t", "empty"), ("a\0b", "NUL"), (&"x".repeat(MOST + 1), "shorten")] {
            let error = checked(text).unwrap_err();
            assert_eq!(error.code(), "invalid_value");
            assert!(error.to_string().contains(said), "{error}");
        }
        assert_ne!(digest("a"), weights::digest::sha256(b"a"));
    }
}
