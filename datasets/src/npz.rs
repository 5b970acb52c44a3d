//! NumPy archives: `images` or `features`, `labels`, optional `class_names`.

use std::collections::HashMap;
use std::io::{Cursor, Read, Seek, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::archive::Zip;
use crate::npy::{self, Array};
use crate::{Data, Dataset, Error, Limits, Result};

/// Reads what `numpy.savez` or `savez_compressed` wrote.
///
/// Arrays: `images` `[n, h, w]` or `[n, c, h, w]` (u8, or f4/f8 in [0, 1]) or else `features` `[n, d]` (f4/f8);
/// `labels` `[n]` of any integer type; optional `class_names` (u8 holding a JSON list, or numpy strings), without
/// which classes are 0 to the largest label; optional `name` (u8 holding text). Others are ignored.
///
/// Errors: `npz_invalid`, `zip_invalid`, `labels_out_of_range`, `non_finite` and `value_out_of_range` (with the row),
/// `too_few_classes`, `class_without_images`, `duplicate_class`, `limit_exceeded`.
pub fn from_npz(bytes: &[u8], limits: &Limits) -> Result<Dataset> {
    read_npz(Cursor::new(bytes), limits)
}

/// As [`from_npz`], from anything that can be read and sought.
pub(crate) fn read_npz(source: impl Read + Seek, limits: &Limits) -> Result<Dataset> {
    let mut members = members(source, limits)?;
    let labels = labels(&members)?;
    if labels.len() > limits.max_examples {
        return Err(Error::limit("examples in the npz", labels.len(), limits.max_examples));
    }
    let (shape, data) = examples(&members, labels.len(), limits)?;
    // The raw arrays are given up before their values are copied once more.
    members.retain(|name, _| name == "class_names" || name == "name");
    let class_names = class_names(&members, &labels, limits)?;
    let labels = in_range(&labels, class_names.len())?;
    let name = match members.get("name") {
        Some(bytes) => text(bytes, "name")?,
        None => "npz".to_owned(),
    };
    let dataset = Dataset::new(name, shape, class_names, data, labels)?;
    dataset.require_every_class()?;
    Ok(dataset)
}

/// Writes a dataset so that [`from_npz`] gives exactly it back, and numpy reads it. The same dataset gives the same
/// bytes: arrays are stored uncompressed in a fixed order with a fixed time.
///
/// Errors: what [`from_npz`] would not read back (fewer than two classes, a class without examples).
pub fn to_npz(dataset: &Dataset) -> Result<Vec<u8>> {
    dataset.require_every_class()?;
    let json = serde_json::to_vec(&dataset.class_names).map_err(|e| Error::NpzInvalid(e.to_string()))?;
    let shape = [&[dataset.len()], dataset.shape.as_slice()].concat();
    let values = if dataset.shape.len() == 3 { "images" } else { "features" };
    let data = match &dataset.data {
        Data::U8(pixels) => npy::write("|u1", &shape, pixels),
        Data::F32(values) => npy::write("<f4", &shape, &words(values, |v| v.to_le_bytes())),
    };
    let labels = npy::write("<u4", &[dataset.len()], &words(&dataset.labels, |v| v.to_le_bytes()));
    let text = |bytes: &[u8]| npy::write("|u1", &[bytes.len()], bytes);
    let members =
        [(values, data), ("labels", labels), ("class_names", text(&json)), ("name", text(dataset.name.as_bytes()))];
    write_zip(&members).map_err(|e| Error::NpzInvalid(format!("it could not be written: {e}")))
}

fn write_zip(members: &[(&str, Vec<u8>)]) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            .large_file(bytes.len() >= u32::MAX as usize);
        writer.start_file(format!("{name}.npy"), options)?;
        writer.write_all(bytes)?;
    }
    Ok(writer.finish()?.into_inner())
}

fn words<T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|&v| bytes(v)).collect()
}

type Members = HashMap<String, Vec<u8>>;

fn members(source: impl Read + Seek, limits: &Limits) -> Result<Members> {
    let mut zip = Zip::open(source, limits)?;
    let mut members = HashMap::new();
    for (index, name) in zip.names()? {
        if let Some(array @ ("images" | "features" | "labels" | "class_names" | "name")) = name.strip_suffix(".npy") {
            members.insert(array.to_owned(), zip.read(index)?);
        }
    }
    Ok(members)
}

fn array<'a>(members: &'a Members, name: &str) -> Result<Option<Array<'a>>> {
    members.get(name).map(|bytes| Array::parse(bytes).map_err(|e| invalid(name, &e))).transpose()
}

