//! Principal components: subspace iteration on the covariance of the pixels.

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use super::{INPUT, OUTPUT};
use crate::backend::onnx::{BATCH, Onnx};
use crate::backend::{Backend, Layers};
use crate::error::{Error, Result};
use crate::random;

/// Rounds of the subspace iteration.
const ROUNDS: usize = 40;
/// Directions beyond those asked for, which make the rounds converge.
const BEYOND: usize = 16;
/// Rows of one product.
const ROWS: usize = 2048;
/// Largest image: its covariance has the square of this.
const MAX_PIXELS: usize = 4096;

/// The graph `images [batch, c, h, w]` → `features [batch, dim]`, from rows of pixels: centred, projected on the `dim`
/// directions of the largest variance, largest first, and divided by one number, so that the features' variance is 1 on
/// the average.
pub fn fit(rows: &[f32], shape: [usize; 3], dim: usize) -> Result<Vec<u8>> {
    let pixels: usize = shape.iter().product();
    let n = rows.len() / pixels.max(1);
    if pixels > MAX_PIXELS {
        let text = format!("images of {pixels} values; data.backbone pca takes at most {MAX_PIXELS}: set `resize`");
        return Err(Error::Config(text));
    }
    if dim > pixels.min(n.saturating_sub(1)) {
        let text = format!("data.backbone.dim is {dim}; {n} training images of {pixels} values have fewer components");
        return Err(Error::Config(text));
    }
    let (mean, covariance) = covariance(rows, pixels)?;
    let (variances, mut components) = components(&covariance, pixels, dim);
    let scale = (dim as f64 / variances.iter().sum::<f64>().max(1e-12)).sqrt();
    components.iter_mut().for_each(|v| *v *= scale);
    let bias: Vec<f32> = components.chunks_exact(pixels).map(|row| -dot(row, &mean) as f32).collect();
    let weight: Vec<f32> = components.iter().map(|v| *v as f32).collect();
    let mut graph = Onnx::new("backbone", None);
    let [c, h, w] = shape;
    let x = graph.input(INPUT, &[BATCH, c, h, w]);
    let x = graph.flatten(&x)?;
    let (weight, bias) = (graph.constant(&weight, &[dim, pixels])?, graph.constant(&bias, &[dim])?);
    let y = graph.linear(&x, &weight, &bias)?;
    graph.output(&y, OUTPUT, &[BATCH, dim]);
    Ok(graph.finish())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Mean `[d]` and covariance `[d × d]` of rows.
fn covariance(rows: &[f32], d: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let n = (rows.len() / d) as f64;
    let mut mean = vec![0.0; d];
    for row in rows.chunks_exact(d) {
        mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v) / n);
    }
    let mut sum = vec![0.0; d * d];
    for part in rows.chunks(ROWS * d) {
        let centred: Vec<f32> = part.iter().enumerate().map(|(i, &v)| v - mean[i % d] as f32).collect();
        let x = Tensor::from_vec(centred, (part.len() / d, d), &Device::Cpu)?;
        let product = x.t()?.contiguous()?.matmul(&x)?.flatten_all()?.to_vec1::<f32>()?;
        sum.iter_mut().zip(product).for_each(|(s, v)| *s += f64::from(v) / n);
    }
    Ok((mean, sum))
}

/// The `k` largest eigenvalues of a symmetric matrix `[d × d]`, largest first, and their eigenvectors as rows `[k × d]`,
/// whose largest value is positive.
fn components(matrix: &[f64], d: usize, k: usize) -> (Vec<f64>, Vec<f64>) {
    let width = d.min(k + BEYOND);
    let mut rng: ChaCha8Rng = random::stream(0, "principal components");
    let mut q: Vec<f64> = random::normal_vec(width * d, &mut rng).into_iter().map(f64::from).collect();
    orthonormalise(&mut q, d);
    for _ in 0..ROUNDS {
        q = q.chunks_exact(d).flat_map(|row| times(matrix, row)).collect();
        orthonormalise(&mut q, d);
    }
    // The matrix within the subspace, whose eigenvectors turn the basis into components.
    let image: Vec<f64> = q.chunks_exact(d).flat_map(|row| times(matrix, row)).collect();
    let small: Vec<f64> =
        q.chunks_exact(d).flat_map(|a| image.chunks_exact(d).map(|b| dot(a, b)).collect::<Vec<_>>()).collect();
    let (values, vectors) = jacobi(small, width);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let mut rows = Vec::with_capacity(k * d);
    for &i in &order[..k] {
        let mut row = vec![0.0; d];
        for (j, basis) in q.chunks_exact(d).enumerate() {
            let share = vectors[j * width + i];
            row.iter_mut().zip(basis).for_each(|(r, b)| *r += share * b);
        }
        let largest = row.iter().copied().fold(0.0, |m: f64, v| if v.abs() > m.abs() { v } else { m });
        rows.extend(row.iter().map(|v| v * largest.signum()));
    }
    (order[..k].iter().map(|&i| values[i].max(0.0)).collect(), rows)
}

