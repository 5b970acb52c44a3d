//! Weights as safetensors files, with the architecture's parameter names and shapes.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, check_finite, check_length};
use crate::layout::Layout;

/// Writes named tensors and metadata as a safetensors file. Header keys are sorted, so equal input gives equal
/// bytes (the safetensors crate keeps metadata in a hash map, which would give each file another digest).
fn write(tensors: &[(&str, &[usize], &[f32])], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for (name, shape, data) in tensors {
        let end = offset + data.len() * 4;
        header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut head = Value::Object(header).to_string().into_bytes();
    // Data starts on an 8-byte boundary, as the format asks.
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut out = Vec::with_capacity(8 + head.len() + offset);
    out.extend_from_slice(&(head.len() as u64).to_le_bytes());
    out.extend_from_slice(&head);
    for (_, _, data) in tensors {
        out.extend(data.iter().flat_map(|v| v.to_le_bytes()));
    }
    out
}

/// The flat vector `theta` (`[d]`) as a safetensors file with `layout`'s names and shapes.
///
/// # Errors
/// [`Error::Length`] or [`Error::NotFinite`] when `theta` does not fit or is not finite.
pub fn to_safetensors(layout: &Layout, theta: &[f32], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    check_length("the weight vector", theta.len(), layout.parameters())?;
    check_finite("the weight vector", theta)?;
    let tensors: Vec<_> =
        layout.params.iter().map(|p| (p.name.as_str(), p.shape.as_slice(), &theta[p.range()])).collect();
    Ok(write(&tensors, metadata))
}

/// Named f32 vectors or matrices as a safetensors file (zoo matrices, statistics).
pub fn named_to_safetensors(tensors: &[(&str, &[usize], &[f32])], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    write(tensors, metadata)
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes).map_err(|e| Error::Safetensors(e.to_string()))
}

fn values(name: &str, view: &safetensors::tensor::TensorView<'_>) -> Result<Vec<f32>> {
    if view.dtype() != Dtype::F32 {
        return Err(Error::TensorType { tensor: name.to_owned(), found: format!("{:?}", view.dtype()) });
    }
    let (words, _) = view.data().as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// Reads the flat vector (`[d]`) of `layout` from a safetensors file; tensors that the layout lacks are passed over.
///
/// # Errors
/// Names the first tensor that is missing, has another shape or type, or holds a value that is not finite.
pub fn from_safetensors(bytes: &[u8], layout: &Layout) -> Result<Vec<f32>> {
    let file = parse(bytes)?;
    // Grows with what the file has: a layout may promise more than there is memory.
    let mut theta = Vec::new();
    for param in &layout.params {
        let view = file
            .tensor(&param.name)
            .map_err(|_| Error::MissingTensor { tensor: param.name.clone(), expected: layout.names() })?;
        if view.shape() != param.shape {
            return Err(Error::TensorShape {
                tensor: param.name.clone(),
                found: view.shape().to_vec(),
                expected: param.shape.clone(),
            });
        }
        let data = values(&param.name, &view)?;
        check_finite(&format!("tensor {}", param.name), &data)?;
        theta.extend_from_slice(&data);
    }
    Ok(theta)
}

/// A tensor of any name with its shape.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::TensorType`], or [`Error::Safetensors`].
pub fn named_from_safetensors(bytes: &[u8], name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let file = parse(bytes)?;
    let view = file.tensor(name).map_err(|_| Error::MissingTensor {
        tensor: name.to_owned(),
        expected: format!("{name} among its tensors; the file has {}", file.names().join(", ")),
    })?;
    Ok((view.shape().to_vec(), values(name, &view)?))
}

/// The metadata of a safetensors file, sorted by key.
///
/// # Errors
/// [`Error::Safetensors`] when the header cannot be read.
pub fn metadata(bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| Error::Safetensors(e.to_string()))?;
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new([("fc.weight", vec![2, 3]), ("fc.bias", vec![2])])
    }

    proptest! {
        #[test]
        fn round_trip_is_exact(theta in proptest::collection::vec(-1e9f32..1e9, 8)) {
            let meta = BTreeMap::from([("seed".to_owned(), "7".to_owned()), ("a".to_owned(), "b\"c".to_owned())]);
            let bytes = to_safetensors(&layout(), &theta, &meta).unwrap();
            prop_assert_eq!(from_safetensors(&bytes, &layout()).unwrap(), theta.clone());
            prop_assert_eq!(metadata(&bytes).unwrap(), meta.clone());
            prop_assert_eq!(to_safetensors(&layout(), &theta, &meta).unwrap(), bytes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(from_safetensors(&bytes, &layout()).is_err());
            prop_assert!(metadata(&bytes).is_err() || !bytes.is_empty());
        }
    }

    #[test]
    fn errors_name_the_tensor() {
        let other = Layout::new([("fc.weight", vec![3, 2]), ("fc.bias", vec![2])]);
        let bytes = to_safetensors(&other, &[0.0; 8], &BTreeMap::new()).unwrap();
        let error = from_safetensors(&bytes, &layout()).unwrap_err();
        assert!(error.to_string().contains("fc.weight") && error.to_string().contains("[2, 3]"), "{error}");
        let missing = Layout::new([("fc.weight", vec![2, 3])]);
        let bytes = to_safetensors(&missing, &[0.0; 6], &BTreeMap::new()).unwrap();
        assert!(from_safetensors(&bytes, &layout()).unwrap_err().to_string().contains("fc.bias"));
        let bytes = named_to_safetensors(
            &[("fc.weight", &[2, 3], &[f32::NAN; 6]), ("fc.bias", &[2], &[0.0; 2])],
            &BTreeMap::new(),
        );
        assert!(from_safetensors(&bytes, &layout()).unwrap_err().to_string().contains("not finite"));
        assert!(to_safetensors(&layout(), &[f32::INFINITY; 8], &BTreeMap::new()).is_err());
    }
}
