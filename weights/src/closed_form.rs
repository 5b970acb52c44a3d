//! Linear heads without training: ridge regression, nearest centroid and the mean of both, on a few labelled feature
//! vectors.
//!
//! All give θ `[classes × features + classes]` of [`crate::Architecture::Head`]: weight `[classes, features]` row-major,
//! then bias `[classes]`; logits are `W x + b`. They depend on their examples alone: no seed.

use crate::error::{Error, Result};

/// What λ is tried, as multiples of the mean squared length of the centred examples.
const GRID: [f64; 9] = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0];

/// The same with λ so large that nothing is learned beside the head that is shrunk towards.
const FAR_GRID: [f64; 11] = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 100.0, 1e4];

/// What c is tried, as shares of the best factor.
const SHARES: [f64; 6] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25];

const WHAT: &str = "the ridge regression";

/// Labelled feature vectors, at least one of each class.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    features: &'a [f32],
    labels: &'a [u32],
    dim: usize,
    classes: usize,
}

/// A head by ridge regression.
#[derive(Debug, Clone, PartialEq)]
pub struct Ridge {
    /// θ.
    pub theta: Vec<f32>,
    /// The λ that was chosen.
    pub lambda: f64,
    /// Mean squared error of the left-out examples under that λ, over examples and classes.
    pub left_out: f64,
}

/// A mean of two heads, and the two.
#[derive(Debug, Clone, PartialEq)]
pub struct Blend {
    /// θ of [`Examples::ridge`].
    pub ridge: Vec<f32>,
    /// θ of [`Examples::centroid`].
    pub centroid: Vec<f32>,
    /// θ of their mean.
    pub theta: Vec<f32>,
}

