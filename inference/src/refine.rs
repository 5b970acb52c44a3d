//! Latent refinement: a few steps of a latent towards what its network makes of labelled examples, through decoder and
//! forward graph. Bundles hold graphs for inference and no gradients, so each step takes differences: all moved latents
//! go through the decoder together, and with the Jacobian of the logits a Gauss-Newton step (Levenberg-Marquardt) goes
//! far further than a gradient step for the same work. What is sampled is the prior: the refined latent stays near it.

use datasets::Dataset;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::generator::Generator;

/// Most steps of one request.
pub const MAX_STEPS: usize = 20;
/// Directions of a step; a latent of more dimensions is moved in so many random ones, others in each step.
const DIRECTIONS: usize = 160;
/// Length of a difference, in deviations of the latents.
const DIFFERENCE: f32 = 0.02;
/// Times that a step which makes it worse is shortened.
const TRIES: usize = 4;

/// How latents are refined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Refine {
    /// Steps; 0 leaves the latents as they were sampled.
    pub steps: usize,
    /// Weight of staying where it was sampled: as that of `prior` examples a dimension at one deviation.
    pub prior: f64,
}

impl Default for Refine {
    fn default() -> Self {
        Self { steps: 3, prior: 1.0 }
    }
}

impl Refine {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Option`] names the first outside its range.
    pub fn validate(&self) -> Result<()> {
        let option = |option, found: String, right: String| Err(Error::Option { option, found, right });
        if self.steps > MAX_STEPS {
            return option("refine.steps", self.steps.to_string(), format!("a whole number from 0 to {MAX_STEPS}"));
        }
        match self.prior > 0.0 && self.prior <= 1e6 {
            true => Ok(()),
            false => option("refine.prior", self.prior.to_string(), "a number above 0, at most 1000000".into()),
        }
    }
}

/// Labelled examples as the networks take them.
struct Examples {
    inputs: Vec<f32>,
    labels: Vec<usize>,
    classes: usize,
}

impl Generator {
    /// Refines latents (as [`Self::sample`] gives them) on labelled examples as the networks take them, whose class k is
    /// the head's row k. `proceed` is asked before each step, and ends it with false. A latent for which no step is
    /// better stays what it was.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::Length`], [`Error::NonFinite`], [`Error::Graph`] or [`Error::Cancelled`].
    pub fn refine(
        &self,
        latents: &[Vec<f32>],
        data: &Dataset,
        refine: &Refine,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        refine.validate()?;
        let examples = Examples {
            inputs: data.gather(&(0..data.len()).collect::<Vec<_>>()),
            labels: data.labels.iter().map(|&label| label as usize).collect(),
            classes: data.classes(),
        };
        let total = latents.len() * refine.steps;
        let mut refined = Vec::with_capacity(latents.len());
        for (i, start) in latents.iter().enumerate() {
            let mut place = Place::new(self, &examples, refine.prior, start)?;
            let mut rng = ChaCha8Rng::seed_from_u64(0x5ef1);
            for step in 0..refine.steps {
                if !proceed() {
                    return Err(Error::Cancelled { step: i * refine.steps + step, total });
                }
                if !place.step(&mut rng)? {
                    break;
                }
            }
            refined.push(place.latent());
        }
        Ok(refined)
    }
}

/// A latent under way.
struct Place<'a> {
    generator: &'a Generator,
    examples: &'a Examples,
    prior: f64,
    start: &'a [f32],
    /// Values at its beginning that the network depends on.
    live: usize,
    /// Deviation of a latent's dimension.
    unit: f32,
    /// How far it is from the start, in deviations.
    moved: Vec<f64>,
    logits: Vec<f32>,
    loss: f64,
    damping: f64,
}

