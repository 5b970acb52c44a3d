//! The form that is stored.

use std::io::{Read, Seek, SeekFrom, Write};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Checkpoint, Dtype, Found};
use crate::error::{Error, Result};

/// Bytes copied at a time; a multiple of every value's size.
const CHUNK: usize = 1 << 20;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Digest of the written bytes.
    pub digest: String,
    /// Their number.
    pub size: u64,
}

impl<R: Read + Seek> Checkpoint<R> {
    /// Writes the canonical form (safetensors), and checks every value on the way.
    ///
    /// # Errors
    /// [`Error::NotFinite`] names the first tensor with a NaN or infinity; [`Error::Checkpoint`] when the file ends
    /// early; [`Error::Read`], [`Error::Write`]. What was written then is of no use.
    pub fn write(&mut self, out: &mut impl Write) -> Result<Written> {
        let mut tensors: Vec<&Found> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| {
            (b.spec.dtype.size(), a.spec.name.as_str()).cmp(&(a.spec.dtype.size(), b.spec.name.as_str()))
        });
        let head = header(&tensors);
        let mut hash = Sha256::new();
        let mut size = head.len() as u64;
        out.write_all(&head).map_err(Error::Write)?;
        hash.update(&head);
        let mut chunk = vec![0; CHUNK];
        for tensor in tensors {
            self.source.seek(SeekFrom::Start(tensor.start)).map_err(Error::Read)?;
            let bytes = tensor.spec.bytes().unwrap_or(u64::MAX);
            let mut done = 0u64;
            while done < bytes {
                let part = &mut chunk[..usize::try_from(bytes - done).unwrap_or(CHUNK).min(CHUNK)];
                self.source.read_exact(part).map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => {
                        Error::Checkpoint(format!("it ends early: tensor {} is cut off", tensor.spec.name))
                    }
                    _ => Error::Read(error),
                })?;
                check(tensor, part, done)?;
                hash.update(&*part);
                out.write_all(part).map_err(Error::Write)?;
                done += part.len() as u64;
            }
            size += bytes;
        }
        Ok(Written { digest: format!("sha256:{}", hex::encode(hash.finalize())), size })
    }
}

fn header(tensors: &[&Found]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0u64;
    for Found { spec, .. } in tensors {
        let end = offset + spec.bytes().unwrap_or_default();
        let entry = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, end]});
        header.insert(spec.name.clone(), entry);
        offset = end;
    }
    let mut head = Value::Object(header).to_string().into_bytes();
    // Data starts on an 8-byte boundary, as the format asks.
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut head);
    bytes
}

/// Fails at the first value that is not a finite number.
fn check(tensor: &Found, bytes: &[u8], before: u64) -> Result<()> {
    let dtype = tensor.spec.dtype;
    let wrong = match dtype {
        Dtype::F64 => position(bytes, |word| f64::from_le_bytes(*word).is_finite()),
        Dtype::F32 => position(bytes, |word| f32::from_le_bytes(*word).is_finite()),
        // All bits of the exponent are set in NaN and infinity alone.
        Dtype::F16 => position(bytes, |word| u16::from_le_bytes(*word) & 0x7c00 != 0x7c00),
        Dtype::BF16 => position(bytes, |word| u16::from_le_bytes(*word) & 0x7f80 != 0x7f80),
        _ => None,
    };
    match wrong {
        None => Ok(()),
        Some(position) => Err(Error::NotFinite {
            what: format!("tensor {}", tensor.spec.name),
            position: usize::try_from(before).unwrap_or(usize::MAX) / dtype.size() + position,
        }),
    }
}

fn position<const N: usize>(bytes: &[u8], good: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    bytes.as_chunks::<N>().0.iter().position(|word| !good(word))
}