impl<'a> Examples<'a> {
    /// `features` is `[labels.len() × dim]` row-major; labels are below `classes`.
    ///
    /// # Errors
    /// [`Error::Length`] when the numbers do not fit or a class has no example, [`Error::NotFinite`].
    pub fn new(features: &'a [f32], labels: &'a [u32], dim: usize, classes: usize) -> Result<Self> {
        let length = |what: String, found, expected| Err(Error::Length { what, found, expected });
        if dim == 0 || features.len() != labels.len() * dim {
            return length("the examples".into(), features.len(), labels.len() * dim.max(1));
        }
        if let Some(position) = features.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite { what: "the examples".into(), position });
        }
        let examples = Self { features, labels, dim, classes };
        if let Some(&label) = labels.iter().find(|&&label| label as usize >= classes) {
            return length(format!("the classes of a head with label {label}"), classes, label as usize + 1);
        }
        match examples.counts().iter().position(|&n| n == 0) {
            Some(class) => length(format!("the examples of class {class}"), 0, dim),
            None => Ok(examples),
        }
    }

    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        self.labels.iter().for_each(|&label| counts[label as usize] += 1);
        counts
    }

    fn rows(&self) -> impl Iterator<Item = (&'a [f32], usize)> {
        self.features.chunks_exact(self.dim).zip(self.labels).map(|(row, &label)| (row, label as usize))
    }

    /// Nearest centroid: with the mean μ_k of the examples of class k, `w_k = 2 μ_k` and `b_k = -|μ_k|²`. As
    /// `-|x - μ_k|² = -|x|² + 2 μ_k·x - |μ_k|²` and `|x|²` is the same for all classes, the largest logit is that of the
    /// nearest mean, and differences of logits are differences of squared distances.
    pub fn centroid(&self) -> Vec<f32> {
        let mut means = vec![0f64; self.classes * self.dim];
        for (row, label) in self.rows() {
            let mean = &mut means[label * self.dim..(label + 1) * self.dim];
            mean.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        for (mean, count) in means.chunks_exact_mut(self.dim).zip(self.counts()) {
            mean.iter_mut().for_each(|v| *v /= count as f64);
        }
        let bias: Vec<f32> =
            means.chunks_exact(self.dim).map(|m| -m.iter().map(|v| v * v).sum::<f64>() as f32).collect();
        means.iter().map(|v| (2.0 * v) as f32).chain(bias).collect()
    }

    /// Ridge regression on one-hot labels: `W, b = argmin Σ_i |W x_i + b - y_i|² + λ |W|²`, b without penalty.
    ///
    /// With centred rows X̃ and Ỹ: `Wᵀ = X̃ᵀ (X̃X̃ᵀ + λI)⁻¹ Ỹ = (X̃ᵀX̃ + λI)⁻¹ X̃ᵀ Ỹ` (whichever is smaller is solved) and
    /// `b = ȳ - W x̄`. λ is the one of a small grid (around the mean squared length of the centred rows) with the
    /// smallest squared error of left-out examples. No fit is needed for that: with the hat matrix
    /// `H = 11ᵀ/n + X̃ (X̃ᵀX̃ + λI)⁻¹ X̃ᵀ`, an example that is left out is missed by `(y_i - (Hy)_i) / (1 - H_ii)`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the examples are too large for it.
    pub fn ridge(&self) -> Result<Ridge> {
        let centred = Centred::of(self);
        centred
            .best(&GRID)
            .ok_or_else(refused)
            .and_then(|(left_out, lambda, weights)| centred.found(&weights, lambda, left_out))
    }

    /// Mean of [`Self::ridge`] and [`Self::centroid`], each divided by the spread of its logits (deviation over the classes,
    /// mean over the examples); with n examples of the smallest class the centroid has the share `1 / (1 + √n)`. Which of the
    /// two is better depends on the features, and cannot be told from a few examples; ridge gains more from each example. On all
    /// that was measured their mean is near the better of them (`docs/CANDIDATES.md`).
    ///
    /// # Errors
    /// As [`Self::ridge`].
    pub fn blend(&self) -> Result<Blend> {
        let (ridge, centroid) = (self.ridge()?.theta, self.centroid());
        let smallest = self.counts().into_iter().min().unwrap_or(1);
        let share = 1.0 / (1.0 + (smallest as f64).sqrt());
        let (a, b) = (self.logit_spread(&ridge), self.logit_spread(&centroid));
        let part = |v: f32, share: f64, spread: f64| if spread > 0.0 { share * f64::from(v) / spread } else { 0.0 };
        let both = ridge.iter().zip(&centroid);
        let theta: Vec<f32> = both.map(|(r, c)| (part(*r, 1.0 - share, a) + part(*c, share, b)) as f32).collect();
        match theta.iter().position(|v| !v.is_finite()) {
            Some(position) => Err(Error::NotFinite { what: "the mean of closed forms".into(), position }),
            None => Ok(Blend { ridge, centroid, theta }),
        }
    }

    /// Deviation of the logits over the classes, mean over the examples.
    fn logit_spread(&self, theta: &[f32]) -> f64 {
        let (weights, bias) = theta.split_at(self.dim * self.classes);
        let of = |row: &[f32]| {
            let logit = |(w, b): (&[f32], &f32)| {
                w.iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() + f64::from(*b)
            };
            let logits: Vec<f64> = weights.chunks_exact(self.dim).zip(bias).map(logit).collect();
            let mean = logits.iter().sum::<f64>() / logits.len() as f64;
            (logits.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / logits.len() as f64).sqrt()
        };
        self.rows().map(|(row, _)| of(row)).sum::<f64>() / self.labels.len() as f64
    }

    /// Ridge regression that shrinks towards a head instead of towards zero: with the weights W₀ of `prior` (θ),
    /// `argmin Σ_i |W x_i + b - y_i|² + λ |W - c W₀|²`, which is the ridge regression of what `c W₀` leaves of the labels.
    /// λ and c are those of a grid with the smallest squared error of left-out examples; c is a share (0 to 1.25) of the
    /// factor with which W₀ fits the labels best, and `c = 0` is [`Self::ridge`]. So a head that fits is kept, and one that
    /// does not is not.
    ///
    /// # Errors
    /// [`Error::Length`] for a prior of another size, [`Error::NotFinite`].
    pub fn ridge_towards(&self, prior: &[f32]) -> Result<Ridge> {
        let weights = self.dim * self.classes;
        if prior.len() != weights + self.classes {
            let (found, expected) = (prior.len(), weights + self.classes);
            return Err(Error::Length { what: "the head to shrink towards".into(), found, expected });
        }
        let mut centred = Centred::of(self);
        let prior: Vec<f64> = prior[..weights].iter().map(|&v| f64::from(v)).collect();
        let prior = transpose(&prior, self.dim);
        let outputs = product(&centred.rows, &prior, self.dim);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let fits = dot(&outputs, &centred.targets) / dot(&outputs, &outputs);
        let labels = centred.targets.clone();
        let mut best: Option<(f64, f64, Vec<f64>)> = None;
        for share in SHARES {
            let c = if fits.is_finite() && fits > 0.0 { share * fits } else { 0.0 };
            centred.targets = labels.iter().zip(&outputs).map(|(y, p)| y - c * p).collect();
            let Some((left_out, lambda, mut weights)) = centred.best(&FAR_GRID) else { continue };
            // The larger share wins a tie.
            if best.as_ref().is_none_or(|(least, ..)| left_out <= *least) {
                weights.iter_mut().zip(&prior).for_each(|(w, p)| *w += c * p);
                best = Some((left_out, lambda, weights));
            }
        }
        best.ok_or_else(refused).and_then(|(left_out, lambda, weights)| centred.found(&weights, lambda, left_out))
    }
}

