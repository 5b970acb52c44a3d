//! Means and deviations of accuracies.

use std::collections::BTreeMap;

/// Mean and standard deviation; zeros for no values.
pub fn mean_std(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let values: Vec<f64> = values.into_iter().collect();
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// The middle of some values, of an even number the mean of the two in the middle, and the largest; zeros for none.
pub fn median_max(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.last() {
        None => (0.0, 0.0),
        Some(&max) if sorted.len() % 2 == 1 => (sorted[middle], max),
        Some(&max) => (f64::midpoint(sorted[middle - 1], sorted[middle]), max),
    }
}

/// Mean over tasks (or whatever the keys are) of the standard deviation between the models of a task: the diversity of
/// an arm.
pub fn within<K: Ord + Copy>(values: &[(K, f64)]) -> f64 {
    mean_std(by_task(values).into_values().map(|own| mean_std(own).1)).0
}

/// Mean over tasks of the best model of each.
pub fn best<K: Ord + Copy>(values: &[(K, f64)]) -> f64 {
    mean_std(by_task(values).into_values().map(|own| own.into_iter().fold(f64::NEG_INFINITY, f64::max))).0
}

/// Mean number of models of a task.
pub fn models<K: Ord + Copy>(values: &[(K, f64)]) -> f64 {
    mean_std(by_task(values).into_values().map(|own| own.len() as f64)).0
}

fn by_task<K: Ord + Copy>(values: &[(K, f64)]) -> BTreeMap<K, Vec<f64>> {
    let mut groups = BTreeMap::<K, Vec<f64>>::new();
    for &(task, value) in values {
        groups.entry(task).or_default().push(value);
    }
    groups
}

/// Evenly spaced items, at most `n`.
pub fn spread<T: Clone>(items: &[T], n: usize) -> Vec<T> {
    let n = n.min(items.len());
    (0..n).map(|i| items[i * items.len() / n].clone()).collect()
}

/// Mean and standard deviation of each column of `rows` (`[n × d]`).
pub fn columns(rows: &[f32], d: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut sum, mut square) = (vec![0f64; d], vec![0f64; d]);
    for row in rows.chunks_exact(d) {
        for (i, &v) in row.iter().enumerate() {
            sum[i] += f64::from(v);
            square[i] += f64::from(v).powi(2);
        }
    }
    let n = (rows.len() / d.max(1)).max(1) as f64;
    let std = sum.iter().zip(&square).map(|(s, q)| (q / n - (s / n).powi(2)).max(0.0).sqrt() as f32).collect();
    (sum.iter().map(|s| (s / n) as f32).collect(), std)
}

/// Share of examples that two models predict differently, mean over all pairs; `None` for fewer than two models.
pub fn disagreement(models: &[&Vec<u32>]) -> Option<f64> {
    let mut shares = Vec::new();
    for (i, a) in models.iter().enumerate() {
        for b in &models[i + 1..] {
            let differ = a.iter().zip(*b).filter(|(x, y)| x != y).count();
            shares.push(differ as f64 / a.len().max(1) as f64);
        }
    }
    (!shares.is_empty()).then(|| mean_std(shares).0)
}

/// Intersection over union of the examples that two models predict wrongly; `None` when neither errs.
pub fn error_iou(a: &[u32], b: &[u32], truth: impl Fn(usize) -> u32) -> Option<f64> {
    let (mut both, mut any) = (0usize, 0usize);
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        let wrong = (*x != truth(i), *y != truth(i));
        both += usize::from(wrong.0 && wrong.1);
        any += usize::from(wrong.0 || wrong.1);
    }
    (any > 0).then(|| both as f64 / any as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diversity_is_inside_tasks() {
        let values = [(0, 0.1), (0, 0.3), (1, 0.9), (1, 0.9)];
        assert!((within(&values) - 0.05).abs() < 1e-12);
        assert!((best(&values) - 0.6).abs() < 1e-12);
        assert!((models(&values) - 2.0).abs() < 1e-12);
        assert_eq!(mean_std([]), (0.0, 0.0));
    }

    #[test]
    fn the_middle_is_of_sorted_values() {
        assert_eq!(median_max(&[3.0, 1.0, 2.0]), (2.0, 3.0));
        assert_eq!(median_max(&[4.0, 1.0, 3.0, 0.0]), (2.0, 4.0));
        assert_eq!(median_max(&[]), (0.0, 0.0));
    }

    #[test]
    fn spread_is_even() {
        assert_eq!(spread(&[0, 1, 2, 3, 4, 5], 3), [0, 2, 4]);
        assert_eq!(spread(&[0, 1], 3), [0, 1]);
    }

    #[test]
    fn columns_are_taken_one_by_one() {
        assert_eq!(columns(&[1.0, 5.0, 3.0, 5.0], 2), (vec![2.0, 5.0], vec![1.0, 0.0]));
    }

    #[test]
    fn errors_overlap_where_both_err() {
        let truth = |i: usize| i as u32;
        assert_eq!(error_iou(&[0, 1, 2], &[0, 1, 2], truth), None);
        assert_eq!(error_iou(&[9, 1, 2], &[0, 9, 2], truth), Some(0.0));
        assert_eq!(error_iou(&[9, 9, 2], &[0, 9, 2], truth), Some(0.5));
        // Both wrong, and differently so: still the same example.
        assert_eq!(error_iou(&[9, 1, 2], &[8, 1, 2], truth), Some(1.0));
    }

    #[test]
    fn disagreement_needs_two() {
        assert_eq!(disagreement(&[&vec![1, 2]]), None);
        assert_eq!(disagreement(&[&vec![1, 2], &vec![1, 3], &vec![1, 2]]), Some(1.0 / 3.0));
    }
}
