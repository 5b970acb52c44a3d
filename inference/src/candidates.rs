//! Candidates for a dataset's network — generated, retrieved, closed forms — and the search for the best of them: see
//! `docs/CANDIDATES.md`. Where checkpoints are retrieved from is the caller's.

mod order;

use std::collections::BTreeMap;

use datasets::Dataset;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::generator::{Embedding, Generator, Timings};
use crate::options::SampleOptions;
use crate::support::{ClosedForm, Part, Support};
use order::{By, sort};

/// Generated candidates of a fold; more would say little more about where they come from.
const FOLD_SAMPLES: usize = 8;

/// Fewest and most checkpoints that are candidates: within them, as many as samples were asked for.
pub const RETRIEVED: (usize, usize) = (8, 64);

/// Largest distance, in units of the zoo's own spread, of a dataset that counts as near the zoo, where the bundle does not know
/// the zoo's classes ([`Generator::familiarity`]).
pub const NEAR: f64 = 1.5;

/// Where nothing can be held out: the share of the examples, each moved by [`MOVED`] of the way to one of each other class,
/// that what was generated for them must get right, mean over what was generated, to be trusted, where the classes are not
/// known to be far. Closed forms are always right on one example a class; what is generated is not, unless the dataset is
/// like the zoo's. What else was tried, and what it gives: `docs/CANDIDATES.md`.
const TRUSTED: f64 = 0.8;
const MOVED: f32 = 0.2;

/// Where a sample comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The generator's denoiser.
    Generated,
    /// A checkpoint of the generator's zoo whose dataset is near.
    Retrieved,
    /// Ridge regression (towards zero, or towards what is generated) or nearest centroid on the support examples; for
    /// linear heads.
    ClosedForm,
}

impl Origin {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Generated, Self::Retrieved, Self::ClosedForm];

    /// Its name in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Retrieved => "retrieved",
            Self::ClosedForm => "closed_form",
        }
    }
}

/// What decides which candidates are best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RankBy {
    /// Accuracy on support examples that are held out, one of each class at a time.
    LeaveOneOut,
    /// Accuracy on the labelled data of `validation`.
    Validation,
    /// Accuracy that the generator's predictor expects.
    Predictor,
}

/// What a candidate was found to be worth; accuracies from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Scores {
    /// Accuracy that candidates of this origin (and closed form) reached on support examples held out; one number for
    /// all of them.
    #[cfg_attr(feature = "schema", schema(required, example = 0.92))]
    pub leave_one_out: Option<f64>,
    /// Accuracy on the validation data.
    #[cfg_attr(feature = "schema", schema(required, example = 0.95))]
    pub validation: Option<f64>,
    /// Accuracy that the generator's predictor expects of its weights.
    #[cfg_attr(feature = "schema", schema(required, example = 0.91))]
    pub predictor: Option<f64>,
    /// Accuracy on the support examples, which it was made from.
    #[cfg_attr(feature = "schema", schema(required, example = 1.0))]
    pub support_accuracy: Option<f64>,
    /// Mean cross-entropy on the support examples, in nats.
    #[cfg_attr(feature = "schema", schema(required, example = 0.03))]
    pub support_loss: Option<f64>,
}

/// A network that may be a sample; `K` names a retrieved checkpoint.
#[derive(Debug, Clone)]
pub struct Candidate<K> {
    /// Where it comes from.
    pub origin: Origin,
    /// Of a closed form: which.
    pub method: Option<ClosedForm>,
    /// Of a generated one: which draw of the noise.
    pub draw: Option<usize>,
    /// Of a retrieved one: the checkpoint.
    pub checkpoint: Option<K>,
    /// Its weights, `[d]`.
    pub theta: Vec<f32>,
    /// None where nothing was ranked.
    pub scores: Option<Scores>,
    /// Loss on the validation data.
    pub validation_loss: Option<f64>,
}

impl<K> Candidate<K> {
    /// One of which nothing else is known.
    pub fn new(origin: Origin, theta: Vec<f32>) -> Self {
        Self { origin, method: None, draw: None, checkpoint: None, theta, scores: None, validation_loss: None }
    }

    /// The candidates that have one leave-one-out score.
    fn group(&self) -> Group {
        (self.origin, self.method)
    }
}

/// An origin, and of closed forms which.
type Group = (Origin, Option<ClosedForm>);

/// Of each held-out example whether it was told right, by group.
type Outcomes = BTreeMap<Group, Vec<bool>>;

/// A checkpoint and its weights, `[d]`.
pub type Found<K> = (K, Vec<f32>);

/// Candidates, and what making them took.
type Made<K> = (Vec<Candidate<K>>, Timings);