/// No λ can be solved for.
fn refused() -> Error {
    Error::NotFinite { what: WHAT.into(), position: 0 }
}

/// Centred rows, targets and the smaller of the two Gram matrices.
struct Centred {
    n: usize,
    dim: usize,
    classes: usize,
    /// X̃ `[n × dim]` and x̄.
    rows: Vec<f64>,
    mean: Vec<f64>,
    /// Ỹ `[n × classes]` and ȳ.
    targets: Vec<f64>,
    target_mean: Vec<f64>,
    /// X̃X̃ᵀ `[n × n]` when n ≤ dim, otherwise X̃ᵀX̃ `[dim × dim]`.
    gram: Vec<f64>,
    scale: f64,
}

impl Centred {
    fn of(examples: &Examples<'_>) -> Self {
        let (n, dim, classes) = (examples.labels.len(), examples.dim, examples.classes);
        let mut rows: Vec<f64> = examples.features.iter().map(|&v| f64::from(v)).collect();
        let mean = centre(&mut rows, dim);
        let mut targets = vec![0.0; n * classes];
        examples.rows().enumerate().for_each(|(i, (_, label))| targets[i * classes + label] = 1.0);
        let target_mean = centre(&mut targets, classes);
        let squared: f64 = rows.iter().map(|v| v * v).sum();
        // Examples that are all the same have no scale; any λ gives W = 0 then.
        let scale = if squared > 0.0 { squared / n as f64 } else { 1.0 };
        let gram = match n <= dim {
            true => gram(&rows, dim),
            false => gram(&transpose(&rows, dim), n),
        };
        Self { n, dim, classes, rows, mean, targets, target_mean, gram, scale }
    }

    /// The error of left-out examples, λ and Wᵀ of the best of these multiples of the scale; nothing when none can be
    /// solved for.
    fn best(&self, grid: &[f64]) -> Option<(f64, f64, Vec<f64>)> {
        let mut best: Option<(f64, f64, Vec<f64>)> = None;
        for factor in grid {
            let lambda = factor * self.scale;
            let Some((left_out, weights)) = self.fit(lambda) else { continue };
            // The larger λ wins a tie.
            if best.as_ref().is_none_or(|(least, ..)| left_out <= *least) {
                best = Some((left_out, lambda, weights));
            }
        }
        best
    }

    fn found(&self, weights: &[f64], lambda: f64, left_out: f64) -> Result<Ridge> {
        let theta = self.head(weights);
        match theta.iter().position(|v| !v.is_finite()) {
            Some(position) => Err(Error::NotFinite { what: WHAT.into(), position }),
            None => Ok(Ridge { theta, lambda, left_out }),
        }
    }