/// A symmetric matrix times a vector.
fn times(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

/// Gram–Schmidt on rows `[n × d]`, twice, for exactness; a row that vanishes becomes a unit vector of its own.
fn orthonormalise(q: &mut [f64], d: usize) {
    for i in 0..q.len() / d {
        let (done, rest) = q.split_at_mut(i * d);
        let row = &mut rest[..d];
        for round in 0..3 {
            for earlier in done.chunks_exact(d) {
                let share = dot(earlier, row);
                row.iter_mut().zip(earlier).for_each(|(r, e)| *r -= share * e);
            }
            let length = dot(row, row).sqrt();
            if length > 1e-150 {
                row.iter_mut().for_each(|v| *v /= length);
            } else {
                row[(i + round) % d] = 1.0;
            }
        }
    }
}

/// Eigenvalues and eigenvectors (columns) of a symmetric matrix `[n × n]` by Jacobi's rotations.
fn jacobi(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let scale: f64 = a.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-300);
    for _ in 0..50 {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off.sqrt() < 1e-13 * scale {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), v)
}

/// Makes `a[p][q]` zero.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let apq = a[p * n + q];
    if apq == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (x, y) = (a[k * n + p], a[k * n + q]);
        (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
    for k in 0..n {
        let (x, y) = (a[p * n + k], a[q * n + k]);
        (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
        let (x, y) = (v[k * n + p], v[k * n + q]);
        (v[k * n + p], v[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose covariance has the variances 9, 4, 1 and nearly nothing along known directions.
    #[test]
    fn planted_directions_are_found_in_order() {
        let d = 12;
        let mut basis: Vec<f64> =
            random::normal_vec(4 * d, &mut random::stream(1, "basis")).into_iter().map(f64::from).collect();
        orthonormalise(&mut basis, d);
        let mut rng = random::stream(2, "rows");
        let mut rows = Vec::new();
        for _ in 0..4000 {
            let z = random::normal_vec(4, &mut rng);
            let mut row = vec![0.5; d];
            for (direction, (z, std)) in basis.chunks_exact(d).zip(z.iter().zip([3.0, 2.0, 1.0, 0.01])) {
                row.iter_mut().zip(direction).for_each(|(r, b)| *r += f64::from(*z) * std * b);
            }
            rows.extend(row.into_iter().map(|v| v as f32));
        }
        let (mean, matrix) = covariance(&rows, d).unwrap();
        assert!(mean.iter().all(|m| (m - 0.5).abs() < 0.2));
        let (values, found) = components(&matrix, d, 3);
        for (i, (value, expected)) in values.iter().zip([9.0, 4.0, 1.0]).enumerate() {
            assert!((value / expected - 1.0).abs() < 0.1, "{values:?}");
            let cosine = dot(&found[i * d..(i + 1) * d], &basis[i * d..(i + 1) * d]).abs();
            assert!(cosine > 0.99, "{cosine}");
        }
        // Eigenvectors to the last digit, and not only near the planted ones.
        for (value, row) in values.iter().zip(found.chunks_exact(d)) {
            let image = times(&matrix, row);
            assert!(image.iter().zip(row).all(|(a, b)| (a - value * b).abs() < 1e-8));
        }
    }

    #[test]
    fn more_components_than_there_are_is_refused() {
        let text = fit(&[0.0; 4 * 3], [1, 2, 2], 3).unwrap_err().to_string();
        assert!(text.contains("dim is 3") && text.contains("3 training images of 4 values"), "{text}");
        assert!(fit(&[0.0; 5000], [1, 50, 100], 3).unwrap_err().to_string().contains("resize"));
    }
}
