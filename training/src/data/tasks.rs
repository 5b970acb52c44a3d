//! The tasks of a configuration: those of the zoo, those that stay unseen, and those of sources that are left out.

use std::collections::BTreeSet;

use datasets::Task;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Source, Sources};
use crate::config::{Classes, Config, Role, TasksConfig};
use crate::error::{Error, Result};
use crate::random;

/// Class sets that are listed and shuffled; of more, some are drawn.
const LISTED: u64 = 1_000_000;
/// Class sets that are drawn beyond those asked for, where there are too many to list.
const DRAWN: usize = 1000;

impl Source {
    /// All classes in their own order.
    fn whole(&self) -> Task {
        Task { source: self.name.clone(), classes: (0..self.data.classes() as u32).collect() }
    }

    /// Sets of `k` classes in random order: all, or where there are too many `n` and some more.
    fn class_sets(&self, k: usize, n: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
        let classes = self.data.classes();
        if count(classes, k) <= LISTED {
            let mut sets = datasets::class_sets(classes, k);
            sets.shuffle(rng);
            return sets;
        }
        let (mut sets, mut known) = (Vec::new(), BTreeSet::new());
        while sets.len() < n + DRAWN {
            let set = draw(classes, k, rng);
            if known.insert(set.clone()) {
                sets.push(set);
            }
        }
        sets
    }
}

/// A set of `k` of `n` classes, ascending.
fn draw(n: usize, k: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut set: Vec<u32> = rand::seq::index::sample(rng, n, k).into_iter().map(|class| class as u32).collect();
    set.sort_unstable();
    set
}

/// How many sets of `k` of `n` classes there are; some number above [`LISTED`] for more than that.
fn count(n: usize, k: usize) -> u64 {
    let mut sets = 1u64;
    for i in 0..k.min(n.saturating_sub(k)) as u64 {
        sets = sets.saturating_mul(n as u64 - i) / (i + 1);
        if sets > LISTED {
            break;
        }
    }
    sets
}

impl Sources {
    /// The tasks of a configuration: those of the zoo, and those that stay unseen.
    ///
    /// # Errors
    /// When there are fewer class sets than asked for, or no source has enough classes.
    pub fn tasks(&self, config: &Config) -> Result<(Vec<Task>, Vec<Task>)> {
        let mut rng = random::stream(config.seed, "tasks");
        let (mut seen, mut unseen) = (Vec::new(), Vec::new());
        for source in self.of(Role::Zoo) {
            let TasksConfig::ClassSets { classes, seen: n, orders } = &config.tasks else {
                seen.push(source.whole());
                continue;
            };
            for k in classes.numbers() {
                let sets = source.class_sets(k, *n, &mut rng);
                // Of several numbers some may have few sets: all classes of a source are one.
                if matches!(classes, Classes::One(_)) && sets.len() < *n {
                    return Err(Error::Config(format!(
                        "source {} has {} sets of {k} classes, tasks.seen asks for {n}",
                        source.name,
                        sets.len()
                    )));
                }
                let (own, others) = sets.split_at(sets.len().min(*n));
                seen.extend(datasets::ordered_tasks(&source.name, own, *orders, &mut rng));
                unseen.extend(datasets::ordered_tasks(&source.name, others, 1, &mut rng));
            }
        }
        if let TasksConfig::ClassSets { classes, .. } = &config.tasks
            && let Some(k) = classes.numbers().into_iter().find(|k| seen.iter().all(|task| task.classes.len() != *k))
        {
            return Err(Error::Config(format!(
                "tasks.classes asks for tasks of {k} classes, and no source has so many"
            )));
        }
        Ok((seen, unseen))
    }

    /// The tasks of the sources that are left out: neither backbone nor zoo nor generator saw them.
    #[must_use]
    pub fn left_out(&self, config: &Config) -> Vec<Task> {
        let mut rng = random::stream(config.seed, "left out tasks");
        let mut tasks = Vec::new();
        for source in self.of(Role::LeftOut) {
            let TasksConfig::ClassSets { classes, .. } = &config.tasks else {
                tasks.push(source.whole());
                continue;
            };
            for k in classes.numbers() {
                let sets = source.class_sets(k, 0, &mut rng);
                tasks.extend(datasets::ordered_tasks(&source.name, &sets, 1, &mut rng));
            }
        }
        tasks
    }

    /// At most `n` tasks of `k` classes of each source of a role that has so many, for a `k` that the zoo has no tasks of.
    #[must_use]
    pub fn further_tasks(&self, config: &Config, role: Role, k: usize, n: usize) -> Vec<Task> {
        let mut rng = random::stream(config.seed, &format!("further tasks {k}"));
        let mut tasks = Vec::new();
        for source in self.of(role) {
            let mut sets = source.class_sets(k, 0, &mut rng);
            sets.truncate(n);
            tasks.extend(datasets::ordered_tasks(&source.name, &sets, 1, &mut rng));
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_sets_are_counted_and_many_are_many() {
        assert_eq!((count(10, 5), count(10, 10), count(17, 20), count(24, 20)), (252, 1, 1, 10_626));
        assert!(count(24, 10) > LISTED && count(1000, 500) > LISTED);
    }

    #[test]
    fn drawn_sets_are_sets() {
        let mut rng = random::stream(1, "t");
        for _ in 0..20 {
            let set = draw(9, 4, &mut rng);
            assert!(set.len() == 4 && set.windows(2).all(|w| w[0] < w[1]) && set[3] < 9, "{set:?}");
        }
    }
}
