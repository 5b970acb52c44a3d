//! Spectra of weight matrices beside the Marchenko–Pastur law (paper 3.5 and A.3, Eq. 7 and 8; Hartford et al. 2024):
//! singular values above the largest that a matrix of noise would have are signal, those below are noise.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Serialize;

use crate::error::{Error, Result, check_finite};

/// The largest smaller side of a matrix whose singular values are computed and not estimated.
pub const EXACT: usize = 1024;
/// The largest singular values that an estimate finds one by one.
const LEADING: usize = 64;
/// Rounds of power iteration for them.
const ROUNDS: usize = 4;
/// Random vectors for the others.
const PROBES: usize = 8;
/// Lanczos steps of each.
const STEPS: usize = 64;
/// Points of the integral over the law.
const GRID: usize = 4096;

/// Singular values of a matrix, descending.
#[derive(Debug, Clone, Serialize)]
pub struct SingularValues {
    /// The values.
    pub values: Vec<f64>,
    /// How many singular values each stands for: 1 where they were computed, a fraction or more where they were
    /// estimated. They add up to the matrix' smaller side.
    pub counts: Vec<f64>,
    /// Whether they are estimated.
    pub estimated: bool,
}

impl SingularValues {
    /// Of `matrix` (`[rows, cols]`, row-major): computed where the smaller side is at most [`EXACT`], estimated above.
    ///
    /// # Errors
    /// [`Error::Matrix`] when the sizes do not fit, a value is not finite, all are zero, or the decomposition fails.
    pub fn of(matrix: &[f32], rows: usize, cols: usize) -> Result<Self> {
        if rows.min(cols) <= EXACT { Self::exact(matrix, rows, cols) } else { Self::estimate(matrix, rows, cols, 0) }
    }

    /// Computed (singular value decomposition in f64).
    ///
    /// # Errors
    /// As [`SingularValues::of`].
    pub fn exact(matrix: &[f32], rows: usize, cols: usize) -> Result<Self> {
        check(matrix, rows, cols)?;
        let wide = Mat::from_fn(rows, cols, |i, j| f64::from(matrix[i * cols + j]));
        let values = wide.singular_values().map_err(|e| failed(rows, cols, &format!("{e:?}")))?;
        Ok(Self { counts: vec![1.0; values.len()], values, estimated: false })
    }

    /// Estimated by products with the matrix only, in f32: the largest by randomised subspace iteration (Halko,
    /// Martinsson and Tropp 2011), how many others there are of which size by stochastic Lanczos quadrature beside
    /// those (Ubaru, Chen and Saad 2017).
    ///
    /// # Errors
    /// As [`SingularValues::of`].
    pub fn estimate(matrix: &[f32], rows: usize, cols: usize, seed: u64) -> Result<Self> {
        check(matrix, rows, cols)?;
        let w = MatRef::from_row_major_slice(matrix, rows, cols);
        let w = if rows <= cols { w } else { w.transpose() };
        let mut nodes = nodes(w, seed)?;
        nodes.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (values, counts) = nodes.into_iter().unzip();
        Ok(Self { values, counts, estimated: true })
    }

    /// The value that `share` of them are below.
    pub fn quantile(&self, share: f64) -> f64 {
        let all: f64 = self.counts.iter().sum();
        let mut below = 0.0;
        for (value, count) in self.values.iter().zip(&self.counts).rev() {
            below += count;
            if below >= share * all {
                return *value;
            }
        }
        self.values.first().copied().unwrap_or(0.0)
    }

    /// Sum and count of those that `keep` keeps.
    fn sum(&self, keep: impl Fn(f64) -> bool) -> (f64, f64) {
        let kept = self.values.iter().zip(&self.counts).filter(|(v, _)| keep(**v));
        kept.fold((0.0, 0.0), |(sum, n), (v, count)| (sum + v * count, n + count))
    }
}