impl<'a> Place<'a> {
    fn new(generator: &'a Generator, examples: &'a Examples, prior: f64, start: &'a [f32]) -> Result<Self> {
        let unit = 1.0 / generator.manifest().latent.scale;
        let moved = vec![0.0; start.len()];
        let (live, logits, loss, damping) = (generator.live_latents().min(start.len()), Vec::new(), 0.0, 1e-3);
        let mut place = Self { generator, examples, prior, start, live, unit, moved, logits, loss, damping };
        (place.logits, place.loss) = place.try_at(&place.moved)?;
        Ok(place)
    }

    fn latent(&self) -> Vec<f32> {
        self.at(&self.moved)
    }

    fn at(&self, moved: &[f64]) -> Vec<f32> {
        self.start.iter().zip(moved).map(|(z, m)| z + self.unit * *m as f32).collect()
    }

    fn logits(&self, theta: &[f32]) -> Result<Vec<f32>> {
        self.generator.forward()?.logits(theta, &self.examples.inputs)
    }

    /// Logits there, and the loss: mean cross-entropy and what is lost by being away from the start.
    fn try_at(&self, moved: &[f64]) -> Result<(Vec<f32>, f64)> {
        let theta = self.generator.decode(&[self.at(moved)])?;
        let logits = self.logits(&theta[0])?;
        let away: f64 = moved.iter().map(|m| m * m).sum();
        let n = self.examples.labels.len().max(1) as f64;
        let loss = self.cross_entropy(&logits) + 0.5 * self.prior * away / n;
        Ok((logits, loss))
    }

    fn cross_entropy(&self, logits: &[f32]) -> f64 {
        let rows = logits.chunks_exact(self.examples.classes).zip(&self.examples.labels);
        let sum: f64 = rows.map(|(row, &label)| -softmax(row)[label].max(1e-300).ln()).sum();
        sum / self.examples.labels.len().max(1) as f64
    }

    /// One step; false when none makes it better.
    fn step(&mut self, rng: &mut ChaCha8Rng) -> Result<bool> {
        let mut directions = directions(self.live, rng);
        directions.iter_mut().for_each(|direction| direction.resize(self.start.len(), 0.0));
        let (hessian, gradient) = self.quadratic(&directions)?;
        for _ in 0..TRIES {
            let mut damped = hessian.clone();
            let k = gradient.len();
            (0..k).for_each(|i| damped[i * k + i] += self.damping * (1.0 + hessian[i * k + i]));
            if let Some(step) = solve(damped, &gradient) {
                let mut moved = self.moved.clone();
                for (direction, s) in directions.iter().zip(&step) {
                    moved.iter_mut().zip(direction).for_each(|(m, d)| *m -= s * d);
                }
                // Weights that are not finite are no step, and no error.
                if let Ok((logits, loss)) = self.try_at(&moved)
                    && loss < self.loss
                {
                    (self.moved, self.logits, self.loss) = (moved, logits, loss);
                    self.damping = (self.damping * 0.3).max(1e-6);
                    return Ok(true);
                }
            }
            self.damping = self.damping.max(1e-4) * 10.0;
        }
        Ok(false)
    }

