//! The labelled examples that a network is made from, and what is left of them when one of each class is held out.

use std::collections::BTreeMap;

use datasets::{Data, Dataset};
use weights::Architecture;
use weights::closed_form::{Blend, Examples};

use crate::error::{Error, Result};
use crate::generator::Generator;

/// Most folds of [`Support::folds`].
pub const MAX_FOLDS: usize = 10;

/// The examples that the dataset encoder takes, each once, also as the generated networks take them.
#[derive(Debug, Clone)]
pub struct Support {
    /// Encoder's features of each example, `[examples × feature_dim]`.
    features: Vec<f32>,
    feature_dim: usize,
    /// Which examples the encoder takes, `[classes × images_per_class]`: a small class repeats its own.
    order: Vec<usize>,
    /// As the networks take them; label k is the head's row k.
    data: Dataset,
}

/// A part of a support.
#[derive(Debug, Clone)]
pub struct Part {
    /// The encoder's features, as [`Generator::features`] gives them.
    pub features: Vec<f32>,
    /// The examples, each once, as the networks take them.
    pub data: Dataset,
}

impl Part {
    /// Whether each class has at least two examples: with one, nothing can be left out to see how far a head is to be
    /// trusted.
    pub(crate) fn several(&self) -> bool {
        self.by_class().iter().all(|of| of.len() > 1)
    }

    /// Each example moved by the share `by` of the way to the first example of each other class, with its own class.
    ///
    /// # Errors
    /// [`Error::Dataset`] when there are no two classes.
    pub(crate) fn moved(&self, by: f32) -> Result<Dataset> {
        let value = |index: usize| self.data.gather(&[index]);
        let firsts: Vec<Option<Vec<f32>>> = self.by_class().iter().map(|of| of.first().copied().map(value)).collect();
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for (index, &label) in self.data.labels.iter().enumerate() {
            let own = value(index);
            for (_, other) in firsts.iter().enumerate().filter(|(class, _)| *class != label as usize) {
                let Some(other) = other else { continue };
                values.extend(own.iter().zip(other).map(|(from, to)| from + by * (to - from)));
                labels.push(label);
            }
        }
        let data = &self.data;
        let (name, names) = (data.name.clone(), data.class_names.clone());
        Ok(Dataset::new(name, data.shape.clone(), names, Data::F32(values), labels)?)
    }

    fn by_class(&self) -> Vec<Vec<usize>> {
        self.data.class_indices(&(0..self.data.len()).collect::<Vec<_>>())
    }
}

/// One of each class held out.
#[derive(Debug, Clone)]
pub struct Fold {
    /// What networks are made from.
    pub rest: Part,
    /// What they are tried on: one example of each class, as the networks take them.
    pub held_out: Dataset,
}

/// A closed form of a linear head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClosedForm {
    /// Ridge regression, λ by leave-one-out: see [`Examples::ridge`].
    Ridge,
    /// Nearest centroid: see [`Examples::centroid`].
    Centroid,
    /// Weighted mean of the two: see [`Examples::blend`].
    Blend,
    /// Ridge regression towards the mean of the generated heads: see [`Examples::ridge_towards`].
    Adapted,
}

impl ClosedForm {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ridge => "ridge",
            Self::Centroid => "centroid",
            Self::Blend => "blend",
            Self::Adapted => "adapted",
        }
    }
}

impl Generator {
    /// The examples that [`Self::features`] takes, each once; equal ones of a class count as one.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn gather_support(&self, dataset: &Dataset, classes: &[u32], seed: u64) -> Result<Support> {
        let chosen = self.support(dataset, classes, seed)?;
        let mut place = BTreeMap::new();
        let mut unique = Vec::new();
        let mut order = Vec::with_capacity(chosen.len());
        for index in chosen {
            let values = dataset.gather(&[index]).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            order.push(*place.entry((dataset.labels[index], values)).or_insert_with(|| {
                unique.push(index);
                unique.len() - 1
            }));
        }
        let manifest = self.manifest();
        let features = crate::features::gather(self.extractor(), dataset, &unique)?;
        let rows = classes.iter().zip(0..).map(|(&class, row)| (class, row)).collect::<BTreeMap<u32, u32>>();
        let labels = unique.iter().filter_map(|&index| rows.get(&dataset.labels[index]).copied()).collect();
        let names = classes.iter().map(|&class| dataset.class_names[class as usize].clone()).collect();
        let behind = manifest.extractor.as_ref().is_some_and(|used| used.networks);
        let (shape, data) = match behind {
            true => (vec![manifest.encoder.feature_dim], Data::F32(features.clone())),
            false => (dataset.shape.clone(), dataset.take(&unique).data),
        };
        let data = Dataset::new(dataset.name.clone(), shape, names, data, labels)?;
        Ok(Support { features, feature_dim: manifest.encoder.feature_dim, order, data })
    }

    /// Whether closed forms fit: the networks are linear heads.
    pub fn is_head(&self) -> bool {
        matches!(self.architecture().config, Architecture::Head { .. })
    }

    /// The linear heads θ `[d]` that closed forms find for examples as the networks take them; `generated` are heads of `[d]`
    /// each, without which there is no [`ClosedForm::Adapted`].
    ///
    /// # Errors
    /// [`Error::Weights`] when they do not fit the head, or are not finite.
    pub fn closed_forms(&self, data: &Dataset, generated: &[Vec<f32>]) -> Result<Vec<(ClosedForm, Vec<f32>)>> {
        let features = data.gather(&(0..data.len()).collect::<Vec<_>>());
        let examples = Examples::new(&features, &data.labels, data.dim(), data.classes())?;
        let Blend { ridge, centroid, theta } = examples.blend()?;
        let mut heads = vec![(ClosedForm::Ridge, ridge), (ClosedForm::Centroid, centroid), (ClosedForm::Blend, theta)];
        if !generated.is_empty() {
            heads.push((ClosedForm::Adapted, examples.ridge_towards(&mean(generated))?.theta));
        }
        match self.is_head() && heads.iter().all(|(_, theta)| theta.len() == self.architecture().parameters) {
            true => Ok(heads),
            false => Err(Error::Bundle(format!("a linear head is not its {}", self.architecture().name))),
        }
    }
}

