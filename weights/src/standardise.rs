//! Standardisation of weight vectors over a zoo, per parameter or per layer (the statistics go with the generator).
//!
//! Of the variances that normalisations store it is ln(variance + ε) that is standardised: what comes back is never
//! negative, and an error of a decoded row is a factor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_length};
use crate::layout::{Layout, NORM_EPSILON};
use crate::manifest::files;
use crate::tensors;
use crate::vectorise::Vectorise;

/// Over what the mean and the standard deviation are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum StandardiseMode {
    /// No change.
    None,
    /// One mean and one deviation per parameter tensor.
    Layer,
    /// One mean and one deviation per weight; with a common initialisation this also removes it.
    #[default]
    Parameter,
}

/// Statistics: x = (w − mean) / std, element by element over the padded vector; for several kinds of rows those of
/// each kind, one after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standardisation {
    /// Means, `[kinds × length]`.
    pub mean: Vec<f32>,
    /// Standard deviations, `[kinds × length]`, all positive.
    pub std: Vec<f32>,
    /// Which values are variances, `[kinds × length]`; empty where there are none.
    pub variances: Vec<bool>,
}

/// Largest logarithm of a variance that is taken back; 4.9e8.
pub const LARGEST_LOG: f32 = 20.0;

/// Which values of a layout are variances, `[d]`; empty where there are none.
fn variances(layout: &Layout) -> Vec<bool> {
    if !layout.params.iter().any(crate::ParamSpec::is_variance) {
        return Vec::new();
    }
    layout.params.iter().flat_map(|p| std::iter::repeat_n(p.is_variance(), p.len())).collect()
}

fn log(variance: f32) -> f32 {
    (variance.max(0.0) + NORM_EPSILON as f32).ln()
}

fn exp(log: f32) -> f32 {
    (log.min(LARGEST_LOG).exp() - NORM_EPSILON as f32).max(0.0)
}

/// A weight that hardly moves over the zoo must not be blown up to unit variance.
const STD_FLOOR: f32 = 1e-4;