fn labels(members: &Members) -> Result<Vec<i128>> {
    let Some(labels) = array(members, "labels")? else {
        return Err(Error::NpzInvalid("it has no array `labels`; give one integer an example".into()));
    };
    if labels.shape.len() != 1 {
        return Err(invalid("labels", &format!("its shape is {:?}, it must be [n]", labels.shape)));
    }
    labels.integers().map_err(|e| invalid("labels", &e))
}

fn examples(members: &Members, n: usize, limits: &Limits) -> Result<(Vec<usize>, Data)> {
    let (name, array) = match (array(members, "images")?, array(members, "features")?) {
        (Some(images), None) => ("images", images),
        (None, Some(features)) => ("features", features),
        (found, _) => {
            let found = if found.is_some() { "both" } else { "neither" };
            return Err(Error::NpzInvalid(format!("it has {found} of the arrays `images` and `features`; give one")));
        }
    };
    let shape = example_shape(name, &array.shape, limits)?;
    if array.shape[0] != n {
        let reason = format!("it has {} rows and `labels` has {n}; give one label a row", array.shape[0]);
        return Err(invalid(name, &reason));
    }
    let data = match name == "images" && array.is_u8() {
        true => array.bytes().map(Data::U8),
        false => array.floats().map(Data::F32),
    };
    let data = data.map_err(|e| {
        let right = if name == "images" { "images are u8, or floats in [0, 1]" } else { "features are floats" };
        invalid(name, &format!("{e}; {right}"))
    })?;
    Ok((shape, data))
}

fn example_shape(name: &str, shape: &[usize], limits: &Limits) -> Result<Vec<usize>> {
    if shape.contains(&0) {
        return Err(invalid(name, &format!("its shape is {shape:?}; every dimension must be at least 1")));
    }
    let each = match (name, shape) {
        ("features", &[_, d]) if d > limits.max_feature_dim => {
            return Err(Error::limit("values of a feature vector", d, limits.max_feature_dim));
        }
        ("features", &[_, d]) => return Ok(vec![d]),
        ("features", _) => return Err(invalid(name, &format!("its shape is {shape:?}, it must be [n, d]"))),
        (_, &[_, h, w]) => vec![1, h, w],
        (_, &[_, c @ (1 | 3), h, w]) => vec![c, h, w],
        (_, &[_, _, _, 1 | 3]) => {
            return Err(invalid(name, &format!("its shape {shape:?} has the channels last; give [n, c, h, w]")));
        }
        _ => {
            let reason = format!("its shape is {shape:?}, it must be [n, h, w] or [n, c, h, w] with 1 or 3 channels");
            return Err(invalid(name, &reason));
        }
    };
    match each[1].saturating_mul(each[2]) {
        area if area > limits.max_pixels_per_image => {
            Err(Error::limit("pixels of an image", area, limits.max_pixels_per_image))
        }
        _ => Ok(each),
    }
}

fn class_names(members: &Members, labels: &[i128], limits: &Limits) -> Result<Vec<String>> {
    let names = match members.get("class_names") {
        Some(bytes) => given_names(bytes)?,
        None => {
            let count = labels.iter().max().map_or(0, |&label| label.saturating_add(1).max(0));
            if count > limits.max_classes as i128 {
                return Err(Error::limit("classes (the largest label and one)", count, limits.max_classes));
            }
            (0..count).map(|class| class.to_string()).collect()
        }
    };
    match names.len() > limits.max_classes {
        true => Err(Error::limit("class names", names.len(), limits.max_classes)),
        false => Ok(names),
    }
}

fn given_names(bytes: &[u8]) -> Result<Vec<String>> {
    let parsed = Array::parse(bytes).map_err(|e| invalid("class_names", &e))?;
    if !parsed.is_u8() {
        return parsed.strings().map_err(|e| invalid("class_names", &format!("{e}, nor a JSON list as u8")));
    }
    let json = parsed.bytes().map_err(|e| invalid("class_names", &e))?;
    serde_json::from_slice(&json)
        .map_err(|e| invalid("class_names", &format!("its bytes are not a JSON list of strings ({e})")))
}

fn text(bytes: &[u8], name: &str) -> Result<String> {
    let bytes = Array::parse(bytes).and_then(|array| array.bytes()).map_err(|e| invalid(name, &e))?;
    String::from_utf8(bytes).map_err(|_| invalid(name, "its bytes are not UTF-8 text"))
}

fn in_range(labels: &[i128], classes: usize) -> Result<Vec<u32>> {
    (labels.iter().enumerate())
        .map(|(row, &label)| match u32::try_from(label) {
            Ok(small) if (small as usize) < classes => Ok(small),
            _ => Err(Error::LabelsOutOfRange { row, label, classes }),
        })
        .collect()
}

fn invalid(array: &str, reason: &str) -> Error {
    Error::NpzInvalid(format!("the array `{array}`: {reason}"))
}

#[cfg(test)]
#[path = "npz_tests.rs"]
mod tests;