    /// Gauss-Newton approximation of the loss's second derivative (`[k × k]`), and its first (`[k]`), along directions.
    fn quadratic(&self, directions: &[Vec<f64>]) -> Result<(Vec<f64>, Vec<f64>)> {
        let latent = self.latent();
        let moved = |direction: &Vec<f64>| -> Vec<f32> {
            let step = self.unit * DIFFERENCE;
            latent.iter().zip(direction).map(|(z, d)| z + step * *d as f32).collect()
        };
        let weights = self.generator.decode(&directions.iter().map(moved).collect::<Vec<_>>())?;
        let mut jacobian = Vec::with_capacity(weights.len());
        for theta in &weights {
            let slope = self.logits(theta)?.into_iter().zip(&self.logits).map(|(a, b)| f64::from((a - b) / DIFFERENCE));
            jacobian.push(slope.collect::<Vec<f64>>());
        }
        let (k, c, n) = (directions.len(), self.examples.classes, self.examples.labels.len().max(1) as f64);
        let (mut hessian, mut gradient) = (vec![0.0; k * k], vec![0.0; k]);
        let mut weighted = vec![0.0; k * c];
        for (row, &label) in self.examples.labels.iter().enumerate() {
            let p = softmax(&self.logits[row * c..(row + 1) * c]);
            for (i, slopes) in jacobian.iter().enumerate() {
                let slope = &slopes[row * c..(row + 1) * c];
                let mean: f64 = p.iter().zip(slope).map(|(p, s)| p * s).sum();
                gradient[i] += (mean - slope[label]) / n;
                (0..c).for_each(|j| weighted[i * c + j] = p[j] * (slope[j] - mean) / n);
            }
            for i in 0..k {
                for (j, slopes) in jacobian.iter().enumerate().take(i + 1) {
                    let slope = &slopes[row * c..(row + 1) * c];
                    let product: f64 = weighted[i * c..(i + 1) * c].iter().zip(slope).map(|(w, s)| w * s).sum();
                    hessian[i * k + j] += product;
                }
            }
        }
        for i in 0..k {
            (0..i).for_each(|j| hessian[j * k + i] = hessian[i * k + j]);
            hessian[i * k + i] += self.prior / n;
            gradient[i] += self.prior / n * self.moved.iter().zip(&directions[i]).map(|(m, d)| m * d).sum::<f64>();
        }
        Ok((hessian, gradient))
    }
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = row.iter().map(|v| f64::from(v - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

/// Orthonormal directions: the axes, or some random ones where there are too many.
fn directions(dim: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    if dim <= DIRECTIONS {
        return (0..dim).map(|i| (0..dim).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    }
    let mut all: Vec<Vec<f64>> = Vec::with_capacity(DIRECTIONS);
    for _ in 0..DIRECTIONS {
        let mut new: Vec<f64> = (0..dim).map(|_| rng.sample(StandardNormal)).collect();
        for other in &all {
            let along: f64 = new.iter().zip(other).map(|(a, b)| a * b).sum();
            new.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
        }
        let length = new.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        new.iter_mut().for_each(|v| *v /= length);
        all.push(new);
    }
    all
}

/// x of A x = b for a symmetric positive definite `a` (`[k × k]`), by Cholesky; `None` where it is not.
fn solve(mut a: Vec<f64>, b: &[f64]) -> Option<Vec<f64>> {
    let k = b.len();
    for i in 0..k {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|m| a[i * k + m] * a[j * k + m]).sum();
            let left = a[i * k + j] - dot;
            if i == j {
                if !(left > 0.0 && left.is_finite()) {
                    return None;
                }
                a[i * k + i] = left.sqrt();
            } else {
                a[i * k + j] = left / a[j * k + j];
            }
        }
    }
    let mut x = b.to_vec();
    for i in 0..k {
        let dot: f64 = (0..i).map(|m| a[i * k + m] * x[m]).sum();
        x[i] = (x[i] - dot) / a[i * k + i];
    }
    for i in (0..k).rev() {
        let dot: f64 = (i + 1..k).map(|m| a[m * k + i] * x[m]).sum();
        x[i] = (x[i] - dot) / a[i * k + i];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_are_solved() {
        let a = vec![4.0, 2.0, 0.0, 2.0, 3.0, 1.0, 0.0, 1.0, 5.0];
        let x = solve(a, &[8.0, 11.0, 17.0]).unwrap();
        // 4·1+2·2 = 8, 2·1+3·2+1·3 = 11, 1·2+5·3 = 17.
        assert!(x.iter().zip([1.0, 2.0, 3.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{x:?}");
        assert_eq!(solve(vec![1.0, 2.0, 2.0, 1.0], &[1.0, 1.0]), None);
    }

    #[test]
    fn directions_are_orthonormal() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (dim, count) in [(5, 5), (400, DIRECTIONS)] {
            let all = directions(dim, &mut rng);
            assert_eq!(all.len(), count);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            assert!((dot(&all[3], &all[3]) - 1.0).abs() < 1e-9 && dot(&all[0], &all[4]).abs() < 1e-9);
        }
    }
}