impl Standardisation {
    /// The file of a bundle: `mean`, `std` and, where there are some, which values are variances.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let length = [self.mean.len()];
        let mask: Vec<f32> = self.variances.iter().map(|&v| f32::from(u8::from(v))).collect();
        let mut all: Vec<(&str, &[usize], &[f32])> = vec![("mean", &length, &self.mean), ("std", &length, &self.std)];
        if !mask.is_empty() {
            all.push((files::VARIANCES, &length, &mask));
        }
        tensors::named_to_safetensors(&all, &BTreeMap::new())
    }

    /// Statistics of `rows` (`[n × length]`, row-major).
    ///
    /// # Errors
    /// [`Error::Length`] when `rows` is empty or not a multiple of `length`.
    pub fn fit(rows: &[f32], length: usize, layout: &Layout, mode: StandardiseMode) -> Result<Self> {
        let n = rows.len().checked_div(length).unwrap_or(0);
        if n == 0 || rows.len() != n * length {
            return Err(Error::Length { what: "the zoo matrix".into(), found: rows.len(), expected: length });
        }
        let variances = variances(layout);
        if mode == StandardiseMode::None {
            return Ok(Self { mean: vec![0.0; length], std: vec![1.0; length], variances });
        }
        let (mut sum, mut square) = (vec![0.0f64; length], vec![0.0f64; length]);
        for row in rows.chunks_exact(length) {
            for (i, &v) in row.iter().enumerate() {
                let v = if variances.get(i) == Some(&true) { log(v) } else { v };
                sum[i] += f64::from(v);
                square[i] += f64::from(v) * f64::from(v);
            }
        }
        if mode == StandardiseMode::Layer {
            for param in &layout.params {
                let range = param.range();
                let len = range.len().max(1) as f64;
                let (s, q): (f64, f64) = (sum[range.clone()].iter().sum(), square[range.clone()].iter().sum());
                sum[range.clone()].fill(s / len);
                square[range].fill(q / len);
            }
        }
        let n = n as f64;
        let mean: Vec<f32> = sum.iter().map(|s| (s / n) as f32).collect();
        let std = sum
            .iter()
            .zip(&square)
            .map(|(s, q)| (((q / n - (s / n) * (s / n)).max(0.0)).sqrt() as f32).max(STD_FLOOR))
            .collect();
        Ok(Self { mean, std, variances })
    }

    /// Statistics of heads (`[classes · (features + 1)]` each) of any number of classes, the same for every class row: over
    /// all class rows of all heads. As those of the largest head's row, `[length]`.
    ///
    /// # Errors
    /// [`Error::Length`] when there is no head, or its classes are not whole; [`Error::Vectorise`] when networks do not
    /// lie in class rows.
    pub fn fit_class_rows<'a>(
        heads: impl Iterator<Item = &'a [f32]>,
        vectorise: &Vectorise,
        mode: StandardiseMode,
    ) -> Result<Self> {
        let (Some(rows), Some(most)) = (&vectorise.rows, vectorise.most_classes()) else {
            return Err(Error::Vectorise("networks do not lie in class rows".into()));
        };
        let (features, row) = (rows.features, rows.features + 1);
        let mut all = Vec::new();
        for head in heads {
            check_length("a head", head.len(), head.len() / row * row)?;
            let (weights, biases) = head.split_at(head.len() / row * features);
            for (weights, bias) in weights.chunks_exact(features).zip(biases) {
                all.extend_from_slice(weights);
                all.push(*bias);
            }
        }
        let layout = Layout::new([("weight", vec![features]), ("bias", vec![1])]);
        let one = Self::fit(&all, row, &layout, mode)?;
        let spread = |values: &[f32]| {
            let mut whole = values[..features].repeat(most);
            whole.extend(std::iter::repeat_n(values[features], most));
            whole
        };
        Ok(Self { mean: spread(&one.mean), std: spread(&one.std), variances: Vec::new() })
    }

    /// These statistics of one architecture's flat vector (`[d]`) as those of its rows.
    ///
    /// # Errors
    /// [`Error::Length`] when they are not of that architecture.
    pub fn cut(&self, vectorise: &Vectorise, architecture: usize) -> Result<Self> {
        // Padding stays what it is.
        let (mean, std) = (vectorise.cut(architecture, &self.mean, 0.0)?, vectorise.cut(architecture, &self.std, 1.0)?);
        let mut variances = Vec::new();
        if !self.variances.is_empty() {
            let mask: Vec<f32> = self.variances.iter().map(|&v| f32::from(u8::from(v))).collect();
            variances = vectorise.cut(architecture, &mask, 0.0)?.iter().map(|&v| v > 0.0).collect();
        }
        Ok(Self { mean, std, variances })
    }

    /// Appends the statistics of further rows.
    pub fn append(&mut self, other: &Self) {
        // The mask is there for all rows or for none.
        if !self.variances.is_empty() || !other.variances.is_empty() {
            self.variances.resize(self.mean.len(), false);
            self.variances.extend_from_slice(&other.variances);
            self.variances.resize(self.mean.len() + other.mean.len(), false);
        }
        self.mean.extend_from_slice(&other.mean);
        self.std.extend_from_slice(&other.std);
    }

    /// The network in the middle of the zoo, as rows: means, and of variances the geometric mean.
    pub fn centre(&self) -> Vec<f32> {
        let variance = |i: usize| self.variances.get(i) == Some(&true);
        self.mean.iter().enumerate().map(|(i, &m)| if variance(i) { exp(m) } else { m }).collect()
    }

    /// The statistics of one architecture's rows, in their order. Padding stays what it is.
    ///
    /// # Errors
    /// [`Error::Length`] when there are fewer.
    pub fn of(&self, vectorise: &Vectorise, architecture: usize) -> Result<Self> {
        let pieces = vectorise.pieces_of(architecture);
        let range = pieces.start * vectorise.length..pieces.end * vectorise.length;
        let part = |values: &[f32]| {
            values.get(range.clone()).map(<[f32]>::to_vec).ok_or_else(|| Error::Length {
                what: "the standardisation".into(),
                found: values.len(),
                expected: range.end,
            })
        };
        let variances = self.variances.get(range.clone()).map(<[bool]>::to_vec).unwrap_or_default();
        let mut own = Self { mean: part(&self.mean)?, std: part(&self.std)?, variances };
        if let Some(mask) = vectorise.mask(architecture) {
            own.mean.iter_mut().zip(&mask).for_each(|(mean, there)| *mean *= there);
            own.std.iter_mut().zip(&mask).filter(|(_, there)| **there == 0.0).for_each(|(std, _)| *std = 1.0);
        }
        Ok(own)
    }

    /// Standardises rows (`[n × length]`) in place.
    ///
    /// # Errors
    /// [`Error::Length`] when the rows do not fit.
    pub fn apply(&self, rows: &mut [f32]) -> Result<()> {
        self.each(rows, |v, mean, std, variance| (if variance { log(v) } else { v } - mean) / std)
    }

    /// Inverse of [`Self::apply`].
    ///
    /// # Errors
    /// [`Error::Length`] when the rows do not fit.
    pub fn invert(&self, rows: &mut [f32]) -> Result<()> {
        self.each(rows, back)
    }

    /// The network (`[parameters]`) of all its standardised rows (`[pieces × length]`), for statistics of an
    /// architecture's rows: what [`Self::invert`] and [`Vectorise::join`] give one after the other, without a copy between.
    ///
    /// # Errors
    /// [`Error::Length`] when the rows are not those of a network of so many parameters.
    pub fn join(
        &self,
        vectorise: &Vectorise,
        architecture: usize,
        rows: &[f32],
        parameters: usize,
    ) -> Result<Vec<f32>> {
        check_length("the rows of a network", rows.len(), self.mean.len())?;
        let (mean, std) = (&self.mean, &self.std);
        vectorise.join_as(architecture, rows, parameters, |i, v| {
            back(v, mean[i], std[i], self.variances.get(i) == Some(&true))
        })
    }

    fn each(&self, rows: &mut [f32], f: impl Fn(f32, f32, f32, bool) -> f32) -> Result<()> {
        let length = self.mean.len();
        if length == 0 || !rows.len().is_multiple_of(length) {
            check_length("the weight matrix", rows.len(), length)?;
        }
        for row in rows.chunks_exact_mut(length) {
            for (i, ((v, &mean), &std)) in row.iter_mut().zip(&self.mean).zip(&self.std).enumerate() {
                *v = f(*v, mean, std, self.variances.get(i) == Some(&true));
            }
        }
        Ok(())
    }
}

