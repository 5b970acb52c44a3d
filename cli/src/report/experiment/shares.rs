//! The part of a zoo that a variant learns from.

use std::collections::{BTreeMap, BTreeSet};

use datasets::Task;

/// A task's source and its classes, whatever their order.
pub(super) fn set_of(task: &Task) -> (String, Vec<u32>) {
    let mut classes = task.classes.clone();
    classes.sort_unstable();
    (task.source.clone(), classes)
}

/// The first class sets of each source, a share of them.
pub(super) fn first_sets(tasks: &[Task], share: f64) -> BTreeSet<(String, Vec<u32>)> {
    let mut by_source: BTreeMap<String, Vec<(String, Vec<u32>)>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for set in tasks.iter().map(set_of).filter(|set| seen.insert(set.clone())) {
        let own = by_source.entry(set.0.clone()).or_default();
        own.push(set);
    }
    by_source.into_values().flat_map(|own| own[..kept(own.len(), share)].to_vec()).collect()
}

/// How many of `n` a share of them is, at least one.
pub(super) fn kept(n: usize, share: f64) -> usize {
    ((n as f64 * share).round() as usize).clamp(1, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_class_sets_has_all_their_orders() {
        let task = |source: &str, classes: &[u32]| Task { source: source.into(), classes: classes.to_vec() };
        let tasks = [
            task("a", &[0, 1]),
            task("a", &[1, 0]),
            task("a", &[2, 0]),
            task("b", &[3, 4]),
            task("a", &[0, 2]),
            task("b", &[1, 2]),
        ];
        let sets = first_sets(&tasks, 0.5);
        let kept: Vec<bool> = tasks.iter().map(|task| sets.contains(&set_of(task))).collect();
        assert_eq!(kept, [true, true, false, true, false, false]);
        assert_eq!(first_sets(&tasks, 1.0).len(), 4);
    }
}
