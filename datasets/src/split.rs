//! Deterministic stratified splits.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Dataset, Error, Result};

/// Indices into a dataset, three disjoint parts that together are all of it, each ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// To train on.
    pub train: Vec<usize>,
    /// To choose by.
    pub validation: Vec<usize>,
    /// To report on.
    pub test: Vec<usize>,
}

/// Splits every class by the given fractions, the same for the same seed on every machine (ChaCha8).
///
/// A class of n examples gives round(n × fraction) to each part, at least one where the fraction is above zero;
/// the rest, at least one, is for training. Errors: fractions outside [0, 1) or whose sum is not below 1; a class
/// without examples or with too few for all parts.
pub fn split(dataset: &Dataset, seed: u64, validation: f64, test: f64) -> Result<Split> {
    let usable = |f: f64| (0.0..1.0).contains(&f);
    if !(usable(validation) && usable(test) && validation + test < 1.0) {
        return Err(Error::SplitInvalid { validation, test });
    }
    let all: Vec<usize> = (0..dataset.len()).collect();
    let mut split = Split { train: Vec::new(), validation: Vec::new(), test: Vec::new() };
    for (class, mut indices) in dataset.class_indices(&all).into_iter().enumerate() {
        let (n_validation, n_test) = part_sizes(&dataset.class_names[class], indices.len(), validation, test)?;
        // A stream of its own for each class: what one class holds does not move the others.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(class as u64);
        indices.shuffle(&mut rng);
        split.validation.extend(&indices[..n_validation]);
        split.test.extend(&indices[n_validation..n_validation + n_test]);
        split.train.extend(&indices[n_validation + n_test..]);
    }
    split.train.sort_unstable();
    split.validation.sort_unstable();
    split.test.sort_unstable();
    Ok(split)
}

fn part_sizes(class: &str, n: usize, validation: f64, test: f64) -> Result<(usize, usize)> {
    let need = 1 + usize::from(validation > 0.0) + usize::from(test > 0.0);
    if n == 0 {
        return Err(Error::ClassWithoutImages(class.to_owned()));
    }
    if n < need {
        return Err(Error::TooFewExamples { class: class.to_owned(), have: n, need });
    }
    let size = |fraction: f64| match fraction > 0.0 {
        true => ((n as f64 * fraction).round() as usize).max(1),
        false => 0,
    };
    let (mut n_validation, mut n_test) = (size(validation), size(test));
    while n_validation + n_test >= n {
        // Rounding up both parts of a tiny class: the larger one gives an example back to training.
        if n_validation > n_test { n_validation -= 1 } else { n_test -= 1 }
    }
    Ok((n_validation, n_test))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Data;

    fn dataset(labels: &[u32], classes: usize) -> Dataset {
        let names = (0..classes).map(|c| format!("c{c}")).collect();
        Dataset::new("t", vec![1], names, Data::F32(vec![0.0; labels.len()]), labels.to_vec()).unwrap()
    }

    #[test]
    fn fractions_and_small_classes_are_checked() {
        let data = dataset(&[0, 0, 0, 1, 1], 2);
        assert_eq!(split(&data, 1, 0.6, 0.4).unwrap_err().code(), "split_invalid");
        assert_eq!(split(&data, 1, f64::NAN, 0.1).unwrap_err().code(), "split_invalid");
        let error = split(&data, 1, 0.1, 0.1).unwrap_err();
        assert_eq!(error.code(), "too_few_examples");
        assert!(error.to_string().contains("c1") && error.to_string().contains('3'), "{error}");
        assert_eq!(split(&dataset(&[0, 0, 0], 2), 1, 0.1, 0.0).unwrap_err().code(), "class_without_images");
        let two_parts = split(&data, 1, 0.0, 0.3).unwrap();
        assert_eq!((two_parts.train.len(), two_parts.validation.len(), two_parts.test.len()), (3, 0, 2));
    }

    #[test]
    fn split_of_the_digits_is_pinned() {
        // The same on every machine: a change here changes every recorded run.
        let digits = crate::digits::load().unwrap();
        let parts = split(&digits, 42, 0.1, 0.2).unwrap();
        assert_eq!((parts.train.len(), parts.validation.len(), parts.test.len()), (1259, 179, 359));
        assert_eq!(parts.validation[..6], [1, 14, 19, 20, 40, 43]);
        assert_eq!(parts, split(&digits, 42, 0.1, 0.2).unwrap());
        assert_ne!(parts, split(&digits, 43, 0.1, 0.2).unwrap());
    }

    proptest! {
        #[test]
        fn stratified_disjoint_and_complete(
            counts in prop::collection::vec(3usize..40, 2..6), seed: u64, v in 0.0f64..0.45, t in 0.0f64..0.45,
        ) {
            let labels: Vec<u32> = (0u32..).zip(&counts).flat_map(|(c, &n)| vec![c; n]).collect();
            let data = dataset(&labels, counts.len());
            let parts = split(&data, seed, v, t).unwrap();
            let mut all = [parts.train.clone(), parts.validation.clone(), parts.test.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
            for (part, fraction) in [(&parts.validation, v), (&parts.test, t)] {
                for (class, list) in data.class_indices(part).iter().enumerate() {
                    let want = counts[class] as f64 * fraction;
                    prop_assert!((list.len() as f64 - want).abs() <= 1.0);
                    prop_assert!(fraction == 0.0 || !list.is_empty());
                }
            }
            prop_assert!(data.class_indices(&parts.train).iter().all(|list| !list.is_empty()));
        }
    }
}
