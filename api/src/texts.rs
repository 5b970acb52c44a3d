//! Texts as conditions: descriptions of tasks.

pub(crate) use language::text::digest;

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

/// Of a dataset of labelled examples where a text is needed, or the other way round.
pub(crate) fn mismatch(found: &str, expected: &str) -> Error {
    inference::Error::ModalityMismatch { found: found.to_owned(), expected: expected.to_owned() }.into()
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