/// Mean of heads; empty for none.
fn mean(heads: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0f64; heads.first().map_or(0, Vec::len)];
    heads.iter().for_each(|head| sum.iter_mut().zip(head).for_each(|(s, v)| *s += f64::from(*v)));
    sum.into_iter().map(|s| (s / heads.len() as f64) as f32).collect()
}

impl Support {
    /// All of it.
    pub fn whole(&self) -> Part {
        Part { features: self.rows(&self.order), data: self.data.clone() }
    }

    /// How many folds there are: as many as the smallest class has examples, at most [`MAX_FOLDS`]; none when a class
    /// has only one.
    pub fn folds(&self) -> usize {
        match self.by_class().iter().map(Vec::len).min() {
            Some(smallest) if smallest > 1 => smallest.min(MAX_FOLDS),
            _ => 0,
        }
    }

    /// Holds out the example number `fold` of each class. A class then repeats what it has left, so that the encoder
    /// gets as many as ever.
    pub fn fold(&self, fold: usize) -> Fold {
        let by_class = self.by_class();
        let held: Vec<usize> = by_class.iter().filter_map(|of| of.get(fold).copied()).collect();
        let kept: Vec<usize> = (0..self.data.len()).filter(|index| !held.contains(index)).collect();
        let per_class = self.order.len() / by_class.len().max(1);
        let mut order = Vec::with_capacity(self.order.len());
        for of in &by_class {
            let left = of.iter().copied().filter(|index| !held.contains(index));
            order.extend(left.cycle().take(per_class));
        }
        let rest = Part { features: self.rows(&order), data: self.data.take(&kept) };
        Fold { rest, held_out: self.data.take(&held) }
    }

    fn by_class(&self) -> Vec<Vec<usize>> {
        self.data.class_indices(&(0..self.data.len()).collect::<Vec<_>>())
    }

    fn rows(&self, order: &[usize]) -> Vec<f32> {
        let dim = self.feature_dim;
        order.iter().flat_map(|&index| &self.features[index * dim..(index + 1) * dim]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Class 0 has the examples 0, 1, 2; class 1 has 10, 11 and repeats one.
    fn support() -> Support {
        let values = vec![0.0, 1.0, 2.0, 10.0, 11.0];
        let names = ["a", "b"].map(str::to_owned).to_vec();
        let data = Dataset::new("t", vec![1], names, Data::F32(values.clone()), vec![0, 0, 0, 1, 1]).unwrap();
        Support { features: values, feature_dim: 1, order: vec![0, 1, 2, 4, 3, 4], data }
    }

    #[test]
    fn each_fold_holds_out_one_of_each_class() {
        let support = support();
        assert_eq!(support.whole().features, [0.0, 1.0, 2.0, 11.0, 10.0, 11.0]);
        assert_eq!(support.folds(), 2);
        let fold = support.fold(1);
        assert_eq!((fold.held_out.data.clone(), &fold.held_out.labels[..]), (Data::F32(vec![1.0, 11.0]), &[0, 1][..]));
        assert_eq!(fold.rest.data.data, Data::F32(vec![0.0, 2.0, 10.0]));
        assert_eq!(fold.rest.features, [0.0, 2.0, 0.0, 10.0, 10.0, 10.0]);
    }

    #[test]
    fn examples_are_moved_towards_those_of_other_classes() {
        let moved = support().whole().moved(0.25).unwrap();
        // 0, 1, 2 a quarter of the way to 10; 10, 11 to 0.
        assert_eq!((moved.data, moved.labels), (Data::F32(vec![2.5, 3.25, 4.0, 7.5, 8.25]), vec![0, 0, 0, 1, 1]));
    }

    #[test]
    fn one_example_of_a_class_allows_no_fold() {
        let mut support = support();
        support.data = support.data.take(&[0, 1, 2, 3]);
        assert_eq!(support.folds(), 0);
    }
}