fn check(matrix: &[f32], rows: usize, cols: usize) -> Result<()> {
    if matrix.len() != rows * cols || matrix.is_empty() {
        return Err(failed(rows, cols, &format!("there are {} values", matrix.len())));
    }
    check_finite("a matrix", matrix)?;
    if matrix.iter().all(|v| *v == 0.0) {
        return Err(failed(rows, cols, "all its values are zero: it has no spectrum"));
    }
    Ok(())
}

fn failed(rows: usize, cols: usize, reason: &str) -> Error {
    Error::Matrix { rows, cols, reason: reason.to_owned() }
}

/// Singular values of `w` (`[m, n]`, m ≤ n), and how many of the m each stands for.
fn nodes(w: MatRef<'_, f32>, seed: u64) -> Result<Vec<(f64, f64)>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (leading, vectors) = leading(w, &mut rng)?;
    let mut nodes: Vec<(f64, f64)> = leading.into_iter().map(|value| (value, 1.0)).collect();
    let rest = w.nrows() - nodes.len();
    for chain in lanczos(w, &vectors, &mut rng) {
        nodes.extend(chain.nodes(rest as f64 / PROBES as f64)?);
    }
    Ok(nodes)
}

/// A matrix of 1 and −1.
fn signs(rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> Mat<f32> {
    Mat::from_fn(rows, cols, |_, _| if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 })
}

/// The largest singular values, and their left vectors `[m, k]`.
fn leading(w: MatRef<'_, f32>, rng: &mut ChaCha8Rng) -> Result<(Vec<f64>, Mat<f32>)> {
    let (m, n) = w.shape();
    let k = LEADING.min(m / 4);
    // A few more vectors than values: the last ones converge slowly.
    let wide = (k + k / 2).min(m);
    let mut q = Mat::<f32>::zeros(m, wide);
    let mut inner = signs(n, wide, rng);
    for round in 0..=ROUNDS {
        if round > 0 {
            matmul(inner.as_mut(), Accum::Replace, w.transpose(), q.as_ref(), 1.0, Par::rayon(0));
        }
        matmul(q.as_mut(), Accum::Replace, w, inner.as_ref(), 1.0, Par::rayon(0));
        q = q.qr().compute_thin_Q();
    }
    matmul(inner.as_mut(), Accum::Replace, w.transpose(), q.as_ref(), 1.0, Par::rayon(0));
    let gram = inner.transpose() * &inner;
    let gram = Mat::from_fn(wide, wide, |i, j| f64::from(gram[(i, j)]));
    let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(|e| failed(m, n, &format!("{e:?}")))?;
    let values = (0..k).map(|i| eigen.S()[wide - 1 - i].max(0.0).sqrt()).collect();
    let rotation = Mat::from_fn(wide, k, |i, j| eigen.U()[(i, wide - 1 - j)] as f32);
    Ok((values, q * rotation))
}

/// Lanczos on w wᵀ from random vectors orthogonal to `vectors`.
fn lanczos(w: MatRef<'_, f32>, vectors: &Mat<f32>, rng: &mut ChaCha8Rng) -> Vec<Chain> {
    let (m, n) = w.shape();
    let steps = STEPS.min(m - vectors.ncols());
    let mut v = signs(m, PROBES, rng);
    let (mut inner, mut next) = (Mat::<f32>::zeros(n, PROBES), Mat::<f32>::zeros(m, PROBES));
    let known: Vec<Vec<f32>> = (0..vectors.ncols()).map(|j| vectors.col_as_slice(j).to_vec()).collect();
    let mut chains: Vec<Chain> = (0..PROBES).map(|j| Chain::start(&known, v.col_as_slice_mut(j))).collect();
    for _ in 0..steps {
        matmul(inner.as_mut(), Accum::Replace, w.transpose(), v.as_ref(), 1.0, Par::rayon(0));
        matmul(next.as_mut(), Accum::Replace, w, inner.as_ref(), 1.0, Par::rayon(0));
        for (column, chain) in chains.iter_mut().enumerate() {
            chain.step(next.col_as_slice_mut(column), v.col_as_slice_mut(column));
        }
    }
    chains
}