/// Who makes candidates: where checkpoints are retrieved, whether to go on, who learns of progress.
pub trait Place {
    /// Names a checkpoint.
    type Key;
    /// Its own errors.
    type Error: From<Error>;

    /// Checkpoints of the zoo whose datasets' embeddings are nearest to `embedding`, nearest first, with their weights.
    ///
    /// # Errors
    /// Its own.
    fn nearest(&mut self, embedding: &[f32]) -> Result<Vec<Found<Self::Key>>, Self::Error>;

    /// Whether to go on.
    ///
    /// # Errors
    /// When not.
    fn check(&self) -> Result<(), Self::Error>;

    /// Learns of the steps of the request's own samples; false stops them.
    fn step(&self, step: usize, steps: usize) -> bool;
}

/// Makes the candidates of a request.
pub struct Maker<'a, P: Place> {
    /// The generator.
    pub generator: &'a Generator,
    /// How it is sampled.
    pub options: &'a SampleOptions,
    /// Where candidates come from.
    pub origins: &'a [Origin],
    /// How far the dataset is from the zoo's, in units of their own spread; none where that is not known.
    pub distance: Option<f64>,
    /// Whether its classes are like the zoo's ([`Generator::familiarity`]); none where that is not known.
    pub near: Option<bool>,
    /// Who asks.
    pub place: P,
}

/// What was ranked: the best first.
#[derive(Debug)]
pub struct Ranked<K> {
    /// The candidates.
    pub candidates: Vec<Candidate<K>>,
    /// What the caller should be told.
    pub warnings: Vec<String>,
    /// Of the request's own samples.
    pub timings: Timings,
}

