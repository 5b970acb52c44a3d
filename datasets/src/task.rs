//! Tasks: ordered choices of classes of a source.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// A classification problem: these classes of a source, in this order. Output unit `i` of a network for the task
/// stands for `classes[i]`, so two orders of the same classes are two tasks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Task {
    /// Name of the dataset.
    pub source: String,
    /// Labels of the dataset, in the order of the network's outputs.
    pub classes: Vec<u32>,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes: Vec<String> = self.classes.iter().map(u32::to_string).collect();
        write!(f, "{}[{}]", self.source, classes.join(","))
    }
}

/// All sets of `k` of the classes 0..`n_classes`, each ascending, in lexicographic order.
///
/// There are n!/(k!(n-k)!) of them; none when `k` is 0 or above `n_classes`.
pub fn class_sets(n_classes: usize, k: usize) -> Vec<Vec<u32>> {
    let Ok(n) = u32::try_from(n_classes) else { return Vec::new() };
    let mut sets = Vec::new();
    if k > 0 && k <= n_classes {
        extend_sets(&mut sets, &mut Vec::with_capacity(k), 0, n, k);
    }
    sets
}

fn extend_sets(sets: &mut Vec<Vec<u32>>, prefix: &mut Vec<u32>, from: u32, n: u32, k: usize) {
    if prefix.len() == k {
        sets.push(prefix.clone());
        return;
    }
    let missing = (k - prefix.len()) as u32;
    for class in from..=n - missing {
        prefix.push(class);
        extend_sets(sets, prefix, class + 1, n, k);
        prefix.pop();
    }
}

/// For each set, `orders_per_set` distinct random orders of its classes, set after set.
///
/// A set of k classes has only k! orders: when more are asked for, each of the k! comes once. A class named twice
/// in a set counts once.
pub fn ordered_tasks(source: &str, sets: &[Vec<u32>], orders_per_set: usize, rng: &mut impl Rng) -> Vec<Task> {
    let mut tasks = Vec::new();
    for set in sets {
        let mut order: Vec<u32> = set.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let wanted = orders_per_set.min(factorial(order.len()));
        let mut seen = HashSet::new();
        while seen.len() < wanted {
            order.shuffle(rng);
            if seen.insert(order.clone()) {
                tasks.push(Task { source: source.to_owned(), classes: order.clone() });
            }
        }
    }
    tasks
}

fn factorial(k: usize) -> usize {
    (1..=k).fold(1, usize::saturating_mul)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn sets_are_complete_and_lexicographic() {
        assert_eq!(class_sets(4, 2), [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]);
        let sets = class_sets(10, 5);
        assert_eq!(sets.len(), 252);
        assert!(sets.is_sorted());
        assert_eq!(class_sets(3, 3), [[0, 1, 2]]);
        assert!(class_sets(3, 4).is_empty() && class_sets(3, 0).is_empty() && class_sets(0, 1).is_empty());
    }

    #[test]
    fn orders_are_distinct_and_end_at_k_factorial() {
        let sets = class_sets(5, 3);
        let draw = |n| ordered_tasks("digits", &sets, n, &mut ChaCha8Rng::seed_from_u64(3));
        let tasks = draw(4);
        assert_eq!(tasks, draw(4));
        assert_eq!(tasks.len(), 40);
        assert_eq!(tasks.iter().collect::<HashSet<_>>().len(), 40);
        for (task, set) in tasks.iter().zip(sets.iter().flat_map(|s| vec![s; 4])) {
            let mut sorted = task.classes.clone();
            sorted.sort_unstable();
            assert_eq!(&sorted, set);
        }
        assert_eq!(draw(100).len(), 60);
        assert_eq!(ordered_tasks("d", &[vec![1, 1, 2]], 9, &mut ChaCha8Rng::seed_from_u64(0)).len(), 2);
        assert!(ordered_tasks("d", &sets, 0, &mut ChaCha8Rng::seed_from_u64(0)).is_empty());
    }

    #[test]
    fn display_and_json() {
        let task = Task { source: "digits".into(), classes: vec![3, 1, 4, 0, 7] };
        assert_eq!(task.to_string(), "digits[3,1,4,0,7]");
        let json = serde_json::to_string(&task).unwrap();
        assert_eq!(json, r#"{"source":"digits","classes":[3,1,4,0,7]}"#);
        assert_eq!(serde_json::from_str::<Task>(&json).unwrap(), task);
    }
}