    /// The error of left-out examples, and Wᵀ `[dim × classes]`; nothing where λ is too small to solve for.
    fn fit(&self, lambda: f64) -> Option<(f64, Vec<f64>)> {
        let size = if self.n <= self.dim { self.n } else { self.dim };
        let mut shifted = self.gram.clone();
        shifted.iter_mut().step_by(size + 1).for_each(|v| *v += lambda);
        let lower = cholesky(shifted, size)?;
        let weights = match self.n <= self.dim {
            true => {
                product(&transpose(&self.rows, self.dim), &solve(&lower, size, &self.targets, self.classes), self.n)
            }
            false => {
                solve(&lower, size, &product(&transpose(&self.rows, self.dim), &self.targets, self.n), self.classes)
            }
        };
        let leverage = self.leverage(&lower, lambda);
        let fitted = product(&self.rows, &weights, self.dim);
        let mut error = 0.0;
        for (i, h) in leverage.into_iter().enumerate() {
            let free = 1.0 - h;
            if free < 1e-9 {
                return None;
            }
            let at = i * self.classes..(i + 1) * self.classes;
            let missed = self.targets[at.clone()].iter().zip(&fitted[at]);
            error += missed.map(|(y, f)| ((y - f) / free).powi(2)).sum::<f64>();
        }
        let error = error / (self.n * self.classes) as f64;
        error.is_finite().then_some((error, weights))
    }

    /// H_ii.
    fn leverage(&self, lower: &[f64], lambda: f64) -> Vec<f64> {
        let share = 1.0 / self.n as f64;
        if self.n <= self.dim {
            // X̃ (X̃ᵀX̃ + λI)⁻¹ X̃ᵀ = I - λ (X̃X̃ᵀ + λI)⁻¹, whose diagonal is the squared columns of L⁻¹.
            let mut unit = vec![0.0; self.n * self.n];
            unit.iter_mut().step_by(self.n + 1).for_each(|v| *v = 1.0);
            let inverse = forward(lower, self.n, unit, self.n);
            return (0..self.n)
                .map(|i| share + 1.0 - lambda * inverse.iter().skip(i).step_by(self.n).map(|v| v * v).sum::<f64>())
                .collect();
        }
        let halves = forward(lower, self.dim, transpose(&self.rows, self.dim), self.n);
        (0..self.n).map(|i| share + halves.iter().skip(i).step_by(self.n).map(|v| v * v).sum::<f64>()).collect()
    }

    /// θ of Wᵀ.
    fn head(&self, weights: &[f64]) -> Vec<f32> {
        let by_class = transpose(weights, self.classes);
        let bias = by_class.chunks_exact(self.dim).zip(&self.target_mean);
        let bias = bias.map(|(w, y)| (y - w.iter().zip(&self.mean).map(|(w, m)| w * m).sum::<f64>()) as f32);
        by_class.iter().map(|v| *v as f32).chain(bias.collect::<Vec<_>>()).collect()
    }
}

/// Subtracts the mean of each column, and gives it.
fn centre(rows: &mut [f64], columns: usize) -> Vec<f64> {
    let n = (rows.len() / columns).max(1) as f64;
    let mut mean = vec![0.0; columns];
    for row in rows.chunks_exact(columns) {
        mean.iter_mut().zip(row).for_each(|(sum, v)| *sum += v / n);
    }
    for row in rows.chunks_exact_mut(columns) {
        row.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m);
    }
    mean
}

/// `[columns × rows]` of `[rows × columns]`.
fn transpose(matrix: &[f64], columns: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(matrix.len());
    for column in 0..columns {
        out.extend(matrix.iter().skip(column).step_by(columns));
    }
    out
}

/// A Aᵀ of A `[rows × columns]`.
fn gram(a: &[f64], columns: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = a.chunks_exact(columns).collect();
    let mut out = vec![0.0; rows.len() * rows.len()];
    for i in 0..rows.len() {
        for j in 0..=i {
            let dot: f64 = rows[i].iter().zip(rows[j]).map(|(a, b)| a * b).sum();
            out[i * rows.len() + j] = dot;
            out[j * rows.len() + i] = dot;
        }
    }
    out
}

/// A B of A `[rows × inner]` and B `[inner × columns]`.
fn product(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
    let columns = b.len() / inner;
    let mut out = vec![0.0; a.len() / inner * columns];
    for (row, to) in a.chunks_exact(inner).zip(out.chunks_exact_mut(columns)) {
        for (v, from) in row.iter().zip(b.chunks_exact(columns)) {
            to.iter_mut().zip(from).for_each(|(sum, x)| *sum += v * x);
        }
    }
    out
}