/// One probe: what it has been orthogonal to, and its tridiagonal matrix.
#[derive(Debug, Clone)]
struct Chain {
    basis: Vec<Vec<f32>>,
    diagonal: Vec<f64>,
    beside: Vec<f64>,
    ended: bool,
}

impl Chain {
    /// Begins with `v`, made orthogonal to `known` and of unit length.
    fn start(known: &[Vec<f32>], v: &mut [f32]) -> Self {
        orthogonal(known, v);
        let norm = dot(v, v).sqrt();
        v.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        let basis = known.iter().cloned().chain([v.to_vec()]).collect();
        Self { basis, diagonal: Vec::new(), beside: Vec::new(), ended: false }
    }

    /// One step: `next` is the operator on the last vector; the one after it goes to `v`.
    fn step(&mut self, next: &mut [f32], v: &mut [f32]) {
        let Some(last) = self.basis.last().filter(|_| !self.ended) else { return };
        self.diagonal.push(dot(last, next));
        let before = dot(next, next).sqrt();
        orthogonal(&self.basis, next);
        let beta = dot(next, next).sqrt();
        if beta <= 1e-5 * before {
            self.ended = true;
            v.fill(0.0);
            return;
        }
        self.beside.push(beta);
        v.iter_mut().zip(next.iter()).for_each(|(v, x)| *v = (f64::from(*x) / beta) as f32);
        self.basis.push(v.to_vec());
    }

    /// Its eigenvalues' roots, and the share of `count` that each has.
    fn nodes(&self, count: f64) -> Result<Vec<(f64, f64)>> {
        let k = self.diagonal.len();
        let t = Mat::from_fn(k, k, |i, j| match i.abs_diff(j) {
            0 => self.diagonal[i],
            1 => self.beside[i.min(j)],
            _ => 0.0,
        });
        let eigen = t.self_adjoint_eigen(Side::Lower).map_err(|e| failed(k, k, &format!("{e:?}")))?;
        let (values, vectors) = (eigen.S(), eigen.U());
        Ok((0..k).map(|i| (values[i].max(0.0).sqrt(), count * vectors[(0, i)].powi(2))).collect())
    }
}

