//! Digests and the keys they are stored under.

use object_store::path::Path as Key;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Error, Result};

/// `sha256:` and the hex digest of some bytes, as the registry writes digests.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    written(Sha256::digest(bytes).as_slice())
}

/// A finished hash, written as a digest.
pub(super) fn written(hash: &[u8]) -> String {
    format!("sha256:{}", hex::encode(hash))
}

/// Where the bytes of a digest are: `sha256/ab/cdef…`.
pub(super) fn key(digest: &str) -> Result<Key> {
    let hex = digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    let (folder, rest) = hex
        .and_then(|hex| hex.split_at_checked(2))
        .ok_or_else(|| Error::invalid("digest", "write sha256: and 64 lowercase hex digits"))?;
    Ok(Key::from_iter(["sha256", folder, rest]))
}

/// A key for bytes whose digest is not known yet.
pub(super) fn temporary_key() -> Key {
    Key::from_iter(["incoming".to_owned(), Uuid::now_v7().to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let digest = digest_of(b"");
        assert_eq!(digest, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let key = key(&digest).unwrap();
        assert_eq!(key.as_ref(), "sha256/e3/b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn malformed_digests_are_refused() {
        let upper = digest_of(b"x").to_uppercase();
        let long = digest_of(b"x") + "0";
        for bad in ["", "sha256:", "../../etc/passwd", "sha256:zz", &upper, &long] {
            assert_eq!(key(bad).unwrap_err().code(), "invalid_value", "{bad}");
        }
    }
}
