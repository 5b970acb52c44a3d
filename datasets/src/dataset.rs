//! The labelled dataset that every reader gives.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The values of all examples, one after the other, each `product(shape)` long (row-major).
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Image pixels, 0..=255.
    U8(Vec<u8>),
    /// Image pixels in [0, 1], or features of any finite value.
    F32(Vec<f32>),
}

impl Data {
    /// Number of values, over all examples.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn rows(&self, dim: usize, indices: &[usize]) -> Self {
        fn copy<T: Copy>(values: &[T], dim: usize, indices: &[usize]) -> Vec<T> {
            indices.iter().flat_map(|&i| values[i * dim..(i + 1) * dim].iter().copied()).collect()
        }
        match self {
            Self::U8(values) => Self::U8(copy(values, dim, indices)),
            Self::F32(values) => Self::F32(copy(values, dim, indices)),
        }
    }
}

/// What an example is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// An image `[c, h, w]`.
    Image,
    /// A feature vector `[d]`.
    Features,
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Features => "features",
        })
    }
}

/// Labelled examples of one shape.
///
/// Fields are public to read; build one through [`Dataset::new`], which checks that they agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Name, such as "digits" or the folder it came from.
    pub name: String,
    /// Shape of one example: `[c, h, w]` with 1 or 3 channels, or `[d]`.
    pub shape: Vec<usize>,
    /// Name of each class; label `i` is `class_names[i]`.
    pub class_names: Vec<String>,
    /// All values, `len() * dim()` of them.
    pub data: Data,
    /// One label an example, each below `classes()`.
    pub labels: Vec<u32>,
}

