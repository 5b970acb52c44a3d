//! The tasks of a configuration's zoo, and what follows from their numbers of classes.

use serde::{Deserialize, Serialize};

use super::Config;
use super::validate::need;
use crate::error::{Error, Result};
use crate::networks::denoiser::DenoiserConfig;

/// Which tasks the zoo is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TasksConfig {
    /// Each source with all its classes in their own order is one task.
    Sources,
    /// Ordered choices of some classes of each source.
    ClassSets {
        /// Classes of a task.
        classes: Classes,
        /// Class sets of each source in the zoo, of each number of classes; all others stay unseen.
        seen: usize,
        /// Random orders of each set.
        orders: usize,
    },
}

/// Numbers of classes of tasks. With other than one number the generator makes linear heads of any number of classes, from
/// 2 to the largest of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "tasks.classes is a number such as 5, a list such as [2, 5, 10], or a range such as { min = 2, max = 10 }"
)]
pub enum Classes {
    /// All tasks have this number.
    One(usize),
    /// Tasks of each of these numbers.
    Several(Vec<usize>),
    /// Tasks of each number from the smallest to the largest.
    Range(ClassRange),
}

/// Numbers of classes, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassRange {
    /// The smallest.
    pub min: usize,
    /// The largest.
    pub max: usize,
}

/// Fewest classes of a generator whose requests have any number.
pub const FEWEST: usize = 2;
/// Most classes of such a generator: it carries the forward graph of the head of each number.
const MOST: usize = 256;

impl Classes {
    /// The numbers, ascending.
    #[must_use]
    pub fn numbers(&self) -> Vec<usize> {
        match self {
            Self::One(one) => vec![*one],
            Self::Several(all) => all.clone(),
            Self::Range(ClassRange { min, max }) => (*min..=*max).collect(),
        }
    }

    fn validate(&self) -> Result<()> {
        // Before any range is written out.
        if let Self::Range(ClassRange { min, max }) = self {
            let text = format!("tasks.classes needs {FEWEST} ≤ min ≤ max ≤ {MOST}");
            return need(FEWEST <= *min && min <= max && *max <= MOST, text);
        }
        let numbers = self.numbers();
        need(numbers.iter().all(|k| *k >= FEWEST), "tasks.classes must be at least 2")?;
        let Self::Several(_) = self else { return Ok(()) };
        let ascending = !numbers.is_empty() && numbers.windows(2).all(|pair| pair[0] < pair[1]);
        need(
            ascending && numbers.iter().all(|k| *k <= MOST),
            format!("a list tasks.classes has numbers in ascending order, of at most {MOST}, such as [2, 5, 10]"),
        )
    }
}

impl Config {
    /// The largest number of classes, of a generator whose requests have any number of classes up to it; none where the
    /// number is one and the same.
    #[must_use]
    pub fn most_classes(&self) -> Option<usize> {
        match &self.tasks {
            TasksConfig::ClassSets { classes: Classes::One(_), .. } | TasksConfig::Sources => None,
            TasksConfig::ClassSets { classes, .. } => classes.numbers().last().copied(),
        }
    }

    pub(super) fn validate_tasks(&self) -> Result<()> {
        let TasksConfig::ClassSets { classes, seen, orders } = &self.tasks else { return Ok(()) };
        classes.validate()?;
        need(*seen > 0 && *orders > 0, "tasks.seen and tasks.orders must be at least 1")
    }

    /// What a generator for any number of classes is made of.
    pub(super) fn validate_class_rows(&self) -> Result<()> {
        if let TasksConfig::ClassSets { classes, .. } = &self.tasks
            && self.vae.rows
            && classes.numbers().last() != self.vae.latent.first()
        {
            let which = if self.most_classes().is_some() { "the largest of tasks.classes" } else { "tasks.classes" };
            return Err(Error::Config(format!("with vae.rows the first number of vae.latent must be {which}")));
        }
        if self.most_classes().is_none() {
            return Ok(());
        }
        need(
            self.vae.rows && matches!(self.denoiser, DenoiserConfig::Rows { .. }),
            "tasks.classes of several numbers is for linear heads row by row: set architecture.kind = \"head\", \
             vae.rows = true and denoiser.kind = \"rows\"",
        )?;
        need(
            self.predictor.steps == 0,
            "a predictor takes heads of one number of classes: leave predictor.steps 0 with tasks.classes of several",
        )
    }
}
