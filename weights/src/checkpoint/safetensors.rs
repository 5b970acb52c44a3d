//! Safetensors: a header of JSON, then the bytes.

use std::io::{Read, Seek, SeekFrom};

use safetensors::tensor::Metadata;

use super::{Dtype, Found, Limits, TensorSpec};
use crate::error::{Error, Result};

fn invalid(reason: impl Into<String>) -> Error {
    Error::Safetensors(reason.into())
}

/// Tensors of a safetensors file, in the order of their bytes.
pub(super) fn read<R: Read + Seek>(source: &mut R, limits: &Limits) -> Result<Vec<Found>> {
    let end = source.seek(SeekFrom::End(0)).map_err(Error::Read)?;
    source.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
    let mut length = [0; 8];
    source.read_exact(&mut length).map_err(|_| invalid("it is shorter than its first field"))?;
    let length = u64::from_le_bytes(length);
    if length > limits.header {
        return Err(Error::CheckpointTooLarge { what: "the header", found: length, limit: limits.header });
    }
    if length > end.saturating_sub(8) {
        return Err(invalid("its header is longer than the file"));
    }
    let mut header = Vec::new();
    source.by_ref().take(length).read_to_end(&mut header).map_err(Error::Read)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| invalid(error.to_string()))?;
    if metadata.data_len() as u64 != end - 8 - length {
        return Err(invalid("its tensors do not fill it; it was cut off, or has bytes that no tensor uses"));
    }
    let mut tensors: Vec<(usize, Found)> = Vec::new();
    for (name, info) in metadata.tensors() {
        let dtype = dtype_of(info.dtype).ok_or_else(|| Error::TensorUnsupported {
            tensor: name.clone(),
            reason: format!("its type is {:?}; f64, f32, f16, bf16, integers and bool are read", info.dtype),
        })?;
        let spec = TensorSpec { name, dtype, shape: info.shape.clone() };
        let start = 8 + length + info.data_offsets.0 as u64;
        if spec.bytes() != Some((info.data_offsets.1 - info.data_offsets.0) as u64) {
            return Err(invalid(format!("tensor {} has another number of bytes than its shape", spec.name)));
        }
        tensors.push((info.data_offsets.0, Found { spec, start }));
    }
    tensors.sort_by(|a, b| (a.0, &a.1.spec.name).cmp(&(b.0, &b.1.spec.name)));
    Ok(tensors.into_iter().map(|(_, found)| found).collect())
}

fn dtype_of(dtype: safetensors::Dtype) -> Option<Dtype> {
    use safetensors::Dtype as T;
    Some(match dtype {
        T::F64 => Dtype::F64,
        T::F32 => Dtype::F32,
        T::F16 => Dtype::F16,
        T::BF16 => Dtype::BF16,
        T::I64 => Dtype::I64,
        T::I32 => Dtype::I32,
        T::I16 => Dtype::I16,
        T::I8 => Dtype::I8,
        T::U64 => Dtype::U64,
        T::U32 => Dtype::U32,
        T::U16 => Dtype::U16,
        T::U8 => Dtype::U8,
        T::BOOL => Dtype::Bool,
        _ => return None,
    })
}
