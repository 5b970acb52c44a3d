//! The secret of a token: `wsm_`, 8 characters that find it, `_`, and 43 that prove it.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand::distr::Alphanumeric;
use sha2::{Digest, Sha256};

use crate::Error;

/// What every secret begins with: scanners for leaked secrets look for it.
pub(crate) const BEGIN: &str = "wsm_";
/// Characters that find the token.
const PREFIX: usize = 8;
/// Characters that prove it: log2(62^43) is 256 bits.
const PROOF: usize = 43;

/// A secret. It is shown by [`Secret::reveal`] only, and kept nowhere.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new one, from the thread's cryptographic generator, which the system seeds.
    pub(crate) fn generate() -> Self {
        let mut draw = rand::rng().sample_iter(Alphanumeric).map(char::from);
        let prefix: String = draw.by_ref().take(PREFIX).collect();
        let proof: String = draw.take(PROOF).collect();
        Self(format!("{BEGIN}{prefix}_{proof}"))
    }

    /// The secret itself, to hand it to its holder.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The part that finds the token.
    pub(crate) fn prefix(&self) -> &str {
        &self.0[BEGIN.len()..BEGIN.len() + PREFIX]
    }

    pub(crate) fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl FromStr for Secret {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.strip_prefix(BEGIN).and_then(|rest| rest.split_once('_'));
        let (prefix, proof) = parts.ok_or(Error::TokenInvalid)?;
        let base62 = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
        match prefix.len() == PREFIX && proof.len() == PROOF && base62(prefix) && base62(proof) {
            true => Ok(Self(text.into())),
            false => Err(Error::TokenInvalid),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{BEGIN}{}_…", self.prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        let (one, other) = (Secret::generate(), Secret::generate());
        assert_ne!(one.reveal(), other.reveal());
        assert_eq!(one.reveal().len(), 56);
        assert_eq!(one.reveal().parse::<Secret>().unwrap().sha256(), one.sha256());
        assert!(!format!("{one:?}").contains(&one.reveal()[13..]), "{one:?}");
        let text = one.reveal();
        for bad in ["", "wsm_", "wsm__", &text[..55], &format!("{text}x"), &text.replace("wsm", "WSM"), "wsm_äääää_"]
        {
            assert_eq!(bad.parse::<Secret>().unwrap_err().code(), "token_invalid", "{bad}");
        }
        assert!(text.replacen(&text[20..21], "é", 1).parse::<Secret>().is_err());
    }
}
