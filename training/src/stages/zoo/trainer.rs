//! A zoo's groups in memory: what [`super::build`] trains to the end and writes, and what others advance step by step.

use std::ops::Range;

use weights::Architecture;

use super::header::{Header, header};
use super::{initial, parallel};
use crate::config::{Config, ZooFit};
use crate::data::{Part, Sources, TaskData};
use crate::error::{Error, Result};
use crate::stages::fit::{Fit, Recipe, Score, score};

/// A group of runs, of one architecture, with their data.
pub(super) struct Prepared<'a> {
    config: &'a Config,
    architecture: &'a Architecture,
    train: Vec<TaskData<'a>>,
    seeds: Vec<u64>,
    recipe: &'a Recipe,
    epochs: &'a [usize],
}

impl<'a> Prepared<'a> {
    pub(super) fn new(
        config: &'a Config,
        sources: &'a Sources,
        header: &'a Header,
        range: &Range<usize>,
        recipe: &'a Recipe,
    ) -> Result<Self> {
        let runs = &header.runs[range.clone()];
        Ok(Self {
            config,
            architecture: header.architecture_of(range),
            train: tasks(sources, header, range, Part::Train)?,
            seeds: runs.iter().map(|run| run.seed).collect(),
            recipe,
            epochs: &header.epochs,
        })
    }

    /// The group's models, before their first step.
    pub(super) fn fit(&'a self) -> Result<Fit<'a>> {
        let theta = initial(self.config, self.architecture, &self.train, &self.seeds)?;
        Fit::new(self.architecture, &self.train, theta, &self.seeds, self.recipe, self.epochs)
    }
}

/// Data of one part of the runs' tasks.
pub(super) fn tasks<'a>(
    sources: &'a Sources,
    header: &Header,
    range: &Range<usize>,
    part: Part,
) -> Result<Vec<TaskData<'a>>> {
    header.runs[range.clone()].iter().map(|run| sources.task(&run.task, part)).collect()
}

/// How the models of each architecture are trained; an epoch is as long for all where all tasks have the same number of
/// classes.
pub(super) fn recipes(config: &Config, sources: &Sources, header: &Header) -> Result<Vec<Recipe>> {
    let recipe = |(index, _): (usize, &Architecture)| {
        let own = header.runs.iter().filter(|run| run.architecture == index);
        let tasks = own.map(|run| sources.task(&run.task, Part::Train)).collect::<Result<Vec<_>>>()?;
        Ok(Recipe::new(config.zoo.batch, config.zoo.lr, &tasks))
    };
    header.architectures().enumerate().map(recipe).collect()
}

/// The runs of a configuration's zoo, and how they are trained.
pub struct Plan<'a> {
    config: &'a Config,
    sources: &'a Sources,
    header: Header,
    recipes: Vec<Recipe>,
}

impl<'a> Plan<'a> {
    /// The plan of a configuration.
    ///
    /// # Errors
    /// When the configuration makes no zoo, or one that is not trained step by step.
    pub fn new(config: &'a Config, sources: &'a Sources) -> Result<Self> {
        if config.zoo.fit != ZooFit::Adam {
            return Err(Error::Config("heads by ridge regression are not trained step by step".into()));
        }
        let header = header(config, sources)?;
        let recipes = recipes(config, sources, &header)?;
        Ok(Self { config, sources, header, recipes })
    }

    /// Calls `work` with the zoo's models in memory, before their first step.
    ///
    /// # Errors
    /// When a task's data are missing; those of `work`.
    pub fn train<T>(&self, work: impl FnOnce(&mut Trainer<'_>) -> Result<T>) -> Result<T> {
        let ranges = self.header.groups();
        let groups = ranges
            .iter()
            .map(|range| {
                let recipe = &self.recipes[self.header.runs[range.start].architecture];
                Prepared::new(self.config, self.sources, &self.header, range, recipe)
            })
            .collect::<Result<Vec<_>>>()?;
        let fits = groups.iter().map(Prepared::fit).collect::<Result<Vec<_>>>()?;
        work(&mut Trainer { plan: self, ranges, fits })
    }
}

/// All models of a zoo in memory.
pub struct Trainer<'a> {
    plan: &'a Plan<'a>,
    ranges: Vec<Range<usize>>,
    fits: Vec<Fit<'a>>,
}

impl Trainer<'_> {
    /// Makes `steps` steps of each model, on all cores, as the zoo's build does. Models stand still after their last epoch.
    ///
    /// # Errors
    /// [`Error::Diverged`] when a loss is not finite.
    pub fn advance(&mut self, steps: usize) -> Result<()> {
        parallel::for_each(self.fits.iter_mut().collect(), |fit: &mut Fit<'_>| {
            for _ in 0..steps {
                if fit.advance()?.is_none() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Weights of all models, run by run, each `[d]` of its architecture.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn theta(&self) -> Result<Vec<f32>> {
        Ok(self.fits.iter().map(Fit::theta).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Scores of all models on images of `part`, run by run.
    ///
    /// # Errors
    /// When a task's data are missing.
    pub fn scores(&self, part: Part) -> Result<Vec<Score>> {
        let mut all = Vec::new();
        for (range, fit) in self.ranges.iter().zip(&self.fits) {
            let tasks = tasks(self.plan.sources, &self.plan.header, range, part)?;
            let per_class = tasks.iter().map(TaskData::per_class).min().unwrap_or(0);
            all.extend(score(self.plan.header.architecture_of(range), &tasks, &fit.theta()?, per_class)?);
        }
        Ok(all)
    }
}