impl<P: Place> Maker<'_, P> {
    /// Makes all candidates of a support, gives them their scores, and puts the best first.
    ///
    /// # Errors
    /// Those of the generator and of the place.
    pub fn rank(
        mut self,
        support: &Support,
        embedding: &Embedding,
        validation: Option<&Dataset>,
        rank_by: RankBy,
    ) -> Result<Ranked<P::Key>, P::Error> {
        let (mut candidates, timings) = self.make(&support.whole(), embedding, self.options.count, true)?;
        let mut warnings = Vec::new();
        let by = match rank_by {
            RankBy::Validation => {
                self.validate(&mut candidates, validation)?;
                By::Validation
            }
            RankBy::Predictor => {
                self.predict(&mut candidates, embedding)?;
                By::Predictor
            }
            RankBy::LeaveOneOut if support.folds() == 0 => {
                let moved = support.whole().moved(MOVED)?;
                let trusted = self.near != Some(false) && self.generated_accuracy(&candidates, &moved)? >= TRUSTED;
                warnings.push(one_example(trusted));
                By::OneExample { trusted }
            }
            RankBy::LeaveOneOut => {
                let found = self.leave_one_out(support)?;
                let share = |right: &Vec<bool>| right.iter().filter(|r| **r).count() as f64 / right.len().max(1) as f64;
                for candidate in &mut candidates {
                    let score = found.get(&candidate.group()).map(share);
                    candidate.scores.get_or_insert_default().leave_one_out = score;
                }
                let near = self.near.or(self.distance.map(|distance| distance <= NEAR)).unwrap_or(false);
                By::LeaveOneOut { near, leader: order::leader(&found, near) }
            }
        };
        sort(&mut candidates, by);
        Ok(Ranked { candidates, warnings, timings })
    }

    /// Accuracy of what was generated on examples, mean over all that was generated; 0 for none.
    fn generated_accuracy(&self, candidates: &[Candidate<P::Key>], data: &Dataset) -> Result<f64, P::Error> {
        let mut found = Vec::new();
        for candidate in candidates.iter().filter(|candidate| candidate.origin == Origin::Generated) {
            self.place.check()?;
            found.push(self.generator.evaluate(&candidate.theta, data)?.accuracy);
        }
        Ok(found.iter().sum::<f64>() / found.len().max(1) as f64)
    }

    fn has(&self, origin: Origin) -> bool {
        self.origins.contains(&origin)
    }

    /// The candidates of a part of the support, with their scores on it.
    fn make(
        &mut self,
        part: &Part,
        embedding: &Embedding,
        count: usize,
        reports: bool,
    ) -> Result<Made<P::Key>, P::Error> {
        let mut candidates = Vec::new();
        let mut timings = Timings::default();
        if self.has(Origin::Retrieved) {
            for (key, theta) in self.place.nearest(&embedding.dataset)? {
                candidates.push(Candidate { checkpoint: Some(key), ..Candidate::new(Origin::Retrieved, theta) });
            }
        }
        if self.has(Origin::Generated) {
            let options = SampleOptions { count, ..self.options.clone() };
            let generated =
                self.generator.generate_on(
                    embedding,
                    &options,
                    Some(&part.data),
                    &mut |step, steps| match reports {
                        true => self.place.step(step, steps),
                        false => self.place.check().is_ok(),
                    },
                )?;
            timings = generated.timings;
            for (draw, theta) in generated.weights.into_iter().enumerate() {
                candidates.push(Candidate { draw: Some(draw), ..Candidate::new(Origin::Generated, theta) });
            }
        }
        if self.has(Origin::ClosedForm) {
            let generated = candidates.iter().filter(|c| c.origin == Origin::Generated);
            let generated = generated.filter(|_| part.several()).map(|c| c.theta.clone());
            for (form, theta) in self.generator.closed_forms(&part.data, &generated.collect::<Vec<_>>())? {
                candidates.push(Candidate { method: Some(form), ..Candidate::new(Origin::ClosedForm, theta) });
            }
        }
        for candidate in &mut candidates {
            self.place.check()?;
            let found = self.generator.evaluate(&candidate.theta, &part.data)?;
            let scores = candidate.scores.get_or_insert_default();
            (scores.support_accuracy, scores.support_loss) = (Some(found.accuracy), Some(found.loss));
        }
        Ok((candidates, timings))
    }

    fn validate(&self, candidates: &mut [Candidate<P::Key>], data: Option<&Dataset>) -> Result<(), P::Error> {
        let Some(data) = data else { return Ok(()) };
        for candidate in candidates {
            self.place.check()?;
            let found = self.generator.evaluate(&candidate.theta, data)?;
            candidate.validation_loss = Some(found.loss);
            candidate.scores.get_or_insert_default().validation = Some(found.accuracy);
        }
        Ok(())
    }

    /// What the predictor expects of each; checkpoints in the order of hidden units that it knows.
    fn predict(&self, candidates: &mut [Candidate<P::Key>], embedding: &Embedding) -> Result<(), P::Error> {
        let mut all = Vec::with_capacity(candidates.len());
        for candidate in &*candidates {
            self.place.check()?;
            all.push(match candidate.origin {
                Origin::Retrieved => self.generator.canonical(&candidate.theta)?,
                _ => candidate.theta.clone(),
            });
        }
        let found = self.generator.predict(&all, embedding)?.unwrap_or_default();
        for (candidate, accuracy) in candidates.iter_mut().zip(found) {
            candidate.scores.get_or_insert_default().predictor = Some(accuracy);
        }
        Ok(())
    }

    /// What of the held-out examples each origin, and each closed form, tells right. A fold does what the answer does: of
    /// an origin's candidates, the one that is best on the rest is tried.
    fn leave_one_out(&mut self, support: &Support) -> Result<Outcomes, P::Error> {
        let folds: Vec<_> = (0..support.folds()).map(|fold| support.fold(fold)).collect();
        let features: Vec<_> = folds.iter().map(|fold| fold.rest.features.clone()).collect();
        let embeddings = self.generator.embed_many(&features)?;
        let mut outcomes = Outcomes::new();
        for (fold, embedding) in folds.iter().zip(&embeddings) {
            let count = self.options.count.min(FOLD_SAMPLES);
            let (mut candidates, _) = self.make(&fold.rest, embedding, count, false)?;
            sort(&mut candidates, By::Support);
            let mut tried = Vec::new();
            for candidate in &candidates {
                if !tried.contains(&candidate.group()) {
                    tried.push(candidate.group());
                    let found = self.generator.evaluate(&candidate.theta, &fold.held_out)?;
                    let right = found.predictions.iter().zip(&fold.held_out.labels).map(|(p, l)| p == l);
                    outcomes.entry(candidate.group()).or_default().extend(right);
                }
            }
        }
        let examples: usize = folds.iter().map(|fold| fold.held_out.len()).sum();
        // An origin that some fold had nothing of has no score.
        outcomes.retain(|_, right| right.len() == examples);
        Ok(outcomes)
    }
}

fn one_example(trusted: bool) -> String {
    let how = match trusted {
        true => {
            "the classes are like the zoo's, and what is generated gets the examples right, also moved towards those of \
             other classes, so that it comes first"
        }
        false => {
            "the classes are not like the zoo's, or what is generated does not get the examples right when they are moved \
             towards those of other classes, so that closed forms come first where there are any"
        }
    };
    format!(
        "leave-one-out needs two different examples of each class, and one has less: {how}, and then the loss on the \
         examples that candidates were made from decides, which says little; give more examples, or rank by validation"
    )
}
