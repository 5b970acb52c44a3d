//! How new generated weights are: distance to the nearest checkpoint of the zoo (METHOD.md, honest evaluation).

/// Euclidean distance of two vectors of equal length.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt()
}

/// Index of and distance to the row of `rows` (`[n × length]`) nearest to `theta`, passing over row `except`.
/// `None` when there is no row.
pub fn nearest(theta: &[f32], rows: &[f32], length: usize, except: Option<usize>) -> Option<(usize, f64)> {
    if length == 0 {
        return None;
    }
    rows.chunks_exact(length)
        .enumerate()
        .filter(|(i, _)| Some(*i) != except)
        .map(|(i, row)| (i, distance(theta, row)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Moves `values` in the direction of `noise` as far as `made` is from them (Euclidean): the control of equal distance.
pub fn move_as_far(values: &mut [f32], made: &[f32], noise: &[f32]) {
    let length = noise.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let scale = (distance(made, values) / length.max(f64::MIN_POSITIVE)) as f32;
    values.iter_mut().zip(noise).for_each(|(value, noise)| *value += scale * noise);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_passes_over_itself() {
        let rows = [0.0, 0.0, 3.0, 4.0, 0.0, 1.0];
        assert_eq!(nearest(&[0.0, 0.0], &rows, 2, None), Some((0, 0.0)));
        assert_eq!(nearest(&[0.0, 0.0], &rows, 2, Some(0)), Some((2, 1.0)));
        assert_eq!(nearest(&[0.0], &[], 1, None), None);
    }
}