/// L of A = L Lᵀ (its upper part is not meant to be read); nothing when A is not positive definite in f64.
fn cholesky(mut a: Vec<f64>, size: usize) -> Option<Vec<f64>> {
    for i in 0..size {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[i * size + k] * a[j * size + k]).sum();
            let rest = a[i * size + j] - dot;
            a[i * size + j] = if i == j { rest.sqrt() } else { rest / a[j * size + j] };
        }
        if !(a[i * size + i].is_finite() && a[i * size + i] > 0.0) {
            return None;
        }
    }
    Some(a)
}

/// L⁻¹ B of B `[size × columns]`.
fn forward(lower: &[f64], size: usize, mut b: Vec<f64>, columns: usize) -> Vec<f64> {
    for i in 0..size {
        let (done, rest) = b.split_at_mut(i * columns);
        let row = &mut rest[..columns];
        for (k, earlier) in done.chunks_exact(columns).enumerate() {
            let factor = lower[i * size + k];
            row.iter_mut().zip(earlier).for_each(|(v, e)| *v -= factor * e);
        }
        row.iter_mut().for_each(|v| *v /= lower[i * size + i]);
    }
    b
}

/// (L Lᵀ)⁻¹ B of B `[size × columns]`.
fn solve(lower: &[f64], size: usize, b: &[f64], columns: usize) -> Vec<f64> {
    let mut b = forward(lower, size, b.to_vec(), columns);
    for i in (0..size).rev() {
        let (before, done) = b.split_at_mut((i + 1) * columns);
        let row = &mut before[i * columns..];
        for (k, later) in (i + 1..size).zip(done.chunks_exact(columns)) {
            let factor = lower[k * size + i];
            row.iter_mut().zip(later).for_each(|(v, e)| *v -= factor * e);
        }
        row.iter_mut().for_each(|v| *v /= lower[i * size + i]);
    }
    b
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn draw(n: usize, dim: usize, classes: usize, seed: u64) -> (Vec<f32>, Vec<u32>) {
        noisy(n, dim, classes, seed, 1.0)
    }

    /// Features of classes that are 1 where a class is and 0 elsewhere, with uniform noise up to `noise`.
    fn noisy(n: usize, dim: usize, classes: usize, seed: u64, noise: f32) -> (Vec<f32>, Vec<u32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let labels: Vec<u32> = (0..n as u32).map(|i| i % classes as u32).collect();
        let value =
            |label: u32, column: usize, noise: f32| noise + f32::from(u8::from(column % classes == label as usize));
        let features = labels.iter().flat_map(|&l| (0..dim).map(move |c| (l, c)).collect::<Vec<_>>());
        (features.map(|(l, c)| value(l, c, rng.random_range(-noise..noise))).collect(), labels)
    }

    fn logits(theta: &[f32], x: &[f32], classes: usize) -> Vec<f64> {
        let dot =
            |k: usize| theta[k * x.len()..].iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        (0..classes).map(|k| dot(k) + f64::from(theta[classes * x.len() + k])).collect()
    }

    #[test]
    fn the_blend_lies_between_its_parts() {
        let (features, labels) = draw(12, 6, 3, 4);
        let examples = Examples::new(&features, &labels, 6, 3).unwrap();
        let (ridge, centroid, blend) =
            (examples.ridge().unwrap().theta, examples.centroid(), examples.blend().unwrap().theta);
        let spread = |theta: &[f32]| examples.logit_spread(theta);
        for x in draw(20, 6, 3, 5).0.chunks_exact(6) {
            let expected = logits(&ridge, x, 3).into_iter().zip(logits(&centroid, x, 3));
            for (found, (r, c)) in logits(&blend, x, 3).into_iter().zip(expected) {
                // 4 examples a class.
                let mean = 2.0 / 3.0 * r / spread(&ridge) + 1.0 / 3.0 * c / spread(&centroid);
                assert!((found - mean).abs() < 1e-4 * (1.0 + mean.abs()), "{found} {mean}");
            }
        }
        // Examples without any difference have logits without spread.
        let same = Examples::new(&[1.0; 6], &[0, 1, 2], 2, 3).unwrap().blend().unwrap().theta;
        assert!(same.iter().all(|v| v.is_finite()), "{same:?}");
    }

    /// Ridge by Gaussian elimination of the normal equations with an intercept of its own: `[dim + 1 × classes]`.
    fn brute(rows: &[(&[f32], u32)], classes: usize, lambda: f64) -> Vec<f64> {
        let size = rows[0].0.len() + 1;
        let mut a = vec![vec![0.0; size + classes]; size];
        for (x, label) in rows {
            let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).chain([1.0]).collect();
            for i in 0..size {
                (0..size).for_each(|j| a[i][j] += x[i] * x[j]);
                a[i][size + *label as usize] += x[i];
            }
        }
        (0..size - 1).for_each(|i| a[i][i] += lambda);
        for i in 0..size {
            let pivot = (i..size).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).unwrap();
            a.swap(i, pivot);
            for j in (0..size).filter(|&j| j != i) {
                let factor = a[j][i] / a[i][i];
                (0..size + classes).for_each(|k| a[j][k] -= factor * a[i][k]);
            }
        }
        (0..size).flat_map(|i| (0..classes).map(|k| a[i][size + k] / a[i][i]).collect::<Vec<_>>()).collect()
    }

    fn predict(brute: &[f64], x: &[f32], classes: usize) -> Vec<f64> {
        let column = |k: usize| brute.iter().skip(k).step_by(classes);
        let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).chain([1.0]).collect();
        (0..classes).map(|k| column(k).zip(&x).map(|(w, x)| w * x).sum()).collect()
    }

    #[test]
    fn the_centroid_head_says_which_mean_is_nearest() {
        let (features, labels) = draw(11, 6, 3, 1);
        let theta = Examples::new(&features, &labels, 6, 3).unwrap().centroid();
        let (tests, _) = draw(40, 6, 3, 2);
        for x in tests.chunks_exact(6) {
            let distance = |k: u32| {
                let rows: Vec<_> = features.chunks_exact(6).zip(&labels).filter(|(_, l)| **l == k).collect();
                let mean = |c: usize| rows.iter().map(|(r, _)| f64::from(r[c])).sum::<f64>() / rows.len() as f64;
                (0..6).map(|c| (f64::from(x[c]) - mean(c)).powi(2)).sum::<f64>()
            };
            let length: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
            for (k, logit) in logits(&theta, x, 3).into_iter().enumerate() {
                assert!((logit - length + distance(k as u32)).abs() < 1e-5, "{logit}");
            }
        }
    }

    #[test]
    fn ridge_is_what_brute_force_finds_and_so_are_its_left_out_errors() {
        // More columns than rows, and more rows than columns.
        for (n, dim, classes) in [(7, 12, 3), (25, 4, 5), (6, 6, 2), (3, 5, 3)] {
            let (features, labels) = draw(n, dim, classes, n as u64);
            let rows: Vec<(&[f32], u32)> = features.chunks_exact(dim).zip(labels.iter().copied()).collect();
            let examples = Examples::new(&features, &labels, dim, classes).unwrap();
            let centred = Centred::of(&examples);
            let mut least = (f64::INFINITY, 0.0);
            for lambda in GRID.map(|factor| factor * centred.scale) {
                let mut error = 0.0;
                for left_out in 0..n {
                    let mut rest = rows.clone();
                    let (x, label) = rest.remove(left_out);
                    let found = predict(&brute(&rest, classes, lambda), x, classes);
                    let target = |k: usize| f64::from(u8::from(k == label as usize));
                    error += found.iter().enumerate().map(|(k, f)| (target(k) - f).powi(2)).sum::<f64>();
                }
                error /= (n * classes) as f64;
                let (fast, _) = centred.fit(lambda).unwrap();
                assert!((fast - error).abs() < 1e-8 * error.max(1.0), "{n}×{dim}: {fast} {error}");
                if error <= least.0 + 1e-12 {
                    least = (error, lambda);
                }
            }
            let ridge = examples.ridge().unwrap();
            assert!((ridge.lambda - least.1).abs() < 1e-12 && (ridge.left_out - least.0).abs() < 1e-8);
            let whole = brute(&rows, classes, ridge.lambda);
            for (x, _) in &rows {
                for (a, b) in logits(&ridge.theta, x, classes).iter().zip(predict(&whole, x, classes)) {
                    assert!((a - b).abs() < 1e-4, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn a_head_that_fits_is_kept_and_one_that_does_not_is_not() {
        let (dim, classes) = (30, 3);
        let (many, labels) = noisy(300, dim, classes, 5, 3.0);
        let good = Examples::new(&many, &labels, dim, classes).unwrap().ridge().unwrap().theta;
        let other = ChaCha8Rng::seed_from_u64(9);
        let bad: Vec<f32> = other.random_iter::<f32>().take(good.len()).map(|v| v - 0.5).collect();
        let (tests, truth) = noisy(600, dim, classes, 6, 3.0);
        let accuracy = |theta: &[f32]| {
            let best = |x: &[f32]| {
                let found = logits(theta, x, classes);
                (0..classes).max_by(|&a, &b| found[a].total_cmp(&found[b])).unwrap() as u32
            };
            tests.chunks_exact(dim).zip(&truth).filter(|(x, y)| best(x) == **y).count() as f64 / truth.len() as f64
        };
        let (mut plain, mut towards, mut misled) = (0.0, 0.0, 0.0);
        for seed in 0..10 {
            let (few, labels) = noisy(9, dim, classes, 100 + seed, 3.0);
            let few = Examples::new(&few, &labels, dim, classes).unwrap();
            // The factor does not matter: logits may have any.
            let scaled: Vec<f32> = good.iter().map(|v| 7.0 * v).collect();
            plain += accuracy(&few.ridge().unwrap().theta) / 10.0;
            towards += accuracy(&few.ridge_towards(&scaled).unwrap().theta) / 10.0;
            misled += accuracy(&few.ridge_towards(&bad).unwrap().theta) / 10.0;
            let nothing = few.ridge_towards(&vec![0.0; good.len()]).unwrap();
            let expected = few.ridge().unwrap();
            assert!(nothing.left_out <= expected.left_out + 1e-12);
        }
        let best = accuracy(&good);
        eprintln!("{plain:.3} ridge, {towards:.3} towards {best:.3}, {misled:.3} towards noise");
        // The head is far better than what nine examples give, and more than half of that is kept.
        assert!(best > plain + 0.2 && towards - plain > 0.5 * (best - plain), "{plain} {towards} {best}");
        assert!(misled > plain - 0.05, "{plain} {misled}");
        let text =
            Examples::new(&many, &labels, dim, classes).unwrap().ridge_towards(&good[1..]).unwrap_err().to_string();
        assert!(text.contains("92 values; 93"), "{text}");
    }

    #[test]
    fn examples_without_any_difference_give_the_shares_of_the_classes() {
        let (features, labels) = (vec![0.5; 4 * 3], vec![0, 1, 1, 1]);
        let ridge = Examples::new(&features, &labels, 3, 2).unwrap().ridge().unwrap();
        assert_eq!(ridge.theta, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.75]);
    }

    #[test]
    fn one_example_a_class_is_enough() {
        let features = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let examples = Examples::new(&features, &[0, 1, 2], 3, 3).unwrap();
        for theta in [examples.ridge().unwrap().theta, examples.centroid()] {
            for (k, x) in features.chunks_exact(3).enumerate() {
                let found = logits(&theta, x, 3);
                assert!((0..3).all(|other| other == k || found[k] >= found[other]), "{found:?}");
            }
        }
    }

    #[test]
    fn bad_examples_are_refused() {
        let refused = |features: &[f32], labels: &[u32], dim| {
            Examples::new(features, labels, dim, 2).map(|_| ()).unwrap_err().to_string()
        };
        assert!(refused(&[1.0; 3], &[0, 1], 2).contains("the examples has 3 values; 4"));
        assert!(refused(&[1.0; 4], &[1, 1], 2).contains("class 0"));
        assert!(refused(&[1.0; 4], &[0, 2], 2).contains("label 2"));
        assert!(refused(&[1.0, f32::NAN], &[0, 1], 1).contains("not finite"));
        assert!(refused(&[], &[], 0).contains("the examples"));
    }
}
