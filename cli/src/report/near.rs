//! The zoo of a report as the service has it: runs near an embedding, and how far an embedding is from all of them.

use inference::{Place, RETRIEVED};
use training::stages::zoo::Zoo;

use crate::compare::spread;
use crate::error::Error;

/// Runs that a zoo's spread is measured at, and runs that each is compared with: as in the registry.
const SPREAD_SAMPLE: (usize, usize) = (256, 10_000);
/// Cosine distance up to which two embeddings are of one and the same task.
const SAME: f64 = 1e-6;

/// Cosine distance.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// The `n` runs whose embeddings have the smallest cosine distance, nearest first (of equals the first), with it.
pub fn runs(query: &[f32], embedded: &[Vec<f32>], n: usize) -> Vec<(usize, f64)> {
    let mut order: Vec<(usize, f64)> = embedded.iter().map(|row| cosine(query, row)).enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    order.truncate(n);
    order
}

/// Mean distance of an embedding to the nearest that is not the same; none where all are.
fn spacing(embedded: &[Vec<f32>]) -> Option<f64> {
    let others = spread(embedded, SPREAD_SAMPLE.1);
    let some = spread(embedded, SPREAD_SAMPLE.0);
    let nearest = |row: &Vec<f32>| {
        let all = others.iter().map(|other| cosine(row, other)).filter(|d| *d > SAME);
        all.min_by(f64::total_cmp)
    };
    let found: Vec<f64> = some.iter().filter_map(nearest).collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

/// The zoo of a generator.
pub struct AnsweringZoo<'a> {
    zoo: &'a Zoo,
    embedded: &'a [Vec<f32>],
    all: &'a [Vec<f32>],
    last: Vec<usize>,
    spacing: Option<f64>,
}

impl<'a> AnsweringZoo<'a> {
    /// With the embeddings of its runs, which are retrieved, and of all runs that distances are taken to.
    pub fn new(zoo: &'a Zoo, embedded: &'a [Vec<f32>], all: &'a [Vec<f32>]) -> Self {
        Self { zoo, embedded, all, last: zoo.last_checkpoints(), spacing: spacing(all) }
    }

    /// How far an embedding is, in units of the zoo's own spread.
    pub fn distance(&self, embedding: &[f32]) -> Option<f64> {
        let (_, nearest) = runs(embedding, self.all, 1).into_iter().next()?;
        Some(nearest.max(0.0) / self.spacing?)
    }
}

impl Place for &mut AnsweringZoo<'_> {
    type Key = usize;
    type Error = Error;

    fn nearest(&mut self, embedding: &[f32]) -> Result<Vec<(usize, Vec<f32>)>, Error> {
        let near = runs(embedding, self.embedded, RETRIEVED.0);
        let last = near.into_iter().map(|(run, _)| self.last[run]);
        last.map(|c| Ok((c, self.zoo.whole(self.zoo.weights(c))?))).collect()
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn step(&self, _: usize, _: usize) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_in_units_of_the_spread() {
        let at = |angle: f32| vec![angle.cos(), angle.sin()];
        let embedded = vec![at(0.0), at(0.1), at(0.2), at(0.2)];
        let spacing = spacing(&embedded).unwrap();
        assert!((spacing - (1.0 - 0.1f64.cos())).abs() < 1e-6, "{spacing}");
        assert_eq!(runs(&at(0.19), &embedded, 2).iter().map(|r| r.0).collect::<Vec<_>>(), [2, 3]);
        assert!(super::spacing(&[at(0.3), at(0.3)]).is_none());
    }
}