/// A standardised value as it was; of a variance its logarithm was standardised.
fn back(v: f32, mean: f32, std: f32, variance: bool) -> f32 {
    let v = v * std + mean;
    if variance { exp(v) } else { v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new([("a", vec![2]), ("b", vec![3])])
    }

    proptest! {
        #[test]
        fn apply_then_invert_is_identity(rows in proptest::collection::vec(-10.0f32..10.0, 20)) {
            for mode in [StandardiseMode::None, StandardiseMode::Layer, StandardiseMode::Parameter] {
                let s = Standardisation::fit(&rows, 5, &layout(), mode).unwrap();
                let mut changed = rows.clone();
                s.apply(&mut changed).unwrap();
                s.invert(&mut changed).unwrap();
                for (a, b) in rows.iter().zip(&changed) {
                    prop_assert!((a - b).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn parameter_mode_gives_zero_mean_and_unit_std() {
        let rows: Vec<f32> = (0..20).map(|i| (i * i % 7) as f32).collect();
        let s = Standardisation::fit(&rows, 5, &layout(), StandardiseMode::Parameter).unwrap();
        let mut x = rows.clone();
        s.apply(&mut x).unwrap();
        for column in 0..5 {
            let values: Vec<f32> = x.iter().skip(column).step_by(5).copied().collect();
            let mean = values.iter().sum::<f32>() / 4.0;
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 4.0;
            assert!(mean.abs() < 1e-5 && (var - 1.0).abs() < 1e-3, "{mean} {var}");
        }
    }

    #[test]
    fn layer_mode_shares_statistics_inside_a_tensor() {
        let rows: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let s = Standardisation::fit(&rows, 5, &layout(), StandardiseMode::Layer).unwrap();
        assert_eq!(s.mean[0], s.mean[1]);
        assert_eq!(s.std[2], s.std[4]);
        assert_ne!(s.mean[0], s.mean[2]);
    }

    #[test]
    fn variances_are_standardised_by_their_logarithm_and_come_back_positive() {
        let layout = Layout::new([("bn.running_mean", vec![1]), ("bn.running_var", vec![2])]);
        let rows = [0.5, 1.0, 0.0, -0.5, 4.0, 2.0, 0.25, 2.0, 8.0];
        for mode in [StandardiseMode::None, StandardiseMode::Layer, StandardiseMode::Parameter] {
            let s = Standardisation::fit(&rows, 3, &layout, mode).unwrap();
            assert_eq!(s.variances, [false, true, true]);
            let mut x = rows.to_vec();
            s.apply(&mut x).unwrap();
            let at_once = s.join(&Vectorise::model_wise(&[3]), 0, &x[..3], 3).unwrap();
            s.invert(&mut x).unwrap();
            assert_eq!(at_once, x[..3]);
            for (a, b) in rows.iter().zip(&x) {
                assert!((a - b).abs() < 1e-4 * (1.0 + a), "{a} {b}");
            }
            // However far a decoded row is off.
            let mut far = vec![-1e3, -1e3, 1e3];
            s.invert(&mut far).unwrap();
            assert!(far[1] == 0.0 && far[2] > 0.0 && far[2].is_finite(), "{far:?}");
        }
        let s = Standardisation::fit(&rows, 3, &layout, StandardiseMode::Parameter).unwrap();
        assert!((s.centre()[1] - 2.0).abs() < 1e-3, "the geometric mean of 1, 4 and 2: {:?}", s.centre());
        let mut both = Standardisation { mean: vec![0.0], std: vec![1.0], variances: Vec::new() };
        both.append(&s);
        assert_eq!(both.variances, [false, false, true, true]);
    }

    #[test]
    fn class_rows_share_their_statistics() {
        let vectorise = Vectorise::class_rows(1, vec![2, 3], 3).unwrap();
        // Class rows (weight, bias): (1, 10), (3, 10), then (2, 13), (5, 14), (4, 13).
        let heads: [&[f32]; 2] = [&[1.0, 3.0, 10.0, 10.0], &[2.0, 5.0, 4.0, 13.0, 14.0, 13.0]];
        let all = Standardisation::fit_class_rows(heads.into_iter(), &vectorise, StandardiseMode::Parameter).unwrap();
        assert_eq!(all.mean, [3.0, 3.0, 3.0, 12.0, 12.0, 12.0]);
        let std = [2f32.sqrt(), 2f32.sqrt(), 2f32.sqrt(), 2.8f32.sqrt(), 2.8f32.sqrt(), 2.8f32.sqrt()];
        assert!(all.std.iter().zip(std).all(|(found, right)| (found - right).abs() < 1e-5), "{:?}", all.std);
        let two = all.of(&vectorise, 0).unwrap();
        assert_eq!((two.mean[2], two.mean[5], two.std[2], two.std[5]), (0.0, 0.0, 1.0, 1.0));
        let mut rows = vectorise.cut(0, heads[0], 0.0).unwrap();
        two.apply(&mut rows).unwrap();
        assert_eq!((rows[2], rows[5]), (0.0, 0.0));
        let at_once = two.join(&vectorise, 0, &rows, 4).unwrap();
        assert!(two.join(&vectorise, 0, &rows[1..], 4).is_err());
        two.invert(&mut rows).unwrap();
        let back = vectorise.join(0, &rows, 4).unwrap();
        assert_eq!(at_once, back);
        assert!(back.iter().zip(heads[0]).all(|(a, b)| (a - b).abs() < 1e-5), "{back:?}");
        let none = std::iter::empty();
        assert!(Standardisation::fit_class_rows(none, &vectorise, StandardiseMode::Parameter).is_err());
    }

    #[test]
    fn an_empty_zoo_is_refused() {
        assert!(Standardisation::fit(&[], 5, &layout(), StandardiseMode::Layer).is_err());
    }
}
