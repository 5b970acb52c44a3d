//! Content digests: `sha256:` and 64 hexadecimal digits.

use sha2::{Digest, Sha256};

/// Digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Digest of a vector of weights: the little-endian bytes of its values.
pub fn of_weights(theta: &[f32]) -> String {
    let mut hasher = Sha256::new();
    for value in theta {
        hasher.update(value.to_le_bytes());
    }
    format!("sha256:{}", hex::encode(hasher.finalize()))
}
