//! Linear assignment by the Hungarian method with potentials, O(n³).

/// The permutation that maximises Σ score[i][permutation[i]]; `score` is a square n×n matrix, row-major.
pub(crate) fn maximise(score: &[f64], n: usize) -> Vec<usize> {
    // One-based arrays as in the textbook form: column 0 is the virtual start of each augmenting path.
    let cost = |row: usize, column: usize| -score[(row - 1) * n + column - 1];
    let (mut row_potential, mut column_potential) = (vec![0.0; n + 1], vec![0.0; n + 1]);
    let mut row_of = vec![0usize; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let mut column = 0;
        let mut slack = vec![f64::INFINITY; n + 1];
        let mut previous = vec![0usize; n + 1];
        let mut used = vec![false; n + 1];
        loop {
            used[column] = true;
            let current = row_of[column];
            let (mut delta, mut next) = (f64::INFINITY, 0);
            for j in (1..=n).filter(|&j| !used[j]) {
                let reduced = cost(current, j) - row_potential[current] - column_potential[j];
                if reduced < slack[j] {
                    slack[j] = reduced;
                    previous[j] = column;
                }
                if slack[j] < delta {
                    delta = slack[j];
                    next = j;
                }
            }
            for j in 0..=n {
                if used[j] {
                    row_potential[row_of[j]] += delta;
                    column_potential[j] -= delta;
                } else {
                    slack[j] -= delta;
                }
            }
            column = next;
            if row_of[column] == 0 {
                break;
            }
        }
        while column != 0 {
            row_of[column] = row_of[previous[column]];
            column = previous[column];
        }
    }
    let mut permutation = vec![0; n];
    for column in 1..=n {
        permutation[row_of[column] - 1] = column - 1;
    }
    permutation
}

#[cfg(test)]
mod tests {
    use super::maximise;
    use proptest::prelude::*;

    fn best_by_trying_all(score: &[f64], n: usize) -> f64 {
        fn go(score: &[f64], n: usize, row: usize, used: &mut Vec<bool>) -> f64 {
            if row == n {
                return 0.0;
            }
            let mut best = f64::NEG_INFINITY;
            for column in 0..n {
                if !used[column] {
                    used[column] = true;
                    best = best.max(score[row * n + column] + go(score, n, row + 1, used));
                    used[column] = false;
                }
            }
            best
        }
        go(score, n, 0, &mut vec![false; n])
    }

    proptest! {
        #[test]
        fn equals_the_best_of_all_permutations(score in proptest::collection::vec(-5.0f64..5.0, 25)) {
            let permutation = maximise(&score, 5);
            let value: f64 = permutation.iter().enumerate().map(|(i, &j)| score[i * 5 + j]).sum();
            prop_assert!((value - best_by_trying_all(&score, 5)).abs() < 1e-9);
        }
    }
}