impl Dataset {
    /// Checks that the parts agree and makes a dataset of them.
    ///
    /// Errors: a shape that is neither `[c, h, w]` (1 or 3 channels) nor `[d]`; no example; a number of values that
    /// is not `labels.len() * product(shape)`; a label outside the classes; NaN, infinities; float images outside
    /// [0, 1]; features that are not f32; the same class name twice.
    pub fn new(
        name: impl Into<String>,
        shape: Vec<usize>,
        class_names: Vec<String>,
        data: Data,
        labels: Vec<u32>,
    ) -> Result<Self> {
        let name = name.into();
        let dim = check_shape(&shape, &data)?;
        check_lengths(dim, &data, labels.len())?;
        check_class_names(&class_names)?;
        check_labels(&labels, class_names.len())?;
        check_values(&shape, dim, &data)?;
        Ok(Self { name, shape, class_names, data, labels })
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no example (only after [`Dataset::take`] of no index).
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// What an example is, by the rank of its shape.
    pub fn modality(&self) -> Modality {
        if self.shape.len() == 1 { Modality::Features } else { Modality::Image }
    }

    /// Values of one example: the product of the shape.
    pub fn dim(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// Writes one example's features: u8 pixels divided by 255, f32 as it is (the "pixels" extractor).
    ///
    /// # Panics
    /// When `index >= len()` or `out.len() != dim()`.
    pub fn write_features(&self, index: usize, out: &mut [f32]) {
        let dim = self.dim();
        let range = index * dim..(index + 1) * dim;
        match &self.data {
            Data::U8(values) => {
                assert_eq!(out.len(), dim, "out holds one example");
                for (to, from) in out.iter_mut().zip(&values[range]) {
                    *to = f32::from(*from) / 255.0;
                }
            }
            Data::F32(values) => out.copy_from_slice(&values[range]),
        }
    }

    /// Features of several examples, `[indices.len() * dim()]` row-major.
    ///
    /// # Panics
    /// When an index is not below `len()`.
    pub fn gather(&self, indices: &[usize]) -> Vec<f32> {
        let dim = self.dim();
        let mut out = vec![0.0; indices.len() * dim];
        for (row, &index) in out.chunks_exact_mut(dim).zip(indices) {
            self.write_features(index, row);
        }
        out
    }

    /// The indices of `within` by class, each list in the order of `within`. `[classes()]` lists.
    ///
    /// # Panics
    /// When an index is not below `len()`.
    pub fn class_indices(&self, within: &[usize]) -> Vec<Vec<usize>> {
        let mut lists = vec![Vec::new(); self.classes()];
        for &index in within {
            lists[self.labels[index] as usize].push(index);
        }
        lists
    }

    /// The chosen classes only, relabelled 0..k in the order given; examples keep their order.
    ///
    /// Errors: a class that does not exist or is named twice, no class, or no example left.
    pub fn select_classes(&self, classes: &[u32]) -> Result<Self> {
        let mut new_label = vec![None; self.classes()];
        for (to, &class) in (0u32..).zip(classes) {
            let slot = new_label.get_mut(class as usize).ok_or_else(|| self.unknown_class(class))?;
            if slot.replace(to).is_some() {
                return Err(Error::DuplicateClass(self.class_names[class as usize].clone()));
            }
        }
        let (indices, labels): (Vec<usize>, Vec<u32>) = (self.labels.iter().enumerate())
            .filter_map(|(index, &label)| Some((index, new_label[label as usize]?)))
            .unzip();
        let names = classes.iter().map(|&class| self.class_names[class as usize].clone()).collect();
        let data = self.data.rows(self.dim(), &indices);
        Self::new(self.name.clone(), self.shape.clone(), names, data, labels)
    }

    /// The examples of `self` followed by those of `other`, under the name of `self`.
    ///
    /// Errors: other shape or other class names. When only one holds u8, its pixels become f32 in [0, 1].
    pub fn concat(&self, other: &Self) -> Result<Self> {
        if self.shape != other.shape {
            return Err(Error::DatasetMismatch(format!(
                "{:?} has examples of shape {:?} and {:?} of {:?}; shapes must be equal",
                self.name, self.shape, other.name, other.shape
            )));
        }
        if self.class_names != other.class_names {
            return Err(Error::DatasetMismatch(format!(
                "{:?} and {:?} name different classes; the class names must be the same in the same order",
                self.name, other.name
            )));
        }
        let data = match (&self.data, &other.data) {
            (Data::U8(a), Data::U8(b)) => Data::U8([a.as_slice(), b].concat()),
            _ => Data::F32([self.all_features(), other.all_features()].concat()),
        };
        let labels = [self.labels.as_slice(), &other.labels].concat();
        Self::new(self.name.clone(), self.shape.clone(), self.class_names.clone(), data, labels)
    }

    /// The examples at `indices`, in that order, with all the classes.
    ///
    /// # Panics
    /// When an index is not below `len()`.
    pub fn take(&self, indices: &[usize]) -> Self {
        Self {
            name: self.name.clone(),
            shape: self.shape.clone(),
            class_names: self.class_names.clone(),
            data: self.data.rows(self.dim(), indices),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
        }
    }

    /// "sha256:hex" over shape, class names, data and labels in a fixed encoding; the name does not count.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let number = |hash: &mut Sha256, n: usize| hash.update((n as u64).to_le_bytes());
        hash.update(b"weightsmith dataset 1\n");
        number(&mut hash, self.shape.len());
        self.shape.iter().for_each(|&d| number(&mut hash, d));
        number(&mut hash, self.class_names.len());
        for name in &self.class_names {
            number(&mut hash, name.len());
            hash.update(name.as_bytes());
        }
        match &self.data {
            Data::U8(values) => {
                hash.update(b"u8");
                number(&mut hash, values.len());
                hash.update(values);
            }
            Data::F32(values) => {
                hash.update(b"f32");
                number(&mut hash, values.len());
                hash_words(&mut hash, values, |v| v.to_le_bytes());
            }
        }
        number(&mut hash, self.labels.len());
        hash_words(&mut hash, &self.labels, |v| v.to_le_bytes());
        format!("sha256:{}", hex::encode(hash.finalize()))
    }

    /// Checks what a source of tasks or of a condition needs: at least two classes, each with an example.
    pub fn require_every_class(&self) -> Result<()> {
        if self.classes() < 2 {
            return Err(Error::TooFewClasses(self.classes()));
        }
        let mut seen = vec![false; self.classes()];
        self.labels.iter().for_each(|&label| seen[label as usize] = true);
        match seen.iter().position(|&s| !s) {
            Some(class) => Err(Error::ClassWithoutImages(self.class_names[class].clone())),
            None => Ok(()),
        }
    }

    fn all_features(&self) -> Vec<f32> {
        match &self.data {
            Data::U8(values) => values.iter().map(|&v| f32::from(v) / 255.0).collect(),
            Data::F32(values) => values.clone(),
        }
    }

    fn unknown_class(&self, class: u32) -> Error {
        Error::UnknownClass { class: class.to_string(), known: format!("0..={}", self.classes() - 1) }
    }
}

/// Hashes in blocks: one `update` a value would cost more than the hash.
fn hash_words<T: Copy>(hash: &mut Sha256, values: &[T], bytes: impl Fn(T) -> [u8; 4]) {
    let mut block = Vec::with_capacity(4096 * 4);
    for chunk in values.chunks(4096) {
        block.clear();
        block.extend(chunk.iter().flat_map(|&v| bytes(v)));
        hash.update(&block);
    }
}

fn check_shape(shape: &[usize], data: &Data) -> Result<usize> {
    let right = match shape {
        [d] => *d > 0 && matches!(data, Data::F32(_)),
        [c, h, w] => matches!(c, 1 | 3) && *h > 0 && *w > 0,
        _ => false,
    };
    let dim = shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
    match dim {
        Some(dim) if right => Ok(dim),
        _ => Err(Error::DatasetInvalid(format!(
            "shape {shape:?} must be [c, h, w] with 1 or 3 channels, or [d] with f32 features"
        ))),
    }
}

fn check_lengths(dim: usize, data: &Data, examples: usize) -> Result<()> {
    if examples == 0 {
        return Err(Error::DatasetInvalid("there is no example; give at least one".into()));
    }
    if examples.checked_mul(dim) != Some(data.len()) {
        return Err(Error::DatasetInvalid(format!(
            "{} values were given where {examples} labels of {dim} values each need {examples} x {dim}",
            data.len()
        )));
    }
    Ok(())
}

/// Class names must be there and differ from each other.
pub(crate) fn check_class_names(names: &[String]) -> Result<()> {
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::DuplicateClass(pair[0].clone())),
        None if names.is_empty() => Err(Error::TooFewClasses(0)),
        None => Ok(()),
    }
}

fn check_labels(labels: &[u32], classes: usize) -> Result<()> {
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(row) => Err(Error::LabelsOutOfRange { row, label: labels[row].into(), classes }),
        None => Ok(()),
    }
}

fn check_values(shape: &[usize], dim: usize, data: &Data) -> Result<()> {
    let Data::F32(values) = data else { return Ok(()) };
    let array = if shape.len() == 3 { "images" } else { "features" };
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::NonFinite { array, row: at / dim });
    }
    let outside = |v: &f32| !(0.0..=1.0).contains(v);
    match values.iter().position(outside) {
        Some(at) if shape.len() == 3 => Err(Error::ValueOutOfRange { row: at / dim, value: values[at] }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