/// Takes what is along `basis` out of `v`. Twice is enough: once leaves f32's rounding, and values appear again.
fn orthogonal(basis: &[Vec<f32>], v: &mut [f32]) {
    for _ in 0..2 {
        for b in basis {
            let along = dot(b, v) as f32;
            v.iter_mut().zip(b).for_each(|(x, b)| *x -= along * b);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Median of the Marchenko–Pastur law (Eq. 7) of unit variance and ratio `q` (smaller side over larger, in (0, 1]):
/// half the eigenvalues of WᵀW/n are below it.
pub fn marchenko_pastur_median(q: f64) -> f64 {
    // With λ = 1 + q + 2√q cos φ the density is 2 sin²φ / (π λ) dφ, which has no pole at the edges.
    let at = |i: usize| std::f64::consts::PI * (1.0 - (i as f64 + 0.5) / GRID as f64);
    let lambda = |angle: f64| 1.0 + q + 2.0 * q.sqrt() * angle.cos();
    let mass: Vec<f64> = (0..GRID).map(|i| at(i).sin().powi(2) / lambda(at(i))).collect();
    let half = mass.iter().sum::<f64>() / 2.0;
    let mut below = 0.0;
    for (i, part) in mass.iter().enumerate() {
        below += part;
        if below >= half {
            return lambda(at(i));
        }
    }
    1.0
}

/// A matrix' spectrum, and what of it is above the noise.
#[derive(Debug, Clone, Serialize)]
pub struct Spectrum {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Deviation of the noise in an entry: median singular value over that of a matrix of unit noise (Gavish and
    /// Donoho 2014), which a few large values do not move.
    pub sigma: f64,
    /// The largest singular value of noise: σ (√m + √n), which is √n times the ε₊ that the paper gives for W/√n.
    pub edge: f64,
    /// Singular values at or above the edge.
    pub signals: f64,
    /// Sum of the singular values at or above the edge over the sum of those below (Eq. 8); none when nothing is below.
    pub snr: Option<f64>,
    /// The singular values.
    pub singular_values: SingularValues,
}

impl Spectrum {
    /// Of a matrix (`[rows, cols]`, row-major).
    ///
    /// # Errors
    /// As [`SingularValues::of`].
    pub fn of(matrix: &[f32], rows: usize, cols: usize) -> Result<Self> {
        Ok(Self::new(rows, cols, SingularValues::of(matrix, rows, cols)?))
    }

    /// From singular values of a matrix `[rows, cols]`.
    pub fn new(rows: usize, cols: usize, singular_values: SingularValues) -> Self {
        let (small, large) = (rows.min(cols) as f64, rows.max(cols) as f64);
        let sigma = singular_values.quantile(0.5) / (large * marchenko_pastur_median(small / large)).sqrt();
        let edge = sigma * (small.sqrt() + large.sqrt());
        let (signal, signals) = singular_values.sum(|v| v >= edge && v > 0.0);
        let (noise, _) = singular_values.sum(|v| v < edge);
        let snr = (noise > 0.0).then(|| signal / noise);
        Self { rows, cols, sigma, edge, signals, snr, singular_values }
    }
}

/// Which of `spectra` (each with its group) are in the `share` of highest SNR of their group, at least one of each; in
/// the order of groups and, in a group, of falling SNR (paper A.3: top 25 %).
pub fn select<'a>(spectra: impl IntoIterator<Item = (&'a str, &'a Spectrum)>, share: f64) -> Vec<usize> {
    let mut groups: std::collections::BTreeMap<&str, Vec<(usize, f64)>> = std::collections::BTreeMap::new();
    for (index, (group, spectrum)) in spectra.into_iter().enumerate() {
        groups.entry(group).or_default().push((index, spectrum.snr.unwrap_or(f64::INFINITY)));
    }
    let mut selected = Vec::new();
    for mut group in groups.into_values() {
        group.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let kept = ((share * group.len() as f64).round() as usize).clamp(1, group.len());
        selected.extend(group.into_iter().take(kept).map(|(index, _)| index));
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    /// Noise of deviation `sigma` with rank-one parts of the given singular values.
    fn planted(rows: usize, cols: usize, sigma: f64, signals: &[f64]) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut normal = move || {
            let (a, b): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random());
            (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
        };
        let mut w: Vec<f64> = (0..rows * cols).map(|_| sigma * normal()).collect();
        for signal in signals {
            let mut unit = |n: usize| {
                let v: Vec<f64> = (0..n).map(|_| normal()).collect();
                let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
                v.into_iter().map(|x| x / norm).collect::<Vec<_>>()
            };
            let (u, v) = (unit(rows), unit(cols));
            w.iter_mut().enumerate().for_each(|(i, w)| *w += signal * u[i / cols] * v[i % cols]);
        }
        w.into_iter().map(|v| v as f32).collect()
    }

    #[test]
    fn values_are_those_of_numpy() {
        // numpy.linalg.svd([[sin(1 + i * j + i) for j in range(5)] for i in range(4)], compute_uv=False)
        let w: Vec<f32> = (0..20).map(|i| ((1 + (i / 5) * (i % 5) + i / 5) as f32).sin()).collect();
        let numpy = [2.005109701688058, 1.7654604341485542, 1.537488003896539, 0.7462915941873116];
        for (rows, cols, w) in [(4, 5, w.clone()), (5, 4, (0..20).map(|i| w[(i % 4) * 5 + i / 4]).collect())] {
            let values = SingularValues::exact(&w, rows, cols).unwrap();
            assert_eq!(values.values.len(), 4);
            for (own, numpy) in values.values.iter().zip(numpy) {
                assert!((own - numpy).abs() < 1e-6, "{:?} and {numpy:?}", values.values);
            }
        }
    }

    #[test]
    fn what_was_planted_is_found_and_noise_has_no_signal() {
        let (rows, cols, sigma) = (120, 300, 0.02);
        let edge = sigma * (120f64.sqrt() + 300f64.sqrt());
        let spectrum =
            Spectrum::of(&planted(rows, cols, sigma, &[8.0 * edge, 4.0 * edge, 2.0 * edge]), rows, cols).unwrap();
        assert!((spectrum.sigma / sigma - 1.0).abs() < 0.05, "{}", spectrum.sigma);
        assert!((spectrum.edge / edge - 1.0).abs() < 0.05, "{}", spectrum.edge);
        assert_eq!(spectrum.signals, 3.0);
        let noise = Spectrum::of(&planted(rows, cols, sigma, &[]), rows, cols).unwrap();
        assert!(noise.signals <= 1.0, "the largest is at the edge: {}", noise.signals);
        assert!(noise.snr.unwrap() < 0.02 && spectrum.snr.unwrap() > 0.1);
    }

    #[test]
    fn an_estimate_is_near_what_is_computed() {
        for (rows, cols) in [(200, 500), (500, 200)] {
            let w = planted(rows, cols, 0.1, &[40.0, 20.0]);
            let exact = Spectrum::new(rows, cols, SingularValues::exact(&w, rows, cols).unwrap());
            let near = Spectrum::new(rows, cols, SingularValues::estimate(&w, rows, cols, 1).unwrap());
            assert!((near.singular_values.counts.iter().sum::<f64>() - 200.0).abs() < 1e-3);
            assert!((near.singular_values.values[0] / exact.singular_values.values[0] - 1.0).abs() < 1e-3);
            assert!((near.edge / exact.edge - 1.0).abs() < 0.05, "{} and {}", near.edge, exact.edge);
            assert!((near.snr.unwrap() / exact.snr.unwrap() - 1.0).abs() < 0.1, "{:?} {:?}", near.snr, exact.snr);
        }
    }

    #[test]
    fn the_law_has_its_median() {
        // Of q = 1 the singular values have the quarter circle law, whose median is 0.8079.
        assert!((marchenko_pastur_median(1.0).sqrt() - 0.8079).abs() < 1e-3);
        assert!((marchenko_pastur_median(1e-6) - 1.0).abs() < 1e-2);
    }

    #[test]
    fn a_matrix_without_noise_is_all_signal_and_zeros_are_refused() {
        let w: Vec<f32> = (0..60).map(|i| (i / 10) as f32 * (i % 10) as f32).collect();
        let spectrum = Spectrum::of(&w, 6, 10).unwrap();
        assert!(spectrum.snr.is_none_or(|snr| snr > 1e3), "{:?}", spectrum.snr);
        for (matrix, text) in [(vec![0.0; 6], "zero"), (vec![1.0; 5], "5 values"), (vec![f32::NAN; 6], "finite")] {
            let error = Spectrum::of(&matrix, 2, 3).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn each_group_gives_its_best() {
        let of = |snr: f64| Spectrum {
            rows: 1,
            cols: 1,
            sigma: 1.0,
            edge: 1.0,
            signals: 1.0,
            snr: Some(snr),
            singular_values: SingularValues { values: vec![1.0], counts: vec![1.0], estimated: false },
        };
        let spectra = [("q", of(0.1)), ("k", of(0.5)), ("q", of(0.3)), ("q", of(0.2)), ("q", of(0.0))];
        let named = || spectra.iter().map(|(group, spectrum)| (*group, spectrum));
        assert_eq!(select(named(), 0.25), [1, 2]);
        assert_eq!(select(named(), 0.5), [1, 2, 3]);
        assert_eq!(select(named(), 1.0), [1, 2, 3, 0, 4]);
    }
}
