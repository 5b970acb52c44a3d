//! n examples of each class, from a generator that the caller seeds.

use rand::seq::{SliceRandom, index};
use rand::{Rng, SeedableRng};

use rand_chacha::ChaCha8Rng;

use crate::{Dataset, Error, Result};

/// Draws `n` indices of each of `classes`: `[classes.len() * n]`, class-major in the order asked.
///
/// `class_indices` is what [`crate::Dataset::class_indices`] gives. A class with at least `n` examples is drawn
/// without replacement; a smaller one is repeated in newly shuffled rounds, so that counts differ by at most one.
/// Errors: a class that does not exist (`unknown_class`) or has no example (`class_without_images`).
pub fn sample_per_class(
    class_indices: &[Vec<usize>],
    classes: &[u32],
    n: usize,
    rng: &mut impl Rng,
) -> Result<Vec<usize>> {
    let Some(total) = classes.len().checked_mul(n) else {
        return Err(Error::SampleInvalid(format!("{n} examples a class are more than memory can address")));
    };
    let pools = classes.iter().map(|&class| pool(class_indices, class)).collect::<Result<Vec<_>>>()?;
    let mut chosen = Vec::with_capacity(total);
    for pool in pools {
        if pool.len() >= n {
            chosen.extend(index::sample(rng, pool.len(), n).into_iter().map(|i| pool[i]));
        } else {
            extend_in_rounds(&mut chosen, pool, n, rng);
        }
    }
    Ok(chosen)
}

impl Dataset {
    /// Indices of `per_class` examples of each class, class by class; all of a class that has fewer. Which ones depends
    /// on the seed and on the class alone.
    #[must_use]
    pub fn sample(&self, per_class: usize, seed: u64) -> Vec<usize> {
        let all: Vec<usize> = (0..self.len()).collect();
        let mut chosen = Vec::new();
        for (class, pool) in self.class_indices(&all).iter().enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(class as u64);
            let picked = index::sample(&mut rng, pool.len(), per_class.min(pool.len()));
            chosen.extend(picked.into_iter().map(|i| pool[i]));
        }
        chosen
    }
}

fn pool(class_indices: &[Vec<usize>], class: u32) -> Result<&[usize]> {
    let known = class_indices.len();
    let pool = class_indices.get(class as usize).ok_or_else(|| Error::UnknownClass {
        class: class.to_string(),
        known: format!("{known} classes, numbered from 0"),
    })?;
    match pool.is_empty() {
        true => Err(Error::ClassWithoutImages(class.to_string())),
        false => Ok(pool),
    }
}

fn extend_in_rounds(chosen: &mut Vec<usize>, pool: &[usize], n: usize, rng: &mut impl Rng) {
    let mut round = pool.to_vec();
    let mut left = n;
    while left > 0 {
        round.shuffle(rng);
        let now = left.min(round.len());
        chosen.extend(&round[..now]);
        left -= now;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn missing_classes_are_named() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let lists = [vec![1, 2], vec![]];
        assert_eq!(sample_per_class(&lists, &[0, 1], 1, &mut rng).unwrap_err().code(), "class_without_images");
        assert_eq!(sample_per_class(&lists, &[2], 1, &mut rng).unwrap_err().code(), "unknown_class");
    }

    proptest! {
        #[test]
        fn class_major_balanced_and_deterministic(
            sizes in prop::collection::vec(1usize..12, 1..5), n in 0usize..30, seed: u64,
        ) {
            let lists: Vec<Vec<usize>> =
                sizes.iter().enumerate().map(|(c, &s)| (0..s).map(|i| c * 100 + i).collect()).collect();
            let order: Vec<u32> = (0..sizes.len() as u32).rev().collect();
            let draw = || sample_per_class(&lists, &order, n, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            let chosen = draw();
            prop_assert_eq!(&chosen, &draw());
            prop_assert_eq!(chosen.len(), order.len() * n);
            for (block, &class) in chosen.chunks(n.max(1)).zip(&order) {
                let mut counts: HashMap<usize, usize> = HashMap::new();
                for &index in block {
                    prop_assert_eq!(index / 100, class as usize);
                    *counts.entry(index).or_default() += 1;
                }
                let size = sizes[class as usize];
                prop_assert!(counts.values().all(|&c| c <= n.div_ceil(size)));
                prop_assert_eq!(counts.len(), n.min(size));
            }
        }
    }
}
